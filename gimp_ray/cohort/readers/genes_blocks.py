"""A matrix gathered from blocks of rows, of which only the samples asked for are kept. For text and Parquet.

Left out: finding out for certain which axis holds the samples (`matrix.samples_by_genes`); where columns are asked
for, they are taken to be the samples, else the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gimp_ray.cohort.readers.genes_columns import is_case_column, own_names
from gimp_ray.cohort.readers.matrix import CASES_BY_GENES, GeneColumns, RawMatrix, ReadRequest
from gimp_ray.errors import InputError

_SHOWN = 20


class Blocks:
    """Gathers a matrix block by block.

    Args:
        columns: names of the columns of numbers.
        beside: names of the text columns beside them.
        request: what to keep.
    """

    def __init__(self, path: Path, columns: Sequence[str], beside: Sequence[str], request: ReadRequest) -> None:
        self._path, self._request = path, request
        self._columns, self._beside = list(columns), list(beside)
        self._row_ids: list[str] = []
        self._texts: list[list[str | None]] = [[] for _ in beside]
        self._blocks: list[np.ndarray] = []
        self._kept_rows: list[NDArray[np.int64]] = []
        self._kept_columns = _kept_columns(columns, request)

    @property
    def columns_to_read(self) -> list[int]:
        """Which of the columns of numbers the blocks must hold."""
        return list(range(len(self._columns))) if self._kept_columns is None else self._kept_columns.tolist()

    def add(self, ids: Sequence[str], texts: Sequence[Sequence[str | None]], block: np.ndarray) -> None:
        """The next rows: their ids, their texts by column, their numbers (rows, columns to read)."""
        if self._kept_columns is None:
            rows = np.flatnonzero([self._request.wanted(name) for name in ids])
            self._kept_rows.append(rows + len(self._row_ids))
            block = block if len(rows) == len(ids) else block[rows]
        self._blocks.append(block)
        self._row_ids += ids
        for mine, new in zip(self._texts, texts, strict=True):
            mine.extend(new)

    def matrix(self, unit_hint: str | None = None) -> RawMatrix:
        """The matrix; InputError where rows are cases and some columns are no genes."""
        self._refuse_columns_of_cases()
        shape = (0, len(self.columns_to_read))
        values = np.concatenate(self._blocks) if self._blocks else np.empty(shape, np.float32)
        beside: GeneColumns = dict(zip(own_names(self._beside), self._texts, strict=True))
        rows = np.concatenate(self._kept_rows) if self._kept_rows else None
        if self._kept_columns is None and rows is None:
            rows = np.zeros(0, dtype=np.int64)
        return RawMatrix(
            self._path,
            self._row_ids,
            self._columns,
            values,
            unit_hint=unit_hint,
            gene_columns=beside,
            kept_rows=rows,
            kept_columns=self._kept_columns,
        )

    def _refuse_columns_of_cases(self) -> None:
        """Where rows are cases, a column of text or of a case table is no gene."""
        said = self._request.orientation == CASES_BY_GENES
        if not said and not any(len(rows) for rows in self._kept_rows):
            return
        strange = [name or "(unnamed)" for name in self._beside]
        strange += [name for name in self._columns if is_case_column(name)]
        if strange:
            more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
            raise InputError(
                "the gene file has columns that are no genes",
                file=self._path,
                expected="the case id in one column, one gene in each other",
                found=", ".join(strange[:_SHOWN]) + more,
                fix="remove these columns from the gene file; they belong in the case table",
            )


def _kept_columns(columns: Sequence[str], request: ReadRequest) -> NDArray[np.int64] | None:
    """Places of the columns that are samples asked for; None where rows are the samples, or nothing says so."""
    if request.orientation == CASES_BY_GENES:
        return None
    wanted = np.flatnonzero([request.wanted(name) for name in columns])
    return None if request.orientation == "auto" and not len(wanted) else wanted
