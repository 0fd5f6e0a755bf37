"""Windows from a local store: against what peers do, over bags of many sizes, and the memory they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from _store_files import Scale, bag, make_store, write_cases, write_h5
from _store_timing import alternate, ratios, spread

from gimp_ray.store import CohortStore

STORE, MEMMAP = "this store", "memory-map, float16, copied"
TORCH, TRIDENT = "torch.load of the float32 bag, slice, half", "h5, TRIDENT, 1 patch a chunk, slice"


def against_peers(folder: Path, cohorts: dict[str, Path], store: CohortStore, scale: Scale) -> list[dict[str, Any]]:
    """Milliseconds of a random window of the largest length, and how many times as long as the store's it takes."""
    starts = np.random.default_rng(0).integers(0, scale.patches - scale.length + 1, 1 + scale.rounds * 7)
    maps = []
    for slide in range(scale.slides):
        values = bag(slide, scale.patches, scale.dim)
        torch.save(torch.from_numpy(values), folder / f"S{slide}.pt")
        values.astype(np.float16).tofile(folder / f"S{slide}.f16")
        shape = (scale.patches, scale.dim)
        maps.append(np.memmap(folder / f"S{slide}.f16", dtype=np.float16, mode="r", shape=shape))

    def window(read: Callable[[int, int, int], Any]) -> Callable[[int], None]:
        def run(number: int) -> None:
            start = int(starts[number])
            read(number % scale.slides, start, start + scale.length)

        return run

    def from_h5(layout: str) -> Callable[[int, int, int], Any]:
        def read(slide: int, start: int, stop: int) -> Any:
            with h5py.File(cohorts[layout] / "patches" / f"S{slide}.h5") as file:
                return file["features"][start:stop]

        return read

    def from_pt(slide: int, start: int, stop: int) -> Any:
        return torch.load(folder / f"S{slide}.pt", weights_only=True)[start:stop].half()

    def from_mapped_pt(slide: int, start: int, stop: int) -> Any:
        return torch.load(folder / f"S{slide}.pt", weights_only=True, mmap=True)[start:stop].half()

    contestants = {
        STORE: window(lambda slide, start, stop: store.read_window(f"S{slide}", start, stop - start)),
        MEMMAP: window(lambda slide, start, stop: np.array(maps[slide][start:stop])),
        TORCH: window(from_pt),
        "torch.load(mmap=True), slice, half": window(from_mapped_pt),
        TRIDENT: window(from_h5("TRIDENT, 1 patch a chunk")),
        "h5, CLAM, 32 patches a chunk, slice": window(from_h5("CLAM, 32 patches a chunk")),
        "h5, contiguous, slice": window(from_h5("contiguous")),
    }
    seconds = alternate(contestants, scale.rounds * 3)
    for left in folder.glob("S*.[pf]*"):
        left.unlink()
    return [
        {"reader": name, "ms": spread(taken, 1000), "times_the_store": ratios(taken, seconds[STORE])}
        for name, taken in seconds.items()
    ]


def over_sizes(folder: Path, scale: Scale) -> dict[str, Any]:
    """Milliseconds of windows from bags of many sizes, and the memory a process needs for them, in windows."""
    cohort = folder / "sizes"
    for size in scale.bag_sizes:
        write_h5(cohort / "patches" / f"N{size}.h5", bag(size, size, scale.dim), 32)
    write_cases(cohort, [f"N{size}" for size in scale.bag_sizes])
    store = make_store(cohort, folder / "sizes-store")
    generator, length = np.random.default_rng(1), min(scale.length, *scale.bag_sizes)

    def window(size: int) -> Callable[[int], object]:
        return lambda _: store.read_window(f"N{size}", int(generator.integers(0, size - length + 1)), length)

    seconds = alternate({str(size): window(size) for size in scale.bag_sizes}, scale.rounds * 4)
    smallest = seconds[str(scale.bag_sizes[0])]
    rows = [
        {
            "patches": size,
            "ms": spread(seconds[str(size)], 1000),
            "times_the_smallest": ratios(seconds[str(size)], smallest),
            **_memory_of(store.path, f"N{size}", size, length),
        }
        for size in scale.bag_sizes
    ]
    medians = [row["ms"]["median"] for row in rows]  # type: ignore[index]
    return {"length": length, "rows": rows, "most_over_least": max(medians) / min(medians)}


def _memory_of(place: str, slide_id: str, size: int, length: int) -> dict[str, float]:
    """What a new process measures of itself: see `measure_memory`."""
    command = [sys.executable, __file__, place, slide_id, str(size), str(length)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, cwd=Path.cwd())
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


def measure_memory(place: str, slide_id: str, size: int, length: int) -> dict[str, float]:
    """Growth of this process under 30 random windows, in windows.

    `resident` is the most of RssAnon, asked a thousand times a second, less what it was when the store was open: pages
    of mapped files are the kernel's cache and not in it. `allocated` is the peak of tracemalloc; numpy reports to it.
    """
    store = CohortStore.open(place)
    generator = np.random.default_rng(0)
    one = length * (store.dim or 0) * 2
    store.read_window(slide_id, 0, 1)
    before, seen, done = _anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(_anonymous())

    def read() -> None:
        for start in generator.integers(0, size - length + 1, 30):
            store.read_window(slide_id, int(start), length)

    watcher = threading.Thread(target=watch)
    watcher.start()
    read()
    done.set()
    watcher.join()
    tracemalloc.start()
    read()
    return {"resident": (max(seen) - before) / one, "allocated": tracemalloc.get_traced_memory()[1] / one}


def _anonymous() -> int:
    with open(f"/proc/{os.getpid()}/status", encoding="ascii") as stream:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("RssAnon"))


if __name__ == "__main__":
    print(json.dumps(measure_memory(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
