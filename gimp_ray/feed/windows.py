"""Reading the windows and bags of a plan's row into batch memory.

Shapes: B cases of a mini-batch, L patches of a window, N patches of the longest bag of the mini-batch, E embedding
width, M masked patches, G genes. Arrays are plain numpy, named as a task's objective wants them; turning them into
tensors on a device is the engine's business, which window to read the plan's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from gimp_ray.cohort import CohortStore
from gimp_ray.feed.plan import CohortIndex, Row, mask_positions

Arrays = dict[str, NDArray[np.generic]]
# float16, or float32 from a store that keeps float32 or bfloat16
Embeddings = NDArray[np.float16] | NDArray[np.float32]


def read_windows(store: CohortStore, index: CohortIndex, row: Row, length: int, threads: int = 1) -> Embeddings:
    """(B, L, E) windows of a row, each contiguous in its slide's scan order; a bag shorter than L is repeated to L
    (section 2.3).
    """
    assert store.dim is not None, "a gene-only store has no windows"
    batch = np.empty((len(row.case), length, store.dim), dtype=store.value_dtype)

    def read_one(b: int) -> None:
        slide = int(row.slide[b])
        patches = min(length, int(index.slide_patches[slide]))
        store.read_window(str(index.slide_ids[slide]), int(row.start[b]), patches, out=batch[b, :patches])
        repeat_to_length(batch[b], patches)

    _each(read_one, range(len(row.case)), threads)
    return batch


def read_bags(
    store: CohortStore, index: CohortIndex, cases: NDArray[np.int64], threads: int = 1
) -> tuple[Embeddings, NDArray[np.bool_]]:
    """Whole bags of some cases, all slides of a case one after another.

    Returns:
        (B, N, E) patches, padded at the end with zeros, and (B, N) True where a patch is real.
    """
    assert store.dim is not None, "a gene-only store has no bags"
    sizes = index.case_patches()[cases]
    bags = np.zeros((len(cases), int(sizes.max()), store.dim), dtype=store.value_dtype)
    valid = np.arange(bags.shape[1])[None, :] < sizes[:, None]

    def read_one(b: int) -> None:
        at = 0
        for slide in range(int(index.first_slide[cases[b]]), int(index.first_slide[cases[b] + 1])):
            patches = int(index.slide_patches[slide])
            store.read_window(str(index.slide_ids[slide]), 0, patches, out=bags[b, at : at + patches])
            at += patches

    _each(read_one, range(len(cases)), threads)
    return bags, valid


def each_bag(
    store: CohortStore, index: CohortIndex, cases: Iterable[int], threads: int = 1
) -> Iterator[tuple[int, Embeddings]]:
    """Whole bags one at a time: a case number and its (1, N, E) patches, which alone need no padding."""
    for case in cases:
        yield case, read_bags(store, index, np.array([case]), threads)[0]


def read_masks(row: Row, length: int, ratio: float) -> NDArray[np.int64]:
    """(B, M) sorted masked positions of each window of a row."""
    return np.stack([mask_positions(int(seed), length, ratio) for seed in row.mask_seed])


def repeat_to_length(window: Embeddings, patches: int) -> None:
    """Fill a (L, E) window in place by repeating its first `patches` rows."""
    done = patches
    while done < len(window):
        step = min(done, len(window) - done)
        window[done : done + step] = window[:step]
        done += step


def _each(work: Callable[[int], None], items: Iterable[int], threads: int) -> None:
    if threads <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))
