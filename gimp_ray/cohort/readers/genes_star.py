"""GDC's STAR counts: one sample a file, `gene_id`, `gene_name`, `gene_type` and counts, TPM, FPKM, FPKM-UQ columns.

The rows of reads that belong to no gene (`N_unmapped`, ...) are not genes. The unit follows from the column. Without a
column it is `fpkm_unstranded`, the unit of the GiMP paper. Left out: STAR's own `ReadsPerGene.out.tab`.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gimp_ray.cohort.gene_units import parse_unit
from gimp_ray.cohort.readers.genes_columns import GENE_TYPE, SYMBOL
from gimp_ray.cohort.readers.genes_head import FileHead
from gimp_ray.cohort.readers.genes_samples import SampleValues, damaged, read_table, sample_values, unzipped
from gimp_ray.errors import InputError

UNITS = {
    "unstranded": "counts",
    "stranded_first": "counts",
    "stranded_second": "counts",
    "tpm_unstranded": "TPM",
    "fpkm_unstranded": "FPKM",
    "fpkm_uq_unstranded": "FPKM-UQ",
}
DEFAULT_COLUMN = "fpkm_unstranded"
_BESIDE = {"gene_name": SYMBOL, "gene_type": GENE_TYPE}
_NO_GENES = ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous")


def fits(head: FileHead) -> bool:
    """Whether the header is that of GDC's STAR counts."""
    return head.is_text and {"gene_id", "unstranded"}.issubset(head.fields())


def column_of(column: str | None, declared_unit: str) -> str:
    """The column to read: the one named, else the one of the declared unit, else FPKM."""
    if column is not None:
        return column
    unit = parse_unit(declared_unit)
    return next((name for name, of in UNITS.items() if of == unit), DEFAULT_COLUMN)


def read(path: Path, data: bytes, column: str) -> SampleValues:
    """Read one column of one sample.

    Raises:
        InputError: the file is damaged, or has no such column.
    """
    text = unzipped(path, data)
    lines = text.split(b"\n", 3)
    skipped = next((i for i, line in enumerate(lines[:3]) if line.strip() and not line.startswith(b"#")), None)
    if skipped is None:
        raise damaged(path, "no header")
    names = lines[skipped].decode("utf-8", "replace").rstrip("\r").split("\t")
    if "gene_id" not in names:
        raise damaged(path, "no column gene_id")
    if column not in names:
        raise InputError(
            f"the gene file has no column {column}",
            file=path,
            expected=", ".join(name for name in UNITS if name in names),
            found=", ".join(names),
            fix="name one of these as gene_column",
        )
    beside = [name for name in _BESIDE if name in names]
    types = {"gene_id": pa.string(), column: pa.float32(), **dict.fromkeys(beside, pa.string())}
    table = read_table(path, text, names, skipped + 1, types)
    table = table.filter(pc.invert(pc.is_in(table["gene_id"], value_set=pa.array(_NO_GENES))))
    return sample_values(table, UNITS.get(column), {_BESIDE[name]: table[name].combine_chunks() for name in beside})
