"""Work spread over processes: tasks in, results in the same order out, with one progress count.

Processes are spawned, so that nothing of the caller (threads, CUDA, Ray) is inherited. One worker or one task runs in
the caller's process. When the caller fails or is interrupted, the workers stop at their next `tick`.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol, TypeVar

from gimp_ray.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

_report: Callable[[int], None] | None = None
_stop: Any = None


class Stopped(Exception):  # noqa: N818 - not an error: the caller asked for it
    """The caller has given up; the worker's result is no longer wanted."""


def tick(done: int) -> None:
    """Tell the caller that `done` units of work are done. Called by tasks, often."""
    if _stop is not None and _stop.is_set():
        raise Stopped
    if _report is not None:
        _report(done)


class Work(Protocol):
    """What spreads the tasks of an ingest; a context manager."""

    def __enter__(self) -> Work: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """`function` of every task, in order; both must pickle."""
        ...


class WorkPool:
    """Processes for the tasks of one ingest; use as a context manager.

    Args:
        workers: processes at most; 0 for one a CPU.
        on_progress: called with the units done since the last call, in the caller's process.
    """

    def __init__(self, workers: int, on_progress: Callable[[int], None]) -> None:
        self._workers = workers or usable_cpus()
        self._on_progress = on_progress
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None
        self._stop: Any = None
        self._counter: Any = None
        self._seen = 0

    def __enter__(self) -> WorkPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._executor is not None:
            if error is not None:
                self._stop.set()
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """`function` of every task, in order; both must pickle."""
        if self._workers == 1 or len(tasks) <= 1:
            return self._map_here(function, tasks)
        executor = self._start()
        try:
            futures = [executor.submit(function, task) for task in tasks]
            pending = set(futures)
            while pending:
                done, pending = concurrent.futures.wait(
                    pending, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
                )
                self._advance()
                for future in done:
                    future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool as broken:
            fix = "look for the out-of-memory killer and use fewer workers; a script needs `if __name__ == '__main__':`"
            raise InputError("a worker process of the ingest died", found=str(broken), fix=fix) from broken

    def _map_here(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        global _report  # noqa: PLW0603 - the same hook a worker process has
        before, _report = _report, self._on_progress
        try:
            return [function(task) for task in tasks]
        finally:
            _report = before

    def _start(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._counter, self._stop = context.Value("q", 0), context.Event()
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, mp_context=context, initializer=_begin, initargs=(self._counter, self._stop)
            )
        return self._executor

    def _advance(self) -> None:
        now = self._counter.value
        self._on_progress(now - self._seen)
        self._seen = now


def usable_cpus() -> int:
    """CPUs this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(counter: Any, stop: Any) -> None:
    """In a new worker: Ctrl-C is the caller's business; progress goes to the shared counter."""
    global _report, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def report(done: int) -> None:
        with counter.get_lock():
            counter.value += done

    _report, _stop = report, stop
