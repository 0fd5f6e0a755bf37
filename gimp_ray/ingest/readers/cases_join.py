"""Several case tables become one, joined by case: a slide list and a clinical table, patients and samples, ...

The table with slides says which cases there are; without one, the table with labels does. What the others know of those
cases is added. Cases match by id; where none does, TCGA cases match by patient. Left out: joining by slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gimp_ray.errors import InputError
from gimp_ray.ingest.readers.cases_columns import unused_name
from gimp_ray.ingest.readers.cases_part import CasePart, one_row_a_case, two_labels
from gimp_ray.store.splits import patient_of

_SHOWN = 5


def join_parts(parts: Sequence[CasePart]) -> CasePart:
    """The first table with slides (else with labels, else the first), with what the others know of its cases.

    Two tables' columns of one name are one column where their values agree; else the second gets a number, and a note.

    Raises:
        InputError: no case in common, two labels of a case, two rows of a table for one patient.
    """
    base = next((p for p in parts if p.slide_ids is not None), None)
    base = base or next((p for p in parts if p.labels is not None), parts[0])
    others = [part for part in parts if part is not base]
    if not others:
        return base
    extra, labels, dropped, notes = base.extra, base.labels, base.dropped, list(base.notes)
    for number, part in enumerate(others, start=2):
        if part.slide_ids is not None:
            notes.append(f"the slides are those of {base.path.name}; the slide ids of {part.path.name} are not used")
        by_case = one_row_a_case(part)
        notes += by_case.notes
        rows = _rows(base, by_case, notes)
        extra = _with_columns(extra, by_case.extra.take(rows), number, base.path, part.path, notes)
        if by_case.labels is not None and by_case.dropped is not None:
            known = [None if row is None else by_case.labels[row] for row in rows.to_pylist()]
            gone = [None if row is None else by_case.dropped[row] for row in rows.to_pylist()]
            labels = known if labels is None else _one_label(base, labels, known, part.path)
            dropped = gone if dropped is None else [a or b for a, b in zip(dropped, gone, strict=True)]
    return CasePart(base.path, base.case_ids, base.slide_ids, labels, dropped, extra, tuple(notes))


def _rows(base: CasePart, part: CasePart, notes: list[str]) -> pa.Array:
    """(rows of `base`,) row of `part` that knows its case, null where none does."""
    row_of = {case_id: row for row, case_id in enumerate(part.case_ids) if case_id is not None}
    rows = [None if case_id is None else row_of.get(case_id) for case_id in base.case_ids]
    if all(row is None for row in rows):
        rows = _by_patient(base, part, row_of)
        how = "by TCGA patient (first 12 characters), for no case id matched exactly"
        notes.append(f"{part.path.name} was joined with {base.path.name} {how}")
    lacking = {case_id for case_id, row in zip(base.case_ids, rows, strict=True) if case_id is not None and row is None}
    if lacking:
        notes.append(f"{len(lacking):,} cases of {base.path.name} are not in {part.path.name}{_such_as(lacking)}")
    used = {row for row in rows if row is not None}
    unused = {case_id for case_id, row in row_of.items() if row not in used}
    if unused:
        what = f"{len(unused):,} cases of {part.path.name} are not in {base.path.name}, and are not used"
        notes.append(what + _such_as(unused))
    return pa.array(rows, pa.int64())


def _by_patient(base: CasePart, part: CasePart, row_of: dict[str, int]) -> list[int | None]:
    of_patient: dict[str, list[str]] = {}
    for case_id in row_of:
        of_patient.setdefault(patient_of(case_id), []).append(case_id)
    patients = [None if case_id is None else patient_of(case_id) for case_id in base.case_ids]
    found = sorted({patient for patient in patients if patient in of_patient and patient is not None})
    if not found:
        raise InputError(
            "two case tables have no case in common",
            file=part.path,
            expected=f"case ids of {base.path.name}{_such_as({c for c in base.case_ids if c is not None})}",
            found=f"ids{_such_as(set(row_of))}",
            fix="name the columns of cases by the option case_column, or use the same ids in both",
        )
    twice = [patient for patient in found if len(of_patient[patient]) > 1]
    if twice:
        raise InputError(
            "a patient has several rows in a case table that is joined by patient",
            file=part.path,
            case=twice[0],
            expected="one row a patient",
            found=", ".join(of_patient[twice[0]]) + (f"; {len(twice)} such patients" if len(twice) > 1 else ""),
            fix="keep one row of each patient",
        )
    return [row_of[of_patient[p][0]] if p is not None and p in of_patient else None for p in patients]


def _with_columns(extra: pa.Table, more: pa.Table, number: int, base: Path, path: Path, notes: list[str]) -> pa.Table:
    for name in more.column_names:
        column = more[name]
        if name not in extra.column_names:
            extra = extra.append_column(name, column)
            continue
        place = extra.column_names.index(name)
        merged = _merged(extra[name], column)
        if merged is not None:
            extra = extra.set_column(place, name, merged)
        else:
            other = unused_name(f"{name}_{number}", (*extra.column_names, *more.column_names))
            notes.append(f"{name} of {path.name} differs from that of {base.name}: it is kept as {other}")
            extra = extra.append_column(other, column)
    return extra


def _merged(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """One column of two that agree wherever both know a value; None where they do not."""
    if first.type != second.type:
        try:
            wide = pa.unify_schemas(
                [pa.schema([("x", t)]) for t in (first.type, second.type)], promote_options="permissive"
            ).field("x").type  # fmt: skip
            first, second = first.cast(wide), second.cast(wide)
        except pa.ArrowException:
            return None
    if pa.types.is_null(first.type):
        return first
    return pc.coalesce(first, second) if pc.all(pc.equal(first, second), skip_nulls=True).as_py() is not False else None


def _one_label(
    base: CasePart, labels: Sequence[str | None], more: Sequence[str | None], path: Path
) -> list[str | None]:
    for case_id, first, second in zip(base.case_ids, labels, more, strict=True):
        if first is not None and second is not None and first != second:
            raise two_labels(path, case_id or "", first, second)
    return [first or second for first, second in zip(labels, more, strict=True)]


def _such_as(ids: set[str]) -> str:
    return f", such as {', '.join(sorted(ids)[:_SHOWN])}" if ids else ""
