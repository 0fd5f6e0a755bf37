"""Ingest against reading the same files and throwing them away, where its time goes, and the memory it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from _store_files import Scale, bag, write_cases, write_h5
from _store_timing import alternate, forget_pages, ratios, spread

from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.ingest.patches import inspect_patches
from gimp_ray.ingest.patches.write import WrittenBytes, chunk_rows, stored_chunks
from gimp_ray.ingest.work import WorkPool
from gimp_ray.store.dtypes import encode
from gimp_ray.store.part_writer import PartWriter, SlideHash
from gimp_ray.store.schema import ROW_GROUP_ROWS


@dataclass(frozen=True)
class Files:
    """Files for one process to read."""

    paths: tuple[Path, ...]
    rows: int


def read_and_drop(files: Files) -> None:
    """All features and coordinates through h5py, as many patches at a time as an ingest takes."""
    for path in files.paths:
        with h5py.File(path) as file:
            features, coords = file["features"], file["coords"]
            for start in range(0, len(features), files.rows):
                _ = features[start : start + files.rows], coords[start : start + files.rows]


class Warm(WorkPool):
    """Processes that are there already, and stay: starting them is not what is compared."""

    def __exit__(self, *_: object) -> None:
        return

    def end(self) -> None:
        super().__exit__(None, None, None)


def against_reading(cohorts: dict[str, Path], scratch: Path, scale: Scale) -> list[dict[str, Any]]:
    """Megabytes of float32 a second of both, and the ingest's share, from the page cache and from the disk."""
    rows = []
    for workers in (1, 2):
        pool = Warm(workers, lambda _: None)
        pool.map(time.sleep, [0.5] * workers)
        for layout, folder in cohorts.items():
            paths = sorted((folder / "patches").glob("*.h5"))
            for cached in (True, False):
                seconds = _compare(folder, paths, scratch, pool, workers, cached, scale)
                rows.append(
                    {
                        "layout": layout,
                        "processes": workers,
                        "from": "cache" if cached else "disk",
                        "read_mb_s": spread([scale.source_bytes / 1e6 / s for s in seconds["read"]]),
                        "ingest_mb_s": spread([scale.source_bytes / 1e6 / s for s in seconds["ingest"]]),
                        "share": ratios(seconds["read"], seconds["ingest"]),
                    }
                )
        pool.end()
    return rows


def _compare(
    folder: Path, paths: list[Path], scratch: Path, pool: Warm, workers: int, cached: bool, scale: Scale
) -> dict[str, list[float]]:
    out, timed = scratch / "ingested", {"read": [], "ingest": []}  # type: ignore[var-annotated]
    tasks = [Files(tuple(paths[i::workers]), chunk_rows(scale.dim)) for i in range(workers)]

    def read() -> None:
        pool.map(read_and_drop, tasks)

    def ingest() -> None:
        ingest_cohort(
            patches=folder / "patches",
            genes=None,
            cases=folder / "cases.csv",
            out=out,
            options=IngestOptions(workers=workers, progress=False),
            make_work=lambda *_: pool,
        )

    contestants = {"read": read, "ingest": ingest}
    for number in range(-1, max(3, scale.rounds // 2)):
        for name in ("read", "ingest") if number % 2 else ("ingest", "read"):
            shutil.rmtree(out, ignore_errors=True)
            forget_pages([] if cached else paths)
            started = time.perf_counter()
            contestants[name]()
            if number >= 0:
                timed[name].append(time.perf_counter() - started)
    shutil.rmtree(out, ignore_errors=True)
    return timed


def stages(folder: Path, scratch: Path, scale: Scale) -> list[dict[str, Any]]:
    """Seconds a gigabyte of float32, of each step of an ingest by itself in one thread, from the page cache."""
    source = inspect_patches(folder / "patches" / "S0.h5", "S0")
    at_a_time, path = chunk_rows(scale.dim), str(scratch / "stage.parquet")
    features = [chunk for chunk, _ in source.iter_chunks(at_a_time)]
    chunks = list(stored_chunks(source))

    def hash_all() -> None:
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
            "hash": lambda _: hash_all(),
            "write": lambda _: write(False),
            "write and compare": lambda _: write(True),
        },
        scale.rounds,
    )
    gigabytes = scale.patches * scale.dim * 4 / 1e9
    Path(path).unlink()
    return [{"step": name, "s_per_gb": spread(taken, 1 / gigabytes)} for name, taken in seconds.items()]


def memory(folder: Path, scale: Scale) -> dict[str, Any]:
    """The most memory of a process that ingests the largest slide, mapped files included."""
    size, cohort = scale.bag_sizes[-1], folder / "one"
    write_h5(cohort / "patches" / "S0.h5", bag(0, size, scale.dim), 32)
    write_cases(cohort, ["S0"])
    command = [sys.executable, __file__, str(cohort), str(folder / "one-store")]
    done = subprocess.run(command, capture_output=True, check=True, text=True, cwd=Path.cwd())
    result = {"patches": size, "source_mb": size * scale.dim * 4 / 1e6, **json.loads(done.stdout)}
    shutil.rmtree(cohort)
    shutil.rmtree(folder / "one-store")
    return result


def _measure_memory(folder: Path, out: Path) -> dict[str, float]:
    before = _most_resident()
    ingest_cohort(
        patches=folder / "patches",
        genes=None,
        cases=folder / "cases.csv",
        out=out,
        options=IngestOptions(workers=1, progress=False),
    )
    return {"peak_mb": _most_resident(), "before_mb": before}


def _most_resident() -> float:
    """Megabytes; not ru_maxrss, which a new process has from the one that started it."""
    with open("/proc/self/status", encoding="ascii") as stream:  # noqa: PTH123
        return next(int(line.split()[1]) * 1.024e-3 for line in stream if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(_measure_memory(Path(sys.argv[1]), Path(sys.argv[2]))))
