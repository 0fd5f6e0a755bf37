"""Splits from files: our own split table, or CLAM's files of folds.

Our own is a CSV with `case_id` (or `slide_id`) and `part` (train, val, test), and optionally `fold` (0 without it) and
`scheme` (`imported` without it). CLAM's `splits_{i}.csv` lists the slides of fold i in the columns train, val, test;
PORPOISE, MCAT and SurvPath list cases, and have no test. `splits_{i}_bool.csv` has one row a slide and True in its
part's column; in a folder the first kind is used where a fold has both. Slides become their cases.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gimp_ray.errors import InputError
from gimp_ray.ingest.cases import slide_stem
from gimp_ray.ingest.cases.text import TextFile, open_text, read_columns, stripped
from gimp_ray.ingest.roll import LeftOut
from gimp_ray.store.splits import IMPORTED, KEYS, PARTS, check_table, is_sorted, join_splits

_OWN = ("case_id", "slide_id", "part", "fold", "scheme")
# ids are those of slides or cases
_ENTRIES = pa.schema([("scheme", pa.string()), ("fold", pa.int32()), ("id", pa.string()), ("part", pa.string())])
_FOLD_FILE = re.compile(r"splits?_(\d{1,6})(_bool)?\.csv", re.IGNORECASE)
_DESCRIPTOR = re.compile(r"splits?_\d+_descriptor\.csv", re.IGNORECASE)  # counts of each part
_COUNTER = re.compile(r"|#|Unnamed: \d+")
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


def read_splits(
    path: Path, case_ids: Collection[str], slide_to_case: Mapping[str, str], cases: pa.Table | None = None
) -> tuple[pa.Table, list[LeftOut]]:
    """The folds of a file, or of a folder of CLAM's files, by case.

    Args:
        path: a split table, one of CLAM's files (fold 0), or a folder of them (fold i from `splits_i.csv`).
        case_ids: the cases of the case table.
        slide_to_case: its slides and their cases.
        cases: a table with `case_id` and `patient_id`, which then decides which cases are one patient.

    Returns:
        Rows of splits.parquet, sorted, each once; and the entries and files that were left out.

    Raises:
        InputError: no such file, not one of the formats, no id in common with the case table, or a patient in two
            parts of a fold.
    """
    left_out: list[LeftOut] = []
    if path.is_dir():
        entries, other = _read_folder(path)
        for file in other:
            left_out.append(LeftOut("split file", file.name, "not a file of splits", file=str(file), counts=False))
    else:
        text = open_text(path, "split table")
        entries = _fold_entries(text, 0) if _is_clam(text) else _own_entries(text)
    nowhere = entries.filter(pc.is_null(entries["part"]))
    for name in pc.unique(nowhere["id"]).to_pylist():
        left_out.append(LeftOut("split entry", name, "the split puts it in no part", file=str(path), counts=False))
    entries = entries.filter(pc.is_valid(entries["part"]))
    unique = pc.unique(entries["id"])
    names, known = unique.to_pylist(), set(case_ids)
    case_of = [n if n in known else slide_to_case.get(n) or slide_to_case.get(slide_stem(n)) for n in names]
    for name, case_id in zip(names, case_of, strict=True):
        if case_id is None:
            reason = "the split names it, but it is neither a case nor a slide of the case table"
            expected, fix = "an id of the case table", "correct the id, or remove the entry"
            left_out.append(
                LeftOut("split entry", name, reason, file=str(path), expected=expected, found=name, fix=fix)
            )
    if not any(case_of):
        slides = f", or slides such as {', '.join(sorted(slide_to_case)[:3])}" if slide_to_case else ""
        raise InputError(
            "no id of the splits is in the case table",
            file=path,
            expected=f"cases such as {', '.join(sorted(known)[:3])}{slides}",
            found=", ".join(names[:5]) or "no ids",
            fix="use the case table's ids, or give the splits of this cohort",
        )
    row = pc.index_in(entries["id"], unique)
    if None in case_of:  # a split with a patient in two parts is refused, whether this cohort has the patient or not
        all_ids = [case_id or name for case_id, name in zip(case_of, names, strict=True)]
        check_table(_as_rows(entries, pa.array(all_ids, pa.string()).take(row)), path, cases)
    rows = _as_rows(entries, pa.array(case_of, pa.string()).take(row))
    check_table(rows, path, cases)
    return rows, left_out


def _as_rows(entries: pa.Table, case_ids: pa.ChunkedArray) -> pa.Table:
    """Rows of splits.parquet of the entries whose case is not null, each once."""
    table = entries.drop_columns(["id"]).append_column("case_id", case_ids)
    table = join_splits([table.filter(pc.is_valid(table["case_id"]))])
    if is_sorted(table, KEYS):
        return table
    return join_splits([table.group_by(table.column_names, use_threads=False).aggregate([])])


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
    return pa.table([columns["scheme"], columns["fold"].cast(pa.int32()), columns[ids], part], schema=_ENTRIES)


def _is_clam(file: TextFile) -> bool:
    """Whether the header has a column for each part rather than one column of parts."""
    names = [name.lower() for name in file.names]
    return "train" in names and ("val" in names or "test" in names)


def _read_folder(folder: Path) -> tuple[pa.Table, list[Path]]:
    """The entries of all folds of a folder of CLAM's, and the files in it that are no splits."""
    files: dict[int, Path] = {}
    other = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        match = _FOLD_FILE.fullmatch(path.name)
        if match is None:
            if not _DESCRIPTOR.fullmatch(path.name):
                other.append(path)
            continue
        fold, is_bool = int(match[1]), match[2] is not None
        before = files.get(fold)
        if before is not None and before.stem.endswith("_bool") == is_bool:
            what, found = "a fold has two files", f"{before.name} and {path.name}"
            raise InputError(what, file=folder, expected="one file a fold", found=found, fix="move one of them away")
        if before is None or not is_bool:
            files[fold] = path
    if not files:
        raise InputError(
            "the folder holds no splits",
            file=folder,
            expected="splits_0.csv, splits_1.csv, ... or splits_0_bool.csv, ...",
            found=", ".join(path.name for path in other[:10]) or "an empty folder",
            fix="give the folder that holds the files of one task, or a split table",
        )
    folds = [_fold_entries(open_text(files[fold], "split file"), fold) for fold in sorted(files)]
    return pa.concat_tables(folds), other


