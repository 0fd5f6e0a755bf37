"""GDC's older HTSeq files: one sample a file, no header, `gene<TAB>value`, mostly gzip.

Counts end with rows of reads that belong to no gene (`__no_feature`, ...), by which they are known. Whether values are
FPKM or FPKM-UQ, only the name says (`UUID.FPKM.txt.gz`, `UUID.FPKM-UQ.txt.gz`).
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gimp_ray.cohort.readers.genes_head import FileHead, is_number
from gimp_ray.cohort.readers.genes_samples import SampleValues, damaged, read_table, sample_values, unzipped

# a matrix of one sample whose name is a number has a header
_HEADER_WORDS = ("", "gene", "genes", "gene_id", "gene_name", "symbol", "id", "sample", "ensembl_id")
_UNITS = (
    (r"fpkm[-_]uq", "FPKM-UQ"),
    (r"fpkm", "FPKM"),
    (r"(htseq[._])?counts?", "counts"),
    (r"tpm", "TPM"),
)


def fits(head: FileHead) -> bool:
    """Whether the first line is a name and a number, as in every line of these files."""
    fields = head.fields()
    if not head.is_text or len(fields) != 2 or "\t" not in head.lines[0] or fields[0].lower() in _HEADER_WORDS:
        return False
    return not is_number(fields[0]) and is_number(fields[1])


def unit_hint(name: str) -> str | None:
    """The unit that a file's name says."""
    return next((unit for word, unit in _UNITS if re.search(rf"[._-]{word}([._-]|$)", name.lower())), None)


def read(path: Path, data: bytes, column: str | None = None) -> SampleValues:
    """Read one sample; InputError where the file is damaged."""
    text = unzipped(path, data)
    if not text.strip():
        raise damaged(path, "an empty file")
    table = read_table(path, text, ["gene", "value"], 0, {"gene": pa.string(), "value": pa.float32()})
    genes = table.filter(pc.invert(pc.starts_with(table["gene"], "__")))
    return sample_values(genes, "counts" if genes.num_rows < table.num_rows else None)
