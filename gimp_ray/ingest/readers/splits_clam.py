"""CLAM's splits: `splits_{i}.csv`, `splits_{i}_bool.csv`, or a folder of them, each file one fold.

`splits_{i}.csv` lists the slides of a fold in the columns train, val, test; PORPOISE, MCAT and SurvPath list cases, and
have no test. `splits_{i}_bool.csv` has one row a slide and True in the column of its part. In a folder the first kind
is used where a fold has both; `splits_{i}_descriptor.csv`, which only counts, is not read. Left out: CLAM's shared
folder of several tasks (give the folder of one).
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from gimp_ray.errors import InputError
from gimp_ray.ingest.readers.cases_text import TextFile, open_text, read_columns, stripped
from gimp_ray.store.splits import IMPORTED, PARTS

_FOLD_FILE = re.compile(r"splits?_(\d{1,6})(_bool)?\.csv", re.IGNORECASE)
_DESCRIPTOR = re.compile(r"splits?_\d+_descriptor\.csv", re.IGNORECASE)
_COUNTER = re.compile(r"|#|Unnamed: \d+")
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")

# scheme, fold, id, part: ids are those of slides or cases
ENTRIES = pa.schema([("scheme", pa.string()), ("fold", pa.int32()), ("id", pa.string()), ("part", pa.string())])


def recognises(file: TextFile) -> bool:
    """Whether the header has a column for each part rather than one column of parts."""
    parts = [name.lower() for name in file.names]
    return "train" in parts and ("val" in parts or "test" in parts)


def read_folder(folder: Path) -> tuple[pa.Table, list[Path]]:
    """The entries of all folds of a folder, and the files in it that are no splits.

    Raises:
        InputError: no such file in the folder, a fold in two files, or a file that is none.
    """
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
            found = f"{before.name} and {path.name}"
            what, expected, fix = "a fold has two files", "one file a fold", "move one of them away"
            raise InputError(what, file=folder, expected=expected, found=found, fix=fix)
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
    return pa.concat_tables([read_fold(open_text(files[fold], "split file"), fold) for fold in sorted(files)]), other


def read_fold(file: TextFile, fold: int) -> pa.Table:
    """The entries of one file; a row of a `_bool` file that is in no part has part null.

    Raises:
        InputError: no column of a part, other columns, or a cell that is neither true nor false.
    """
    keys = dict(zip((name.lower() for name in file.names), file.keys, strict=True))
    columns = {part: keys[part] for part in PARTS if part in keys}
    others = [i for i, name in enumerate(file.names) if name.lower() not in PARTS]
    odd = [file.names[i] for i in others if i and not _COUNTER.fullmatch(file.names[i])]
    if not recognises(file) or odd:
        raise InputError(
            "the split file has unknown columns",
            file=file.path,
            expected="an index column, then train, val and, where there is one, test",
            found=", ".join(name or "(no name)" for name in file.names[:20]),
            fix="remove the other columns, or give a split table (case_id, part)",
        )
    table = read_columns(file, list(file.keys), text=file.keys)
    cells = {part: stripped(table[key]) for part, key in columns.items()}
    flags = {v.lower() for values in cells.values() for v in values if v is not None}
    if others and others[0] == 0 and flags <= {*_TRUE, *_FALSE} and None not in cells["train"]:
        ids, parts = _of_flags(stripped(table[file.keys[0]]), cells, file.path)
    else:
        pairs = [(name, part) for part, values in cells.items() for name in values if name is not None]
        ids, parts = [name for name, _ in pairs], [part for _, part in pairs]
    n = len(ids)
    return pa.table([pa.repeat(IMPORTED, n), pa.array([fold] * n, pa.int32()), ids, pa.array(parts, pa.string())],
                    schema=ENTRIES)  # fmt: skip


def _of_flags(
    names: list[str | None], cells: dict[str, list[str | None]], path: Path
) -> tuple[list[str], list[str | None]]:
    ids: list[str] = []
    parts: list[str | None] = []
    for row, name in enumerate(names):
        if name is None:
            expected, found = "a slide or case in the first column", f"row {row + 1} without one"
            what, fix = "the split file has a row without an id", "complete the row, or remove it"
            raise InputError(what, file=path, expected=expected, found=found, fix=fix)
        here: list[str | None] = [part for part, values in cells.items() if (values[row] or "").lower() in _TRUE]
        for part in here or [None]:
            ids.append(name)
            parts.append(part)
    return ids, parts
