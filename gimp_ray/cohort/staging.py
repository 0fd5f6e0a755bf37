"""A folder that appears whole or not at all: written hidden beside its place, then renamed.

Left out: cleaning up after a process that was killed outright (its hidden folder stays and can be removed).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gimp_ray.errors import InputError


def refuse_existing(out: Path) -> None:
    """InputError when something is at `out` already."""
    if os.path.lexists(out):
        raise InputError(
            "the output exists already",
            file=out,
            expected="a path where nothing is yet",
            found="a folder" if out.is_dir() else "a file",
            fix="give another path, or remove what is there first; a store is never overwritten",
        )


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A new folder `.NAME.ingest-PID-...` beside `out`, renamed to `out` at the end; removed on any error or Ctrl-C."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile.mkdtemp, whose folders nobody else may read
    folder = out.parent / f".{out.name}.ingest-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
        refuse_existing(out)  # it may have appeared meanwhile
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
