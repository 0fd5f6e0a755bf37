"""The case table from one file or several joined by case.

CSV or TSV, also in a zip or gz: plain tables, CLAM's and PORPOISE's dataset CSV, cBioPortal's clinical files, GDC's
clinical.tsv. Ids and labels are text, whatever they look like. One row a slide, or one row a case where there are no
slides. Of several files the one with slides defines the cases; without one, the one with labels does. Cases match by
id; where none does, TCGA cases match by patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import field_validator

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.cases.clinical import derive
from gimp_ray.ingest.cases.one_file import (
    USUAL_NAMES,
    CasePart,
    candidates,
    format_of,
    no_column,
    one_row_a_case,
    read_part,
    two_labels,
    unused_name,
)
from gimp_ray.ingest.cases.text import TextFile, open_text
from gimp_ray.options import Options
from gimp_ray.store.splits import patient_of

SLIDE_ENDINGS = (
    *(".h5", ".hdf5", ".pt", ".npy", ".npz", ".parquet", ".zarr"),
    *(".svs", ".ndpi", ".tif", ".tiff", ".mrxs", ".scn", ".vms", ".bif", ".czi", ".dcm"),
)


class CaseOptions(Options):
    """Choices on the case table.

    Args:
        case_column: the column of cases; None: recognised by its name, as it is in a file that does not have this one.
        slide_column: the column of slides; None: recognised. A file that does not have this one has no slides.
        label_column: the column of labels; None: recognised. A file that does not have this one has no labels.
        labels: label as the table has it -> label to store, None to leave its cases out; others stay as they are.
        slides: which slides of a case are kept: `all`, `DX` (TCGA's diagnostic slides), `DX1` (the first of them),
            `largest` (the one with most patches).
        survival: which endpoint `survival_months` and `event` are of: OS, DSS, DFI (or DFS), PFI (or PFS).
    """

    case_column: str | None = None
    slide_column: str | None = None
    label_column: str | None = None
    labels: Mapping[str, str | None] | None = None
    slides: Literal["all", "DX", "DX1", "largest"] = "all"
    survival: Literal["OS", "DSS", "DFI", "DFS", "PFI", "PFS"] = "OS"

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_text(cls, labels: Any) -> Any:
        for old, new in labels.items() if isinstance(labels, Mapping) else ():
            if not isinstance(old, str) or not (new is None or (isinstance(new, str) and new.strip())):
                raise ConfigError(
                    "labels has an unusable entry",
                    expected="label: label, or label: null to leave its cases out; numbers in quotes",
                    found=f"{old!r}: {new!r}",
                    fix="write labels and their names as text",
                )
        return labels


@dataclass(frozen=True)
class CaseTable:
    """The rows of a case table.

    Ids and labels are stripped, None where missing; `slide_ids` are stems, None without that column.

    Attributes:
        path: the file that says which cases there are.
        extra: further columns, one value a row.
        notes: what a user should know.
        dropped: case -> label that the user's option `labels` leaves out; those cases have no label.
    """

    path: Path
    case_ids: list[str | None]
    labels: list[str | None]
    slide_ids: list[str | None] | None
    extra: pa.Table
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)


def read_cases(paths: Sequence[Path], options: CaseOptions | None = None) -> CaseTable:
    """Read one case table, or several that are joined by case.

    Args:
        paths: the files. The first with slides says which cases there are; without one, the first with labels.
        options: see `CaseOptions`.

    Raises:
        ConfigError: no path.
        InputError: no such file, not a table, no column of cases or labels, or several that could be one; a column
            twice, no rows, no case in common, a label in `labels` that no case has.
    """
    options = options or CaseOptions()
    if not paths:
        expected, fix = "the path of a CSV or TSV file", "give the case table"
        raise ConfigError("no case table was given", expected=expected, found="nothing", fix=fix)
    files = [open_text(Path(path), "case table") for path in paths]
    for role in ("case", "slide", "label"):
        _check_declared(files, role, getattr(options, f"{role}_column"))
    label_of = _label_columns(files, options.label_column)
    renamed = {old.strip(): None if new is None else new.strip() for old, new in (options.labels or {}).items()}
    parts = [
        read_part(file, options.case_column, options.slide_column, label_of.get(file.path), renamed) for file in files
    ]
    _check_renamed(parts, label_of, renamed)
    whole = join_parts(parts)
    extra, notes = derive(whole.extra, whole.case_ids, options.survival, whole.path)
    unlabelled: list[str | None] = [None] * len(whole.case_ids)
    return CaseTable(
        path=whole.path,
        case_ids=whole.case_ids,
        labels=unlabelled if whole.labels is None else whole.labels,
        slide_ids=None if whole.slide_ids is None else [None if s is None else slide_stem(s) for s in whole.slide_ids],
        extra=extra,
        notes=(*whole.notes, *notes),
        dropped=_dropped(whole),
    )


def slide_stem(name: str) -> str:
    """A slide's name without the endings of slide and feature files (`A.svs`, `A.svs.h5` -> `A`)."""
    for ending in SLIDE_ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return slide_stem(name[: -len(ending)])
    return name


def _check_declared(files: Sequence[TextFile], role: str, name: str | None) -> None:
    if name is not None and not any(name in file.names for file in files):
        names = list(dict.fromkeys(n for file in files for n in file.names if n))
        shown = ", ".join(names[:30]) + (f" and {len(names) - 30:,} more" if len(names) > 30 else "")
        raise InputError(
            f"the case table has no column {name}, which {role}_column names",
            file=", ".join(str(file.path) for file in files),
            expected=f"a column {name}",
            found=shown,
            fix=f"correct {role}_column",
        )


def _label_columns(files: Sequence[TextFile], declared: str | None) -> dict[Path, str]:
    """The column of labels in each file that has it.

    It has one name in all files: the declared one, or the only name that could be one, or what a portal's file has
    instead.
    """
    if declared is not None:
        return {file.path: declared for file in files if declared in file.names}
    own = USUAL_NAMES["label"][0]
    found = {file.path: candidates("label", file.names) for file in files}
    if any(own in names for names in found.values()):
        return {path: own for path, names in found.items() if own in names}
    names = sorted({name for names in found.values() for name in names})
    if len(names) > 1:
        places = "; ".join(f"{path.name}: {', '.join(of)}" for path, of in found.items() if of)
        raise InputError(
            "several columns could be the label",
            file=", ".join(str(file.path) for file in files),
            expected="one, or the option label_column",
            found=places,
            fix=f"say which: {' or '.join(f'label_column={name}' for name in names[:4])}",
        )
    if names:
        return {path: names[0] for path, of in found.items() if of}
    for file in files:
        known = format_of(file)
        for name in () if known is None else known.default_labels:
            if name in file.names:
                return {file.path: name}
    raise no_column("label", list(dict.fromkeys(n for f in files for n in f.names if n)), files[0].path)


def _check_renamed(parts: Sequence[CasePart], label_of: Mapping[Path, str], renamed: Mapping[str, str | None]) -> None:
    """Refuse an entry of `labels` that no case has: a misspelt one would change nothing, silently."""
    if not renamed:
        return
    written = {label for part in parts if part.path in label_of for label in part.written}
    for old in renamed:
        if old not in written:
            raise InputError(
                "the option labels names a label that no case has",
                file=next(iter(label_of)),
                expected=", ".join(sorted(written)[:20]),
                found=old,
                fix="write the label as the table has it",
            )


def _dropped(part: CasePart) -> dict[str, str]:
    """Case -> dropped label, of the cases that have no other one."""
    if part.dropped is None or part.labels is None:
        return {}
    labelled = {case_id for case_id, label in zip(part.case_ids, part.labels, strict=True) if label is not None}
    return {
        case_id: label
        for case_id, label in zip(part.case_ids, part.dropped, strict=True)
        if case_id is not None and label is not None and case_id not in labelled
    }


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
