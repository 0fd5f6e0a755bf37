"""The choices of reading gene expression, as plain data. What each does is in the module that does it.

Left out: where the files are (`gene_source.read_expression`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gimp_ray.errors import ConfigError
from gimp_ray.ingest.gene_units import UNKNOWN

ORIENTATIONS = ("auto", "cases_by_genes", "genes_by_cases")
VERSIONS = ("keep", "strip")
NAMES = ("id", "symbol", "entrez")
DUPLICATES = ("refuse", "first", "mean", "max", "sum")
PAR_Y = ("drop", "keep", "add")
SAMPLES = ("primary", "refuse", "mean")
GENES = ("same", "intersect")
MISSING = ("case", "gene")


@dataclass(frozen=True)
class GeneOptions:
    """How gene files become one matrix of cases and genes. Refusals name the options as an ingest does (`gene_names`).

    Args:
        orientation: of matrices: `auto` recognises which axis holds the cases; `cases_by_genes`, `genes_by_cases`.
        unit: unit of the values, such as `FPKM` or `log2(FPKM+1)`; `unknown` takes what the files say.
        column: which values of a file that has several: a GDC STAR column (`unstranded`, `tpm_unstranded`, ...), a
            layer of an `.h5ad`. None: the STAR column of `unit`, `fpkm_unstranded` where that says none; X of an h5ad.
        versions: `keep` or `strip` the versions of Ensembl ids (`ENSG00000141510.16` -> `ENSG00000141510`).
        names: what the store names a gene by: `id`, the file's own key (its first column; gene_id of GDC, Hugo_Symbol
            of cBioPortal), `symbol`, or `entrez`, where the file has them.
        duplicates: rows of one name: `refuse`; `first` row; `mean` or `sum` of them; `max`, the row with the highest
            mean over the cases.
        par_y: rows of the Y copies of pseudo-autosomal genes (`..._PAR_Y`, `ENSGR...`): `drop`, `keep` under their own
            names, `add` to the X copy (linear units alone).
        samples: several samples of a case: `primary` takes the primary tumour, the first vial and aliquot of several;
            `refuse`; `mean` of the samples of the best kind.
        gene_list: file of genes to keep, in its order: text (one a line), GMT or CSV.
        genes: of several files: `same` refuses different genes, `intersect` keeps those that all have.
        missing: a value that is missing leaves out its `case`, or its `gene` for all cases.
    """

    orientation: str = "auto"
    unit: str = UNKNOWN
    column: str | None = None
    versions: str = "keep"
    names: str = "id"
    duplicates: str = "refuse"
    par_y: str = "drop"
    samples: str = "primary"
    gene_list: Path | None = None
    genes: str = "same"
    missing: str = "case"

    def __post_init__(self) -> None:
        known = {
            "orientation": ORIENTATIONS,
            "versions": VERSIONS,
            "names": NAMES,
            "duplicates": DUPLICATES,
            "par_y": PAR_Y,
            "samples": SAMPLES,
            "genes": GENES,
            "missing": MISSING,
        }
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values:
                what = f"the gene option {name} has an unknown value"
                raise ConfigError(what, expected=", ".join(values), found=repr(value), fix="choose one of these")
        if not isinstance(self.unit, str) or not self.unit.strip():
            fix = "leave the unit out where it is not known"
            raise ConfigError("the gene unit is empty", expected="a unit such as FPKM", found=repr(self.unit), fix=fix)
