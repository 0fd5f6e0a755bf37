"""Splits: which cases are in train, val and test of each fold (splits.parquet), checked whenever a fold is read.

A split is by patient. The patient of a case is what the column `patient_id` of the case table says, where there is
one; else the TCGA patient barcode (the first 12 characters) where the id starts with one; else the case itself.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gimp_ray.errors import InputError
from gimp_ray.store.schema import table_schema

PARTS = ("train", "val", "test")
IMPORTED = "imported"
KEYS = ("scheme", "fold", "case_id")
_NAMED = 10
PATIENT_COLUMN = "patient_id"
_TCGA_BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?=$|[-_.])", re.IGNORECASE)
# the same for Arrow, whose regular expressions cannot look ahead
_TCGA_CASE = r"(?is)^(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?:$|[-_.].*$)"


def patient_of(case_id: str) -> str:
    """The patient of a case: the TCGA patient barcode where the id starts with one, else the case itself."""
    match = _TCGA_BARCODE.match(case_id)
    return match[0] if match else case_id


def patient_column(case_ids: pa.Array | pa.ChunkedArray, cases: pa.Table | None = None) -> pa.ChunkedArray:
    """The patient of every case, as `patient_of` says or as `cases` says.

    Args:
        case_ids: (n,) string.
        cases: a table with `case_id`; its text column `patient_id`, where it has one, rules where it is not null.

    Returns:
        (n,) string.
    """
    column = case_ids if isinstance(case_ids, pa.ChunkedArray) else pa.chunked_array([case_ids])
    patients = pc.replace_substring_regex(column, pattern=_TCGA_CASE, replacement=r"\1")
    if cases is None or PATIENT_COLUMN not in cases.column_names:
        return patients
    said = cases[PATIENT_COLUMN].cast(pa.string()).combine_chunks()
    return pc.coalesce(said.take(pc.index_in(column, cases["case_id"])), patients)


def patient_codes(case_ids: pa.Array, patient_of_case: Mapping[str, object] | None = None) -> np.ndarray:
    """Patients as numbers: (n,) int32, numbered as they first appear.

    Args:
        case_ids: (n,) string.
        patient_of_case: case id -> patient, for the cases where something other than the id says it; None is unknown.
    """
    patients = patient_column(case_ids)
    if patient_of_case:
        said = [patient_of_case.get(case_id) for case_id in case_ids.to_pylist()]
        patients = pc.coalesce(pa.array([None if v is None else str(v) for v in said], pa.string()), patients)
    return np.asarray(patients.combine_chunks().dictionary_encode().indices)


@dataclass(frozen=True)
class Split:
    """One fold: the case ids of its parts, each sorted. `val` or `test` is empty where the scheme has none."""

    scheme: str
    fold: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class SplitRow:
    """One row of splits.parquet."""

    scheme: str
    fold: int
    case_id: str
    part: str


def fold_table(scheme: str, fold: int, case_ids: pa.Array, parts: np.ndarray) -> pa.Table:
    """Rows of one fold.

    Args:
        scheme: its name.
        fold: its number.
        case_ids: (n,) string.
        parts: (n,) integers, places in `PARTS`.
    """
    n = len(case_ids)
    part = pa.DictionaryArray.from_arrays(pa.array(parts.astype(np.int8)), pa.array(PARTS)).cast(pa.string())
    columns = [pa.repeat(scheme, n), pa.array(np.full(n, fold, np.int32)), case_ids, part]
    return pa.Table.from_arrays(columns, schema=table_schema("splits").arrow())


def join_splits(tables: Sequence[pa.Table]) -> pa.Table:
    """splits.parquet of several tables of rows: sorted by scheme, fold and case."""
    schema = table_schema("splits").arrow()
    table = pa.concat_tables([t.select(schema.names).cast(schema) for t in tables] or [schema.empty_table()])
    if not is_sorted(table, KEYS):
        table = table.sort_by([(name, "ascending") for name in KEYS])
    return table


def splits_table(rows: Sequence[SplitRow]) -> pa.Table:
    """splits.parquet from its rows, sorted by scheme, fold and case."""
    columns = {name: [getattr(row, name) for row in rows] for name in (*KEYS, "part")}
    return join_splits([pa.table(columns, schema=table_schema("splits").arrow())])


def rows_of(table: pa.Table) -> list[SplitRow]:
    """The rows of splits.parquet; for small tables, since each is an object."""
    columns = (table[name].to_pylist() for name in (*KEYS, "part"))
    return [SplitRow(*values) for values in zip(*columns, strict=True)]


def keep_cases(table: pa.Table, case_ids: Collection[str]) -> pa.Table:
    """The rows of the cases named."""
    return table.filter(pc.is_in(table["case_id"], pa.array(list(case_ids), pa.string())))


def schemes_of(table: pa.Table) -> dict[str, tuple[int, ...]]:
    """Scheme -> its folds."""
    schemes: dict[str, list[int]] = {}
    for scheme, fold, _ in _runs(table):
        schemes.setdefault(scheme, []).append(fold)
    return {scheme: tuple(sorted(set(schemes[scheme]))) for scheme in sorted(schemes)}


def split_of(table: pa.Table, scheme: str, fold: int, known: Collection[str] | pa.Table, file: str | Path) -> Split:
    """One fold of splits.parquet, checked.

    Args:
        table: splits.parquet.
        scheme: name of the scheme.
        fold: number of the fold.
        known: the cases the store has: ids, or cases.parquet, whose column `patient_id`, where there is one, then says
            who is one patient.
        file: what errors name.

    Raises:
        InputError: no such scheme or fold, a patient in two parts, no training case, a case the store does not have.
    """
    runs = [(start, stop) for *key, (start, stop) in _runs(table) if key == [scheme, fold]]
    if not runs:
        schemes = schemes_of(table)
        found = "; ".join(f"{name}: folds {', '.join(map(str, folds))}" for name, folds in schemes.items())
        raise InputError(
            "the store has no such split",
            file=file,
            expected=f"scheme {scheme}, fold {fold}",
            found=found or "no split at all",
            fix="name one of the stored splits, or ingest with `--splits FILE.csv`",
        )
    rows = pa.concat_tables([table.slice(start, stop - start) for start, stop in runs])
    cases = known if isinstance(known, pa.Table) else None
    _check_fold(rows, scheme, fold, file, cases)
    unknown = unknown_cases(rows, known)
    if unknown:
        case = ", ".join(unknown[:_NAMED])
        raise InputError(
            "a split names cases the store does not have", file=file, case=case, found=f"{len(unknown)} of them"
        )
    parts = {part: tuple(_sorted_ids(rows.filter(pc.equal(rows["part"], part)))) for part in PARTS}
    return Split(scheme, fold, parts["train"], parts["val"], parts["test"])


def unknown_cases(table: pa.Table, known: Collection[str] | pa.Table) -> list[str]:
    """The cases of a table of splits that are not among `known` (ids, or a table with `case_id`), sorted."""
    ids = known["case_id"] if isinstance(known, pa.Table) else pa.array(list(known), pa.string())
    column = table["case_id"]
    return sorted(pc.unique(column.filter(pc.invert(pc.is_in(column, ids)))).to_pylist())


def check_table(table: pa.Table, file: str | Path, cases: pa.Table | None = None) -> None:
    """Refuse splits in which a patient stands in two parts of a fold, or a fold has nothing to train on.

    Args:
        table: rows of splits in any order.
        file: what errors name.
        cases: cases.parquet, whose column `patient_id`, where there is one, says who is one patient.

    Raises:
        InputError: names up to ten patients; or an unknown part.
    """
    folds: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for scheme, fold, place in _runs(table):
        folds.setdefault((scheme, fold), []).append(place)
    for (scheme, fold), places in sorted(folds.items()):
        rows = pa.concat_tables([table.slice(start, stop - start) for start, stop in places])
        _check_fold(rows, scheme, fold, file, cases)


def check_rows(rows: Iterable[SplitRow], file: str | Path) -> None:
    """`check_table` for rows."""
    check_table(splits_table(list(rows)), file)


def is_sorted(table: pa.Table, keys: Sequence[str]) -> bool:
    """Whether the rows are sorted by `keys`, none of them twice. Text is compared as UTF-8, like Python's."""
    if table.num_rows < 2:
        return True
    equal_so_far: pa.ChunkedArray | pa.Scalar = pa.scalar(True)
    rising: pa.ChunkedArray | pa.Scalar = pa.scalar(False)
    for key in keys:
        column = table[key]
        before, after = column.slice(0, table.num_rows - 1), column.slice(1)
        rising = pc.or_(rising, pc.and_(equal_so_far, pc.less(before, after)))
        equal_so_far = pc.and_(equal_so_far, pc.equal(before, after))
    return bool(pc.all(rising).as_py())


