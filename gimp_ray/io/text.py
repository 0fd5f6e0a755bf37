"""Text files that may be gzipped: opening, and what a line's cells are."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from csv import Error as CsvError
from csv import reader as csv_reader
from pathlib import Path
from typing import IO

import pyarrow as pa

from gimp_ray.errors import InputError

TEXT_FAULTS = (OSError, EOFError, UnicodeDecodeError, zlib.error, CsvError, pa.ArrowException, RuntimeError)


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a plain or gzip file."""
    gzipped = path.open("rb").read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if gzipped else path.open("rb")  # type: ignore[return-value]


def open_text(path: Path) -> IO[str]:
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


def require_file(path: Path, kind: str) -> None:
    if not path.is_file():
        raise InputError(
            f"there is no such {kind}", file=path, expected="a file", found="nothing at this path", fix="check the path"
        )


def split(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv_reader([line], delimiter=separator_of(line)), [])]


def separator_of(line: str) -> str:
    return "\t" if "\t" in line else ","


def is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return False
