"""Ingest against reading the same files, where its time goes, the memory it takes, and what number formats cost."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from benchmarks.common import Found, alternate, make_store, memory_of, ratios, run_alone, spread
from benchmarks.store import Scale, bag, write_cohort
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.ingest.patches import inspect_patches
from gimp_ray.ingest.patches.write import WrittenBytes, chunk_rows, stored_chunks
from gimp_ray.ingest.work import WorkPool
from gimp_ray.store import CohortStore
from gimp_ray.store.dtypes import DTYPES, encode
from gimp_ray.store.part_writer import PartWriter, SlideHash
from gimp_ray.store.schema import ROW_GROUP_ROWS


def read_and_drop(task: tuple[list[Path], int]) -> None:
    """All features and coordinates of some files through h5py, as many patches at a time as an ingest takes."""
    paths, rows = task
    for path in paths:
        with h5py.File(path) as file:
            features, coords = file["features"], file["coords"]
            for start in range(0, len(features), rows):
                _ = features[start : start + rows], coords[start : start + rows]


class Warm(WorkPool):
    """Processes that are there already, and stay: starting them is not what is compared."""

    def __exit__(self, *_: object) -> None:
        return

    def end(self) -> None:
        super().__exit__(None, None, None)


def against_reading(cohorts: dict[str, Path], scratch: Path, scale: Scale) -> list[Found]:
    """Megabytes of float32 a second of both, and the ingest's share, from the page cache and from the disk."""
    rows = []
    for workers in (1, 2):
        pool = Warm(workers, lambda _: None)
        pool.map(time.sleep, [0.5] * workers)
        for layout, folder in cohorts.items():
            for cached in (True, False):
                seconds = _compare(folder, scratch / "ingested", pool, workers, cached, scale)
                rates = {name: [scale.source_bytes / 1e6 / s for s in taken] for name, taken in seconds.items()}
                rows.append(
                    {
                        "layout": layout,
                        "processes": workers,
                        "from": "cache" if cached else "disk",
                        "read_mb_s": spread(rates["read"]),
                        "ingest_mb_s": spread(rates["ingest"]),
                        "share": ratios(seconds["read"], seconds["ingest"]),
                    }
                )
        pool.end()
    return rows


