"""One file of a case table: which columns are the case, the slide and the label, and its further columns.

A column is named by an option or recognised by its name. The project's own names (`case_id`, `slide_id`, `label`) count
first, then the usual names of other tools; between two of those the user must choose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gimp_ray.errors import InputError
from gimp_ray.ingest.cases.clinical import FORMATS, CaseFormat, molecular_columns, plain_name, unused_name
from gimp_ray.ingest.cases.text import MISSING, MISSING_OF_PORTALS, TextFile, read_columns, stripped

# role -> own name, then the usual ones; compared in lower case with _ for blanks and dashes
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "case": (
        "case_id",
        "case",
        "patient",
        "patient_id",
        "bcr_patient_barcode",
        "case_submitter_id",
        "cases.submitter_id",
        "submitter_id",
    ),
    "slide": ("slide_id", "slide", "slide_name", "filename", "file_name"),
    "label": (
        "label",
        "oncotree_code",
        "class",
        "subtype",
        "cancer_type",
        "cancer_type_detailed",
        "cancer_type_acronym",
        "molecular_subtype",
    ),
}
# read as text: `05` is a code, not the number 5
TEXT_NAMES = frozenset({"site", "patient_id", "sample_id", "tissue_source_site"})


def candidates(role: str, names: Sequence[str]) -> list[str]:
    """The columns that could have a role: the own name alone where it is there, else every usual name."""
    own, *usual = USUAL_NAMES[role]
    if own in names:
        return [own]
    return [name for name in names if plain_name(name) in (own, *usual)]


def one_of(role: str, found: Sequence[str], path: Path) -> str | None:
    """The only candidate, None where there is none; InputError where there are several."""
    if len(found) > 1:
        raise InputError(
            f"several columns could be the {role}",
            file=path,
            expected=f"one, or the option {role}_column",
            found=", ".join(found),
            fix=f"say which: {' or '.join(f'{role}_column={name}' for name in found[:4])}",
        )
    return found[0] if found else None


def no_column(role: str, names: Sequence[str], path: Path) -> InputError:
    """The refusal of a table without a column that has the role."""
    own = USUAL_NAMES[role][0]
    shown = ", ".join(names[:30]) + (f" and {len(names) - 30:,} more" if len(names) > 30 else "")
    fix = f"name the column that holds the {'class' if role == 'label' else role} {own!r}, or say {role}_column=NAME"
    if len(names) == 1 and ";" in names[0]:
        fix = "separate the columns by commas or tabs, not by ;"
    return InputError(
        f"the case table has no {own} column",
        file=path,
        expected=f"one of {', '.join(USUAL_NAMES[role])}, or the option {role}_column",
        found=shown or "no columns",
        fix=fix,
    )


_COUNTER = re.compile(r"#|Unnamed: \d+")
_ALL_MISSING = MISSING + MISSING_OF_PORTALS
_SHOWN = 8
LabelMap = Mapping[str, str | None]


@dataclass(frozen=True)
class CasePart:
    """The rows of one file.

    Attributes:
        case_ids: (rows,) without blanks around; None where missing.
        slide_ids: (rows,) as written; None without that column.
        labels: (rows,) after renaming, None where missing; None without that column.
        dropped: (rows,) label that the user dropped, else None; None as `labels`.
        extra: the further columns, under their own names.
        notes: what a user should know.
        written: the labels as the file has them.
    """

    path: Path
    case_ids: list[str | None]
    slide_ids: list[str | None] | None
    labels: list[str | None] | None
    dropped: list[str | None] | None
    extra: pa.Table
    notes: tuple[str, ...]
    written: frozenset[str] = frozenset()


def format_of(file: TextFile) -> CaseFormat | None:
    """The portal's format of a file; None for a plain table."""
    return next((known for known in FORMATS if known.recognises(file.names, file.comments)), None)


def read_part(
    file: TextFile, case_column: str | None, slide_column: str | None, label_column: str | None, renamed: LabelMap
) -> CasePart:
    """Read one file; a file of a portal is brought to one row a case.

    Args:
        file: the file, its header read.
        case_column: its column of cases; None, or a column it does not have: recognised.
        slide_column: its column of slides; None: recognised. A file may have none.
        label_column: its column of labels; None for none.
        renamed: label as written -> label, None to drop it.

    Raises:
        InputError: no column of cases, or two that could be; two labels of a case in a portal's file.
    """
    known = format_of(file)
    case = _case_column(file, known, case_column)
    slide = slide_column if slide_column in file.names else None
    if slide_column is None:
        slide = one_of("slide", candidates("slide", file.names), file.path)
    roles = {name for name in (case, slide, label_column) if name is not None}
    molecular = [name for name in molecular_columns(file.names) if name not in roles]
    unnamed = [name for name in file.names if name not in roles and (not name or _COUNTER.fullmatch(name))]
    columns = [name for name in file.names if name not in {*molecular, *unnamed}]
    text = {*roles, *(name for name in columns if plain_name(name) in TEXT_NAMES)}
    table = read_columns(file, columns, text, _ALL_MISSING)
    notes = []
    if molecular:
        what = f"{len(molecular):,} columns of genes, such as {molecular[0]}, are no clinical columns and were left out"
        notes.append(f"{file.path.name}: {what}; ingest genes as a gene matrix")
    if unnamed:
        notes.append(f"{file.path.name}: {len(unnamed)} columns without a name, row counters as a rule, were left out")
    labels = dropped = None
    written: list[str | None] = []
    if label_column is not None:
        written = stripped(table[label_column], _ALL_MISSING)
        labels, dropped = _labels(written, renamed)
    extra = _extra(table, case, slide, label_column, renamed)
    part = CasePart(
        path=file.path,
        case_ids=stripped(table[case], _ALL_MISSING),
        slide_ids=None if slide is None else stripped(table[slide], _ALL_MISSING),
        labels=labels,
        dropped=dropped,
        extra=extra if known is None else _without_empty(extra, file.path, notes),
        notes=tuple(notes),
        written=frozenset(label for label in written if label is not None),
    )
    return part if known is None or slide is not None else one_row_a_case(part, known.largest_counts)


