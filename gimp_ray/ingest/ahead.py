"""`ahead`: the next item is made in a thread while the caller works on this one.

For steps that leave the interpreter to others, as reading, rounding and hashing large arrays do. Left out: more than
one item ahead, which would cost memory and gain nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterator[Item]) -> Generator[Item]:
    """The same items in the same order; what making one raises is raised here. Close it when it is not used up."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield item  # type: ignore[misc]
