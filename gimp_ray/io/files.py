"""Local files and folders that appear whole or not at all, and JSON and text read from them and written to them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gimp_ray.errors import InputError


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes `file`'s name when the block ends well, and is removed otherwise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        _sync(aside)
        aside.chmod(0o644)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes `folder`'s name when the block ends well, and is removed otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield aside
        for file in aside.iterdir():
            _sync(file)
        aside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    with whole_file(file) as aside:
        aside.write_text(text)


def write_json(file: Path, tree: Any) -> None:
    write_text(file, json.dumps(tree, indent=2, sort_keys=False) + "\n")


def read_json(file: Path) -> Any:
    """A JSON file's content.

    Raises:
        InputError: it is not valid JSON.
    """
    try:
        return json.loads(file.read_text())
    except ValueError as error:  # of JSON, or of bytes that are no text
        raise InputError(
            "the file is not valid JSON", file=file, found=str(error), fix="restore it, or start a new run folder"
        ) from None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Lines of a metrics log; none where there is no file."""
    return parse_lines(file.read_text(encoding="utf-8")) if file.exists() else []


def parse_lines(text: str) -> list[dict[str, Any]]:
    """JSON lines up to the first torn one: a run that was killed, or is writing now, leaves its last line torn."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
