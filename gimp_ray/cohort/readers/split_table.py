"""Splits from a CSV: `case_id`, `part` (train, val, test), and optionally `fold` (0 without it) and `scheme`."""

from __future__ import annotations

from pathlib import Path

from gimp_ray.cohort.readers.case_table import read_csv
from gimp_ray.cohort.splits import IMPORTED, PARTS, SplitRow, check_rows
from gimp_ray.errors import InputError


def read_split_table(path: Path) -> list[SplitRow]:
    """The rows of a split table, each once.

    Raises:
        InputError: no such file or column, an unknown part, a fold that is no number, a patient in two parts of a fold.
    """
    if not path.is_file():
        raise InputError("there is no such split table", file=path, fix="check the path")
    table = read_csv(path, "split table", ("case_id", "part", "fold", "scheme"))
    for name in ("case_id", "part"):
        if name not in table.column_names:
            found = ", ".join(table.column_names)
            expected = "columns case_id, part, optionally fold and scheme"
            raise InputError(f"the split table has no {name} column", file=path, expected=expected, found=found)
    n = table.num_rows
    columns = {
        name: table[name].to_pylist() for name in table.column_names if name in ("case_id", "part", "fold", "scheme")
    }
    cases, parts = columns["case_id"], columns["part"]
    folds, schemes = columns.get("fold", ["0"] * n), columns.get("scheme", [IMPORTED] * n)
    rows = []
    for case_id, part, fold, scheme in zip(cases, parts, folds, schemes, strict=True):
        rows.append(
            SplitRow(
                _text(scheme, "scheme", path),
                _fold(fold, path),
                _text(case_id, "case_id", path),
                _part(part, case_id, path),
            )
        )
    rows = list(dict.fromkeys(rows))
    check_rows(rows, path)
    return rows


def _part(value: str | None, case_id: str | None, path: Path) -> str:
    name = (value or "").strip().lower()
    if name not in PARTS:
        expected, found = ", ".join(PARTS), repr(value)
        raise InputError("the split table has an unknown part", file=path, case=case_id, expected=expected, found=found)
    return name


def _fold(value: str | None, path: Path) -> int:
    text = (value or "").strip()
    if not text.isdigit():
        raise InputError(
            "the split table has a fold that is no number", file=path, expected="0, 1, ...", found=repr(value)
        )
    return int(text)


def _text(value: str | None, column: str, path: Path) -> str:
    if value is None or not value.strip():
        raise InputError(f"the split table has a row without {column}", file=path, expected="a value in every row")
    return value.strip()
