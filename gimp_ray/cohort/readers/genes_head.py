"""The first lines of a gene file: what the readers recognise their format by, whatever the file is called.

Left out: any decision; each reader's `fits` looks at a `FileHead`.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gimp_ray.errors import InputError

# a header of 60,000 gene ids is over a megabyte
_FIRST_BYTES = 4096
_GZIP = b"\x1f\x8b"
# what reading a plain or gzip text raises where it is damaged or no UTF-8
TEXT_FAULTS = (OSError, EOFError, UnicodeDecodeError, zlib.error)
_GIT_LFS = "version https://git-lfs.github.com/spec/"


def require_file(path: Path, kind: str) -> None:
    """InputError where there is no file of the kind at `path`."""
    if not path.is_file():
        what, fix = f"there is no such {kind}", "check the path"
        raise InputError(what, file=path, expected="a file", found="nothing at this path", fix=fix)


@dataclass(frozen=True)
class FileHead:
    """How a file begins.

    Args:
        magic: its first 8 bytes, as they are on disk.
        gzipped: whether it is compressed.
        lines: its first lines as text without line ends, the last one perhaps cut; none for a binary file.
    """

    path: Path
    magic: bytes
    gzipped: bool
    lines: tuple[str, ...]

    @property
    def is_text(self) -> bool:
        return bool(self.lines)

    def fields(self, line: int = 0) -> list[str]:
        """The cells of a line, comment lines not counted; empty where there is none."""
        lines = [text for text in self.lines if not text.startswith("#")]
        return split(lines[line], separator_of(lines[line])) if line < len(lines) else []


def read_head(path: Path) -> FileHead:
    """The head of a file; InputError where it cannot be read or is a pointer of Git LFS."""
    try:
        with path.open("rb") as stream:
            first = stream.read(_FIRST_BYTES)
        gzipped = first.startswith(_GZIP)
        if gzipped:
            with gzip.open(path, "rb") as stream:
                first = stream.read(_FIRST_BYTES)
        with path.open("rb") as stream:
            magic = stream.read(8)
    except TEXT_FAULTS as error:
        what, fix = "the gene file cannot be read", "download or copy it again, and let this user read it"
        raise InputError(what, file=path, expected="a whole file", found=str(error), fix=fix) from error
    lines: tuple[str, ...] = ()
    if b"\0" not in first:
        lines = tuple(first.decode("utf-8-sig", "replace").splitlines())
    if lines and lines[0].startswith(_GIT_LFS):
        raise InputError(
            "the gene file is a pointer of Git LFS, not the file",
            file=path,
            expected="the file itself",
            found=lines[0],
            fix="run `git lfs pull` in the folder it was cloned to, or download the file",
        )
    return FileHead(path, magic, gzipped, lines)


def open_bytes(path: Path) -> pa.NativeFile:
    """The content of a plain or gzip file as a stream, whatever its name says."""
    with path.open("rb") as stream:
        gzipped = stream.read(2) == _GZIP
    return pa.input_stream(str(path), compression="gzip" if gzipped else None)


def open_text(path: Path):  # type: ignore[no-untyped-def]
    """The content of a plain or gzip file as UTF-8 text."""
    with path.open("rb") as stream:
        gzipped = stream.read(2) == _GZIP
    return gzip.open(path, "rt", encoding="utf-8-sig") if gzipped else path.open("rt", encoding="utf-8-sig")


def text_fault(path: Path, error: Exception) -> str:
    """What is wrong with a file that could not be read as text, for a message."""
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    with path.open("rb") as stream:
        utf16 = stream.read(2) in (b"\xff\xfe", b"\xfe\xff")
    return (
        "UTF-16 text; save it as UTF-8"
        if utf16
        else f"text that is not UTF-8: {error.reason}, {error.object[error.start]:#04x}"
    )


def separator_of(line: str) -> str:
    """A tab where the line has one, else a comma."""
    return "\t" if "\t" in line else ","


def split(line: str, separator: str) -> list[str]:
    """The cells of one line, stripped."""
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]


def is_number(text: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
