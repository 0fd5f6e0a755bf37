"""Gene matrices as HDF5: `expression` (cases x genes or genes x cases), `case_id`, `gene_id`; attribute `unit`.

Further lists of texts as long as `gene_id` whose name tells of genes (`gene_name`, `gene_type`) are kept beside.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from gimp_ray.cohort.readers.genes_columns import gene_column, own_names
from gimp_ray.cohort.readers.genes_head import FileHead
from gimp_ray.cohort.readers.matrix import (
    CASES_BY_GENES,
    EVERYTHING,
    GENES_BY_CASES,
    GeneColumns,
    RawMatrix,
    ReadRequest,
)
from gimp_ray.errors import InputError

_KEYS = ("expression", "case_id", "gene_id")
MAGIC = b"\x89HDF"


def fits(head: FileHead) -> bool:
    """Whether the file begins as HDF5 does."""
    return head.magic.startswith(MAGIC)


def read(path: Path, request: ReadRequest = EVERYTHING) -> RawMatrix:
    """Read the matrix in the file's own precision; InputError where a data set is missing or the shapes disagree."""
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in _KEYS if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                raise _bad(path, f"no {', no '.join(missing)}; found {', '.join(file) or 'an empty file'}")
            cases, genes = _texts(file["case_id"], path), _texts(file["gene_id"], path)
            values = file["expression"][()]
            unit = file.attrs.get("unit", file["expression"].attrs.get("unit"))
            beside = _gene_columns(file, len(genes), path)
    except (OSError, RuntimeError) as error:
        raise _bad(path, str(error)) from error
    if values.dtype.kind not in "fiu":
        raise _bad(path, f"expression of type {values.dtype}")
    unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit
    unit = unit if isinstance(unit, str) and unit else None
    # a square matrix is read as cases x genes, the layout the data set names stand for
    if values.shape == (len(cases), len(genes)):
        return RawMatrix(path, cases, genes, values, CASES_BY_GENES, unit, gene_columns=beside)
    if values.shape == (len(genes), len(cases)):
        return RawMatrix(path, genes, cases, values, GENES_BY_CASES, unit, gene_columns=beside)
    raise _bad(path, f"expression {values.shape}, {len(cases)} case ids, {len(genes)} gene ids")


def _gene_columns(file: h5py.File, genes: int, path: Path) -> GeneColumns:
    names = [
        name
        for name, item in file.items()
        if name not in _KEYS
        and gene_column(name) is not None
        and isinstance(item, h5py.Dataset)
        and item.shape == (genes,)
        and item.dtype.kind in "SO"
    ]
    return {own: [*_texts(file[name], path)] for own, name in zip(own_names(names), names, strict=True)}


def _texts(dataset: h5py.Dataset, path: Path) -> list[str]:
    values = np.asarray(dataset[()])
    if values.dtype.kind not in "SO" or values.ndim != 1:
        raise _bad(path, f"{dataset.name} of type {values.dtype} and shape {values.shape}, not a list of texts")
    return [v.decode("utf-8", "replace").strip() if isinstance(v, bytes) else str(v).strip() for v in values]


def _bad(path: Path, found: str) -> InputError:
    expected = "data sets expression (cases x genes), case_id and gene_id of matching lengths"
    fix = "write the file again with these data sets, or give the matrix as CSV, TSV or Parquet"
    return InputError("the gene file is not a matrix", file=path, expected=expected, found=found, fix=fix)