def _fold_entries(file: TextFile, fold: int) -> pa.Table:
    """The entries of one file of CLAM's; a row of a `_bool` file that is in no part has part null."""
    keys = dict(zip((name.lower() for name in file.names), file.keys, strict=True))
    others = [i for i, name in enumerate(file.names) if name.lower() not in PARTS]
    if not _is_clam(file) or any(i and not _COUNTER.fullmatch(file.names[i]) for i in others):
        raise InputError(
            "the split file has unknown columns",
            file=file.path,
            expected="an index column, then train, val and, where there is one, test",
            found=", ".join(name or "(no name)" for name in file.names[:20]),
            fix="remove the other columns, or give a split table (case_id, part)",
        )
    table = read_columns(file, list(file.keys), text=file.keys)
    cells = {part: stripped(table[keys[part]]) for part in PARTS if part in keys}
    flags = {v.lower() for values in cells.values() for v in values if v is not None}
    pairs: list[tuple[str, str | None]] = []
    if others and others[0] == 0 and flags <= {*_TRUE, *_FALSE} and None not in cells["train"]:
        for row, name in enumerate(stripped(table[file.keys[0]])):
            if name is None:
                what, fix = "the split file has a row without an id", "complete the row, or remove it"
                expected, found = "a slide or case in the first column", f"row {row + 1} without one"
                raise InputError(what, file=file.path, expected=expected, found=found, fix=fix)
            here: list[str | None] = [part for part, values in cells.items() if (values[row] or "").lower() in _TRUE]
            pairs += [(name, part) for part in here or [None]]
    else:
        pairs = [(name, part) for part, values in cells.items() for name in values if name is not None]
    ids, parts = pa.array([name for name, _ in pairs], pa.string()), pa.array([part for _, part in pairs], pa.string())
    n = len(pairs)
    return pa.table([pa.repeat(IMPORTED, n), pa.array([fold] * n, pa.int32()), ids, parts], schema=_ENTRIES)
