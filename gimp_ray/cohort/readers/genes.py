"""Which reader reads a gene file, by its ending; an ending of one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gimp_ray.cohort.readers import genes_hdf5, genes_parquet, genes_text
from gimp_ray.cohort.readers.matrix import RawMatrix
from gimp_ray.errors import InputError

GENE_READERS: dict[str, Callable[[Path], RawMatrix]] = {
    ".csv": genes_text.read,
    ".tsv": genes_text.read,
    ".txt": genes_text.read,
    ".csv.gz": genes_text.read,
    ".tsv.gz": genes_text.read,
    ".txt.gz": genes_text.read,
    ".parquet": genes_parquet.read,
    ".h5": genes_hdf5.read,
    ".hdf5": genes_hdf5.read,
}


def read_gene_file(path: Path) -> RawMatrix:
    """Read a gene matrix; InputError for a file that is missing, of an unknown kind, or damaged."""
    if not path.is_file():
        raise InputError("there is no such gene file", file=path, fix="check the path")
    name = path.name.lower()
    for ending in sorted(GENE_READERS, key=len, reverse=True):
        if name.endswith(ending):
            raw = GENE_READERS[ending](path)
            if not raw.row_ids or not raw.column_ids:
                found = f"{len(raw.row_ids)} rows, {len(raw.column_ids)} columns"
                raise InputError("the gene matrix is empty", file=path, expected="cases and genes", found=found)
            return raw
    expected = ", ".join(GENE_READERS)
    raise InputError(
        "the gene file is of an unknown kind", file=path, expected=expected, found=path.suffix or "no ending"
    )
