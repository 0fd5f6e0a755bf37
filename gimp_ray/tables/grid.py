"""Runs of a table on a Ray cluster: one Ray task a run, as many at a time as there is room for.

A run trains in the task's own process (`train.workers: 0`) unless its config asks for workers, which then are beside
it. A run that is killed goes on from its checkpoints when it is tried again: once here, and then by the same command.
Left out: what is to be run (`cells.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gimp_ray import pipeline
from gimp_ray.config_files import load_config
from gimp_ray.engine.launch import start_ray
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.tables.cells import Step

TRIES = 2


@dataclass(frozen=True)
class Room:
    """What a run may take.

    Attributes:
        concurrent: runs at a time; None for as many as the cluster has room for.
        cpus: logical CPUs of a run that trains in its task.
        gpus: GPUs of such a run, or a share of one; None for one where the cluster has any.
    """

    concurrent: int | None = None
    cpus: float = 1.0
    gpus: float | None = None


def run_steps(steps: Sequence[Step], room: Room) -> dict[str, str]:
    """Run the steps, each after those it needs.

    Returns:
        Folder -> why, of the steps that could not be done.

    Raises:
        ConfigError: `room` is impossible.
        GimpError: the cluster has no such room, or is not there.
    """
    _check(room)
    if not steps:
        return {}
    config = steps[0].config
    workers = pipeline.workers_of(config)
    if not workers.count and not workers.num_cpus:
        workers = replace(workers, num_cpus=max(os.cpu_count() or 1, int(room.cpus)))
    start_ray(workers)
    import ray

    room = _fitted(room, steps, ray.cluster_resources())
    waiting, failed = list(steps), dict[str, str]()
    mine = {step.place for step in steps}
    done: set[str] = set()
    going: dict[Any, tuple[Step, int, float]] = {}
    while waiting or going:
        for step in list(waiting):
            broken = [place for place in step.needs if place in failed]
            if broken:
                waiting.remove(step)
                failed[step.place] = f"what it needs could not be made: {broken[0]}"
            elif room.concurrent is not None and len(going) >= room.concurrent:
                break
            elif all(place in done or place not in mine for place in step.needs):
                waiting.remove(step)
                going[_start(step, room)] = (step, 1, time.monotonic())
        if not going:
            continue
        (ready,), _ = ray.wait(list(going), num_returns=1)
        step, tried, since = going.pop(ready)
        why, again = _outcome(ready)
        if why is None:
            done.add(step.place)
            _say(f"{step.name}: done in {time.monotonic() - since:.0f} s", len(done) + len(failed), len(steps))
        elif again and tried < TRIES:
            print(f"{step.name}: failed, tried again: {why}", flush=True)
            going[_start(step, room)] = (step, tried + 1, time.monotonic())
        else:
            failed[step.place] = why
            _say(f"{step.name}: failed: {why}", len(done) + len(failed), len(steps))
    return failed


def _start(step: Step, room: Room) -> Any:
    import ray

    if step.config.train.most_workers:
        options: dict[str, Any] = {"num_cpus": 0.1}
    else:
        options = {"num_cpus": room.cpus, "num_gpus": room.gpus}
    # retried here, where it is counted and said
    task = ray.remote(**options, max_retries=0)(_do)
    return task.remote(step.does, step.config.model_dump(), room.cpus)


def _do(does: str, tree: dict[str, Any], cpus: float) -> None:
    """A step, in a Ray task."""
    config = load_config(None, {"log.progress": False}, base=tree)
    if not config.train.most_workers and not config.train.threads:
        config = load_config(None, {"train.threads": max(1, int(cpus))}, base=config.model_dump())
    (pipeline.pretrain_genes if does == "genes" else pipeline.run_all)(config)


def _outcome(task: Any) -> tuple[str | None, bool]:
    """Why a task failed, None where it did not, and whether another try may help."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, GimpError):
            found = f" (found: {cause.found})" if cause.found else ""
            # a refusal says the same again
            return f"{cause.what}{found}", not isinstance(cause, InputError | ConfigError)
        return f"{type(cause).__name__}: {_first_line(cause)}", True
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {_first_line(error)}", True
    return None, False


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "without a word")[:300]


def _say(what: str, count: int, total: int) -> None:
    print(f"[{count}/{total}] {what}", flush=True)


def _check(room: Room) -> None:
    for name, value in (("concurrent", room.concurrent), ("cpus_per_run", room.cpus)):
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} must be above 0", found=str(value), fix=f"change --{name}")
    if room.gpus is not None and (room.gpus < 0 or (room.gpus > 1 and room.gpus != int(room.gpus))):
        raise ConfigError(
            "--gpus_per_run must be a share of one GPU, or a whole number", found=str(room.gpus), fix="change it"
        )


def _fitted(room: Room, steps: Sequence[Step], there: dict[str, float]) -> Room:
    """The room with its GPUs said; refuses a run that would wait for ever."""
    gpus = room.gpus
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) >= 1 and steps[0].config.train.use_gpu is not False else 0.0
    # a cluster that grows has nodes to come, so only a local one is judged
    if not any(step.config.cluster.address or os.environ.get("RAY_ADDRESS") for step in steps[:1]):
        for name, asked, kind in (("cpus_per_run", room.cpus, "CPU"), ("gpus_per_run", gpus, "GPU")):
            if asked > there.get(kind, 0):
                raise ConfigError(
                    f"this machine has no room for --{name} {asked:g}",
                    expected=f"at most {there.get(kind, 0):g} {kind}",
                    found=f"{asked:g}",
                    fix=f"lower --{name}, or give the address of a cluster",
                )
    return replace(room, gpus=gpus)
