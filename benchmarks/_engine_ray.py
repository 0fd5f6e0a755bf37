"""A run on Ray while a worker is killed, and one of ten thousand steps: seconds to go on, memory over time.

The command runs as a process of its own; what it holds is read from outside. That nothing is lost is
proved in `tests/faults`.
"""

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT, Found, memory_of
from gimp_ray.config import Config
from gimp_ray.config_files import to_yaml
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder

WORKER = "ray::RayTrainWorker"


def recovery(config: Config, folder: Path, kills: int) -> Found:
    """Kill one of the workers in the middle of pre-training, again and again; seconds until the next step is logged."""
    run = RunFolder(config.run or "")
    seconds = []
    with _command(config, folder) as process:
        _until(process, lambda: _steps(run) >= 3)
        for _ in range(kills):
            workers = _children(process, WORKER)
            workers[-1].send_signal(signal.SIGKILL)
            killed = time.time()
            _until(process, lambda since=killed + 1: _newest(run) > since)  # type: ignore[misc]
            seconds.append(_first_after(run, killed + 1) - killed)
            before = _steps(run)
            _until(process, lambda least=before + 5: _steps(run) >= least)  # type: ignore[misc]
    return {"seconds": seconds, "workers": config.train.workers, "kills": kills}


def soak(config: Config, folder: Path, steps: int, warm_up: int) -> Found:
    """Memory of the worker over the steps, and what Ray's object store spilled."""
    run = RunFolder(config.run or "")
    seen: list[tuple[int, float, float]] = []
    with _command(config, folder) as process:
        started = time.perf_counter()
        while process.poll() is None and (not seen or seen[-1][0] < steps):
            workers = _children(process, WORKER)
            if workers:
                with contextlib.suppress(OSError, StopIteration):
                    pid = workers[0].pid
                    seen.append((_steps(run), memory_of("RssAnon", pid) / 1e6, memory_of("RssShmem", pid) / 1e6))
            time.sleep(1)
        process.wait(120)
        seconds = time.perf_counter() - started
        spilled = "Spilled" in (folder / "out.txt").read_text()
    early = [mb for step, mb, _ in seen if warm_up <= step < warm_up + steps // 10]
    late = [mb for step, mb, _ in seen if step >= steps - steps // 10]
    return {
        "steps": _steps(run),
        "seconds": seconds,
        "memory_mb": seen,
        "early_mb": statistics.median(early),
        "late_mb": statistics.median(late),
        "growth": statistics.median(late) / statistics.median(early) - 1,
        "object_store_mb": max(shared for *_, shared in seen),
        "spilled": spilled,
    }


@contextlib.contextmanager
def _command(config: Config, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`gimp pretrain` on a local Ray, ended with all it started."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(to_yaml(config))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (folder / "out.txt").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "gimp_ray.cli.commands", "pretrain", "--config", str(file)],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"},
        )
        try:
            yield process
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
            process.wait()
            for child in family:
                with contextlib.suppress(psutil.Error):
                    child.kill()


def _children(process: subprocess.Popen[bytes], name: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if re.match(name, " ".join(child.cmdline())):
                found.append(child)
    return found


def _until(process: subprocess.Popen[bytes], there: Any) -> None:
    until = time.monotonic() + 600
    while not there():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the run ended, or does not go on")
        time.sleep(0.05)


def _lines(run: RunFolder) -> list[Found]:
    return [line for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]


def _steps(run: RunFolder) -> int:
    return max((line["step"] for line in _lines(run)), default=0)


def _newest(run: RunFolder) -> float:
    return max((line["time"] for line in _lines(run)), default=0.0)


def _first_after(run: RunFolder, since: float) -> float:
    return min(line["time"] for line in _lines(run) if line["time"] > since)
