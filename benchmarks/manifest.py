"""What a store of a million slides costs before a patch is read: `python -m benchmarks.manifest [--slides N]`.

Writes the tables of such a store (no part files, no genes) and measures, each in a process of its own: opening it, a
fold, the index of its training cases and an epoch's plan, finding slides by id, hashing its tables, and `gimp info`.
Prints a table: seconds, seconds of CPU (of use where the machine has other work), how much the process grew and its
peak, bytes of a pickle. `write_store` also serves the tests.
"""

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from gimp_ray.store.manifest import FILE
from gimp_ray.store.schema import ROW_GROUP_ROWS, table_schema
from gimp_ray.store.splits import fold_table, join_splits
from gimp_ray.store.tables import TableWriter, bag_of, file_sha256

DIM = 1024
CLASSES = ("BRCA", "COAD", "GBM", "KIRC", "LUAD", "LUSC", "OV", "UCEC")
_SLIDES_A_PART = 13  # of 10,000 patches x 1,024 float16, in part files of 256 MB
_MANY = 2000


def write_store(place: Path, slides: int, cases: int, folds: int = 5, seed: int = 0) -> None:
    """Write the tables of a store with made-up TCGA-like ids, and its manifest; the part files it names do not exist.

    Args:
        place: an empty folder.
        slides: rows of slides.parquet; at least `cases`.
        cases: rows of cases.parquet.
        folds: of the scheme `kfold`.
        seed: of the ids and sizes.
    """
    generator = np.random.default_rng(seed)
    # every third of the possible ids, so that they are not consecutive
    case_ids = pa.array([f"TCGA-{_letters(3 * i // 10_000)}-{3 * i % 10_000:04d}" for i in range(cases)])
    owner = np.sort(np.concatenate([np.arange(cases), generator.integers(0, cases, slides - cases)]))
    labels = generator.integers(0, len(CLASSES), cases)
    writer = TableWriter(str(place))
    sites = pa.array([f"site {i}" for i in range(40)]).take(pa.array(generator.integers(0, 40, cases)))
    columns = {"case_id": case_ids, "label": pa.array(CLASSES).take(pa.array(labels)), "site": sites}
    cases_table = _fitting("cases", columns)
    writer.write("cases", cases_table)
    n_patches = np.clip(generator.lognormal(9.2, 0.7, slides).astype(np.int64), 50, 200_000)
    slides_table = _slides(case_ids, owner, n_patches, generator)
    writer.write("slides", slides_table)
    part_of = generator.integers(0, folds, cases)
    tables = []
    for fold in range(folds):
        parts = np.where(part_of == fold, 2, np.where(part_of == (fold + 1) % folds, 1, 0))
        tables.append(fold_table("kfold", fold, case_ids, parts))
    writer.write("splits", join_splits(tables))
    writer.write("sources", table_schema("sources").arrow().empty_table())
    bag = bag_of(slides_table, dim=DIM, dtype="float16", compression="none")
    manifest = writer.manifest(cases_table, {"patches": bag})
    (place / FILE).write_text(manifest.to_json(), encoding="utf-8")


