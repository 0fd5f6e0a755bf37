"""How the work of an ingest is spread: processes of this machine (`WorkPool`) or a Ray cluster (`RayWork`).

Either takes tasks and returns their results in the same order, with one count of progress. Local processes are spawned,
so that nothing of the caller (threads, CUDA, Ray) is inherited; one worker or one task runs in the caller's process.
When the caller fails or is interrupted, workers stop at their next `tick`.
"""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from gimp_ray.errors import GimpError, InputError
from gimp_ray.io.net import is_port_open

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

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if self._executor is not None:
            if error is not None:
                self._stop.set()
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """`function` of every task, in order; both must pickle."""
        global _report  # noqa: PLW0603 - the same hook a worker process has
        if self._workers == 1 or len(tasks) <= 1:
            before, _report = _report, self._on_progress
            try:
                return [function(task) for task in tasks]
            finally:
                _report = before
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._counter, self._stop = context.Value("q", 0), context.Event()
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._workers, mp_context=context, initializer=_begin, initargs=(self._counter, self._stop)
            )
        try:
            futures = [self._executor.submit(function, task) for task in tasks]
            pending = set(futures)
            while pending:
                done, pending = concurrent.futures.wait(
                    pending, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
                )
                now = self._counter.value
                self._on_progress(now - self._seen)
                self._seen = now
                for future in done:
                    future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool as broken:
            fix = "look for the out-of-memory killer and use fewer workers; a script needs `if __name__ == '__main__':`"
            raise InputError("a worker process of the ingest died", found=str(broken), fix=fix) from broken


class RayWork:
    """Ray Data for the tasks of one ingest; use as a context manager.

    Ray Data runs a task on any node with a free CPU, and again where a node is lost, which does no harm, since a part
    file is named by its task. Sources and store must be where every node sees them: on a shared file system, or, the
    store, in object storage.

    Args:
        address: of the cluster; None for that of RAY_ADDRESS, `local` for one on this machine, which ends with the
            ingest.
        workers: tasks at a time at most; 0 for as many as the cluster has CPUs.
        on_progress: called with the units done, when a task is.
    """

    def __init__(self, address: str | None, workers: int, on_progress: Callable[[int], None]) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._workers, self._on_progress = workers, on_progress
        self._started = False

    def __enter__(self) -> RayWork:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}.items():
            os.environ.setdefault(name, value)
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        if not ray.is_initialized():
            local = self._address == "local"
            if not local and not is_port_open(self._address):
                fix = "check --ray and RAY_ADDRESS, and `ray status` on the head node"
                raise GimpError(f"nothing answers at the Ray cluster's address {self._address}", fix=fix)
            ray.init(address=self._address, logging_level="WARNING", log_to_driver=not local)
            self._started = True
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self._started:
            ray.shutdown()

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """`function` of every task, in order; both must pickle. The first refusal ends it."""
        if not tasks:
            return []
        import ray.data

        # pickles of this program's own making, which Ray Data carries as bytes; no file of a user is ever one
        rows = [{"number": i, "work": pickle.dumps((function, task))} for i, task in enumerate(tasks)]
        limit = {"concurrency": self._workers} if self._workers else {}
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_run, num_cpus=1, **limit)
        results: dict[int, Any] = {}
        for row in done.iter_rows():
            error, outcome = pickle.loads(row["result"])
            if error is not None:
                raise error
            results[row["number"]] = outcome
            self._on_progress(getattr(tasks[row["number"]], "units", 1))
        return [results[i] for i in range(len(tasks))]


Work = WorkPool | RayWork


class Progress:
    """A progress bar on stderr, one at a time: `start` a phase, `advance` it. Shows nothing when not `shown`."""

    def __init__(self, shown: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=Console(stderr=True), disable=not shown)
        self._task = None if not shown else self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, phase: str, total: int) -> None:
        """Begin a phase of `total` units."""
        if self._task is not None:
            self._bar.reset(self._task, description=phase, total=total, visible=True)

    def advance(self, done: int) -> None:
        """`done` more units are done."""
        if self._task is not None:
            self._bar.advance(self._task, done)


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


def _run(row: dict[str, Any]) -> dict[str, Any]:
    """A task on a Ray worker; a refusal is returned, since Ray would wrap an exception and lose its parts."""
    function, task = pickle.loads(row["work"])
    try:
        outcome: tuple[GimpError | None, Any] = None, function(task)
    except GimpError as error:
        outcome = error, None
    return {"number": row["number"], "result": pickle.dumps(outcome)}
