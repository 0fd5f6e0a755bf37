"""Reading the windows and bags of a plan's row into batch memory.

Shapes: B cases of a mini-batch, L patches of a window, N patches of the longest bag of the mini-batch, E embedding
width, M masked patches, G genes. Arrays are plain numpy, named as a task's objective wants them; turning them into
tensors on a device is the engine's business, which window to read the plan's. With a cache (`cache.py`) bags come from
it; with one on a device, embeddings are tensors there. Torch is not imported here: Ray's tasks read too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from gimp_ray.feed.batch_memory import BatchMemory
from gimp_ray.feed.plan import CohortIndex, Row, mask_positions
from gimp_ray.store import CohortStore

# float16, or float32 from a store that keeps float32 or bfloat16
Embeddings = NDArray[np.float16] | NDArray[np.float32]
# numpy arrays by name; where a device cache put them together, embeddings are tensors on the device
Arrays = dict[str, Any]


class BagCache(Protocol):
    """Where windows and bags are read, and the memory of a batch of them (`Any`: numpy arrays or tensors)."""

    def new(self, shape: tuple[int, ...], zeros: bool = False) -> Any:
        """Memory of a batch."""

    def working(self) -> AbstractContextManager[Any]:
        """Entered by a thread that works on a batch."""

    def read(self, slide_id: str, patches: int, start: int, out: Any) -> None:
        """Fill `out` (n, E), memory of a batch, from patch `start` of a slide that has `patches` of them."""

    def finish(self, batch: Any) -> None:
        """Wait until the batch is complete."""


def read_windows(
    store: CohortStore,
    index: CohortIndex,
    row: Row,
    length: int,
    threads: int = 1,
    cache: BagCache | None = None,
) -> Any:
    """(B, L, E) windows of a row, each contiguous in its slide's scan order; a bag shorter than L is repeated to L
    (section 2.3). A numpy array, or with a device cache a tensor.
    """
    assert store.dim is not None, "a gene-only store has no windows"
    bags = FromStore(store) if cache is None else cache
    batch = bags.new((len(row.case), length, store.dim))

    def read_one(b: int) -> None:
        slide, start = int(row.slide[b]), int(row.start[b])
        size = int(index.slide_patches[slide])
        patches = min(length, size)
        with bags.working():
            bags.read(str(index.slide_ids[slide]), size, start, batch[b, :patches])
            repeat_to_length(batch[b], patches)

    _each(read_one, range(len(row.case)), threads)
    bags.finish(batch)
    return batch


def read_bags(
    store: CohortStore,
    index: CohortIndex,
    cases: NDArray[np.int64],
    threads: int = 1,
    cache: BagCache | None = None,
) -> tuple[Any, NDArray[np.bool_]]:
    """Whole bags of some cases, all slides of a case one after another.

    Returns:
        (B, N, E) patches, padded at the end with zeros, a numpy array or with a device cache a tensor; and (B, N) True
        where a patch is real.
    """
    assert store.dim is not None, "a gene-only store has no bags"
    source = FromStore(store) if cache is None else cache
    sizes = index.case_patches()[cases]
    batch = source.new((len(cases), int(sizes.max()), store.dim), zeros=True)
    valid = np.arange(batch.shape[1])[None, :] < sizes[:, None]

    def read_one(b: int) -> None:
        at = 0
        for slide in range(int(index.first_slide[cases[b]]), int(index.first_slide[cases[b] + 1])):
            patches = int(index.slide_patches[slide])
            with source.working():
                source.read(str(index.slide_ids[slide]), patches, 0, batch[b, at : at + patches])
            at += patches

    _each(read_one, range(len(cases)), threads)
    source.finish(batch)
    return batch, valid


def each_bag(
    store: CohortStore,
    index: CohortIndex,
    cases: Iterable[int],
    threads: int = 1,
    cache: BagCache | None = None,
) -> Iterator[tuple[int, Any]]:
    """Whole bags one at a time: a case number and its (1, N, E) patches, which alone need no padding."""
    for case in cases:
        yield case, read_bags(store, index, np.array([case]), threads, cache)[0]


def read_masks(row: Row, length: int, ratio: float) -> NDArray[np.int64]:
    """(B, M) sorted masked positions of each window of a row."""
    return np.stack([mask_positions(int(seed), length, ratio) for seed in row.mask_seed])


def repeat_to_length(window: Any, patches: int) -> None:
    """Fill a (L, E) window, an array or a tensor, in place by repeating its first `patches` rows."""
    done = patches
    while done < len(window):
        step = min(done, len(window) - done)
        window[done : done + step] = window[:step]
        done += step


class FromStore:
    """No cache: every window is read from the store, into numpy memory that is used again (`batch_memory.py`)."""

    def __init__(self, store: CohortStore) -> None:
        self._store, self._memory = store, BatchMemory()

    def new(self, shape: tuple[int, ...], zeros: bool = False) -> Embeddings:
        if zeros:
            return np.zeros(shape, self._store.value_dtype)
        return cast(Embeddings, self._memory.new(shape, self._store.value_dtype))

    def working(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def read(self, slide_id: str, patches: int, start: int, out: Embeddings) -> None:
        self._store.read_window(slide_id, start, len(out), out=out)

    def finish(self, batch: Embeddings) -> None:
        """Nothing to wait for."""


def _each(work: Callable[[int], None], items: Iterable[int], threads: int) -> None:
    if threads <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))
