"""Batches on their way to a device: same values in order, pinned memory is never overwritten too soon, errors and ends.

What CUDA does is played by `Late`: a copy happens only when somebody waits for its mark, so that whatever is changed
before shows. The tests at the end need a GPU and nothing of Ray: `pytest tests/engine/test_transfer.py`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gimp_ray.engine.transfer import PINNED_BATCHES, CudaCopier, on_device

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: torch.cuda is not available")


def batch(number: int, size: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "patches": rng.normal(size=(2, size, 4)).astype(np.float16),
        "valid": rng.random((2, size)) > 0.5,
        "label": np.full(2, number),
        "empty": np.zeros((2, 0), dtype=np.float32),
    }


def batches(count: int, sizes: tuple[int, ...] = (5,)) -> Iterator[tuple[Any, dict[str, Any]]]:
    return ((number, batch(number, sizes[number % len(sizes)])) for number in range(count))


class Copy:
    """A copy on its way; it arrives when somebody waits for it."""

    def __init__(self, staged: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        self._pairs = [(tensors[name], staged[name]) for name in staged]
        self._lock = threading.Lock()

    def arrive(self) -> None:
        with self._lock:
            for tensor, pinned in self._pairs:
                tensor.copy_(pinned)
            self._pairs = []


class Late:
    """A device whose copies are made when somebody waits for them, and not before."""

    def __init__(self) -> None:
        self.pins: list[int] = []
        self.threads: set[str] = set()
        self.taken = self.started = 0
        self.changed = threading.Condition()

    def pinned(self, size: int) -> Tensor:
        self.pins.append(size)
        return torch.full((size,), 99, dtype=torch.uint8)

    def copy(self, staged: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        self.threads.add(threading.current_thread().name)
        tensors = {name: torch.zeros_like(tensor) for name, tensor in staged.items()}
        with self.changed:
            self.started += 1
            self.changed.notify_all()
        return tensors, Copy(staged, tensors)

    def wait(self, mark: Any) -> None:
        mark.arrive()

    def take(self, tensors: dict[str, Tensor], mark: Any) -> None:
        self.taken += 1
        mark.arrive()

    def wait_for(self, started: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.started >= started, timeout=60)


def assert_same(tensors: dict[str, Tensor], arrays: dict[str, Any]) -> None:
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        tensor = tensors[name].cpu()
        assert tensor.shape == array.shape and tensor.numpy().dtype == array.dtype
        assert tensor.numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("sizes", [(5,), (5, 9, 1), (2, 4, 8, 16)])
def test_every_batch_arrives_whole_and_in_order(ahead: int, sizes: tuple[int, ...]) -> None:
    copier = Late()
    count = 0
    for number, tensors in on_device(batches(12, sizes), CPU, ahead, copier):
        assert number == count
        if ahead:  # all that may be on its way is, before this one is looked at
            copier.wait_for(min(12, number + 1 + ahead))
        assert_same(tensors, batch(number, sizes[number % len(sizes)]))
        count += 1
    assert count == copier.taken == copier.started == 12


def test_pinned_memory_is_made_once_for_batches_of_one_shape_and_grows_for_larger_ones() -> None:
    copier = Late()
    list(on_device(batches(10), CPU, 2, copier))
    arrays = batch(0)
    assert sorted(copier.pins) == sorted([array.nbytes for array in arrays.values()] * PINNED_BATCHES)
    growing = Late()
    list(on_device(batches(10, (2, 2, 8, 8, 3, 3)), CPU, 1, growing))
    patches = [size for size in growing.pins if size % 16 == 0 and size > 16]
    assert patches == [2 * 2 * 4 * 2] * 2 + [2 * 8 * 4 * 2] * 2


def test_copies_start_in_a_thread_and_as_far_ahead_as_asked() -> None:
    copier = Late()
    coming = on_device(batches(9), CPU, 2, copier)
    next(coming)
    copier.wait_for(3)
    assert (copier.started, copier.taken) == (3, 1)
    assert threading.current_thread().name not in copier.threads
    coming.close()
    here = Late()
    coming = on_device(batches(9), CPU, 0, here)
    next(coming)
    assert here.started == 1 and here.threads == {threading.current_thread().name}


def test_tensors_that_are_there_pass_through_and_are_taken_too() -> None:
    there = torch.arange(3)
    seen: list[Tensor] = []

    class Recording(Late):
        def take(self, tensors: dict[str, Tensor], mark: Any) -> None:
            super().take(tensors, mark)
            seen.extend(tensors.values())

    for copier in (Recording(), None):
        arrays = {"label": np.arange(2), "patches": there, "case": np.arange(3)}
        ((_, tensors),) = on_device(iter([(0, arrays)]), CPU, 1, copier)  # type: ignore[list-item]
        assert tensors["patches"] is there and list(tensors) == list(arrays)
        assert torch.equal(tensors["label"], torch.arange(2))
    assert any(tensor is there for tensor in seen)


def test_on_a_cpu_arrays_and_tensors_share_their_memory_and_read_only_ones_are_copied() -> None:
    array = np.arange(4.0)
    carried = np.frombuffer(array.tobytes())
    assert not carried.flags.writeable
    ((_, tensors),) = on_device(iter([(0, {"own": array, "carried": carried})]), CPU)  # type: ignore[list-item]
    tensors["own"][0] = 7
    tensors["carried"][0] = 7
    assert array[0] == 7 and carried[0] == 0


def test_read_only_arrays_are_staged_without_being_written_to() -> None:
    carried = np.frombuffer(np.arange(4.0).tobytes())
    copier = Late()
    ((_, tensors),) = on_device(iter([(0, {"carried": carried})]), CPU, 1, copier)  # type: ignore[list-item]
    assert_same(tensors, {"carried": carried})


class Source:
    """Batches that end in an error where one is named, and know that they were closed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.closed = error, False

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from batches(2)
            if self.error is not None:
                raise self.error
            yield from batches(100)
        finally:
            self.closed = True


