"""What the store's number formats and compression cost: size, windows and ingest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _store_files import Scale, make_store
from _store_timing import alternate, spread

from gimp_ray.store import CohortStore
from gimp_ray.store.dtypes import DTYPES


def measure(cohort: Path, folder: Path, scale: Scale) -> list[dict[str, Any]]:
    """Size over that of the float32 features, milliseconds of a window, megabytes of float32 ingested a second."""
    kinds = [(dtype, compression) for dtype in DTYPES for compression in ("none", "zstd")]
    stores, ingest = {}, {kind: [] for kind in kinds}  # type: ignore[var-annotated]
    for _ in range(max(2, scale.rounds // 3)):
        for dtype, compression in kinds:
            out = folder / f"{dtype}-{compression}"
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            stores[dtype, compression] = make_store(cohort, out, dtype=dtype, compression=compression)
            ingest[dtype, compression].append(scale.source_bytes / 1e6 / (time.perf_counter() - started))
    starts = np.random.default_rng(3).integers(0, scale.patches - scale.length + 1, scale.rounds)

    def window(store: CohortStore) -> Callable[[int], object]:
        return lambda number: store.read_window(f"S{number % scale.slides}", int(starts[number]), scale.length)

    seconds = alternate(
        {"/".join(kind): window(store) for kind, store in stores.items()},
        scale.rounds,
    )
    rows = [
        {
            "dtype": dtype,
            "compression": compression,
            "size_over_float32": _size(folder / f"{dtype}-{compression}") / scale.source_bytes,
            "window_ms": spread(seconds[f"{dtype}/{compression}"], 1000),
            "ingest_mb_s": spread(ingest[dtype, compression]),
        }
        for dtype, compression in kinds
    ]
    for dtype, compression in kinds:
        shutil.rmtree(folder / f"{dtype}-{compression}")
    return rows


def _size(store: Path) -> int:
    return sum(path.stat().st_size for path in (store / "patches").iterdir())
