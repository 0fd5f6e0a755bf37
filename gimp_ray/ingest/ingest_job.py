"""Ingest on a Ray cluster: the same tasks, spread by Ray Data instead of local processes.

A task is one part file to write or a few dozen files to look at; Ray Data runs them on any node with a free CPU and
runs them again where a node is lost, which does no harm, since a part file is named by its task. Sources and store
must be at places every node sees: a shared file system, or object storage for the store. Left out: what the tasks do
(`cohort/patch_tasks.py`); local processes (`cohort/work.py`).
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from gimp_ray.errors import GimpError
from gimp_ray.ingest.work import Result, Task
from gimp_ray.io.reachable import listens


def on_ray(address: str | None) -> Callable[[int, Callable[[int], None]], RayWork]:
    """What `ingest_cohort(make_work=...)` takes to run on the cluster at `address`; `local` starts one here."""

    def make(workers: int, on_progress: Callable[[int], None]) -> RayWork:
        return RayWork(address or os.environ.get("RAY_ADDRESS"), workers, on_progress)

    return make


class RayWork:
    """Tasks of one ingest on Ray Data; use as a context manager.

    Args:
        address: of the cluster; None or `local` for one on this machine, which ends with the ingest.
        workers: tasks at a time at most; 0 for as many as the cluster has CPUs.
        on_progress: called with the units done, when a task is.
    """

    def __init__(self, address: str | None, workers: int, on_progress: Callable[[int], None]) -> None:
        self._address, self._workers, self._on_progress = address, workers, on_progress
        self._started = False

    def __enter__(self) -> RayWork:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}.items():
            os.environ.setdefault(name, value)
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        if not ray.is_initialized():
            local = self._address in (None, "local")
            if not local and not listens(str(self._address)):
                fix = "check --ray and RAY_ADDRESS, and `ray status` on the head node"
                raise GimpError(f"nobody listens at the Ray cluster's address {self._address}", fix=fix)
            ray.init(address="local" if local else self._address, logging_level="WARNING", log_to_driver=not local)
            self._started = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
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
            outcome = pickle.loads(row["result"])
            if isinstance(outcome, _Refused):
                raise outcome.error
            results[row["number"]] = outcome
            self._on_progress(getattr(tasks[row["number"]], "units", 1))
        return [results[i] for i in range(len(tasks))]


class _Refused:
    """A refusal on its way back: Ray would wrap an exception and lose its parts."""

    def __init__(self, error: GimpError) -> None:
        self.error = error


def _run(row: dict[str, Any]) -> dict[str, Any]:
    function, task = pickle.loads(row["work"])
    try:
        outcome = function(task)
    except GimpError as error:
        outcome = _Refused(error)
    return {"number": row["number"], "result": pickle.dumps(outcome)}
