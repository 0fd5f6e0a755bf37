"""What a gene file is, by its first lines, and GDC's files of one sample (STAR counts, HTSeq).

The content decides, not the name.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from gimp_ray.errors import InputError
from gimp_ray.io.text import TEXT_FAULTS, is_number, open_bytes, split
from gimp_ray.store.units import parse_unit

CASES_BY_GENES, GENES_BY_CASES = "cases_by_genes", "genes_by_cases"
SYMBOL, ENTREZ = "symbol", "entrez"
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "[Not Available]")
GeneColumns = dict[str, list[str | None]]
Wanted = Sequence[Callable[[str], bool]]  # how an id is known as a sample of a case, the surest first
# what tools call the columns beside the genes -> our name
_BESIDE = {
    spelling: name
    for name, spellings in {
        SYMBOL: "symbol gene_name gene_symbol genesymbol genename hugo_symbol hgnc_symbol hugo",
        "gene_type": "gene_type genetype gene_biotype biotype",
        ENTREZ: "entrez entrez_gene_id entrez_id entrezid entrezgene entrez_gene ncbi_gene_id",
        "ensembl": "ensembl ensembl_id ensembl_gene_id ensembl_gene gene_id gene_ids geneid",
        None: "chr chrom chromosome start end chromstart chromend strand length cytoband description",
    }.items()
    for spelling in spellings.split()
}
STAR_UNITS = {
    **dict.fromkeys(("unstranded", "stranded_first", "stranded_second"), "counts"),
    **{"tpm_unstranded": "TPM", "fpkm_unstranded": "FPKM", "fpkm_uq_unstranded": "FPKM-UQ"},
}
_NO_GENES = ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous")
# units by file name: HTSeq, UCSC Xena, cBioPortal
_HTSEQ = ((r"fpkm[-_]uq", "FPKM-UQ"), (r"fpkm", "FPKM"), (r"(htseq[._])?counts?", "counts"), (r"tpm", "TPM"))


@dataclass(frozen=True)
class Head:
    """How a file begins: its first bytes, and its first lines where it is text."""

    path: Path
    magic: bytes
    lines: tuple[str, ...] = ()

    @property
    def fields(self) -> list[str]:
        line = next((line for line in self.lines if not line.startswith("#")), "")
        return split(line) if line else []


def read_head(path: Path) -> Head:
    """The head of a file; InputError where it cannot be read or is a pointer of Git LFS."""
    try:
        magic = path.open("rb").read(8)
        with open_bytes(path) as stream:
            first = stream.read(4096)
    except TEXT_FAULTS as error:
        fix = "download or copy it again, and let this user read it"
        raise InputError(
            "the gene file cannot be read", file=path, expected="a whole file", found=str(error), fix=fix
        ) from error
    lines = () if b"\0" in first else tuple(first.decode("utf-8-sig", "replace").splitlines())
    if lines and lines[0].startswith("version https://git-lfs"):
        raise InputError(
            "the gene file is a pointer of Git LFS, not the file",
            file=path,
            expected="the file itself",
            found=lines[0],
            fix="run `git lfs pull` in the folder it was cloned to, or download the file",
        )
    return Head(path, magic, lines)


def gene_column(name: str) -> str | None:
    """Our name of a column that tells of genes; None where its name does not say so."""
    plain = re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_")
    return (_BESIDE[plain] or plain) if plain in _BESIDE else None


def is_sample(head: Head) -> str | None:
    """`star` or `htseq`, None for a file that is neither."""
    fields = head.fields
    if head.lines and {"gene_id", "unstranded"} <= set(fields):
        return "star"
    words = ("", "gene", "genes", "gene_id", "gene_name", "symbol", "id", "sample", "ensembl_id")
    named = len(fields) == 2 and "\t" in head.lines[0] and fields[0].lower() not in words
    return "htseq" if named and not is_number(fields[0]) and is_number(fields[1]) else None


def star_column(column: str | None, declared: str) -> str:
    """The column to read: the one named, else the one of the declared unit, else FPKM."""
    unit = parse_unit(declared)
    return column or next((name for name, of in STAR_UNITS.items() if of == unit), "fpkm_unstranded")


def htseq_hint(name: str) -> str | None:
    return next((unit for word, unit in _HTSEQ if re.search(rf"[._-]{word}([._-]|$)", name.lower())), None)


def read_sample(
    path: Path, kind: str, data: bytes, column: str
) -> tuple[pa.Array, np.ndarray, GeneColumns, str | None]:
    """Gene ids, values, columns beside and unit of one sample's file.

    Raises:
        InputError: it is damaged, or has no such column.
    """
    try:
        text = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except TEXT_FAULTS as error:
        raise damaged(path, str(error)) from error
    lines = text.split(b"\n", 3)[:3]
    at = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith(b"#")), None)
    if at is None:
        raise damaged(path, "an empty file")
    if kind == "htseq":
        table = _tsv(path, text, ["gene_id", "value"], 0, {"gene_id": pa.string(), "value": pa.float32()})
        genes = table.filter(pa.compute.invert(pa.compute.starts_with(table["gene_id"], "__")))
        return *_two(genes), {}, "counts" if genes.num_rows < table.num_rows else None
    names = lines[at].decode("utf-8", "replace").rstrip("\r").split("\t")
    if "gene_id" not in names:
        raise damaged(path, "no column gene_id")
    if column not in names:
        expected = ", ".join(name for name in STAR_UNITS if name in names)
        raise InputError(
            f"the gene file has no column {column}",
            file=path,
            expected=expected,
            found=", ".join(names),
            fix="name one of these as gene_column",
        )
    beside = {name: gene_column(name) for name in ("gene_name", "gene_type") if name in names}
    types = {"gene_id": pa.string(), column: pa.float32(), **dict.fromkeys(beside, pa.string())}
    table = _tsv(path, text, names, at + 1, types)
    table = table.filter(pa.compute.invert(pa.compute.is_in(table["gene_id"], value_set=pa.array(_NO_GENES))))
    columns = {str(own): table[name].to_pylist() for name, own in beside.items()}
    return *_two(table), columns, STAR_UNITS.get(column)


def damaged(path: Path, found: str) -> InputError:
    return InputError(
        "the sample's gene file is damaged",
        file=path,
        expected="a whole file",
        found=found,
        fix="download the file again",
    )


def _two(table: pa.Table) -> tuple[pa.Array, np.ndarray]:
    return table.column(0).combine_chunks(), np.array(table.column(1).to_numpy(), np.float32)


def _tsv(path: Path, text: bytes, names: list[str], skipped: int, types: dict[str, pa.DataType]) -> pa.Table:
    try:
        return csv.read_csv(
            pa.BufferReader(text),
            csv.ReadOptions(column_names=names, skip_rows=skipped, use_threads=False),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=["", "NA", "NaN"],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        raise damaged(path, str(error)[:300]) from error


_NO_TABLE, _NO_MATRIX = "the gene file is not a table of numbers", "the gene file is not a matrix"
_REFUSALS = {
    "text": (
        _NO_TABLE,
        "a header line, ids in the first column, numbers in the others",
        "keep the ids in the first column and numbers in the others; text columns may stand beside genes alone",
    ),
    "Parquet": (
        _NO_MATRIX,
        "a text column with the ids, numbers in the others",
        "write the file again with the ids in a text column of their own, or give the matrix as CSV or TSV",
    ),
    "HDF5": (
        _NO_MATRIX,
        "data sets expression (cases x genes), case_id and gene_id of matching lengths",
        "write the file again with these data sets, or give the matrix as CSV, TSV or Parquet",
    ),
    "AnnData": (
        "the AnnData file cannot be read",
        "a whole .h5ad file",
        "copy it again, or write it again with anndata",
    ),
}


def unusable(path: Path, found: str, kind: str = "text") -> InputError:
    """The refusal of a matrix that cannot be read; `kind` is text, Parquet, HDF5 or AnnData."""
    what, expected, fix = _REFUSALS[kind]
    return InputError(what, file=path, expected=expected, found=found, fix=fix)
