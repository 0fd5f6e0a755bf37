"""The case table: a CSV or TSV with `case_id`, `label`, mostly `slide_id`, and any further columns.

Ids and labels are text, whatever they look like; further columns keep the type Arrow infers. One row a slide, or one
row a case where there are no slides. Left out: matching with files (`join.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from gimp_ray.errors import InputError

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
SLIDE_ENDINGS = (
    ".svs",
    ".h5",
    ".hdf5",
    ".pt",
    ".ndpi",
    ".tif",
    ".tiff",
    ".mrxs",
    ".scn",
    ".vms",
    ".bif",
    ".czi",
    ".dcm",
)


@dataclass(frozen=True)
class CaseTable:
    """The rows of a case table.

    Ids and labels are stripped, None where missing; `slide_ids` are stems, None without that column.
    """

    path: Path
    case_ids: list[str | None]
    labels: list[str | None]
    slide_ids: list[str | None] | None
    extra: pa.Table


def read_case_table(path: Path) -> CaseTable:
    """Read a case table.

    Raises:
        InputError: no such file, not a table, no case_id or label column, a column twice, no rows.
    """
    if not path.is_file():
        raise InputError("there is no such case table", file=path, fix="check the path")
    table = read_csv(path, "case table", ("case_id", "slide_id", "label"))
    for name in ("case_id", "label"):
        if name not in table.column_names:
            raise InputError(
                f"the case table has no {name} column",
                file=path,
                expected="columns case_id, slide_id, label",
                found=", ".join(table.column_names),
                fix=f"name the column that holds the {'class' if name == 'label' else 'case'} {name!r}",
            )
    slides = None
    if "slide_id" in table.column_names:
        slides = [None if s is None else slide_stem(s) for s in _texts(table["slide_id"])]
    known = [name for name in ("case_id", "slide_id", "label") if name in table.column_names]
    return CaseTable(path, _texts(table["case_id"]), _texts(table["label"]), slides, table.drop_columns(known))


def read_csv(path: Path, kind: str, text_columns: tuple[str, ...]) -> pa.Table:
    """A CSV or TSV file with the named columns as text; InputError where it is no table."""
    try:
        with path.open("rb") as stream:
            separator = "\t" if b"\t" in stream.readline() else ","
        table = csv.read_csv(
            path,
            # one block: a column's type is inferred from all of it, not from its first megabyte
            read_options=csv.ReadOptions(block_size=max(1 << 20, path.stat().st_size + 1)),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(text_columns, pa.string()),
                null_values=list(MISSING),
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, OSError) as error:
        found = str(error)[:300]
        raise InputError(f"the {kind} cannot be read", file=path, expected="a CSV or TSV file", found=found) from error
    binary = [field.name for field in table.schema if pa.types.is_binary(field.type)]
    if binary:
        found = f"other bytes in column {', '.join(binary)}"
        raise InputError(
            f"the {kind} is not UTF-8", file=path, expected="UTF-8 text", found=found, fix="save it as UTF-8"
        )
    names = [name.strip() for name in table.column_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"the {kind} has a column twice", file=path, expected="every column once", found=", ".join(twice)
        )
    if not table.num_rows:
        raise InputError(
            f"the {kind} has no rows", file=path, expected="one row a case or slide", found="a header alone"
        )
    return table.rename_columns(names)


def slide_stem(name: str) -> str:
    """A slide's name without the endings of slide and feature files (`A.svs`, `A.svs.h5` -> `A`)."""
    for ending in SLIDE_ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return slide_stem(name[: -len(ending)])
    return name


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    stripped = (None if v is None else v.strip() for v in column.to_pylist())
    return [None if v is None or v in MISSING else v for v in stripped]
