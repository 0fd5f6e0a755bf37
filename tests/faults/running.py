"""Commands in processes of their own, for tests that stop and kill them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from gimp_ray.config import Config
from gimp_ray.config_files import to_yaml
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
GIMP = ("-m", "gimp_ray.cli.commands")
# tests/faults/slow.py: pre-training waits while a file lies beside the run folder, or checkpoints are written slowly
SLOW_GIMP = ("-c", "from tests.faults.slow import main; main()")
SLOW_WRITES = ("-c", "from tests.faults.slow import slow_writes; slow_writes()")
TRAIN_WORKER = "RayTrainWorker"
DATA_TASK = "ReadRange->MapBatches(_encode_rows)"
PATIENCE_S = 900


@contextlib.contextmanager
def started(verb: str, config: Config, file: Path, gimp: tuple[str, ...] = GIMP) -> Iterator[subprocess.Popen[str]]:
    """`gimp VERB` on a config, killed at the end of the block where it still runs."""
    file.write_text(to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, *gimp, verb, "--config", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Command:
    """A command that goes on beside the test, and all the processes below it."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self._output = process, output

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def until(self, there: Callable[[], bool], patience: float = PATIENCE_S) -> None:
        """Wait for something to happen; the command must still run then."""
        end = time.monotonic() + patience
        while not there():
            assert self.process.poll() is None and time.monotonic() < end, self.output()[-8000:]
            time.sleep(0.02)

    def succeeded(self) -> str:
        """Wait for its end, which must be a good one; what it printed."""
        assert self.process.wait(PATIENCE_S) == 0, self.output()[-8000:]
        return self.output()

    def below(self) -> list[psutil.Process]:
        """All processes it has started, and theirs."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextlib.contextmanager
def commanded(arguments: list[str], output: Path, **environment: str) -> Iterator[Command]:
    """Python with some arguments, its output in a file; killed at the end of the block, with all that it started.

    Args:
        arguments: of the interpreter.
        output: file to write.
        environment: variables added to this process's, RAY_ADDRESS excepted.
    """
    mine = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=mine | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"} | environment,
            cwd=ROOT,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    command = Command(process, output)
    try:
        yield command
    finally:
        below = command.below() if process.poll() is None else []
        process.kill()
        process.wait()
        kill(below)


@contextlib.contextmanager
def beside(config: Config, folder: Path, name: str = "first", **environment: str) -> Iterator[Command]:
    """Slow `gimp pretrain` on a config, its output in a file; killed at the end of the block, with all that it started.

    Args:
        config: of the run.
        folder: where its config and output go.
        name: of these files.
        environment: variables added to this process's, RAY_ADDRESS excepted.
    """
    file, output = folder / f"{name}.yaml", folder / f"{name}.txt"
    file.write_text(to_yaml(config))
    with commanded([*SLOW_GIMP, "pretrain", "--config", str(file)], output, **environment) as command:
        yield command


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL to each of them that still runs."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def doing(processes: list[psutil.Process], what: str) -> list[psutil.Process]:
    """Those of Ray's worker processes that are at some actor's or task's work."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::{what}"):
                found.append(process)
    return found


def gone(processes: list[psutil.Process], patience: float) -> list[psutil.Process]:
    """Those that still run after a while."""
    end = time.monotonic() + patience
    while (left := [one for one in processes if _alive(one)]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def steps_logged(run: RunFolder, stage: str) -> int:
    """Optimiser steps of a stage that stand in its log."""
    return sum(line["kind"] == "step" for line in read_lines(run.metrics_log(stage)))


def wait_for_steps(process: subprocess.Popen[str], run: RunFolder, stage: str, steps: int) -> None:
    """Until the log has so many steps; the process must still run then."""
    until = time.monotonic() + 120
    while steps_logged(run, stage) < steps:
        assert process.poll() is None and time.monotonic() < until, process.stdout and process.stdout.read()
        time.sleep(0.005)
