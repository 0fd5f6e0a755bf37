"""Bulk expression as AnnData `.h5ad`: obs are samples, var are genes, X or a layer is dense, CSR or CSC.

Samples are the names of obs, or the first of the usual columns of obs that holds samples asked for. `uns["unit"]` says
the unit of X; the name of a layer may say its own. Needs the package anndata (`pip install 'gimp-ray[formats]'`). Left
out: `.raw`, zarr, and single cells (nothing is summed).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gimp_ray.cohort.gene_units import parse_unit
from gimp_ray.cohort.readers.genes_columns import gene_column, own_names
from gimp_ray.cohort.readers.genes_hdf5 import MAGIC
from gimp_ray.cohort.readers.genes_head import FileHead
from gimp_ray.cohort.readers.matrix import CASES_BY_GENES, EVERYTHING, GeneColumns, RawMatrix, ReadRequest
from gimp_ray.errors import InputError

_ID_COLUMNS = (
    *("case_id", "case", "patient_id", "patient", "submitter_id", "case_submitter_id"),
    *("sample_id", "sample", "sample_submitter_id", "barcode"),
)


def fits(head: FileHead) -> bool:
    """Whether the file is HDF5 with AnnData's groups."""
    if not head.magic.startswith(MAGIC):
        return False
    try:
        with h5py.File(head.path, "r") as file:
            return "obs" in file and "var" in file
    except (OSError, RuntimeError):  # damaged: its name says whose it is
        return head.path.name.lower().endswith(".h5ad")


def read(path: Path, request: ReadRequest = EVERYTHING) -> RawMatrix:
    """Read the samples asked for, dense and in the file's precision.

    Raises:
        InputError: anndata is not installed, the file is damaged, or it has no such layer or no X.
    """
    data = _open(path)
    layers = [name for name in data.layers if name]
    if request.column is not None and request.column not in layers:
        raise InputError(
            f"the AnnData file has no layer {request.column}",
            file=path,
            expected="a layer of the file",
            found=", ".join(layers) or "no layers",
            fix="leave gene_column out to read X, or name a layer",
        )
    matrix = data.X if request.column is None else data.layers[request.column]
    if matrix is None:
        found = f"layers {', '.join(layers)}" if layers else "neither X nor layers"
        raise InputError("the AnnData file has no X", file=path, expected="X", found=found, fix="name a layer")
    ids = _sample_ids(data, request)
    rows = np.flatnonzero([request.wanted(name) for name in ids])
    values = matrix[rows]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.dtype.kind not in "fiu":
        what, found, fix = "the AnnData file holds no numbers", f"type {values.dtype}", "name a layer of numbers"
        raise InputError(what, file=path, expected="numbers", found=found, fix=fix)
    unit = data.uns.get("unit") if request.column is None else parse_unit(request.column)
    unit = str(unit) if unit is not None else None
    genes = [str(name).strip() for name in data.var_names]
    return RawMatrix(
        path, ids, genes, values, CASES_BY_GENES, unit or None, gene_columns=_gene_columns(data), kept_rows=rows
    )


def _open(path: Path) -> Any:
    try:
        import anndata
    except ImportError as error:
        fix = "pip install 'gimp-ray[formats]'"
        raise InputError("reading .h5ad needs the package anndata", file=path, found=str(error), fix=fix) from error
    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # anndata raises what its parts raise
        what, fix = "the AnnData file cannot be read", "copy it again, or write it again with anndata"
        found = str(error)[:300] or type(error).__name__
        raise InputError(what, file=path, expected="a whole .h5ad file", found=found, fix=fix) from error


def _sample_ids(data: Any, request: ReadRequest) -> list[str]:
    names = [str(name).strip() for name in data.obs_names]
    if any(map(request.wanted, names)):
        return names
    for column in _ID_COLUMNS:
        if column in data.obs:
            ids = [str(name).strip() for name in data.obs[column]]
            if any(map(request.wanted, ids)):
                return ids
    return names


def _gene_columns(data: Any) -> GeneColumns:
    """The columns of var whose names tell of genes."""
    names = [name for name in data.var.columns if gene_column(str(name)) is not None]
    columns: GeneColumns = {}
    for own, name in zip(own_names([str(name) for name in names]), names, strict=True):
        column = data.var[name]
        missing = column.isna()
        columns[own] = [None if gone else str(value) for value, gone in zip(column, missing, strict=True)]
    return columns
