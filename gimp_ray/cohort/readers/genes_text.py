"""Gene matrices as CSV or TSV, plain or gzip: a header line, ids in the first column, numbers in the rest.

The separator is a tab where the header line has one, else a comma. Values are read as float32. Left out: columns
beside the matrix (symbols, Entrez ids), which are refused as not numeric.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from gimp_ray.cohort.readers.matrix import RawMatrix
from gimp_ray.errors import InputError

# a header of 60,000 gene ids is over a megabyte, and a line must fit a block
_BLOCK_BYTES = 32 << 20
_MISSING = ["", "NA", "N/A", "NaN", "nan", "null"]


def read(path: Path) -> RawMatrix:
    """Read the matrix; InputError where it is no table of numbers."""
    separator, names = _header(path)
    if len(names) < 2:
        raise _bad(path, f"one column: {names[0][:60] if names else 'an empty file'}")
    # columns are numbered, since duplicated names must be seen and not merged
    numbered = [str(i) for i in range(len(names))]
    types = {"0": pa.string(), **dict.fromkeys(numbered[1:], pa.float32())}
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=numbered, skip_rows=1, block_size=_BLOCK_BYTES),
            parse_options=csv.ParseOptions(delimiter=separator),
            convert_options=csv.ConvertOptions(column_types=types, null_values=_MISSING, strings_can_be_null=False),
        )
    except (pa.ArrowException, OSError) as error:
        raise _bad(path, _plain(str(error), names)) from error
    row_ids = [name.strip() for name in table.column(0).to_pylist()]
    by_column = np.empty((len(names) - 1, len(row_ids)), dtype=np.float32)
    for i, column in enumerate(table.columns[1:]):
        by_column[i] = column.to_numpy()
    return RawMatrix(path, row_ids, names[1:], by_column.T)


def _header(path: Path) -> tuple[str, list[str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as stream:
            line = stream.readline().rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _bad(path, str(error)) from error
    separator = "\t" if "\t" in line else ","
    names = next(iter(_split(line, separator)), [])
    return separator, [name.strip() for name in names]


def _split(line: str, separator: str) -> list[list[str]]:
    import csv as text_csv

    return list(text_csv.reader([line], delimiter=separator))


def _plain(error: str, names: list[str]) -> str:
    """Arrow's message with the column's name in place of its number."""
    head, _, tail = error.partition("In CSV column #")
    number, _, rest = tail.partition(":")
    if head or not number.isdigit() or int(number) >= len(names):
        return error[:300]
    return f"column {names[int(number)]}:{rest}"[:300]


def _bad(path: Path, found: str) -> InputError:
    fix = "keep the ids and the numbers alone; an unnamed or extra text column must go"
    expected = "a header line, ids in the first column, numbers in the others"
    return InputError("the gene file is not a table of numbers", file=path, expected=expected, found=found, fix=fix)
