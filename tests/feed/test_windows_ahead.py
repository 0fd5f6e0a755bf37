"""What reading ahead costs in memory, and that it ends cleanly."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest

from gimp_ray.io.ahead import read_ahead


class Batch:
    """Something to count."""

    def __init__(self, number: int) -> None:
        self.number = number


class Made:
    """Batches as they are asked for, and how many were there when each was begun."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.there: weakref.WeakSet[Batch] = weakref.WeakSet()
        self.most = self.begun = 0
        self.idle = threading.Condition()

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.count):
            batch = Batch(number)
            self.there.add(batch)
            with self.idle:
                self.begun += 1
                self.most = max(self.most, len(self.there))
                self.idle.notify_all()
            yield batch
            del batch

    def wait_for(self, begun: int) -> None:
        with self.idle:
            assert self.idle.wait_for(lambda: self.begun >= min(begun, self.count), timeout=60)


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
def test_batches_alive_at_once_are_those_ahead_and_the_one_in_the_step(ahead: int) -> None:
    made = Made(12)
    reader = read_ahead(made, ahead)
    for number in range(12):
        batch = next(reader)
        assert batch.number == number
        made.wait_for(number + 1 + ahead)  # all the reading that is allowed has been done
        assert made.begun <= number + 1 + ahead
        assert len(made.there) <= ahead + 1
        del batch
    assert list(reader) == [] and made.most <= ahead + 1 and not made.there


def test_a_batch_handed_over_is_the_callers_alone() -> None:
    reader = read_ahead((Batch(number) for number in range(3)), 1)
    batch = weakref.ref(next(reader))
    assert batch() is None, "nothing but the caller kept it"
    reader.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_has_no_close_can_be_read_ahead_too(ahead: int) -> None:
    assert list(read_ahead([1, 2, 3], ahead)) == [1, 2, 3] and list(read_ahead([], ahead)) == []


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_while_closing_or_reading_comes_out_and_no_thread_stays(ahead: int) -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield 1
            raise KeyboardInterrupt
        finally:
            closed.append(threading.current_thread())

    reader = read_ahead(items(), ahead)
    assert next(reader) == 1
    with pytest.raises(KeyboardInterrupt):
        next(reader)
    assert len(closed) == 1 and (ahead == 0 or not closed[0].is_alive())
    with pytest.raises(StopIteration):
        next(reader)


def test_none_is_an_item() -> None:
    assert list(read_ahead([None, 1, None], 2)) == [None, 1, None]