def _compare(folder: Path, out: Path, pool: Warm, workers: int, cached: bool, scale: Scale) -> dict[str, list[float]]:
    """Seconds of reading and of ingest in turn; clearing the output and the page cache between is not counted."""
    paths = sorted((folder / "patches").glob("*.h5"))
    tasks = [(paths[i::workers], chunk_rows(scale.dim)) for i in range(workers)]
    contestants: dict[str, Callable[[], object]] = {
        "read": lambda: pool.map(read_and_drop, tasks),
        "ingest": lambda: ingest_cohort(
            patches=folder / "patches",
            genes=None,
            cases=folder / "cases.csv",
            out=out,
            options=IngestOptions(workers=workers, progress=False),
            make_work=lambda *_: pool,
        ),
    }
    timed: dict[str, list[float]] = {"read": [], "ingest": []}
    for number in range(-1, max(1, scale.rounds // 2)):
        for name in ("read", "ingest") if number % 2 else ("ingest", "read"):
            shutil.rmtree(out, ignore_errors=True)
            if not cached:
                _forget_pages(paths)
            started = time.perf_counter()
            contestants[name]()
            if number >= 0:
                timed[name].append(time.perf_counter() - started)
    shutil.rmtree(out, ignore_errors=True)
    return timed


def _forget_pages(paths: list[Path]) -> None:
    """Ask the kernel to drop the files from its cache; what is still to be written is written first."""
    os.sync()
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def stages(folder: Path, scratch: Path, scale: Scale) -> list[Found]:
    """Seconds a gigabyte of float32, of each step of an ingest by itself in one thread, from the page cache."""
    source = inspect_patches(folder / "patches" / "S0.h5", "S0")
    at_a_time, path = chunk_rows(scale.dim), str(scratch / "stage.parquet")
    features = [chunk for chunk, _ in source.iter_chunks(at_a_time)]
    chunks = list(stored_chunks(source))

    def hash_all(_: int) -> None:
        digest = SlideHash()
        for chunk in chunks:
            digest.update(*chunk)

    def write(compare: bool) -> None:
        with PartWriter(path, scale.dim) as writer:
            written = WrittenBytes(path)
            writer.on_row_group = written.compare if compare else None
            for embeddings, coords in chunks:
                for start in range(0, len(embeddings), ROW_GROUP_ROWS):
                    rows = slice(start, start + ROW_GROUP_ROWS)
                    # not `add_slide`, which hashes too
                    writer._write_row_group("S0", embeddings[rows], coords[rows])
            written.close()

    seconds = alternate(
        {
            "read": lambda _: [None for _ in source.iter_chunks(at_a_time)],
            "round": lambda _: [encode(chunk, "float16") for chunk in features],
            "hash": hash_all,
            "write": lambda _: write(False),
            "write and compare": lambda _: write(True),
        },
        scale.rounds,
    )
    gigabytes = scale.patches * scale.dim * 4 / 1e9
    Path(path).unlink()
    return [{"step": name, "s_per_gb": spread(taken, 1 / gigabytes)} for name, taken in seconds.items()]


def memory(folder: Path, scale: Scale) -> Found:
    """The most memory of a process that ingests the largest slide, mapped files included."""
    size = scale.bag_sizes[-1]
    cohort = write_cohort(folder / "one", {"S0": lambda: bag(0, size, scale.dim)}, 32)
    found = run_alone("benchmarks._store_ingest", {"folder": str(cohort), "out": str(folder / "one-store")})
    shutil.rmtree(cohort)
    shutil.rmtree(folder / "one-store")
    return {"patches": size, "source_mb": size * scale.dim * 4 / 1e6} | found


def measure_memory(folder: str, out: str) -> Found:
    """MB of this process at the peak of an ingest, and before it."""
    before = memory_of("VmHWM")  # not ru_maxrss, which a new process has from the one that started it
    make_store(Path(folder), out, workers=1)
    return {"peak_mb": memory_of("VmHWM") / 1e6, "before_mb": before / 1e6}


def formats(cohort: Path, folder: Path, scale: Scale) -> list[Found]:
    """Size over that of the float32 features, milliseconds of a window, megabytes of float32 ingested a second."""
    kinds = [f"{dtype}/{compression}" for dtype in DTYPES for compression in ("none", "zstd")]
    stores: dict[str, CohortStore] = {}
    ingest: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(max(1, scale.rounds // 3)):
        for kind in kinds:
            dtype, compression = kind.split("/")
            shutil.rmtree(folder / kind, ignore_errors=True)
            started = time.perf_counter()
            stores[kind] = make_store(cohort, folder / kind, workers=1, dtype=dtype, compression=compression)
            ingest[kind].append(scale.source_bytes / 1e6 / (time.perf_counter() - started))
    starts = np.random.default_rng(3).integers(0, scale.patches - scale.length + 1, scale.rounds)

    def window(store: CohortStore) -> Callable[[int], object]:
        return lambda number: store.read_window(f"S{number % scale.slides}", int(starts[number]), scale.length)

    seconds = alternate({kind: window(store) for kind, store in stores.items()}, scale.rounds)
    rows = [
        {
            "dtype": kind.split("/")[0],
            "compression": kind.split("/")[1],
            "size_over_float32": sum(part.stat().st_size for part in (folder / kind / "patches").iterdir())
            / scale.source_bytes,
            "window_ms": spread(seconds[kind], 1000),
            "ingest_mb_s": spread(ingest[kind]),
        }
        for kind in kinds
    ]
    for dtype in DTYPES:
        shutil.rmtree(folder / dtype)
    return rows


if __name__ == "__main__":
    print(json.dumps(measure_memory(**json.loads(sys.argv[1]))))
