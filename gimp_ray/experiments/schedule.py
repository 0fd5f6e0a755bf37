"""In which order steps run: each after those it needs, so many at a time, a failed one once more.

Whoever runs them hands in two functions, so this file knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gimp_ray.experiments.cells import Step

Task = TypeVar("Task", bound=Hashable)
TRIES = 2


@dataclass(frozen=True)
class Failure:
    """Why a step failed, and whether another try may help: a refusal says the same again."""

    why: str
    again: bool


def run_in_order(
    steps: Sequence[Step],
    start: Callable[[Step], Task],
    wait: Callable[[list[Task]], tuple[Task, Failure | None]],
    concurrent: int | None = None,
) -> dict[str, str]:
    """Run the steps.

    Args:
        steps: those that are not done; what is needed and is not among them is done.
        start: begins a step.
        wait: waits until one of the tasks is over, and says which, and why where it failed.
        concurrent: steps at a time; None for no limit.

    Returns:
        Folder -> why, of the steps that could not be done.
    """
    named = {step.place: step for step in steps}
    waiting = list(steps)
    failed: dict[str, str] = {}
    done: set[str] = set()
    going: dict[Task, tuple[Step, int, float]] = {}

    def say(what: str) -> None:
        print(f"[{len(done) + len(failed)}/{len(steps)}] {what}", flush=True)

    while waiting or going:
        for step in list(waiting):
            broken = next((place for place in step.needs if place in failed), None)
            if broken is not None:
                waiting.remove(step)
                failed[step.place] = f"it needs {named[broken].name}, which failed: {failed[broken]}"
                say(f"{step.name}: not run")
            elif concurrent is not None and len(going) >= concurrent:
                break
            elif all(place in done or place not in named for place in step.needs):
                waiting.remove(step)
                going[start(step)] = (step, 1, time.monotonic())
        if not going:
            continue
        task, failure = wait(list(going))
        step, tried, since = going.pop(task)
        if failure is None:
            done.add(step.place)
            say(f"{step.name}: done in {time.monotonic() - since:.0f} s")
        elif failure.again and tried < TRIES:
            print(f"{step.name}: failed, tried again: {failure.why}", flush=True)
            going[start(step)] = (step, tried + 1, time.monotonic())
        else:
            failed[step.place] = failure.why
            say(f"{step.name}: failed: {failure.why}")
    return failed
