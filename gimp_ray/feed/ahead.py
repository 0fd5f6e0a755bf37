"""Reading ahead: an iterator drawn in a thread, so that the next batch is read while this one is trained on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any, TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """Draw from `items` in a thread, at most `ahead` items before they are asked for; errors come out where they are
    met.
    """
    if ahead <= 0:
        yield from items
        return
    ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def offer(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def draw() -> None:
        try:
            with closing(iter(items)) as drawn:  # type: ignore[type-var]
                for item in drawn:
                    if not offer((item, None)):
                        return
            offer((None, None))
        except BaseException as error:  # handed to the consumer, who raises it
            offer((None, error))

    thread = threading.Thread(target=draw, name="gimp-feed", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join(timeout=5)
