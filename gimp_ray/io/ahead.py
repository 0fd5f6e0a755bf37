"""Reading ahead: an iterator drawn in a thread, so that the next item is made while the caller works on this one.

Memory: besides the item in the caller's hands at most `ahead` exist, waiting and in the making together. No reference
is kept to an item that was handed over.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _End:
    """The last thing in the queue: the error that ended the items, or none."""

    error: BaseException | None = None


def read_ahead(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """Draw from `items` in a thread, at most `ahead` items before they are asked for; errors come out where they are
    met. Closing it closes `items`, in the thread, and waits for that up to 5 s.
    """
    if ahead <= 0:
        with closed_after(items) as drawn:
            yield from drawn
        return
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room = threading.Semaphore(ahead)  # taken before an item is made, given back when the caller has it
    stop, end = threading.Event(), _End()

    def draw() -> None:
        try:
            with closed_after(items) as drawn:
                while room.acquire() and not stop.is_set():
                    made: list[Any] = [next(drawn, end)]
                    if made[0] is end:
                        break
                    # the caller takes it out of the list: no frame in here keeps it alive
                    ready.put(made)
            ready.put(end)
        except BaseException as error:  # handed to the consumer, who raises it
            ready.put(_End(error))

    thread = threading.Thread(target=draw, name="gimp-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(entry := ready.get(), _End):
            room.release()
            yield entry.pop()
        if entry.error is not None:
            raise entry.error
    finally:
        stop.set()
        room.release()
        thread.join(timeout=5)


@contextmanager
def closed_after(items: Iterable[Item]) -> Generator[Iterator[Item], None, None]:
    """An iterator over `items` that is closed at the block's end where it can be closed."""
    drawn = iter(items)
    try:
        yield drawn
    finally:
        close = getattr(drawn, "close", None)
        if close is not None:
            close()
