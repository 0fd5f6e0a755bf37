"""The seam every matrix reader fills, a `RawMatrix`, and what the store gets in the end, a `GeneMatrix`.

A reader is one file with `fits(head) -> bool` and `read(path, request) -> RawMatrix`, listed in `genes.py`. It keeps
all ids but only the values that the `ReadRequest` wants, in the precision of the file. `samples_by_genes` then finds
the axis of the samples. Left out: choosing among samples, naming genes and units (`cohort/gene_*.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gimp_ray.errors import InputError

if TYPE_CHECKING:
    from gimp_ray.cohort.roll import LeftOut

CASES_BY_GENES = "cases_by_genes"
GENES_BY_CASES = "genes_by_cases"
ORIENTATIONS = ("auto", CASES_BY_GENES, GENES_BY_CASES)

GeneColumns = dict[str, list[str | None]]


@dataclass(frozen=True)
class ReadRequest:
    """What a reader should read.

    Args:
        wanted: whether an id is a sample of a case that is asked for; values of other samples need not be kept.
        orientation: one of `ORIENTATIONS`.
        column: which values, where a format has several (a layer of an h5ad).
    """

    wanted: Callable[[str], bool] = lambda name: True
    orientation: str = "auto"
    column: str | None = None


EVERYTHING = ReadRequest()


@dataclass(frozen=True)
class RawMatrix:
    """A matrix as its file has it.

    Args:
        row_ids, column_ids: all ids of the file.
        values: (kept rows, kept columns) in the file's precision.
        kept_rows, kept_columns: which rows and columns `values` holds, ascending; None for all.
        orientation: where the file says it.
        unit: what the file's content says; `unit_hint`: what its name or a file beside it suggests.
        gene_columns: text columns beside the matrix, one value a gene.
    """

    path: Path
    row_ids: list[str]
    column_ids: list[str]
    values: np.ndarray
    orientation: str | None = None
    unit: str | None = None
    unit_hint: str | None = None
    gene_columns: GeneColumns = field(default_factory=dict)
    kept_rows: np.ndarray | None = None
    kept_columns: np.ndarray | None = None


@dataclass(frozen=True)
class SampleMatrix:
    """A matrix turned: `values` (kept samples, G); `row_of` finds a kept sample's row."""

    path: Path
    sample_ids: list[str]
    gene_ids: list[str]
    values: np.ndarray
    row_of: dict[str, int]
    gene_columns: GeneColumns
    unit: str | None
    unit_hint: str | None


@dataclass(frozen=True)
class GeneMatrix:
    """Expression by case, ready for a store.

    Args:
        path: the first gene file; refusals name it.
        source_ids: sample of every row (several joined by ` + ` where they were averaged).
        gene_ids: G names, each once.
        values: (rows, G) float32.
        unit: unit of the values; `unknown` or None where nobody said it.
        row_of: case -> row; two cases of one patient may share one.
        matched_by_patient: some case was matched by the patient of a barcode, not by its exact id.
        gene_columns: further columns of genes.parquet: symbol, gene_type, entrez, source_id, ...; None where missing.
        sources: file of every row.
        without: why a case has no genes, where there is more to say than that no sample is its own.
        left_out: samples and files that are not in the matrix, with reasons.
        notes: what a user should know.
        hashes: file -> SHA-256 of every file read.
    """

    path: Path
    source_ids: list[str]
    gene_ids: list[str]
    values: np.ndarray
    unit: str | None
    row_of: dict[str, int]
    matched_by_patient: bool
    gene_columns: GeneColumns = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    without: dict[str, InputError] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    hashes: dict[str, str] = field(default_factory=dict)

    def file_of(self, case_id: str) -> Path:
        """The file a case's values are from."""
        return self.sources[self.row_of[case_id]] if self.sources else self.path

    def expression(self, case_id: str) -> np.ndarray:
        """(G,) float32."""
        return np.ascontiguousarray(self.values[self.row_of[case_id]], dtype=np.float32)


def samples_by_genes(raw: RawMatrix, orientation: str, ways: Sequence[Callable[[str], bool]]) -> SampleMatrix | None:
    """Turn the matrix so that rows are samples; None where no sample is found on either axis.

    Args:
        orientation: one of `ORIENTATIONS`; `auto` takes what the file says, else the axis that holds samples.
        ways: how an id is known as a sample, the surest first; the first that finds any decides.

    Raises:
        InputError: samples on both axes, a sample twice.
    """
    if orientation == "auto":
        found = raw.orientation or _recognise(raw, ways)
        if found is None:
            return None
        orientation = found
    if (raw.kept_columns if orientation == CASES_BY_GENES else raw.kept_rows) is not None:
        # the reader kept the samples of the other axis
        raise _other_axis(raw, orientation)
    if orientation == CASES_BY_GENES:
        samples, genes, values, kept = raw.row_ids, raw.column_ids, raw.values, raw.kept_rows
    else:
        samples, genes, values, kept = raw.column_ids, raw.row_ids, raw.values.T, raw.kept_columns
    if not _any_known(samples, ways) and _any_known(genes, ways):
        raise _other_axis(raw, orientation)
    _refuse_twice(samples, raw.path)
    names = samples if kept is None else [samples[i] for i in kept.tolist()]
    row_of = {name: row for row, name in enumerate(names)}
    return SampleMatrix(raw.path, samples, genes, values, row_of, raw.gene_columns, raw.unit, raw.unit_hint)


def _any_known(names: Sequence[str], ways: Sequence[Callable[[str], bool]]) -> bool:
    return any(known(name) for name in names for known in ways)


def _recognise(raw: RawMatrix, ways: Sequence[Callable[[str], bool]]) -> str | None:
    for known in ways:
        rows, columns = sum(map(known, raw.row_ids)), sum(map(known, raw.column_ids))
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


def _other_axis(raw: RawMatrix, orientation: str) -> InputError:
    other = GENES_BY_CASES if orientation == CASES_BY_GENES else CASES_BY_GENES
    return InputError(
        "the gene matrix has its cases on the other axis",
        file=raw.path,
        expected=f"gene_orientation: {other} or auto, as the file has it",
        found=f"gene_orientation: {orientation}; rows such as {', '.join(raw.row_ids[:3])}, "
        f"columns such as {', '.join(raw.column_ids[:3])}",
        fix=f"say gene_orientation: {other}",
    )


def _refuse_twice(ids: Sequence[str], path: Path) -> None:
    twice = sorted(name for name, count in Counter(ids).items() if count > 1)
    if twice:
        found = ", ".join(twice[:10]) + (f" and {len(twice) - 10} more" if len(twice) > 10 else "")
        raise InputError(
            "a case stands twice in the gene matrix",
            file=path,
            case=twice[0],
            expected="one column or row a case",
            found=found,
            fix="keep one of each in the gene file",
        )
