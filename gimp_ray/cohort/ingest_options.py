"""The choices of an ingest, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from gimp_ray.cohort import gene_join
from gimp_ray.cohort.dtypes import DTYPES
from gimp_ray.cohort.readers.matrix import ORIENTATIONS
from gimp_ray.errors import ConfigError

COMPRESSIONS = ("none", "zstd")
CHANGED = ("report", "replace")


@dataclass(frozen=True)
class IngestOptions:
    """Choices of an ingest.

    Args:
        strict: refuse where something would be left out.
        workers: processes; 0 for one a CPU.
        compression: of the part files, `none` (local disks) or `zstd` (where the network is the limit).
        dtype: number format of the stored embeddings: `float16`, `bfloat16` or `float32`.
        gene_orientation: `auto` recognises which axis holds the cases; `cases_by_genes`, `genes_by_cases` say it.
        gene_unit: unit of the expression values, such as `log2(FPKM+1)`; `unknown` takes what the file says.
        folds: folds of the scheme `kfold`.
        split_seed: seed of that scheme.
        progress: show a progress bar on stderr.
    """

    strict: bool = False
    workers: int = 0
    compression: str = "none"
    dtype: str = "float16"
    gene_orientation: str = "auto"
    gene_unit: str = gene_join.UNKNOWN_UNIT
    folds: int = 5
    split_seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, known in (
            ("compression", COMPRESSIONS),
            ("dtype", DTYPES),
            ("gene_orientation", ORIENTATIONS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name} has an unknown value", expected=", ".join(known), found=repr(value))
        if self.workers < 0 or self.folds < 3:
            found = f"workers {self.workers}, folds {self.folds}"
            raise ConfigError("an ingest option is out of range", expected="workers >= 0, folds >= 3", found=found)