@pytest.mark.parametrize("on_gpu", [False, True])
def test_an_error_comes_out_after_the_batches_before_it(on_gpu: bool) -> None:
    source = Source(OSError("the store is gone"))
    coming = on_device(source, CPU, 3, Late() if on_gpu else None)
    assert [next(coming)[0], next(coming)[0]] == [0, 1]
    with pytest.raises(OSError, match="the store is gone"):
        next(coming)
    assert source.closed and not feeding()


def test_an_error_of_the_copy_comes_out() -> None:
    class Full(Late):
        def copy(self, staged: dict[str, Tensor]) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    source = Source()
    with pytest.raises(torch.OutOfMemoryError):
        next(on_device(source, CPU, 1, Full()))
    assert source.closed and not feeding()


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_closing_early_closes_the_batches_and_leaves_no_thread(on_gpu: bool, ahead: int) -> None:
    source = Source()
    coming = on_device(source, CPU, ahead, Late() if on_gpu else None)
    next(coming)
    coming.close()
    assert source.closed and not feeding()


def test_host_memory_of_a_batch_is_free_once_it_is_pinned() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def source() -> Iterator[Any]:
        for number in range(6):
            assert not [array for array in alive if array() is not None]
            array = np.full(1000, number)
            alive.append(weakref.ref(array))
            arrays = {"x": array}
            del array
            yield number, arrays
            del arrays

    assert [int(tensors["x"][0]) for _, tensors in on_device(source(), CPU, 1, Late())] == list(range(6))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_batch_handed_over_is_the_callers_alone(on_gpu: bool) -> None:
    coming = on_device(batches(4), CPU, 1, Late() if on_gpu else None)
    _, tensors = next(coming)
    handed = weakref.ref(tensors["patches"])
    del tensors
    assert handed() is None
    coming.close()


def feeding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gimp-ahead" and thread.is_alive()]


# ----- on a GPU


@needs_gpu
def test_batches_arrive_on_the_gpu_while_it_computes() -> None:
    device = torch.device("cuda", 0)
    busy = torch.randn(4096, 4096, device=device)
    sums = []
    for number, tensors in on_device(big_batches(12), device, 2):
        busy = busy @ busy / 64.0  # the compute stream is behind
        sums.append(tensors["patches"].double().sum())
        assert tensors["patches"].device == device and int(tensors["label"]) == number
    expected = [float(arrays["patches"].astype(np.float64).sum()) for _, arrays in big_batches(12)]
    assert [float(value) for value in sums] == pytest.approx(expected, rel=1e-9)


@needs_gpu
def test_the_memory_of_a_dropped_batch_is_not_given_away_while_it_is_read() -> None:
    device = torch.device("cuda", 0)
    slow = torch.randn(8192, 8192, device=device)
    late = []
    for _, tensors in on_device(big_batches(16), device, 1):
        for _ in range(3):
            slow = slow @ slow / 90.0
        late.append(tensors["patches"] + 0)  # queued behind, while the tensor's last name goes
        del tensors
    torch.cuda.synchronize(device)
    for value, (_, arrays) in zip(late, big_batches(16), strict=True):
        assert np.array_equal(value.cpu().numpy(), arrays["patches"])


@needs_gpu
def test_staging_memory_is_pinned_and_copies_run_on_a_stream_of_their_own() -> None:
    copier = CudaCopier(torch.device("cuda"))
    assert copier.pinned(1000).is_pinned()
    assert copier._stream != torch.cuda.default_stream(0)


@needs_gpu
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_device_cache_gives_the_batches_of_the_store_on_the_gpu(share: float, store_path: Any) -> None:
    from gimp_ray.feed.cache import DeviceCache
    from gimp_ray.feed.plan import Batching, Plan, index_cases
    from gimp_ray.feed.windows import read_windows
    from gimp_ray.store import CohortStore

    device = torch.device("cuda", 0)
    store = CohortStore.open(store_path)
    index = index_cases(store, store.cases["case_id"].to_pylist())
    plan = Plan(3, 4, index, Batching(cases_per_class=2, window=48))
    rows = [plan.row(step, 0, 1) for step in range(plan.steps(0, plan.positions, 1))]
    assert store.dim is not None
    cache = DeviceCache(store, int(share * index.slide_patches.sum() * store.dim * 2), device)
    source = ((row, {"patches": read_windows(store, index, row, 48, 2, cache), "case": row.case}) for row in rows)
    slow = torch.randn(4096, 4096, device=device)
    got = []
    for _, tensors in on_device(source, device, 2):
        slow = slow @ slow / 64.0
        got.append(tensors["patches"] + 0)
        del tensors
    for row, patches in zip(rows, got, strict=True):
        assert np.array_equal(patches.cpu().numpy(), read_windows(store, index, row, 48))


def big_batches(count: int) -> Iterator[Any]:
    for number in range(count):
        rng = np.random.default_rng(number)
        patches = rng.integers(-100, 100, size=(8, 2000, 512)).astype(np.float16)
        yield number, {"patches": patches, "label": np.array(number)}
