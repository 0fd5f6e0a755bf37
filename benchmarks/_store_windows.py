"""Windows from a local store: against what peers do, over bags of many sizes, and the memory they take."""

import json
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.common import Found, alternate, make_store, memory_of, ratios, run_alone, spread
from benchmarks.store import LAYOUTS, Scale, bag, write_cohort
from gimp_ray.store import CohortStore

STORE = "this store"


def against_peers(folder: Path, cohorts: dict[str, Path], store: CohortStore, scale: Scale) -> list[Found]:
    """Milliseconds of a random window of the largest length, and how many times as long as the store's it takes."""
    import torch

    starts = np.random.default_rng(0).integers(0, scale.patches - scale.length + 1, 1 + scale.rounds * 7)
    maps = []
    for slide in range(scale.slides):
        values = bag(slide, scale.patches, scale.dim)
        torch.save(torch.from_numpy(values), folder / f"S{slide}.pt")
        values.astype(np.float16).tofile(folder / f"S{slide}.f16")
        maps.append(np.memmap(folder / f"S{slide}.f16", dtype=np.float16, mode="r", shape=values.shape))

    def window(read: Callable[[int, slice], Any]) -> Callable[[int], None]:
        def run(number: int) -> None:
            read(number % scale.slides, slice(starts[number], starts[number] + scale.length))

        return run

    def from_h5(layout: str) -> Callable[[int, slice], Any]:
        def read(slide: int, rows: slice) -> Any:
            with h5py.File(cohorts[layout] / "patches" / f"S{slide}.h5") as file:
                return file["features"][rows]

        return read

    def from_pt(mmap: bool) -> Callable[[int, slice], Any]:
        return lambda slide, rows: torch.load(folder / f"S{slide}.pt", weights_only=True, mmap=mmap)[rows].half()

    contestants = {
        STORE: lambda slide, rows: store.read_window(f"S{slide}", int(rows.start), scale.length),
        "memory-map, float16, copied": lambda slide, rows: np.array(maps[slide][rows]),
        "torch.load of the float32 bag, slice, half": from_pt(False),
        "torch.load(mmap=True), slice, half": from_pt(True),
    } | {f"h5, {layout}, slice": from_h5(layout) for layout in LAYOUTS}
    seconds = alternate({name: window(read) for name, read in contestants.items()}, scale.rounds * 3)
    for left in folder.glob("S*.[pf]*"):
        left.unlink()
    return [
        {"reader": name, "ms": spread(taken, 1000), "times_the_store": ratios(taken, seconds[STORE])}
        for name, taken in seconds.items()
    ]


def over_sizes(folder: Path, scale: Scale) -> Found:
    """Milliseconds of windows from bags of many sizes, and the memory a process needs for them, in windows."""
    bags = {f"N{size}": lambda size=size: bag(size, size, scale.dim) for size in scale.bag_sizes}  # type: ignore[misc]
    store = make_store(write_cohort(folder / "sizes", bags, 32), folder / "sizes-store", workers=1)
    generator, length = np.random.default_rng(1), min(scale.length, *scale.bag_sizes)

    def window(size: int) -> Callable[[int], object]:
        return lambda _: store.read_window(f"N{size}", int(generator.integers(0, size - length + 1)), length)

    seconds = alternate({str(size): window(size) for size in scale.bag_sizes}, scale.rounds * 4)
    rows: list[Found] = [
        {
            "patches": size,
            "ms": spread(seconds[str(size)], 1000),
            "times_the_smallest": ratios(seconds[str(size)], seconds[str(scale.bag_sizes[0])]),
        }
        | run_alone("benchmarks._store_windows", {"place": store.path, "size": size, "length": length})
        for size in scale.bag_sizes
    ]
    medians = [row["ms"]["median"] for row in rows]
    return {"length": length, "rows": rows, "most_over_least": max(medians) / min(medians)}


def measure_memory(place: str, size: int, length: int) -> Found:
    """Growth of this process under 30 random windows, in windows.

    `resident` is the most of RssAnon, asked a thousand times a second, less what it was when the store was open: pages
    of mapped files are the kernel's cache and not in it. `allocated` is the peak of tracemalloc; numpy reports to it.
    """
    store, generator = CohortStore.open(place), np.random.default_rng(0)
    one = length * (store.dim or 0) * 2
    store.read_window(f"N{size}", 0, 1)
    before, seen, over = memory_of("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            seen.append(memory_of("RssAnon"))

    def read() -> None:
        for start in generator.integers(0, size - length + 1, 30):
            store.read_window(f"N{size}", int(start), length)

    watcher = threading.Thread(target=watch)
    watcher.start()
    read()
    over.set()
    watcher.join()
    tracemalloc.start()
    read()
    return {"resident": (max(seen) - before) / one, "allocated": tracemalloc.get_traced_memory()[1] / one}


if __name__ == "__main__":
    print(json.dumps(measure_memory(**json.loads(sys.argv[1]))))