def _runs(table: pa.Table) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """(scheme, fold, (first row, row after the last)) of every run of rows of one scheme and fold, in table order.

    A table as stored has one run a fold; finding them costs a comparison a row, no hashing.
    """
    n = table.num_rows
    if not n:
        return
    changes = np.zeros(n - 1, dtype=bool)
    for name in ("scheme", "fold"):
        column = table[name]
        changed = pc.not_equal(column.slice(0, n - 1), column.slice(1))
        changes |= changed.combine_chunks().to_numpy(zero_copy_only=False)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), n]
    for start, stop in itertools.pairwise(starts):
        yield table["scheme"][start].as_py(), table["fold"][start].as_py(), (start, stop)


def _check_fold(rows: pa.Table, scheme: str, fold: int, file: str | Path, cases: pa.Table | None) -> None:
    """Refuse the rows of one fold where a patient is in two parts, none is in train, or a part has another name."""
    where = f"scheme {scheme}, fold {fold}"
    places = pc.index_in(rows["part"], pa.array(PARTS))
    if places.null_count:
        odd = pc.unique(rows["part"].filter(pc.is_null(places))).to_pylist()
        found = f"{', '.join(map(repr, odd[:_NAMED]))} in {where}"
        fix = "name every part train, val or test"
        raise InputError("a split has an unknown part", file=file, expected=", ".join(PARTS), found=found, fix=fix)
    patients = patient_column(rows["case_id"], cases).combine_chunks().dictionary_encode()
    codes, part = patients.indices.to_numpy(), places.combine_chunks().to_numpy()
    # one bit a part: a patient with more than one bit is torn
    seen = np.zeros(len(patients.dictionary), dtype=np.uint8)
    for place in range(len(PARTS)):
        seen[codes[part == place]] |= np.uint8(1 << place)
    torn = np.flatnonzero(seen & (seen - 1))
    if len(torn):
        parts_of = {patients.dictionary[int(i)].as_py(): _parts(int(seen[i])) for i in torn}
        raise _torn_patients(parts_of, where, file)
    if not (seen & 1).any():
        expected, found = "at least one train case", f"{where} without train"
        fix = "give every fold train cases, or leave the fold out"
        raise InputError("a split has nothing to train on", file=file, expected=expected, found=found, fix=fix)


def _parts(bits: int) -> list[str]:
    return [name for place, name in enumerate(PARTS) if bits >> place & 1]


def _torn_patients(parts_of: dict[str, list[str]], where: str, file: str | Path) -> InputError:
    torn = sorted(parts_of)
    more = f" and {len(torn) - _NAMED} more" if len(torn) > _NAMED else ""
    return InputError(
        f"a split shares {len(torn)} patient(s) between parts: {where}",
        file=file,
        case=", ".join(torn[:_NAMED]) + more,
        expected="every patient in one part of a fold",
        found="; ".join(f"{patient} in {' and '.join(parts_of[patient])}" for patient in torn[:_NAMED]),
        fix="keep all cases of a patient in one part; else training leaks into the result",
    )


def _sorted_ids(rows: pa.Table) -> list[str]:
    ids: list[str] = rows["case_id"].to_pylist()
    return ids if is_sorted(rows, ("case_id",)) else sorted(ids)
