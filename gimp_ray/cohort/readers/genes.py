"""Which reader reads a gene file, by its content; a format of one line each. The first that fits is taken.

    MATRIX_READERS   many samples a file, behind the seam in `matrix.py`
    SAMPLE_READERS   one sample a file, behind the seam in `genes_samples.py`

Left out: folders of per-sample files and whose they are (`cohort/gene_files.py`).
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from gimp_ray.cohort.readers import (
    genes_cbioportal,
    genes_h5ad,
    genes_hdf5,
    genes_htseq,
    genes_parquet,
    genes_star,
    genes_text,
)
from gimp_ray.cohort.readers.genes_head import FileHead, read_head, require_file
from gimp_ray.cohort.readers.matrix import EVERYTHING, RawMatrix, ReadRequest
from gimp_ray.errors import InputError

MATRIX_READERS: tuple[ModuleType, ...] = (genes_h5ad, genes_hdf5, genes_parquet, genes_cbioportal, genes_text)
SAMPLE_READERS: tuple[ModuleType, ...] = (genes_star, genes_htseq)
# a damaged file is refused by the reader its name asks for
_BY_NAME: dict[str, ModuleType] = {
    ".h5": genes_hdf5,
    ".hdf5": genes_hdf5,
    ".h5ad": genes_h5ad,
    ".parquet": genes_parquet,
    **dict.fromkeys((".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz"), genes_text),
}


def sample_reader(head: FileHead) -> ModuleType | None:
    """The reader of a file that holds one sample; None where it is no such file."""
    return next((reader for reader in SAMPLE_READERS if reader.fits(head)), None)


def is_matrix(head: FileHead) -> bool:
    """Whether the file is a matrix of several samples."""
    return any(reader.fits(head) for reader in MATRIX_READERS)


def read_gene_file(path: Path, request: ReadRequest = EVERYTHING) -> RawMatrix:
    """Read a gene matrix; InputError for a file that is missing, of an unknown kind, empty or damaged."""
    require_file(path, "gene file")
    reader = _matrix_reader(path)
    if request.column is not None and reader is not genes_h5ad:
        raise no_columns(path, request.column)
    raw: RawMatrix = reader.read(path, request)
    if not raw.row_ids or not raw.column_ids:
        found = f"{len(raw.row_ids)} rows, {len(raw.column_ids)} columns"
        fix = "give the matrix with its rows and columns"
        raise InputError("the gene matrix is empty", file=path, expected="cases and genes", found=found, fix=fix)
    return raw


def no_columns(path: Path, column: str) -> InputError:
    """The refusal of a column where the format has one set of values."""
    return InputError(
        "the gene file has no columns to choose from",
        file=path,
        expected="GDC STAR counts or an .h5ad with layers for gene_column",
        found=f"gene_column: {column}",
        fix="leave gene_column out",
    )


def _matrix_reader(path: Path) -> ModuleType:
    head = read_head(path)
    name = path.name.lower()
    for reader in MATRIX_READERS:
        if reader.fits(head):
            return reader
    for ending in sorted(_BY_NAME, key=len, reverse=True):
        if name.endswith(ending):
            return _BY_NAME[ending]
    zipped = head.magic.startswith(b"PK")
    raise InputError(
        "the gene file is of an unknown kind",
        file=path,
        expected="GDC STAR or HTSeq files, CSV, TSV, Parquet, HDF5 (.h5, .h5ad)",
        found=path.suffix or "no ending",
        fix="unzip it, or save the sheet as CSV" if zipped else "save the matrix as CSV, TSV, Parquet or HDF5",
    )
