"""Source files of other tools, made small for the tests of the store; `ingest` runs them through in this process."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.ingest.report import IngestReport
from gimp_ray.store import CohortStore


def features(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """(n, dim) float32 that float16 rounds, so that a round trip is not trivially exact."""
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def grid(n: int, step: int = 256) -> np.ndarray:
    """(n, 2) int64 coordinates, every one different."""
    return np.stack([np.arange(n) % 17 * step, np.arange(n) // 17 * step], axis=1).astype(np.int64)


def write_h5(
    path: Path, values: np.ndarray, coords: np.ndarray | None = None, key: str = "features", **attributes: Any
) -> Path:
    """A CLAM-like file; `attributes` go to the coordinates, `encoder` to the features."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(key, data=values)
        if "encoder" in attributes:
            dataset.attrs["encoder"] = attributes.pop("encoder")
        if coords is not None:
            file.create_dataset("coords", data=coords).attrs.update(attributes)
    return path


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=separator).writerows([header, *rows])
    return path


@dataclass
class Sources:
    """A folder with the sources of a cohort: three cases a class, one slide each unless said otherwise."""

    root: Path
    bags: dict[str, np.ndarray] = field(default_factory=dict)
    coords: dict[str, np.ndarray] = field(default_factory=dict)
    expression: dict[str, np.ndarray] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    gene_ids: list[str] = field(default_factory=lambda: ["TP53", "EGFR", "KRAS", "STK11", "ALK"])

    @property
    def patches(self) -> Path:
        return self.root / "patches"

    @property
    def cases(self) -> Path:
        return self.root / "cases.csv"

    @property
    def genes(self) -> Path:
        return self.root / "genes.tsv"

    @property
    def out(self) -> Path:
        return self.root / "out" / "STORE"

    def write_cases(self, header: Sequence[str] = ("case_id", "slide_id", "label")) -> None:
        write_csv(self.cases, header, self.rows)

    def write_genes(self, cases: Sequence[str] | None = None) -> None:
        cases = list(self.expression) if cases is None else cases
        rows = [[gene, *(str(self.expression[c][i]) for c in cases)] for i, gene in enumerate(self.gene_ids)]
        write_csv(self.genes, ["gene", *cases], rows, separator="\t")

    def ingest(
        self, *, genes: bool = True, patches: bool = True, splits: Path | None = None, **options: Any
    ) -> IngestReport:
        return ingest_cohort(
            patches=self.patches if patches else None,
            genes=self.genes if genes else None,
            cases=self.cases,
            out=self.out,
            splits=splits,
            options=IngestOptions(**{"workers": 1, "progress": False, **options}),
        )

    def ingest_again(self, **options: Any) -> IngestReport:
        """Ingest anew in place of the store that is there."""
        shutil.rmtree(self.out)
        return self.ingest(**options)

    def store(self, **options: Any) -> CohortStore:
        self.ingest(**options)
        return CohortStore.open(self.out)


def make_sources(
    root: Path,
    sizes: Mapping[str, int] | None = None,
    dim: int = 8,
    case_ids: Sequence[str] = ("A0", "A1", "A2", "B0", "B1", "B2"),
) -> Sources:
    """Cases that begin with A of class LUAD and the others of class LUSC, slide `CASE-DX1` each, with genes."""
    root.mkdir(parents=True, exist_ok=True)
    sources = Sources(root)
    for i, case_id in enumerate(case_ids):
        slide_id = f"{case_id}-DX1"
        n = (sizes or {}).get(slide_id, 20 + i)
        sources.bags[slide_id], sources.coords[slide_id] = features(n, dim, seed=i), grid(n)
        write_h5(
            sources.patches / f"{slide_id}.h5",
            sources.bags[slide_id],
            sources.coords[slide_id],
            patch_size=256,
            patch_level=0,
        )
        sources.rows.append([case_id, f"{slide_id}.svs", "LUAD" if case_id.startswith("A") else "LUSC"])
        sources.expression[case_id] = np.round(features(1, len(sources.gene_ids), seed=100 + i)[0] + 5, 3)
    sources.write_cases()
    sources.write_genes()
    return sources
