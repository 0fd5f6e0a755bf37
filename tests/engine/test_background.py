"""What is done beside the training: one thing after another, and its failure is not lost."""

from __future__ import annotations

import threading

import pytest

from gimp_ray.engine.background import Background


def test_the_next_waits_for_the_one_before() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def first() -> None:
        go_on.wait(10)
        done.append(1)

    background = Background()
    background.start(first)
    assert done == [], "the caller goes on meanwhile"
    go_on.set()
    background.start(lambda: done.append(2))
    assert done[0] == 1
    background.wait()
    assert done == [1, 2]


def fail() -> None:
    raise OSError("the disk is full")


def test_a_failure_comes_out_once_at_the_next_call() -> None:
    background = Background()
    background.start(fail)
    with pytest.raises(OSError, match="the disk is full"):
        background.start(lambda: None)
    background.wait()
    background.check()


def test_a_failure_is_seen_without_waiting() -> None:
    background, failed = Background(), threading.Event()

    def work() -> None:
        try:
            fail()
        finally:
            failed.set()

    background.start(work)
    failed.wait(10)
    for _ in range(1000):
        try:
            background.check()
        except OSError:
            return
        threading.Event().wait(0.01)
    pytest.fail("the failure was never seen")


def test_the_end_of_the_block_waits_and_keeps_the_first_failure() -> None:
    done: list[int] = []
    with Background() as background:
        background.start(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(OSError, match="the disk is full"), Background() as background:
        background.start(fail)
    with pytest.raises(ValueError, match="before"), Background() as background:
        background.start(fail)
        raise ValueError("before")
