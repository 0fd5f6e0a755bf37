"""Timing contestants side by side, and the machine that they ran on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from gimp_ray.ingest.work import usable_cpus

Spread = dict[str, float]
STATUS = Path("/proc/self/status")


def alternate(contestants: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round; each round runs all of them, in an order that moves on.

    A contestant is called with the number of the round. One round before is not counted.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            started = time.perf_counter()
            contestants[name](max(number, 0))
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: Sequence[float], scale: float = 1.0) -> Spread:
    """Median, least and most of some values times `scale`."""
    scaled = [value * scale for value in values]
    return {"median": statistics.median(scaled), "min": min(scaled), "max": max(scaled)}


def ratios(of: Sequence[float], to: Sequence[float]) -> Spread:
    """Spread of the quotient of two contestants, round by round: what one round had in its way, the other had too."""
    return spread([a / b for a, b in zip(of, to, strict=True)])


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (most since the reset), bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def machine() -> dict[str, object]:
    """The processor, its cores and memory, and the versions of what reads and writes."""
    import h5py
    import numpy
    import pyarrow
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": usable_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "h5py": h5py.__version__,
        "torch": torch.__version__,
    }


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """The environment with some variables changed."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def forget_pages(paths: Sequence[Path]) -> None:
    """Ask the kernel to drop the files from its cache; what is still to be written is written first."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
