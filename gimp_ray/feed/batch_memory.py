"""Memory of mini-batches that is used again once nobody holds the mini-batch.

Windows of one stage all have one size, of tens of megabytes. Handed back to the allocator they are split among what the
model allocates meanwhile, and the process grows beyond what is held at a time; fresh pages for each of them would have
to be cleared by the kernel first, which takes longer than the copying. Left out: bags, whose sizes differ, and memory
on a device.
"""

from __future__ import annotations

import math
import mmap
import weakref

import numpy as np
from numpy.typing import DTypeLike, NDArray

LEAST_BYTES = 1 << 20  # below this the allocator does well


class BatchMemory:
    """Arrays of one size at a time. As many are kept as were ever held together; another size lets go of them all.

    Threads may share it.
    """

    def __init__(self) -> None:
        self._size = 0
        self._free: list[mmap.mmap] = []

    def new(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        """An array with whatever values its memory had; the memory is free again when the last view of it is gone."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < LEAST_BYTES:
            return np.empty(shape, dtype)
        if size != self._size:
            self._size, self._free = size, []
        free = self._free
        try:
            pages = free.pop()
        except IndexError:
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # every view of it keeps this array alive and not only the pages, which are no array
        whole = np.frombuffer(pages, np.uint8)
        weakref.finalize(whole, free.append, pages).atexit = False
        return whole.view(dtype).reshape(shape)