def one_row_a_case(part: CasePart, largest_counts: Sequence[str] = ()) -> CasePart:
    """The part with one row a case, in order of first appearance, and without slides.

    A column keeps the one value that a case's rows have; a column with several values in a case is left out with a
    note, or gives its largest where `largest_counts` names it. Rows without a case are left out with a note.

    Raises:
        InputError: a case has two labels.
    """
    row_of: dict[str, int] = {}
    for case_id in part.case_ids:
        if case_id is not None:
            row_of.setdefault(case_id, len(row_of))
    notes = list(part.notes)
    if part.slide_ids is None and len(row_of) == len(part.case_ids):
        return part
    without = part.case_ids.count(None)
    if without:
        notes.append(f"{part.path.name}: {without:,} rows without a case were left out")
    columns: dict[str, pa.Array] = {}
    several = []
    for name in part.extra.column_names:
        column = part.extra[name]
        values, differs = _by_case(column.to_pylist(), part.case_ids, row_of, name in largest_counts)
        if differs:
            several.append(name)
        else:
            columns[name] = pa.array(values, column.type)
    if several:
        shown = ", ".join(several[:_SHOWN]) + (f" and {len(several) - _SHOWN} more" if len(several) > _SHOWN else "")
        notes.append(f"{part.path.name}: left out, for a case has several values: {shown}")
    labels = dropped = None
    if part.labels is not None and part.dropped is not None:
        _refuse_two_labels(part, part.labels)
        labels = _by_case(part.labels, part.case_ids, row_of)[0]
        dropped = _by_case(part.dropped, part.case_ids, row_of)[0]
    extra = pa.table(columns) if columns else part.extra.select([]).slice(0, len(row_of))
    return CasePart(part.path, list(row_of), None, labels, dropped, extra, tuple(notes), part.written)


def _case_column(file: TextFile, known: CaseFormat | None, declared: str | None) -> str:
    if declared in file.names and declared is not None:
        return declared
    if known is not None:
        return next(name for name in known.case_names if name in file.names)
    name = one_of("case", candidates("case", file.names), file.path)
    if name is None:
        raise no_column("case", [name for name in file.names if name], file.path)
    return name


def _labels(written: list[str | None], renamed: LabelMap) -> tuple[list[str | None], list[str | None]]:
    """The labels after renaming, and what was dropped of them."""
    labels = [None if label is None else renamed.get(label, label) for label in written]
    dropped = [old if old is not None and new is None else None for old, new in zip(written, labels, strict=True)]
    return labels, dropped


def _extra(table: pa.Table, case: str, slide: str | None, label: str | None, renamed: LabelMap) -> pa.Table:
    """The further columns; a label's column stays too, unless it says nothing beyond the label."""
    gone = {case, slide}
    own = USUAL_NAMES["label"][0]
    if label == own and not renamed:
        gone.add(label)
    extra = table.drop_columns([name for name in table.column_names if name in gone])
    # the store's own column has the labels after renaming
    given = unused_name(f"{own}_as_given", extra.column_names)
    return extra.rename_columns([given if name == label == own else name for name in extra.column_names])


def _without_empty(extra: pa.Table, path: Path, notes: list[str]) -> pa.Table:
    """Without the columns that have no value at all, of which a portal's file has many."""
    empty = [name for name in extra.column_names if extra[name].null_count == extra.num_rows]
    if empty:
        notes.append(f"{path.name}: {len(empty)} columns without any value were left out")
    return extra.drop_columns(empty)


def _by_case(
    values: Sequence[Any], case_ids: Sequence[str | None], row_of: Mapping[str, int], largest: bool = False
) -> tuple[list[Any], bool]:
    """A value of each case, None where it has none, and whether a case has several; `largest` takes the largest."""
    chosen: list[Any] = [None] * len(row_of)
    differs = False
    for case_id, value in zip(case_ids, values, strict=True):
        if case_id is None or value is None:
            continue
        row = row_of[case_id]
        if chosen[row] is None or (largest and value > chosen[row]):
            chosen[row] = value
        elif not largest and value != chosen[row]:
            differs = True
    return chosen, differs


def _refuse_two_labels(part: CasePart, labels: Sequence[str | None]) -> None:
    first: dict[str, str] = {}
    for case_id, label in zip(part.case_ids, labels, strict=True):
        if case_id is not None and label is not None and first.setdefault(case_id, label) != label:
            raise two_labels(part.path, case_id, first[case_id], label)


def two_labels(path: Path, case_id: str, first: str, second: str) -> InputError:
    """The refusal of a case with two labels."""
    return InputError(
        "a case has two labels",
        file=path,
        case=case_id,
        expected="one label a case",
        found=f"{first} and {second}",
        fix="correct the case table, name another label_column, or bring both to one name by the option labels",
    )
