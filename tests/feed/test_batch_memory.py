"""Memory of mini-batches is given out again when nobody holds the mini-batch, and never before."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch

from gimp_ray.feed.batch_memory import LEAST_BYTES, BatchMemory
from gimp_ray.feed.plan import Batching, Plan, index_cases
from gimp_ray.feed.windows import FromStore, read_windows
from gimp_ray.store import CohortStore

SHAPE = (2, 512, 1024)  # 2 MiB of float16


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    memory = BatchMemory()
    first = memory.new(SHAPE, np.float16)
    where = address(first)
    view, tensor = first[0, :5], torch.from_numpy(first[1])
    del first
    assert address(memory.new(SHAPE, np.float16)) != where, "a view of it is held"
    del view
    other = memory.new(SHAPE, np.float16)
    assert address(other) != where, "a tensor on it is held"
    del tensor
    again = memory.new(SHAPE, np.float16)
    assert address(again) == where
    assert again.shape == SHAPE and again.dtype == np.float16 and again.flags.writeable


def test_arrays_that_are_held_together_share_nothing() -> None:
    memory = BatchMemory()
    held = [memory.new(SHAPE, np.float32) for _ in range(4)]
    for number, array in enumerate(held):
        array[:] = number
    assert [float(array.min()) for array in held] == [float(array.max()) for array in held] == [0.0, 1.0, 2.0, 3.0]


def test_another_size_gets_memory_of_its_own() -> None:
    memory = BatchMemory()
    small = memory.new(SHAPE, np.float16)
    small[:] = 1
    large = memory.new((3, *SHAPE), np.float16)
    large[:] = 2
    assert (small == 1).all() and (large == 2).all()
    few = memory.new((LEAST_BYTES // 4,), np.float16)
    assert few.flags.owndata, "small ones are the allocator's"


def test_threads_do_not_get_the_same_memory() -> None:
    memory, wrong = BatchMemory(), []

    def work(number: int) -> None:
        for _ in range(200):
            array = memory.new((LEAST_BYTES // 2,), np.float16)
            array[:] = number
            if (array != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(memory._free) <= 8, "a thread holds one while it gets the next"


def test_windows_in_used_memory_are_the_same(store_path: Path) -> None:
    store = CohortStore.open(str(store_path))
    index = index_cases(store, store.cases["case_id"].to_pylist())
    assert store.dim is not None
    length = LEAST_BYTES // (store.dim * 2)  # longer than the bags, which are repeated
    plan = Plan(3, 2, index, Batching(cases_per_class=1, window=length))
    source, places = FromStore(store), set()
    for step in range(plan.steps(0, plan.positions, 1)):
        row = plan.row(step, 0, 1)
        used = read_windows(store, index, row, length, 2, source)
        places.add(address(used))
        assert np.array_equal(used, read_windows(store, index, row, length, 1))
    assert len(places) < plan.steps(0, plan.positions, 1)
