"""Runs of a table on a Ray cluster: one Ray task a run, as many at a time as there is room for.

A run trains in the task's own process (`train.workers: 0`) unless its config asks for workers, which then are beside
it. A run that is killed goes on from its checkpoints when it is tried again: once here, and then by the same command.
Left out: what is to be run (`cells.py`), and in which order (`schedule.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import build_config, load_config
from gimp_ray.engine.launch import start_ray
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.experiments.cells import Step
from gimp_ray.experiments.schedule import Failure, run_in_order


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
        ConfigError: `room` is impossible, or this machine does not have it.
        GimpError: the cluster is not there.
    """
    check_room(room)
    if not steps:
        return {}
    config = steps[0].config
    workers = pipeline.workers_of(config)
    if not workers.count and not workers.num_cpus:
        workers = replace(workers, num_cpus=os.cpu_count())  # no Ray Data runs beside
    start_ray(workers)
    import ray

    room = fitted_room(room, config, ray.cluster_resources())
    return run_in_order(steps, lambda step: _start(step, room), _wait, room.concurrent)


def check_room(room: Room) -> None:
    """Refuse an impossible room.

    Raises:
        ConfigError: names the option.
    """
    for name, value in (("concurrent", room.concurrent), ("cpus_per_run", room.cpus)):
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} must be above 0", found=str(value), fix=f"change --{name}")
    if room.gpus is not None and (room.gpus < 0 or (room.gpus > 1 and room.gpus != int(room.gpus))):
        raise ConfigError(
            "--gpus_per_run must be a share of one GPU, or a whole number", found=str(room.gpus), fix="change it"
        )


def fitted_room(room: Room, config: Config, there: dict[str, float]) -> Room:
    """The room with its GPUs said, of a cluster with these resources.

    Raises:
        ConfigError: a run would wait for ever on this machine; a cluster elsewhere may have nodes to come.
    """
    gpus = room.gpus
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) >= 1 and config.train.use_gpu is not False else 0.0
    if not config.cluster.address and not os.environ.get("RAY_ADDRESS"):
        for name, asked, kind in (("cpus_per_run", room.cpus, "CPU"), ("gpus_per_run", gpus, "GPU")):
            if asked > there.get(kind, 0):
                raise ConfigError(
                    f"this machine has no room for --{name} {asked:g}",
                    expected=f"at most {there.get(kind, 0):g} {kind}",
                    found=f"{asked:g}",
                    fix=f"lower --{name}, or give the address of a cluster",
                )
    return replace(room, gpus=gpus)


def _start(step: Step, room: Room) -> Any:
    import ray

    alone = not step.config.train.most_workers
    room_of_it = {"num_cpus": room.cpus, "num_gpus": room.gpus} if alone else {"num_cpus": 0.1}
    # tried again by who counts the tries and says so
    task = ray.remote(**room_of_it, max_retries=0)(_do)
    return task.options(name=step.name).remote(step.does, fitted_config(step.config, room).model_dump())


def fitted_config(config: Config, room: Room) -> Config:
    """The config of a run in a task: it uses the threads and the GPU that the task has, and no others."""
    changes: dict[str, Any] = {"log.progress": False}
    if not config.train.most_workers:
        if not config.train.threads:
            changes["train.threads"] = max(1, int(room.cpus))
        if not room.gpus and config.train.use_gpu is None:
            changes["train.use_gpu"] = False  # a task without a GPU may still see one
    return load_config(None, changes, base=config.model_dump())


def _do(does: str, tree: dict[str, Any]) -> None:
    """A step, in a Ray task."""
    (pipeline.pretrain_genes if does == "genes" else pipeline.run_all)(build_config(tree))


def _wait(tasks: list[Any]) -> tuple[Any, Failure | None]:
    import ray

    (ready,), _ = ray.wait(tasks, num_returns=1)
    try:
        ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        return ready, _failure(error.cause)
    except ray.exceptions.RayError as error:  # its process is gone
        return ready, Failure(f"{type(error).__name__}: {_in_a_line(error)}", again=True)
    return ready, None


def _failure(cause: BaseException) -> Failure:
    if isinstance(cause, GimpError):
        found = f" (found: {cause.found})" if cause.found else ""
        return Failure(f"{cause.what}{found}", again=not isinstance(cause, InputError | ConfigError))
    return Failure(f"{type(cause).__name__}: {_in_a_line(cause)}", again=True)


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "without a word"
