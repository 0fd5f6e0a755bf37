"""What the benchmark of the store reads: the same made-up bags as tools write them, and as a store holds them.

Values are standard normal: they hardly compress, and every one is an ordinary float16. Left out: real features, whose
values do not change what reading costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.store import CohortStore

# patches an HDF5 chunk; None is one piece
LAYOUTS: dict[str, int | None] = {"CLAM, 32 patches a chunk": 32, "TRIDENT, 1 patch a chunk": 1, "contiguous": None}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        slides: bags of a cohort.
        patches: N of each.
        dim: D.
        lengths: L of the windows; the last is the one compared.
        bag_sizes: N of the slides over which time must be flat.
        rounds: repeats of everything.
        s3_windows: windows read in one go from object storage.
    """

    slides: int
    patches: int
    dim: int
    lengths: tuple[int, ...]
    bag_sizes: tuple[int, ...]
    rounds: int
    s3_windows: int

    @property
    def length(self) -> int:
        return self.lengths[-1]

    @property
    def source_bytes(self) -> int:
        """Of the features of all slides, as float32."""
        return self.slides * self.patches * self.dim * 4


FULL = Scale(8, 15_000, 1024, (512, 1000, 6000), (8000, 15_000, 50_000, 148_569), 9, 32)
QUICK = Scale(2, 3000, 128, (512, 1000, 2000), (2000, 3000, 8000), 3, 8)


def bag(slide: int, patches: int, dim: int) -> np.ndarray:
    """(N, D) float32 of a slide."""
    return np.random.default_rng(slide).standard_normal((patches, dim), dtype=np.float32)


def write_h5(path: Path, values: np.ndarray, chunk: int | None) -> None:
    """A file with features and coordinates as CLAM and TRIDENT name them, and as they cut them into chunks."""
    n = len(values)
    coords = np.stack([np.arange(n) % 200 * 256, np.arange(n) // 200 * 256], axis=1).astype(np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, data in (("features", values), ("coords", coords)):
            cut = None if chunk is None else (chunk, data.shape[1])
            file.create_dataset(name, data=data, chunks=cut, maxshape=cut and (None, data.shape[1]))


def write_cohort(folder: Path, scale: Scale, chunk: int | None) -> Path:
    """`patches/S*.h5` and `cases.csv` of a cohort of `scale.slides` bags; gives the folder."""
    for slide in range(scale.slides):
        write_h5(folder / "patches" / f"S{slide}.h5", bag(slide, scale.patches, scale.dim), chunk)
    write_cases(folder, [f"S{slide}" for slide in range(scale.slides)])
    return folder


def write_cases(folder: Path, slide_ids: list[str]) -> None:
    rows = "".join(f"{s},{s},{'a' if i % 2 else 'b'}\n" for i, s in enumerate(slide_ids))
    (folder / "cases.csv").write_text("case_id,slide_id,label\n" + rows, encoding="utf-8")


def make_store(folder: Path, out: str | Path, **options: Any) -> CohortStore:
    """The store of a cohort's folder at `out`."""
    ingest_cohort(
        patches=folder / "patches",
        genes=None,
        cases=folder / "cases.csv",
        out=out,
        options=IngestOptions(workers=1, progress=False, **options),
    )
    return CohortStore.open(out)
