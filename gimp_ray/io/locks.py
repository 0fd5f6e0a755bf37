"""Lock files: one process at a time at a place, here or in object storage.

The file says who holds it: host, process, when that process started, since when. The holder counts up a number in it
while it lives. A holder on this machine that is gone is taken over at once; one on another machine once its number has
stood still for a while, which costs the one who asks that time. A holder that finds its lock taken over, since it was
itself held up for long (a machine asleep), ends on the spot: what it would write is another's by now. Left out: clocks
of other machines, which are never compared.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from gimp_ray.errors import GimpError, InputError
from gimp_ray.io import storage

Busy = Callable[[str], GimpError]
Create = Callable[[str, bytes], bool]
BEAT_S = 15.0  # between two counts of a holder
SILENT_S = 90.0  # a lock whose number stands still for so long is nobody's


@contextmanager
def held(place: str, busy: Busy, create: Create = storage.create) -> Iterator[bool]:
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
        "beat": 0,
    }
    text = json.dumps(me).encode()
    killed = not create(place, text)
    if killed:
        _take_over(place, busy)
        if not create(place, text):
            raise busy("another process that has just begun")
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(place, me, over), name="gimp-lock", daemon=True)
    beating.start()
    try:
        yield killed
    finally:
        over.set()
        beating.join(BEAT_S)  # it may wait for a storage that does not answer
        filesystem, path = storage.resolve(place)
        with contextlib.suppress(OSError):
            filesystem.delete_file(path)


def _beat(place: str, me: dict[str, Any], over: threading.Event) -> None:
    """Count up in the lock until the block is over; a storage that does not answer is asked again at the next beat."""
    filesystem, path = storage.resolve(place)
    while not over.wait(BEAT_S):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(storage.read_bytes(filesystem, path)).get("mark") != me["mark"]:
                print(f"error: another command took over {place} while this one stood still", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)
            me["beat"] += 1
            storage.write_bytes(filesystem, path, json.dumps(me).encode())


def creating(file: str, what: str) -> Create:
    """`storage.create` that says what to do where an object storage refuses or does not answer.

    Args:
        file: the store or run concerned.
        what: cannot be done, one sentence.
    """

    def create(place: str, text: bytes) -> bool:
        try:
            return storage.create(place, text)
        except OSError as error:
            fix = storage.advice(storage.resolve(place)[0], error)
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
    """Remove a lock whose process is gone; refuse while it may be alive."""
    filesystem, path = storage.resolve(place)
    try:
        text = storage.read_bytes(filesystem, path)
        holder = json.loads(text)
        host, pid, started = str(holder["host"]), int(holder["pid"]), float(holder["started"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise busy(f"a lock that cannot be read ({error})") from None
    who = f"process {pid} on {host}, since {holder.get('since')}"
    if host != socket.gethostname():
        if "beat" not in holder or _changes(place, text, who):
            raise busy(who)
    elif _alive(pid, started):
        raise busy(f"process {pid} on this machine, since {holder.get('since')}")
    with contextlib.suppress(FileNotFoundError):
        if storage.read_bytes(filesystem, path) != text:  # another one was faster
            raise busy("another process that has just begun")
        filesystem.delete_file(path)


def _changes(place: str, text: bytes, who: str) -> bool:
    """Whether a lock changes while one looks at it for as long as a living holder would need."""
    print(f"note: waiting {SILENT_S:.0f} s to see whether {who} still holds {place}", flush=True)
    filesystem, path = storage.resolve(place)
    until = time.monotonic() + SILENT_S
    while time.monotonic() < until:
        time.sleep(min(BEAT_S, SILENT_S) / 5)
        with contextlib.suppress(OSError):
            if storage.read_bytes(filesystem, path) != text:
                return True
    return False


def _alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # a zombie is dead; in a container it may stay for ever
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
