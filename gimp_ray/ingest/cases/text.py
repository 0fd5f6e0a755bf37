"""CSV and TSV files as tools write them: byte-order mark, comment lines, zip and gz, columns without a name.

The header is read first, so that the caller can choose columns and which of them are text.
"""

from __future__ import annotations

import csv as plain_csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from gimp_ray.errors import InputError

# what tables write for a value that is not there; the last ones are cBioPortal's and GDC's
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
MISSING_OF_PORTALS = (
    "[Not Available]",
    "[Not Applicable]",
    "[Not Evaluated]",
    "[Unknown]",
    "[Discrepancy]",
    "'--",
    "--",
)
_ZIP, _GZIP, _UTF16 = b"PK\x03\x04", b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class TextFile:
    """A text table, its header read.

    Attributes:
        kind: what errors call it, such as `case table`.
        names: the columns' names without blanks around, in the file's order; empty where the file gives none.
        comments: lines beginning with # before the header.
        body: the file from its header on.
    """

    path: Path
    kind: str
    separator: str
    names: tuple[str, ...]
    comments: tuple[str, ...]
    body: bytes = field(repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """A name for every column, by which `read_columns` reads it: its own, or a made-up one where it has none."""
        return tuple(name or f"\0{i}" for i, name in enumerate(self.names))


def open_text(path: Path, kind: str) -> TextFile:
    """A CSV or TSV file, perhaps in a zip or gz, and its header.

    Raises:
        InputError: no such file, no UTF-8 text, an empty file, a column twice.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing at this path"
        raise InputError(f"there is no such {kind}", file=path, expected="a file", found=found, fix="check the path")
    data = _bytes(path, kind).removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    _check_utf8(data, path, kind)
    comments, body = _split_comments(data)
    if not body.strip():
        what, expected, found = f"the {kind} cannot be read", "a CSV or TSV file", "an empty file"
        raise InputError(what, file=path, expected=expected, found=found, fix="give the file with its content")
    first = body.partition(b"\n")[0]
    separator = "\t" if b"\t" in first else ","
    reader = plain_csv.reader(io.TextIOWrapper(io.BytesIO(body), encoding="utf-8", newline=""), delimiter=separator)
    names = tuple(name.strip() for name in next(reader))
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(
            f"the {kind} has a column twice",
            file=path,
            expected="every column once",
            found=", ".join(twice[:10]),
            fix="rename or remove one of each",
        )
    return TextFile(path, kind, separator, names, tuple(comments), body)


def read_columns(
    source: TextFile, columns: Sequence[str] | None = None, text: Collection[str] = (), missing: Sequence[str] = MISSING
) -> pa.Table:
    """Columns of a text table; types are inferred from the whole column.

    Args:
        source: the file.
        columns: which, by their keys; None for all that have a name.
        text: columns read as text, whatever they look like.
        missing: values that become null.

    Raises:
        InputError: rows of several lengths, no rows.
    """
    chosen = [name for name in source.names if name] if columns is None else list(columns)
    if b"\n" not in source.body.strip():  # Arrow cannot skip a header that no line end follows
        raise _no_rows(source)
    try:
        table = csv.read_csv(
            pa.BufferReader(source.body),
            # one block: a column's type is inferred from all of it, not from its first megabyte
            read_options=csv.ReadOptions(
                block_size=max(1 << 20, len(source.body) + 1), column_names=list(source.keys), skip_rows_after_names=1
            ),
            parse_options=csv.ParseOptions(delimiter=source.separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=chosen,
                column_types=dict.fromkeys(text, pa.string()),
                null_values=list(missing),
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"the {source.kind} cannot be read",
            file=source.path,
            expected=f"a CSV or TSV file with {len(source.names)} columns in every row, as in its header",
            found=str(error)[:300],
            fix="correct the row; a value with the separator in it stands in quotes",
        ) from error
    if not table.num_rows:
        raise _no_rows(source)
    return table


def _no_rows(source: TextFile) -> InputError:
    expected, found, fix = "one row a case or slide", "a header alone", "give the table with its rows"
    return InputError(f"the {source.kind} has no rows", file=source.path, expected=expected, found=found, fix=fix)


def stripped(column: pa.ChunkedArray, missing: Sequence[str] = MISSING) -> list[str | None]:
    """A text column as a list: blanks around are cut, missing values are None."""
    values = (None if v is None else v.strip() for v in column.to_pylist())
    return [None if v is None or v in missing else v for v in values]


def _bytes(path: Path, kind: str) -> bytes:
    """The file's content, unpacked where it is a zip of one file or a gz."""
    expected = "a CSV or TSV file, or one such file in a .zip or .gz"
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            return gzip.decompress(data)
        if not data.startswith(_ZIP):
            return data
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # macOS adds a folder of its own to every zip
            inside = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
            if "xl/workbook.xml" in inside:
                fix = "save the sheet as CSV (UTF-8)"
                what, found = f"the {kind} is an Excel file", "a workbook"
                raise InputError(what, file=path, expected=expected, found=found, fix=fix)
            if len(inside) != 1:
                found = ", ".join(inside[:5]) or "an empty zip"
                what, fix = f"the {kind} is a zip of several files", "unzip it, and give the table"
                raise InputError(what, file=path, expected=expected, found=found, fix=fix)
            return archive.read(inside[0])
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        what, fix = f"the {kind} cannot be read", "copy or download it again, and let this user read it"
        raise InputError(what, file=path, expected=expected, found=str(error)[:300], fix=fix) from error


def _check_utf8(data: bytes, path: Path, kind: str) -> None:
    found = "UTF-16 text" if data.startswith(_UTF16) else None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = found or f"byte {data[error.start]:#04x} in line {line}"
    if found:
        what, fix = f"the {kind} is not UTF-8", "save it as UTF-8"
        raise InputError(what, file=path, expected="UTF-8 text", found=found, fix=fix)


def _split_comments(data: bytes) -> tuple[list[str], bytes]:
    """The lines that begin with # before the header, and the rest; a sole cell `#` is the name of a row counter."""
    comments, rest = [], data
    while rest.startswith(b"#") and not rest.startswith((b"#,", b"#\t")):
        line, _, rest = rest.partition(b"\n")
        comments.append(line.decode("utf-8").strip())
    return comments, rest
