"""Columns of a store's case table read as truth: numbers, yes or no, classes. What is absent or of another type is
refused with what is there.

A null, an empty text and a NaN mean that the value is not known. Left out: what is predicted of them (the targets).
Shapes: N cases of the store, rows of `store.cases`.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.store import CohortStore

YES_OR_NO = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
MOST_NUMBERED_CLASSES = 20
_KEYS = ("case_id", "label", "patient_id")
_MANY = 1000


def case_rows(store: CohortStore, case_ids: Sequence[str]) -> NDArray[np.int64]:
    """(n,) rows of some cases in `store.cases`.

    Raises:
        InputError: the store does not have a case.
    """
    column = store.cases["case_id"]
    if len(case_ids) >= _MANY:  # from here on a hash table of all cases is quicker
        found = pc.index_in(pa.array([str(case) for case in case_ids], pa.string()), column)
        rows = found.fill_null(-1).to_numpy().astype(np.int64)
    else:
        rows = np.array([_row(column, str(case)) for case in case_ids], np.int64)
    if (rows < 0).any():
        missing = str(case_ids[int((rows < 0).argmax())])
        raise InputError("the store has no such case", file=store.path, case=missing)
    return rows


def has_columns(store: CohortStore, names: Sequence[str]) -> bool:
    """Whether the case table has all these columns."""
    return set(names) <= set(store.cases.column_names)


def numbers(store: CohortStore, name: str, key: str) -> NDArray[np.float64]:
    """(N,) float64 of a numeric column; NaN = not known.

    Raises:
        InputError: the column is absent, or not of numbers.
    """
    column = _column(store, name, key)
    if not _is_number(column.type):
        raise _wrong_type(store, name, key, "a column of numbers", str(column.type))
    return _floats(column)


def yes_or_no(store: CohortStore, name: str, key: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) values and (N,) whether they are known, of a column of true/false, 0/1, or the texts yes/no, true/false.

    Raises:
        InputError: the column is absent, or a value is neither (its case is named).
    """
    column = _column(store, name, key)
    expected = "a column of true/false, 0/1 or yes/no"
    if pa.types.is_boolean(column.type):
        known = column.is_valid().to_numpy(zero_copy_only=False)
        return column.fill_null(False).to_numpy(zero_copy_only=False), known
    if _is_number(column.type):
        values = _floats(column)
        known = np.isfinite(values)
        bad = known & ~np.isin(values, (0.0, 1.0))
        if bad.any():
            raise _wrong_value(store, name, key, expected, int(bad.argmax()), f"{values[bad][0]:g}")
        return values == 1.0, known
    if not _is_text(column.type):
        raise _wrong_type(store, name, key, expected, str(column.type))
    texts = [(text or "").strip().lower() for text in column.to_pylist()]
    for row, text in enumerate(texts):
        if text and text not in YES_OR_NO:
            raise _wrong_value(store, name, key, expected, row, column[row].as_py())
    known = np.array([text != "" for text in texts], np.bool_)
    return np.array([YES_OR_NO.get(text, False) for text in texts], np.bool_), known


def classes(store: CohortStore, name: str, key: str) -> pa.Array:
    """(N,) string, the class of every case; null = not known. Text, true/false, or few whole numbers.

    Raises:
        InputError: the column is absent, or its values are no classes: broken numbers, too many of them.
    """
    column = _column(store, name, key)
    expected = f"a column of text, of true/false, or of at most {MOST_NUMBERED_CLASSES} different whole numbers"
    if pa.types.is_boolean(column.type):
        return pc.cast(column, pa.string())
    if _is_number(column.type):
        values = _floats(column)
        known = np.isfinite(values)
        broken = known & (values != np.rint(values))
        if broken.any():
            raise _wrong_value(store, name, key, expected, int(broken.argmax()), f"{values[broken][0]:g}")
        different = len(np.unique(values[known]))
        if different > MOST_NUMBERED_CLASSES:
            raise _wrong_type(store, name, key, expected, f"{different} different numbers")
        return pa.array([str(int(value)) if ok else None for value, ok in zip(values, known, strict=True)], pa.string())
    if not _is_text(column.type):
        raise _wrong_type(store, name, key, expected, str(column.type))
    text = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _column(store: CohortStore, name: str, key: str) -> pa.Array:
    cases = store.cases
    if name not in cases.column_names:
        there = [f"{field.name} ({field.type})" for field in cases.schema if field.name not in _KEYS]
        raise InputError(
            f"the case table has no column '{name}' for {key}",
            file=f"{store.path}/cases.parquet",
            expected="a column with one value a case",
            found=", ".join(there) or "no columns beside case_id and label",
            fix=f"set {key} to one of them, or ingest again with a case table that has it",
        )
    column = cases[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _floats(column: pa.Array) -> NDArray[np.float64]:
    values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.isinf(values), np.nan, values)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _row(column: pa.ChunkedArray, case_id: str) -> int:
    """Row of a case in the sorted ids, -1 where there is none."""
    row = bisect.bisect_left(range(len(column)), case_id, key=lambda i: column[i].as_py())
    return row if row < len(column) and column[row].as_py() == case_id else -1


def _wrong_type(store: CohortStore, name: str, key: str, expected: str, found: str) -> InputError:
    return InputError(
        f"column '{name}' cannot be used for {key}",
        file=f"{store.path}/cases.parquet",
        expected=expected,
        found=found,
        fix=f"set {key} to another column, or correct the case table and ingest again",
    )


def _wrong_value(store: CohortStore, name: str, key: str, expected: str, row: int, found: str) -> InputError:
    refusal = _wrong_type(store, name, key, expected, found)
    return InputError(
        refusal.what,
        file=refusal.file,
        case=store.cases["case_id"][row].as_py(),
        expected=expected,
        found=found,
        fix=refusal.fix,
    )
