"""The options of an ingest, flat as the command line gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gimp_ray.ingest.cases import CaseOptions
from gimp_ray.ingest.genes.options import GeneOptions
from gimp_ray.ingest.vectors import check_names
from gimp_ray.options import Options
from gimp_ray.store.schemes import check_scheme
from gimp_ray.store.units import UNKNOWN

# the option of an ingest -> that of the gene files
_OF_GENES = {
    "gene_orientation": "orientation",
    "gene_unit": "unit",
    "gene_column": "column",
    "gene_versions": "versions",
    "gene_names": "names",
    "gene_duplicates": "duplicates",
    "par_y": "par_y",
    "samples": "samples",
    "gene_list": "gene_list",
    "gene_files": "genes",
    "gene_missing": "missing",
}
_OF_CASES = ("case_column", "slide_column", "label_column", "labels", "slides", "survival")


class IngestOptions(Options):
    """Options of an ingest; what each does, and why its default, stands in `GeneOptions`, `CaseOptions`, `make_scheme`.

    Args:
        strict: refuse where something would be left out.
        workers: processes, or tasks at a time on a cluster; 0 for one a CPU.
        compression: of the part files, `none` (local disks) or `zstd` (where the network is the limit).
        dtype: number format of the stored embeddings: `float16`, `bfloat16` or `float32`.
        encoder: which `features_ENCODER` of a TRIDENT tree that has several.
        gene_orientation: `auto` recognises which axis holds the cases; `cases_by_genes`, `genes_by_cases` declare it.
        gene_unit: unit of the expression values, such as `log2(FPKM+1)`; `unknown` takes what the file records.
        gene_column: which values, where a file has several (GDC STAR: `tpm_unstranded`, `fpkm_unstranded`, ...).
        gene_versions: `keep` or `strip` the versions of Ensembl ids.
        gene_names: what a gene is named by: `id`, `symbol` or `entrez`.
        gene_duplicates: rows of one name: `refuse`, `first`, `mean`, `max`, `sum`.
        gene_list: file of genes to keep, in its order (text, GMT, CSV).
        gene_files: of several gene files: the `same` genes, or `intersect`.
        gene_missing: a missing value leaves out its `case`, or its `gene` in all cases.
        par_y: rows of the Y copies of pseudo-autosomal genes: `drop`, `keep`, `add`.
        samples: several samples of a case: `primary`, `refuse`, `mean`.
        vectors: modality -> file of cases and named features, such as `{cnv: cnv.tsv, protein: rppa.csv}`.
        vector_units: modality -> unit of its values; `unknown` otherwise.
        incomplete: cases without a label, slide or expression: `leave_out`, or `keep` (they are stored, and not trained
            on with what they lack). A case without a value of `vectors` is always kept.
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
    workers: int = Field(0, ge=0)
    compression: Literal["none", "zstd"] = "none"
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
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
    vectors: Mapping[str, Path] = Field(default_factory=dict)
    vector_units: Mapping[str, str] = Field(default_factory=dict)
    incomplete: Literal["leave_out", "keep"] = "leave_out"
    case_column: str | None = None
    slide_column: str | None = None
    label_column: str | None = None
    labels: Mapping[str, str | None] | None = None
    slides: str = "all"
    survival: str = "OS"
    split_schemes: tuple[str, ...] = ("kfold",)
    folds: int = Field(5, ge=3)
    repeats: int = 5
    split_shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    split_seed: int = 0
    progress: bool = True

    def model_post_init(self, context: Any) -> None:
        """Refuse what the parts refuse."""
        for scheme in self.split_schemes:
            check_scheme(scheme, folds=self.folds, repeats=self.repeats, shares=self.split_shares)
        check_names(self.vectors, self.vector_units)
        _ = self.of_genes, self.of_cases

    @property
    def of_genes(self) -> GeneOptions:
        """The options of gene files."""
        return GeneOptions(**{name: getattr(self, own) for own, name in _OF_GENES.items()})

    @property
    def of_cases(self) -> CaseOptions:
        """The options of case tables."""
        return CaseOptions(**{name: getattr(self, name) for name in _OF_CASES})
