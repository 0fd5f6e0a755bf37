"""How rows and arrays travel: both ways of the switch give the same bits, errors and early stops come through."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gimp_ray.feed.batches import _decode, _encode, direct_batches, shard_batches
from gimp_ray.feed.plan import Batching, Plan, Row
from gimp_ray.feed.windows import repeat_to_length
from gimp_ray.io.ahead import read_ahead
from tests.feed.test_plan import make_index


class Source:
    """A task's plan and reads, without a store."""

    def __init__(self) -> None:
        self.plan = Plan(3, 2, make_index([6, 6]), Batching(cases_per_class=2, window=8))
        self.reads = 0

    def read(self, row: Row) -> dict[str, Any]:
        self.reads += 1
        rng = np.random.default_rng(row.mask_seed)
        return {
            "patches": rng.normal(size=(len(row.case), 8, 4)).astype(np.float16),
            "valid": rng.random((4, 8)) > 0.5,
            "label": row.case % 2,
            "empty": np.zeros((4, 0), dtype=np.float32),
        }


class Shard:
    """What Ray Train hands to a rank: its rows in order."""

    def __init__(self, tables: list[Any]) -> None:
        self.tables = tables

    def iter_batches(self, **options: Any) -> Iterator[Any]:
        assert options["batch_size"] == 1 and options["batch_format"] == "pyarrow"
        yield from self.tables


def tables(source: Source, rank: int, world: int, carried: bool, start: int = 0, together: int = 1) -> list[Any]:
    steps = source.plan.steps(start, source.plan.positions, world)
    rows = [source.plan.row(step, rank, world, start) for step in range(steps)]
    batches = [(row, source.read(row) if carried else None) for row in rows]
    return [_encode(batches[at : at + together]) for at in range(0, len(batches), together)]


@pytest.mark.parametrize(("carried", "together"), [(False, 1), (False, 2), (False, 64), (True, 1)])
@pytest.mark.parametrize("rank", [0, 1])
def test_batches_from_a_shard_are_the_batches_read_directly(carried: bool, together: int, rank: int) -> None:
    source = Source()
    direct = list(direct_batches(source, 2, rank, 2, ahead=2))
    shard = list(shard_batches(Shard(tables(source, rank, 2, carried, 0, together)), source, 2, rank, ahead=2))
    assert len(direct) == len(shard) == 3
    for (row, arrays), (row_again, arrays_again) in zip(direct, shard, strict=True):
        same = [name for name, value in vars(row).items() if np.array_equal(value, vars(row_again)[name])]
        assert same == list(vars(row)) and row_again.mask_seed.dtype == np.uint64
        for name, array in arrays.items():
            assert array.dtype == arrays_again[name].dtype and np.array_equal(array, arrays_again[name])


def test_carried_batches_are_not_read_again() -> None:
    source = Source()
    shard = Shard(tables(source, 0, 1, carried=True))
    before = source.reads
    list(shard_batches(shard, source, 0, 0, ahead=0))
    assert source.reads == before


def test_a_row_of_another_rank_or_a_missing_row_is_an_error() -> None:
    source = Source()
    with pytest.raises(
        RuntimeError, match="rank 0 expected its mini-batch at position 0 and was given one of rank 1 at 0"
    ):
        next(shard_batches(Shard(tables(source, 1, 2, carried=False)), source, 0, 0, ahead=1))
    rows = tables(source, 0, 1, carried=False)
    with pytest.raises(RuntimeError, match="expected its mini-batch at position 1 and was given one of rank 0 at 2"):
        list(shard_batches(Shard([rows[0], rows[2]]), source, 0, 0, ahead=1))


def test_a_plan_travels_and_stays_the_same() -> None:
    import pickle

    plan = Source().plan
    plan.row(3, 0, 1)
    there = pickle.loads(pickle.dumps(plan))
    assert np.array_equal(there.row(3, 0, 1).case, plan.row(3, 0, 1).case)


def test_an_encoded_row_keeps_shapes_types_and_empty_arrays() -> None:
    source = Source()
    row = source.plan.row(2, 0, 1)
    arrays = source.read(row)
    ((again, carried),) = _decode(_encode([(row, arrays)]))
    assert (again.epoch, again.begin, again.share) == (row.epoch, row.begin, row.share)
    assert carried is not None and carried["empty"].shape == (4, 0) and carried["valid"].dtype == np.bool_


def test_reading_ahead_keeps_order_and_its_bound() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            drawn.append(item)
            yield item

    reader = read_ahead(items(), 3)
    assert next(reader) == 0
    time.sleep(0.3)
    assert len(drawn) <= 6, "one taken, three waiting, one in the hand, one being drawn"
    assert list(reader) == list(range(1, 20))


def test_an_error_comes_out_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the store is gone")

    reader = read_ahead(items(), 2)
    assert next(reader) == 1
    with pytest.raises(OSError, match="the store is gone"):
        next(reader)


def test_stopping_early_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    reader = read_ahead(items(), 2)
    next(reader)
    reader.close()
    assert closed.wait(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "gimp-ahead" and thread.is_alive()]


@pytest.mark.parametrize(("patches", "length"), [(1, 5), (3, 7), (4, 8), (5, 5)])
def test_a_short_bag_is_repeated(patches: int, length: int) -> None:
    window = np.zeros((length, 2), dtype=np.float16)
    window[:patches] = np.arange(patches)[:, None] + 1
    repeat_to_length(window, patches)
    assert np.array_equal(window[:, 0], np.arange(length) % patches + 1)


def test_workers_skip_what_the_checkpoint_has_behind_it() -> None:
    source = Source()
    first, _ = next(shard_batches(Shard(tables(source, 0, 1, False)), source, 3, 0, ahead=1))
    assert np.array_equal(first.case, source.plan.row(3, 0, 1).case)
