"""`feed.cache`: slides' bags kept in host or device memory from their first use on.

A bag is read from the store whole, once, when one of its windows is first asked for; windows are then slices of it.
When the budget is used up, windows of further slides are read from the store as without a cache, so the batches are
the same bits in every case. Threads share a cache; no slide is read by two of them at once. A device cache puts
batches together on the device: no byte of a window crosses the bus. Left out: how large a cache may be (`memory.py`),
and sharing one among workers, which the page cache does for a store on a local disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from gimp_ray.feed.memory import cache_budget
from gimp_ray.feed.plan import CohortIndex
from gimp_ray.feed.windows import BagCache, Embeddings, FromStore
from gimp_ray.store import CohortStore

Bag = TypeVar("Bag")
Say = Callable[[str], None]


def open_cache(
    store: CohortStore,
    indexes: Sequence[CohortIndex],
    kind: str,
    gigabytes: float | None,
    device: torch.device,
    say: Say | None = None,
) -> BagCache | None:
    """The cache of a stage, empty.

    Args:
        store: where bags are read.
        indexes: the slides the stage reads.
        kind: `none`, `host` or `device`.
        gigabytes: its largest size; None for half of the memory that is free now (`memory.cache_budget`).
        device: the worker's.
        say: gets one line on how many slides fit; without it the first worker prints it.

    Returns:
        None for a store without patches.
    """
    if store.dim is None:
        return None
    if kind == "none":
        return FromStore(store)
    patches = sum(int(index.slide_patches.sum()) for index in indexes)
    slides = sum(len(index.slide_ids) for index in indexes)
    budget = cache_budget(gigabytes, device if kind == "device" else None)
    size = patches * store.dim * store.value_dtype.itemsize
    tell = _Telling(kind, slides, size, budget, say or _print_on_first)
    if kind == "host":
        return HostCache(store, budget, tell.full)
    return DeviceCache(store, budget, device, tell.full)


class HostCache(FromStore):
    """Bags as numpy arrays.

    Args:
        store: where bags are read.
        budget: bytes it may take.
        full: called once, with the number of bags there are, when one does not fit.
    """

    def __init__(self, store: CohortStore, budget: int, full: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(store)
        self._kept: _Kept[Embeddings] = _Kept(budget, full)

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, slide_id: str, patches: int, start: int, out: Embeddings) -> None:
        bag = self._kept.get(slide_id, patches * out[0].nbytes, lambda: self._store.read_bag(slide_id))
        if bag is None:
            self._store.read_window(slide_id, start, len(out), out=out)
        else:
            out[:] = bag[start : start + len(out)]


class DeviceCache:
    """Bags as tensors on a device, and batches put together there.

    On a GPU all of it happens on a stream of its own, and a batch is complete before it is handed over.

    Args:
        store: where bags are read.
        budget: bytes the bags may take.
        device: where they are.
        full: called once, with the number of bags there are, when one does not fit.
    """

    def __init__(
        self, store: CohortStore, budget: int, device: torch.device, full: Callable[[int], None] = lambda _: None
    ) -> None:
        if device.type == "cuda" and device.index is None:  # which one is current differs from thread to thread
            device = torch.device("cuda", torch.cuda.current_device())
        self._store, self._device = store, device
        self._kept: _Kept[Tensor] = _Kept(budget, full)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._dtype = torch.from_numpy(np.empty(0, store.value_dtype)).dtype

    def __len__(self) -> int:
        return len(self._kept)

    def new(self, shape: tuple[int, ...], zeros: bool = False) -> Tensor:
        make = torch.zeros if zeros else torch.empty
        with self.working():
            return make(shape, dtype=self._dtype, device=self._device)

    def working(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def read(self, slide_id: str, patches: int, start: int, out: Tensor) -> None:
        bag = self._kept.get(slide_id, patches * out[0].nbytes, lambda: self._bag(slide_id))
        if bag is None:
            out.copy_(torch.from_numpy(self._store.read_window(slide_id, start, len(out))))
        else:
            out.copy_(bag[start : start + len(out)])

    def finish(self, batch: Tensor) -> None:
        if self._stream is not None:
            self._stream.synchronize()
            # whoever is done with it early must not see its memory given to the next batch
            batch.record_stream(torch.cuda.default_stream(self._device))

    def _bag(self, slide_id: str) -> Tensor:
        return torch.from_numpy(self._store.read_bag(slide_id)).to(self._device)


class _Kept(Generic[Bag]):
    """Bags by slide: each made once, by the first thread that asks, while others that ask for it wait.

    The first bag that does not fit closes it: what is there stays, and nothing more comes in.
    """

    def __init__(self, budget: int, full: Callable[[int], None]) -> None:
        self._budget, self._full = budget, full
        self._room, self._closed = budget, False
        self._bags: dict[str, Future[Bag | None]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._bags)

    def get(self, slide_id: str, size: int, make: Callable[[], Bag]) -> Bag | None:
        """The slide's bag, made if need be; None where there is no room for its `size` bytes."""
        with self._lock:
            found = self._bags.get(slide_id)
            if found is None and size > self._room:
                self._close()
            if found is None and self._closed:
                return None
            mine = found is None
            if found is None:
                found = self._bags[slide_id] = Future()
                self._room -= size
        if mine:
            self._make(slide_id, size, make, found)
        return found.result()

    def _make(self, slide_id: str, size: int, make: Callable[[], Bag], future: Future[Bag | None]) -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
            with self._lock:
                del self._bags[slide_id]
                self._room += size
                if no_memory:  # less was free than was thought
                    self._close()
            if no_memory:
                future.set_result(None)
            else:  # for this reader and those that wait; the next one tries again
                future.set_exception(error)

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._full(len(self._bags))


class _Telling:
    """Says once how many slides a cache holds: at the start where all fit, else when it is full."""

    def __init__(self, kind: str, slides: int, size: int, budget: int, say: Say) -> None:
        self._slides, self._say = slides, say
        self._of = f"feed.cache: {kind} ({budget / 1e9:.2f} GB)"
        if size <= budget:
            say(f"note: {self._of} has room for all {slides} slides ({size / 1e9:.2f} GB)")

    def full(self, kept: int) -> None:
        self._say(
            f"note: {self._of} is full with {kept} of {self._slides} slides; windows of the others are read each time"
        )


def _print_on_first(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)
