"""Two commands on one run folder, and a command that was killed: the next one of its kind does as if nothing was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine.checkpoint import STALE_SECONDS, checkpoint_folders
from gimp_ray.errors import InputError
from gimp_ray.runs.folder import LOCK, RunFolder
from tests.conftest import changed
from tests.engine.test_resume import metrics, same_weights
from tests.faults.running import SLOW_WRITES, started, wait_for_steps


@pytest.fixture
def long(tiny: Config) -> Config:
    """Pre-training of many short epochs, a checkpoint each."""
    return changed(tiny, genes__encoder="none", train__epochs=40, checkpoint__every_epochs=3)


def state(process: int, thread: int) -> str:
    """A thread's state letter, as Linux gives it."""
    return Path(f"/proc/{process}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_second_command_is_refused_and_a_killed_ones_lock_taken_over(long: Config, tmp_path: Path) -> None:
    run = RunFolder(long.run or "")
    with started("pretrain", long, tmp_path / "run.yaml") as first:
        wait_for_steps(first, run, "pretrain", 20)
        first.send_signal(signal.SIGSTOP)
        # the signal is sent at once and takes effect a little later, in each thread
        while not all(state(first.pid, thread.id) == "T" for thread in psutil.Process(first.pid).threads()):
            time.sleep(0.01)
        before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        with pytest.raises(InputError, match="another command is at work on this run") as refusal:
            pipeline.pretrain(long)
        assert f"process {first.pid} on this machine, since 20" in (refusal.value.found or "")
        assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before
        first.kill()
        first.wait()
    assert (run.path / LOCK).exists()
    pipeline.pretrain(long)
    assert not (run.path / LOCK).exists()
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["running", "done"]
    whole = pipeline.pretrain(changed(long, run=str(tmp_path / "whole")))
    assert metrics(run, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(run.model_file("pretrain"), whole.model_file("pretrain"))


@pytest.mark.parametrize("whole_weights", [False, True], ids=["in the weights", "before it is said to be whole"])
def test_killed_while_a_checkpoint_is_written(tiny: Config, tmp_path: Path, whole_weights: bool) -> None:
    """Each of two attempts is killed in the middle of its second checkpoint: the one before is gone on from."""
    config = changed(
        tiny, genes__encoder="none", train__epochs=30, checkpoint__every_epochs=30, checkpoint__every_steps=7
    )
    run = RunFolder(config.run or "")
    folder = run.checkpoints("pretrain")
    for attempt in (1, 2):
        with started("pretrain", config, tmp_path / "run.yaml", SLOW_WRITES) as process:
            before = len(checkpoint_folders(folder))
            torn = wait_for_torn(process, folder, before, whole_weights)
            process.kill()
            process.wait()
        whole = checkpoint_folders(folder)
        assert [one.name for one in whole] == [f"step-{7 * step:08d}" for step in range(1, attempt + 1)]
        assert torn.exists() and not (torn / "state.json").exists(), "it was killed in the middle"
        for other in folder.glob(".step-*"):
            os.utime(other, (time.time() - STALE_SECONDS - 1,) * 2)
    pipeline.pretrain(config)
    assert [one.name for one in folder.iterdir() if one.name.startswith(".")] == [], "what was torn is removed"
    undisturbed = pipeline.pretrain(changed(config, run=str(tmp_path / "whole")))
    assert metrics(run, "pretrain") == metrics(undisturbed, "pretrain")
    assert same_weights(run.model_file("pretrain"), undisturbed.model_file("pretrain"))


def wait_for_torn(process: subprocess.Popen[str], folder: Path, before: int, whole_weights: bool) -> Path:
    """Until a checkpoint is being written after one more has become whole; gives what there is of it."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.005)
        for torn in folder.glob(".step-*") if len(checkpoint_folders(folder)) == before + 1 else []:
            with contextlib.suppress(OSError):
                found = (torn / "state.safetensors").stat().st_size
                full = (checkpoint_folders(folder)[-1] / "state.safetensors").stat().st_size
                if (found == full) if whole_weights else (0 < found < full):
                    return torn
    raise AssertionError("no checkpoint was seen in the middle")


@pytest.mark.parametrize("lock", ["{", json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0, "since": "today"})])
def test_a_lock_of_another_machine_or_one_that_cannot_be_read_is_respected(tiny: Config, lock: str) -> None:
    run = RunFolder(tiny.run or "")
    run.path.mkdir()
    (run.path / LOCK).write_text(lock)
    with pytest.raises(InputError, match="another command is at work") as refusal:
        pipeline.pretrain(tiny)
    assert LOCK in (refusal.value.fix or "") and [file.name for file in run.path.iterdir()] == [LOCK]
