"""A gene matrix of any format as samples by genes: `read_matrix`.

A format is a row of `FORMATS`: whether the head of the file looks like it, and the function that reads it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gimp_ray.errors import InputError
from gimp_ray.ingest.genes.files import CASES_BY_GENES, GENES_BY_CASES, GeneColumns, Head, Wanted, read_head, unusable
from gimp_ray.ingest.genes.formats import (
    RawMatrix,
    is_h5ad,
    known_places,
    read_h5ad,
    read_hdf5,
    read_parquet,
    read_text,
)
from gimp_ray.io.text import TEXT_FAULTS, require_file


@dataclass(frozen=True)
class Expression:
    """Samples by genes.

    Attributes:
        samples: names of all samples of the file; `values` holds those at `kept`, in that order.
        genes: names of the genes.
        values: (kept, genes).
        beside: further text columns, one value a gene: symbol, gene_type, entrez, ...
        unit: what the content says; `hint`: what its name or a file beside it suggests.
    """

    path: Path
    samples: list[str]
    genes: list[str]
    values: np.ndarray
    kept: np.ndarray
    beside: GeneColumns = field(default_factory=dict)
    unit: str | None = None
    hint: str | None = None


def read_matrix(
    path: Path, ways: Wanted, orientation: str = "auto", column: str | None = None
) -> Expression | list[str]:
    """A matrix turned so that rows are samples; some of its ids where none is a sample that is asked for.

    Raises:
        InputError: the file is missing, of an unknown kind, empty or damaged; samples on both axes, or twice.
    """
    require_file(path, "gene file")
    read = _reader(read_head(path))
    if column is not None and read is not read_h5ad:
        raise no_columns(path, column)
    try:
        raw = read(path, ways, orientation, column)
    except TEXT_FAULTS as error:
        kind = {read_parquet: "Parquet", read_hdf5: "HDF5", read_h5ad: "AnnData"}.get(read, "text")
        raise unusable(path, str(error)[:300], kind) from error
    if not raw.rows or not raw.columns:
        found = f"{len(raw.rows)} rows, {len(raw.columns)} columns"
        raise InputError(
            "the gene matrix is empty",
            file=path,
            expected="cases and genes",
            found=found,
            fix="give the matrix with its rows and columns",
        )
    return _turned(raw, ways, orientation)


def _turned(raw: RawMatrix, ways: Wanted, orientation: str) -> Expression | list[str]:
    if orientation == "auto":
        orientation = raw.recorded_axis or _recognised(raw, ways) or ""
    if not orientation:
        return raw.rows[:3] + raw.columns[:3]
    of_rows = orientation == CASES_BY_GENES
    samples, genes = (raw.rows, raw.columns) if of_rows else (raw.columns, raw.rows)
    if (raw.kept is not None and raw.axis != int(not of_rows)) or (
        not len(known_places(samples, ways)) and len(known_places(genes, ways))
    ):
        other = GENES_BY_CASES if of_rows else CASES_BY_GENES
        raise InputError(
            "the gene matrix has its cases on the other axis",
            file=raw.path,
            expected=f"gene_orientation: {other} or auto, as the file has it",
            found=f"gene_orientation: {orientation}; rows such as {', '.join(raw.rows[:3])}, columns such as "
            f"{', '.join(raw.columns[:3])}",
            fix=f"say gene_orientation: {other}",
        )
    twice = sorted(name for name, count in Counter(samples).items() if count > 1)
    if twice:
        found = ", ".join(twice[:10]) + (f" and {len(twice) - 10} more" if len(twice) > 10 else "")
        raise InputError(
            "a case stands twice in the gene matrix",
            file=raw.path,
            case=twice[0],
            expected="one column or row a case",
            found=found,
            fix="keep one of each in the gene file",
        )
    kept = np.arange(len(samples)) if raw.kept is None else raw.kept
    values = raw.values if of_rows else raw.values.T
    return Expression(raw.path, samples, genes, values, kept, raw.beside, raw.unit, raw.hint)


def _recognised(raw: RawMatrix, ways: Wanted) -> str | None:
    for way in ways:
        rows, columns = sum(map(way, raw.rows)), sum(map(way, raw.columns))
        if rows and columns:
            raise InputError(
                "the gene matrix has case ids on both axes",
                file=raw.path,
                expected="cases on one axis, genes on the other",
                found=f"{rows} cases among the rows and {columns} among the columns",
                fix=f"say which: gene_orientation: {CASES_BY_GENES} or {GENES_BY_CASES}",
            )
        if rows or columns:
            return CASES_BY_GENES if rows else GENES_BY_CASES
    return None


# does the head look like it -> how it is read; the first that fits is taken
FORMATS: tuple[tuple[Callable[[Head], Any], Callable[..., RawMatrix], str], ...] = (
    (lambda head: head.magic.startswith(b"\x89HDF") and is_h5ad(head), read_h5ad, r"\.h5ad"),
    (lambda head: head.magic.startswith(b"\x89HDF"), read_hdf5, r"\.(h5|hdf5)"),
    (lambda head: head.magic.startswith(b"PAR1"), read_parquet, r"\.parquet"),
    (lambda head: len(head.fields) > 1, read_text, r"\.(csv|tsv|txt)(\.gz)?"),
)


def is_matrix(head: Head) -> bool:
    return any(fits(head) for fits, _, _ in FORMATS)


def _reader(head: Head) -> Callable[..., RawMatrix]:
    """The reader of a file by its content; a damaged file is refused by the reader its name asks for."""
    for fits, read, _ in FORMATS:
        if fits(head):
            return read
    for _, read, name in FORMATS:
        if re.search(rf"{name}$", head.path.name.lower()):
            return read
    zipped = head.magic.startswith(b"PK")
    raise InputError(
        "the gene file is of an unknown kind",
        file=head.path,
        expected="GDC STAR or HTSeq files, CSV, TSV, Parquet, HDF5 (.h5, .h5ad)",
        found=head.path.suffix or "no ending",
        fix="unzip it, or save the sheet as CSV" if zipped else "save the matrix as CSV, TSV, Parquet or HDF5",
    )


def no_columns(path: Path, column: str) -> InputError:
    expected = "GDC STAR counts or an .h5ad with layers for gene_column"
    return InputError(
        "the gene file has no columns to choose from",
        file=path,
        expected=expected,
        found=f"gene_column: {column}",
        fix="leave gene_column out",
    )
