"""How a store comes to be at its place: whole or not at all, and by one ingest at a time.

A new store on a disk is written into a hidden folder beside its place and renamed. In object storage, which knows no
rename, and where slides are added to a store, new files are written in place under names nothing refers to yet, and
the manifest, written last, makes them the store. A lock keeps a second ingest away. What a killed ingest left behind
(its lock, hidden folder, files nobody refers to) is recognised and removed by the next one on the same machine.
Left out: locking out an ingest on another machine that died; its lock is named in the refusal, to be removed by hand.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.io import locks, storage
from gimp_ray.store.manifest import FILE, Manifest

# names only ingest gives; nothing else is ever removed
_OURS = re.compile(
    r"patches/part-[\w-]+\.parquet|(cases|slides|genes|expression|splits|sources)(\.r\d+)?\.parquet"
    r"|ingest_report(\.r\d+)?\.json|\.(manifest|ingest_report)\S*\.json\.\w+"
)


def exists(out: str) -> bool:
    """Whether there is a store at `out`: a manifest."""
    filesystem, root = storage.resolve(out)
    return bool(filesystem.get_file_info(f"{root}/{FILE}").type == pafs.FileType.File)


def refuse_other(out: str, after_a_kill: bool = False) -> None:
    """InputError when something that is no store is at `out`, what a killed ingest left there apart."""
    filesystem, root = storage.resolve(out)
    if storage.is_local(filesystem):
        found = "a folder" if Path(out).is_dir() else "a file" if os.path.lexists(out) else None
    else:
        strange = [name for name in _files(filesystem, root) if not (after_a_kill and _OURS.fullmatch(name))]
        found = f"{strange[0]} and {len(strange) - 1} others" if strange else None
    if found is not None:
        raise InputError(
            "the output exists already and is no store",
            file=out,
            expected="a store to add to, or a path where nothing is yet",
            found=found,
            fix="give another path, or remove what is there first; nothing is ever overwritten",
        )


@contextmanager
def new_store(out: str) -> Iterator[str]:
    """A place to write a new store to. It is at `out` when the block ends well, and gone when it does not."""
    filesystem, root = storage.resolve(out)
    if not storage.is_local(filesystem):
        _remove(filesystem, root, _files(filesystem, root))
        try:
            yield out
        except BaseException:
            _remove(filesystem, root, _files(filesystem, root))
            raise
        return
    place = Path(out)
    for left in place.parent.glob(f".{place.name}.ingest-*"):
        shutil.rmtree(left, ignore_errors=True)
    # not tempfile.mkdtemp, whose folders nobody else may read
    folder = place.parent / f".{place.name}.ingest-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        (folder / "patches").mkdir()
        yield str(folder)
        with contextlib.suppress(OSError):
            (folder / "patches").rmdir()  # of a store of genes alone
        refuse_other(out)  # it may have appeared meanwhile
        folder.rename(place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def addition(out: str, manifest: Manifest, in_use: set[str]) -> Iterator[str]:
    """The store itself, to write files with new names to; whatever is new is removed when the block fails.

    Args:
        out: the store.
        manifest: as it is now.
        in_use: its part files.
    """
    filesystem, root = storage.resolve(out)
    report = {name for name in _files(filesystem, root) if name.startswith("ingest_report")}
    known = {FILE, *manifest.tables, *in_use, *report}
    _remove(filesystem, root, [name for name in _files(filesystem, root) if name not in known])
    if storage.is_local(filesystem):
        Path(root, "patches").mkdir(exist_ok=True)
    try:
        yield out
    except BaseException:
        _remove(filesystem, root, [name for name in _files(filesystem, root) if name not in known])
        raise


@contextmanager
def lock(out: str) -> Iterator[bool]:
    """Keep other ingests away from `out` while the block runs; True where one was killed there before.

    Raises:
        InputError: another ingest is at work there.
    """
    place = _lock_place(out)
    with contextlib.ExitStack() as stack:
        if not storage.is_uri(out):
            stack.enter_context(locks.folder_made(Path(out).parent))
        create = locks.creating(out, "the store cannot be written")
        yield stack.enter_context(locks.held(place, functools.partial(_busy, place, out), create))


def _lock_place(out: str) -> str:
    # beside a local store, which is to appear by a rename; inside one in object storage
    if storage.is_uri(out):
        return storage.join(out, ".ingest.lock")
    return str(Path(out).parent / f".{Path(out).name}.ingest.lock")


def _busy(place: str, out: str, found: str) -> InputError:
    return InputError(
        "another ingest is writing this store",
        file=out,
        expected="one ingest at a time",
        found=found,
        fix=f"wait until it is done; if it is certainly dead, remove {place}",
    )


def _files(filesystem: pafs.FileSystem, root: str) -> list[str]:
    return [name for name in storage.files_below(filesystem, root) if not name.endswith(".ingest.lock")]


def _remove(filesystem: pafs.FileSystem, root: str, names: list[str]) -> None:
    for name in names:
        if _OURS.fullmatch(name):
            with contextlib.suppress(OSError):
                filesystem.delete_file(f"{root}/{name}")
