"""What follows when workers on Ray fail: a refused input ends the run, anything else costs a restart that is noted.

Ray's controller starts the workers anew by itself, which saves the start of another controller. It cannot tell a
refusal from a machine that went away, so `AfterFailures` tells it. Left out: where the workers go on (`starting.py`).
Ray reads its environment when it is imported, so this module is imported after `start_ray`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray.train

from gimp_ray.engine import stopping
from gimp_ray.engine.loop import MEMORY_FIX
from gimp_ray.engine.record import note_restart
from gimp_ray.errors import GimpError
from gimp_ray.io.storage import waiting_for_storage
from gimp_ray.runs.folder import RunFolder

# what Ray says when its memory monitor or the kernel ended a worker
OUT_OF_MEMORY = ("running low on memory", "OutOfMemoryError", "OOM")


class AfterFailures(ray.train.UserCallback):
    """Asked in Ray's controller when workers failed, before it decides whether to start them again.

    An error raised here is one of the controller itself, which it does not try again.

    Args:
        run: the run folder, a path or URI that the controller's node reaches.
        allowed: restarts that Ray allows; -1 for any number.
    """

    def __init__(self, run: str, allowed: int) -> None:
        self.run, self.allowed, self.failures = run, allowed, 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, BaseException]) -> None:
        refusal = refusal_in(worker_exceptions)
        if refusal is not None:
            raise ray.train.ControllerError(refusal)
        if stopping.passed_on(self.run):  # who sent the signal took the workers as well
            raise ray.train.ControllerError(RuntimeError("the command was asked to end"))
        if 0 <= self.allowed <= self.failures:
            return
        reason = first_reason(worker_exceptions)
        with waiting_for_storage():
            if not note_restart(RunFolder(self.run), reason):
                return
        self.failures += 1
        print(
            f"worker failure {self.failures} (of {self.allowed}), going on from the last checkpoint: {reason}",
            flush=True,
        )


def failures_in(error: Exception) -> Mapping[int, BaseException]:
    """What ended a run on Ray: the workers' errors by rank, or under 0 that of its controller, or the error itself."""
    of_workers: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return of_workers or {0: getattr(error, "controller_failure", error)}


def refusal_in(failures: Mapping[int, BaseException]) -> GimpError | None:
    """The refusal that a worker raised, if one did."""
    for failed in failures.values():
        found: BaseException | None = failed
        while found is not None:
            if isinstance(found, GimpError):
                return found
            found = getattr(found, "cause", None) or found.__cause__
    return None


def failure(failures: Mapping[int, BaseException]) -> GimpError:
    """What the user is told when no restart is left."""
    full = [line for line in _lines(failures) if any(sign in line for sign in OUT_OF_MEMORY)]
    if full:
        return GimpError("a worker ran out of memory, and Ray ended it", found=full[-1][:300], fix=MEMORY_FIX)
    return GimpError(
        "training failed on the cluster more often than train.max_failures allows",
        found=first_reason(failures),
        fix="see the lines above; the same command continues from the last checkpoint",
    )


def first_reason(failures: Mapping[int, BaseException]) -> str:
    """One line that says why workers ended, with the rank where Ray knows it."""
    words = [line.strip() for line in _lines(failures) if line.strip()]
    said = words[-1] if words else repr(next(iter(failures.values()), None))
    # the first to fail; the others' connections to it broke then
    lost = [rank for rank, failed in failures.items() if "HealthCheck" in type(failed).__name__]
    return (f"rank {lost[0]} is gone: " if lost else "") + said[:300]


def _lines(failures: Mapping[int, BaseException]) -> list[str]:
    return [line for failed in failures.values() for line in str(failed).splitlines()]
