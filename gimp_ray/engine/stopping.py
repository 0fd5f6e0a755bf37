"""SIGTERM, as a scheduler sends it before it takes a machine away: the run is saved at the next step and ends.

A command listens while it works. Outside of training the signal ends it on the spot, since everything is written whole
or not at all. While it trains, the signal is only noted; the loop asks `asked()` at each optimiser step, saves and
returns. On Ray the command hears the signal and puts a file into the run folder, which the first worker looks for; the
ranks agree on the step (`gimp_ray/engine/loop.py`). A second signal ends the command on the spot in any case. Left
out: SIGINT, which means the person at the keyboard and ends the command as Python does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pyarrow import fs as pafs

from gimp_ray.io import storage

EXIT_CODE = 128 + signal.SIGTERM
FLAG = ".stop"
POLL_S = 1.0

_asked = threading.Event()
_deferred = threading.Event()
_listening = threading.Event()


class Terminated(SystemExit):
    """The command was asked to end, and did; its exit code is 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


def asked() -> bool:
    """Whether this process was asked to end."""
    return _asked.is_set()


@contextmanager
def listening() -> Iterator[None]:
    """Heed SIGTERM while the block runs; outside of a process's main thread nothing is done.

    Raises:
        Terminated: SIGTERM came where there is nothing to save first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    before = signal.signal(signal.SIGTERM, _hear)
    _listening.set()
    try:
        yield
    finally:
        _listening.clear()
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def listen_again() -> None:
    """Take SIGTERM back from a library that set a handler of its own meanwhile."""
    if _listening.is_set():
        signal.signal(signal.SIGTERM, _hear)


@contextmanager
def deferred() -> Iterator[None]:
    """While the block runs SIGTERM is noted, and the block asks for it."""
    _deferred.set()
    try:
        yield
    finally:
        _deferred.clear()


def _hear(number: int, frame: FrameType | None) -> None:
    again = _asked.is_set()
    _asked.set()
    if again or not _deferred.is_set():
        raise Terminated
    os.write(2, b"SIGTERM: saving at the next step\n")  # print may not be entered twice


@contextmanager
def passing_on(run: str) -> Iterator[None]:
    """For the command: what it hears while the block runs is put into the run folder for the workers.

    Args:
        run: the run folder, a path or URI that they reach too.
    """
    filesystem, root = storage.resolve(run)
    flag, over = f"{root}/{FLAG}", threading.Event()

    def pass_on() -> None:
        while not over.wait(POLL_S / 4):
            if asked():
                with contextlib.suppress(OSError):
                    storage.write_bytes(filesystem, flag, b"SIGTERM\n")
                    return

    _remove(filesystem, flag)
    thread = threading.Thread(target=pass_on, name="passing SIGTERM on", daemon=True)
    thread.start()
    try:
        with deferred():
            yield
    finally:
        over.set()
        thread.join()
        _remove(filesystem, flag)


def passed_on(run: str) -> bool:
    """Whether the command heard it and has put it into the run folder."""
    filesystem, root = storage.resolve(run)
    return _is_there(filesystem, f"{root}/{FLAG}")


@contextmanager
def watching(run: str) -> Iterator[None]:
    """For the first worker: look for what `passing_on` leaves in the run folder while the block runs."""
    filesystem, root = storage.resolve(run)
    flag, over = f"{root}/{FLAG}", threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            if _is_there(filesystem, flag):
                _asked.set()
                return

    _asked.clear()
    thread = threading.Thread(target=watch, name="watching for SIGTERM", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _remove(filesystem: pafs.FileSystem, path: str) -> None:
    with contextlib.suppress(OSError):
        filesystem.delete_file(path)


def _is_there(filesystem: pafs.FileSystem, path: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(filesystem.get_file_info(path).type == pafs.FileType.File)
    return False
