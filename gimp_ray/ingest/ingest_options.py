"""The choices of an ingest, flat as the command line gives them, checked when they are made.

What each does, and the reasons of its default, stand where it is done: `GeneOptions`, `CaseOptions`, `make_scheme`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gimp_ray.errors import ConfigError
from gimp_ray.ingest.gene_options import GeneOptions
from gimp_ray.ingest.gene_units import UNKNOWN
from gimp_ray.ingest.readers.case_table import CaseOptions
from gimp_ray.store.dtypes import DTYPES
from gimp_ray.store.splits import check_scheme

COMPRESSIONS = ("none", "zstd")


@dataclass(frozen=True)
class IngestOptions:
    """Choices of an ingest.

    Args:
        strict: refuse where something would be left out.
        workers: processes, or tasks at a time on a cluster; 0 for one a CPU.
        compression: of the part files, `none` (local disks) or `zstd` (where the network is the limit).
        dtype: number format of the stored embeddings: `float16`, `bfloat16` or `float32`.
        encoder: which `features_ENCODER` of a TRIDENT tree that has several.
        gene_orientation: `auto` recognises which axis holds the cases; `cases_by_genes`, `genes_by_cases` say it.
        gene_unit: unit of the expression values, such as `log2(FPKM+1)`; `unknown` takes what the file says.
        gene_column: which values, where a file has several (GDC STAR: `tpm_unstranded`, `fpkm_unstranded`, ...).
        gene_versions: `keep` or `strip` the versions of Ensembl ids.
        gene_names: what a gene is named by: `id`, `symbol` or `entrez`.
        gene_duplicates: rows of one name: `refuse`, `first`, `mean`, `max`, `sum`.
        gene_list: file of genes to keep, in its order (text, GMT, CSV).
        gene_files: of several gene files: the `same` genes, or `intersect`.
        gene_missing: a missing value leaves out its `case`, or its `gene` in all cases.
        par_y: rows of the Y copies of pseudo-autosomal genes: `drop`, `keep`, `add`.
        samples: several samples of a case: `primary`, `refuse`, `mean`.
        case_column, slide_column, label_column: names of columns; None recognises them.
        labels: label in the table -> label to store, null to leave its cases out.
        slides: which slides of a case: `all`, `DX`, `DX1`, `largest`.
        survival: endpoint of survival_months and event: `OS`, `DSS`, `DFI`, `PFI`.
        split_schemes: schemes to make: `kfold`, `repeated`, `fixed`, `site`, `leave_one_out:COLUMN`.
        folds: k of the k-fold schemes.
        repeats: of the scheme `repeated`.
        split_shares: of train, val and test in the scheme `fixed`.
        split_seed: seed of all of them.
        progress: show a progress bar on stderr.
    """

    strict: bool = False
    workers: int = 0
    compression: str = "none"
    dtype: str = "float16"
    encoder: str | None = None
    gene_orientation: str = "auto"
    gene_unit: str = UNKNOWN
    gene_column: str | None = None
    gene_versions: str = "keep"
    gene_names: str = "id"
    gene_duplicates: str = "refuse"
    gene_list: Path | None = None
    gene_files: str = "same"
    gene_missing: str = "case"
    par_y: str = "drop"
    samples: str = "primary"
    case_column: str | None = None
    slide_column: str | None = None
    label_column: str | None = None
    labels: Mapping[str, str | None] | None = None
    slides: str = "all"
    survival: str = "OS"
    split_schemes: tuple[str, ...] = ("kfold",)
    folds: int = 5
    repeats: int = 5
    split_shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    split_seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, known in (("compression", COMPRESSIONS), ("dtype", DTYPES)):
            value = getattr(self, name)
            if value not in known:
                fix = "choose one of these"
                raise ConfigError(f"{name} has an unknown value", expected=", ".join(known), found=repr(value), fix=fix)
        if self.workers < 0 or self.folds < 3:
            found = f"workers {self.workers}, folds {self.folds}"
            what, expected = "an ingest option is out of range", "workers >= 0, folds >= 3"
            raise ConfigError(what, expected=expected, found=found, fix="correct the option")
        for scheme in self.split_schemes:
            check_scheme(scheme, folds=self.folds, repeats=self.repeats, shares=self.split_shares)
        _ = self.of_genes, self.of_cases

    @property
    def of_genes(self) -> GeneOptions:
        """The choices on gene files."""
        return GeneOptions(
            orientation=self.gene_orientation,
            unit=self.gene_unit,
            column=self.gene_column,
            versions=self.gene_versions,
            names=self.gene_names,
            duplicates=self.gene_duplicates,
            par_y=self.par_y,
            samples=self.samples,
            gene_list=self.gene_list,
            genes=self.gene_files,
            missing=self.gene_missing,
        )

    @property
    def of_cases(self) -> CaseOptions:
        """The choices on case tables."""
        return CaseOptions(
            case_column=self.case_column,
            slide_column=self.slide_column,
            label_column=self.label_column,
            labels=self.labels,
            slides=self.slides,
            survival=self.survival,
        )
