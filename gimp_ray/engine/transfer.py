"""From the feed's host batches to tensors on the worker's device, ahead of the step.

On a CPU a batch's arrays become tensors over the same memory, in the caller's thread. On a GPU a thread copies each
batch into pinned memory and starts its way to the device on a stream of its own, while the step before computes; the
compute stream waits for the copy by an event, so the training thread waits for nothing that is on its way. Tensors of a
device cache pass through. What CUDA does is behind `Copier`, so that the order of things can be tested without a GPU.

Memory on a GPU: `ahead` batches of device memory besides the one in the step, and two batches of pinned host memory.
Left out: reading (the feed), and which device it is (the launch).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gimp_ray.engine.protocol import Tensors
from gimp_ray.feed.plan import Row
from gimp_ray.feed.windows import Arrays
from gimp_ray.io.ahead import closed_after, read_ahead

PINNED_BATCHES = 2  # one is filled while the other is on its way


class Copier(Protocol):
    """What the transfer asks of a device."""

    def pinned(self, size: int) -> Tensor:
        """(size,) bytes of host memory that copies can be made from in the background."""

    def copy(self, staged: Tensors) -> tuple[Tensors, Any]:
        """Start copying to the device; the tensors there, and a mark that is reached when they are filled."""

    def wait(self, mark: Any) -> None:
        """Wait in this thread until the mark is reached."""

    def take(self, tensors: Tensors, mark: Any) -> None:
        """Make the caller's work on the device come after the mark, and keep the tensors' memory until it is done."""


class CudaCopier:
    """Copies on a stream of its own.

    Args:
        device: a GPU; without a number, the one that is current in the thread that makes this.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self._device)

    def pinned(self, size: int) -> Tensor:
        # the current device is a thread's own
        with torch.cuda.device(self._device):
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, staged: Tensors) -> tuple[Tensors, Any]:
        done = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self._stream):
            tensors = {name: tensor.to(self._device, non_blocking=True) for name, tensor in staged.items()}
            done.record(self._stream)
        return tensors, done

    def wait(self, mark: Any) -> None:
        mark.synchronize()

    def take(self, tensors: Tensors, mark: Any) -> None:
        compute = torch.cuda.current_stream(self._device)
        compute.wait_event(mark)
        for tensor in tensors.values():
            # it belongs to another stream, which would else get its memory back while this one still reads it
            tensor.record_stream(compute)


def on_device(
    batches: Iterable[tuple[Row, Arrays]], device: torch.device, ahead: int = 1, copier: Copier | None = None
) -> Generator[tuple[Row, Tensors], None, None]:
    """The batches as tensors on a device, in their order.

    Errors of `batches` come out where they are met. Closing this closes `batches`; no thread is left.

    Args:
        batches: host batches, best read ahead themselves (`feed.batches`). Arrays that may not be written to, as those
            that come through Ray's object store, are copied once.
        device: where the tensors are to be.
        ahead: on a GPU, batches that are brought to the device before they are asked for; 0 does it in this thread.
        copier: how they get there; that of the device without it.
    """
    if copier is None and device.type == "cuda":
        copier = CudaCopier(device)
    if copier is None:
        with closed_after(batches) as drawn:
            yield from map(_as_tensors, drawn)
        return
    with closing(read_ahead(_on_their_way(batches, copier), ahead)) as coming:
        yield from map(partial(_taken, copier), coming)


def _as_tensors(batch: tuple[Row, Arrays]) -> tuple[Row, Tensors]:
    row, arrays = batch
    return row, {name: _tensor(value) for name, value in arrays.items()}


def _tensor(value: Any) -> Tensor:
    """An array as a tensor over the same memory, or over a copy where it may not be written to."""
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(value if value.flags.writeable else value.copy())


def _on_their_way(
    batches: Iterable[tuple[Row, Arrays]], copier: Copier
) -> Generator[tuple[Row, Tensors, Any], None, None]:
    """Batches whose copies have begun, each with its mark."""
    buffers = cycle([_Pinned(copier) for _ in range(PINNED_BATCHES)])
    with closed_after(batches) as drawn:
        for row, arrays in drawn:
            tensors, mark = next(buffers).send(arrays)
            del arrays  # the host batch is free from here on
            coming = [(row, tensors, mark)]
            del tensors
            yield coming.pop()


def _taken(copier: Copier, coming: tuple[Row, Tensors, Any]) -> tuple[Row, Tensors]:
    row, tensors, mark = coming
    copier.take(tensors, mark)
    return row, tensors


class _Pinned:
    """Pinned memory of one batch: a buffer a name, kept from batch to batch, replaced where one is too small."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._buffers: dict[str, Tensor] = {}
        self._mark: Any = None

    def send(self, arrays: Arrays) -> tuple[Tensors, Any]:
        """Start a batch on its way, once what was here before has left; its tensors, and the mark of their copy."""
        if self._mark is not None:
            self._copier.wait(self._mark)
        there = {name: value for name, value in arrays.items() if isinstance(value, Tensor)}
        staged = {name: self._fill(name, value) for name, value in arrays.items() if name not in there}
        copied, self._mark = self._copier.copy(staged)
        return {name: there[name] if name in there else copied[name] for name in arrays}, self._mark

    def _fill(self, name: str, array: np.ndarray) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < array.nbytes:
            self._buffers.pop(name, None)  # before the larger one is there
            buffer = self._buffers[name] = self._copier.pinned(array.nbytes)
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        pinned = buffer[: array.nbytes].view(dtype).view(array.shape)
        if array.flags.writeable:
            pinned.copy_(torch.from_numpy(array))  # with torch's threads
        else:
            np.copyto(pinned.numpy(), array)
        return pinned
