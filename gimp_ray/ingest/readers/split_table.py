"""Splits from files: our own split table, and CLAM's files of folds (`splits_clam.py`).

Our own is a CSV with `case_id` and `part` (train, val, test), and optionally `fold` (0 without it) and `scheme`
(`imported` without it). Ids may be cases or slides of the case table; slides become their cases. Left out: making
splits (`splits/schemes.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gimp_ray.errors import InputError
from gimp_ray.ingest.readers import splits_clam
from gimp_ray.ingest.readers.case_table import slide_stem
from gimp_ray.ingest.readers.cases_text import TextFile, open_text, read_columns
from gimp_ray.ingest.readers.splits_clam import ENTRIES
from gimp_ray.ingest.roll import LeftOut
from gimp_ray.store.splits import IMPORTED, KEYS, PARTS, check_table, is_sorted, join_splits

_OWN = ("case_id", "slide_id", "part", "fold", "scheme")


def read_splits(
    path: Path, case_ids: Collection[str], slide_to_case: Mapping[str, str], cases: pa.Table | None = None
) -> tuple[pa.Table, list[LeftOut]]:
    """The folds of a file, or of a folder of CLAM's files, by case.

    Args:
        path: a split table, one of CLAM's files (fold 0), or a folder of them (fold i from `splits_i.csv`).
        case_ids: the cases of the case table.
        slide_to_case: its slides and their cases.
        cases: a table with `case_id` and `patient_id`, which then says who is one patient.

    Returns:
        Rows of splits.parquet, sorted, each once; and the entries and files that were left out.

    Raises:
        InputError: no such file, not one of the formats, no id in common with the case table, or a patient in two
            parts of a fold.
    """
    left_out: list[LeftOut] = []
    if path.is_dir():
        entries, other = splits_clam.read_folder(path)
        for file in other:
            left_out.append(LeftOut("split file", file.name, "not a file of splits", file=str(file), counts=False))
    else:
        text = open_text(path, "split table")
        entries = splits_clam.read_fold(text, 0) if splits_clam.recognises(text) else _own_entries(text)
    nowhere = entries.filter(pc.is_null(entries["part"]))
    for name in pc.unique(nowhere["id"]).to_pylist():
        reason = "the split puts it in no part"
        left_out.append(LeftOut("split entry", name, reason, file=str(path), counts=False))
    entries = entries.filter(pc.is_valid(entries["part"]))
    names = pc.unique(entries["id"])
    known = set(case_ids)
    case_of = [_case_of(name, known, slide_to_case) for name in names.to_pylist()]
    for name, case_id in zip(names.to_pylist(), case_of, strict=True):
        if case_id is None:
            reason = "the split names it, but it is neither a case nor a slide of the case table"
            expected, fix = "an id of the case table", "correct the id, or remove the entry"
            item = LeftOut("split entry", name, reason, file=str(path), expected=expected, found=name, fix=fix)
            left_out.append(item)
    if not any(case_of):
        raise _nothing_in_common(path, names.to_pylist(), known, slide_to_case)
    place = pc.index_in(entries["id"], names)
    if None in case_of:  # a split that tears patients is refused, whether this cohort has them or not
        everybody = [case_id or name for case_id, name in zip(case_of, names.to_pylist(), strict=True)]
        check_table(_as_rows(entries, pa.array(everybody, pa.string()).take(place)), path, cases)
    rows = _as_rows(entries, pa.array(case_of, pa.string()).take(place))
    check_table(rows, path, cases)
    return rows, left_out


def _as_rows(entries: pa.Table, case_ids: pa.ChunkedArray) -> pa.Table:
    """Rows of splits.parquet of the entries whose case is not null, each once."""
    table = entries.drop_columns(["id"]).append_column("case_id", case_ids)
    table = join_splits([table.filter(pc.is_valid(table["case_id"]))])
    if is_sorted(table, KEYS):
        return table
    return join_splits([table.group_by(table.column_names, use_threads=False).aggregate([])])


def _case_of(name: str, known: Collection[str], slide_to_case: Mapping[str, str]) -> str | None:
    if name in known:
        return name
    return slide_to_case.get(name) or slide_to_case.get(slide_stem(name))


def _own_entries(file: TextFile) -> pa.Table:
    """The entries of our own table, checked cell by cell."""
    ids = "case_id" if "case_id" in file.names else "slide_id"
    for name in (ids, "part"):
        if name not in file.names:
            raise InputError(
                f"the split table has no {name if name == 'part' else 'case_id'} column",
                file=file.path,
                expected="columns case_id, part, optionally fold and scheme; or CLAM's columns train, val, test",
                found=", ".join(name or "(no name)" for name in file.names[:20]),
                fix="name the columns so, or give CLAM's split files",
            )
    used = [name for name in _OWN if name in file.names]
    table = read_columns(file, used, text=used)
    n = table.num_rows
    columns = {name: pc.utf8_trim_whitespace(table[name]) for name in used}
    columns.setdefault("fold", pa.chunked_array([pa.repeat("0", n)]))
    columns.setdefault("scheme", pa.chunked_array([pa.repeat(IMPORTED, n)]))
    for name in ("scheme", ids):
        missing = pc.fill_null(pc.equal(columns[name], ""), True)
        if pc.any(missing).as_py():
            raise InputError(
                f"the split table has a row without {name}",
                file=file.path,
                expected="a value in every row",
                found=f"row {missing.index(True).as_py() + 1} without one",
                fix="complete the row, or remove it",
            )
    number = pc.fill_null(pc.match_substring_regex(columns["fold"], r"^[0-9]{1,9}$"), False)
    if not pc.all(number).as_py():
        found = repr(table["fold"][number.index(False).as_py()].as_py())
        what = "the split table has a fold that is no number"
        raise InputError(what, file=file.path, expected="0, 1, ...", found=found, fix="number the folds from 0")
    part = pc.utf8_lower(columns["part"])
    good = pc.is_in(part, pa.array(PARTS))
    if not pc.all(good).as_py():
        row = good.index(False).as_py()
        raise InputError(
            "the split table has an unknown part",
            file=file.path,
            case=columns[ids][row].as_py(),
            expected=", ".join(PARTS),
            found=repr(table["part"][row].as_py()),
            fix="name every part train, val or test",
        )
    return pa.table([columns["scheme"], columns["fold"].cast(pa.int32()), columns[ids], part], schema=ENTRIES)


def _nothing_in_common(
    path: Path, names: list[str], known: Collection[str], slide_to_case: Mapping[str, str]
) -> InputError:
    slides = f", or slides such as {', '.join(sorted(slide_to_case)[:3])}" if slide_to_case else ""
    return InputError(
        "no id of the splits is in the case table",
        file=path,
        expected=f"cases such as {', '.join(sorted(known)[:3])}{slides}",
        found=f"{', '.join(names[:5]) or 'no ids'}",
        fix="use the case table's ids, or give the splits of this cohort",
    )