def _slides(case_ids: pa.Array, owner: np.ndarray, n_patches: np.ndarray, generator: np.random.Generator) -> pa.Table:
    n = len(owner)
    owners = case_ids.take(pa.array(owner))
    marks = generator.bytes(16 * n).hex().upper()
    slide_ids = [f"{c}-01Z-00-DX1.{_uuid(marks[32 * i : 32 * i + 32])}" for i, c in enumerate(owners.to_pylist())]
    hashes = generator.bytes(32 * n).hex()
    groups = -(-n_patches // ROW_GROUP_ROWS)
    before = np.cumsum(groups) - groups
    part = np.arange(n) // _SLIDES_A_PART
    wide = generator.integers(20_000, 120_000, (2, n))
    columns = {
        "slide_id": pa.array(slide_ids),
        "case_id": owners,
        "file": pa.array([f"patches/part-{i:05d}.parquet" for i in range(part[-1] + 1)]).take(pa.array(part)),
        "first_row_group": pa.array((before - before[part * _SLIDES_A_PART]).astype(np.int32)),
        "n_patches": pa.array(n_patches),
        "has_coords": pa.array(np.ones(n, dtype=bool)),
        "coord_unit": pa.repeat("px", n),
        "x_min": pa.array(np.zeros(n, dtype=np.int32)),
        "y_min": pa.array(np.zeros(n, dtype=np.int32)),
        "x_max": pa.array((wide[0] - 512).astype(np.int32)),
        "y_max": pa.array((wide[1] - 512).astype(np.int32)),
        "patch_size": pa.array(np.full(n, 256, dtype=np.int32)),
        "patch_level": pa.nulls(n, pa.int32()),
        "patch_size_level0": pa.array(np.full(n, 512, dtype=np.int32)),
        "magnification": pa.array(np.full(n, 20, dtype=np.float32)),
        "overlap": pa.array(np.zeros(n, dtype=np.int32)),
        "level0_width": pa.array(wide[0].astype(np.int32)),
        "level0_height": pa.array(wide[1].astype(np.int32)),
        "encoder": pa.nulls(n, pa.string()),
        "sha256": pa.array([hashes[64 * i : 64 * i + 64] for i in range(n)]),
    }
    return _fitting("slides", columns).sort_by("slide_id")


def _fitting(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    """A table whose columns of the schema have its nullability."""
    known = {field.name: field for field in table_schema(name).arrow()}
    fields = [known.get(column, pa.field(column, values.type)) for column, values in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _letters(number: int) -> str:
    signs = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return signs[number // 36 % 36] + signs[number % 36]


def _uuid(text: str) -> str:
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# --- measurements: each runs alone in a fresh process


@dataclass
class _Row:
    """One line of the table; memory and pickles in bytes."""

    what: str
    s: float
    cpu_s: float
    grown: int | None = None
    peak: int | None = None
    pickle: int | None = None

    def line(self) -> str:
        sizes = ["" if size is None else f"{size / 1e6:,.1f} MB" for size in (self.grown, self.peak, self.pickle)]
        return f"{self.what:34} {self.s:10.4f} {self.cpu_s:10.4f} " + " ".join(f"{size:>12}" for size in sizes)


def _measure_open(store: str) -> list[_Row]:
    from gimp_ray.store import CohortStore

    opened, row = _timed("open", lambda: CohortStore.open(store))
    row.pickle = len(pickle.dumps(opened))
    return [row]


def _measure_plan(store: str) -> list[_Row]:
    from gimp_ray.feed.plan import Batching, epoch_plan, index_cases
    from gimp_ray.store import CohortStore

    opened = CohortStore.open(store)
    split, of_split = _timed("split kfold, fold 0", lambda: opened.split("kfold", 0))
    index, of_index = _timed("index of its training cases", lambda: index_cases(opened, split.train))
    of_index.pickle = len(pickle.dumps(index))
    _, balanced = _timed("plan of an epoch, classes", lambda: epoch_plan(0, 0, index, Batching(window=6000)))
    natural = Batching(balance="natural", window=6000)
    _, even = _timed("plan of an epoch, every case once", lambda: epoch_plan(0, 0, index, natural))
    return [of_split, of_index, balanced, even]


def _measure_lookup(store: str) -> list[_Row]:
    from gimp_ray.store import CohortStore

    opened = CohortStore.open(store)
    rows = np.random.default_rng(0).integers(0, opened.slide_sizes.num_rows, _MANY)
    wanted = opened.slide_sizes["slide_id"].take(pa.array(rows)).to_pylist()
    found, row = _timed(f"find {_MANY:,} slides by id", lambda: [opened._slide_row(slide_id) for slide_id in wanted])
    assert found == rows.tolist()
    return [row]


def _measure_hashes(store: str) -> list[_Row]:
    from pyarrow import fs

    from gimp_ray.store import CohortStore
    from gimp_ray.store.manifest import content_sha256

    opened = CohortStore.open(store)
    tables = [opened.table(name) for name in ("cases", "slides", "splits")]
    _, contents = _timed("hash the tables' contents", lambda: [content_sha256(table) for table in tables])
    files = [str(Path(store, name)) for name in opened.manifest.tables]
    local = fs.LocalFileSystem()
    _, of_files = _timed("hash the tables' files", lambda: [file_sha256(local, file) for file in files])
    return [contents, of_files]


def _measure_info(store: str) -> list[_Row]:
    from gimp_ray.store.info import store_info

    return [_timed("gimp info", lambda: store_info(store))[1]]


_MEASURES: dict[str, Callable[[str], list[_Row]]] = {
    "open": _measure_open,
    "plan": _measure_plan,
    "lookup": _measure_lookup,
    "hashes": _measure_hashes,
    "info": _measure_info,
}


def _timed(what: str, work: Callable[[], Any]) -> tuple[Any, _Row]:
    process = psutil.Process()
    before, started, cpu = process.memory_info().rss, time.perf_counter(), time.process_time()
    result = work()
    row = _Row(what, time.perf_counter() - started, time.process_time() - cpu)
    row.grown = process.memory_info().rss - before
    row.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return result, row


def _alone(measure: str, store: Path, slides: int, cases: int) -> str:
    """What a measurement prints, in a process of its own; writing too, for a child inherits its parent's peak."""
    command = [sys.executable, "-m", "benchmarks.manifest", "--measure", measure, "--store", str(store)]
    command += ["--slides", str(slides), "--cases", str(cases)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    """Write the tables, run the measurements, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, help="nine tenths of the slides by default")
    parser.add_argument("--store", type=Path, help="keep the tables here and use them again")
    parser.add_argument("--measure", choices=["write", *_MEASURES], help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.cases or options.slides * 9 // 10
    if options.measure == "write":
        options.store.mkdir(parents=True)
        write_store(options.store, options.slides, cases)
        return
    if options.measure:
        print(json.dumps([asdict(row) for row in _MEASURES[options.measure](str(options.store))]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or Path(scratch, "store")
        if not (store / FILE).exists():
            _, row = _timed("", lambda: _alone("write", store, options.slides, cases))
            print(f"wrote {options.slides:,} slides of {cases:,} cases in {row.s:.1f} s")
        print(f"{'':34} {'s':>10} {'CPU s':>10} {'grown':>12} {'peak':>12} {'pickle':>12}")
        for name in _MEASURES:
            for values in json.loads(_alone(name, store, options.slides, cases)):
                print(_Row(**values).line())


if __name__ == "__main__":
    main()
