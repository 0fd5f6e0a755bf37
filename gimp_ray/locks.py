"""Lock files: one process at a time at a place, here or in object storage.

The file says who holds it: host, process, when that process started, since when. A holder on this machine that is gone
is taken over; one that may be alive is named in the refusal. Left out: finding out whether a process on another
machine is alive; its lock is to be removed by hand.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from gimp_ray import places
from gimp_ray.errors import GimpError, InputError

Busy = Callable[[str], GimpError]
Create = Callable[[str, bytes], bool]


@contextmanager
def held(place: str, busy: Busy, create: Create = places.create) -> Iterator[bool]:
    """Hold the lock file `place` while the block runs; True where its last holder was killed.

    Args:
        place: path or URI of the file.
        busy: makes the refusal, of words that say who holds it.
        create: writes a file only where there is none, and says whether it did.

    Raises:
        GimpError: what `busy` makes, where another process holds it.
    """
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "mark": secrets.token_hex(8),
    }
    text = json.dumps(me).encode()
    killed = not create(place, text)
    if killed:
        _take_over(place, busy)
        if not create(place, text):
            raise busy("another process that has just begun")
    try:
        yield killed
    finally:
        filesystem, path = places.resolve(place)
        with contextlib.suppress(OSError):
            filesystem.delete_file(path)


def creating(file: str, what: str) -> Create:
    """`places.create` that says what to do where an object storage refuses or does not answer.

    Args:
        file: the store or run concerned.
        what: cannot be done, one sentence.
    """

    def create(place: str, text: bytes) -> bool:
        try:
            return places.create(place, text)
        except OSError as error:
            fix = places.advice(places.resolve(place)[0], error)
            if fix is None:
                raise
            raise InputError(what, file=file, found=str(error), fix=fix) from error

    return create


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; those of them that are empty at the end are removed again."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty
            for one in made:
                one.rmdir()


def _take_over(place: str, busy: Busy) -> None:
    """Remove a lock whose process on this machine is gone; refuse while it may be alive."""
    filesystem, path = places.resolve(place)
    try:
        holder = json.loads(places.read_bytes(filesystem, path))
        host, pid, started = str(holder["host"]), int(holder["pid"]), float(holder["started"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise busy(f"a lock that cannot be read ({error})") from None
    if host != socket.gethostname():
        raise busy(f"process {pid} on {host}, since {holder.get('since')}")
    if _alive(pid, started):
        raise busy(f"process {pid} on this machine, since {holder.get('since')}")
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)


def _alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # a zombie is dead; in a container it may stay for ever
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
