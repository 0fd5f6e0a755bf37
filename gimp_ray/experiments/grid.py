"""Runs on a Ray cluster: one Ray task a run, each after those it needs, as many at a time as there is room for.

A run trains in the task's own process (`train.workers: 0`) unless its config asks for workers, which then are beside
it. A failed run is tried once more, from its checkpoints; a refusal of its input is not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import build_config
from gimp_ray.engine.launch import start_ray
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.experiments.runs import Step, with_changes

Task = TypeVar("Task", bound=Hashable)
TRIES = 2


@dataclass(frozen=True)
class Resources:
    """What a run may take.

    Attributes:
        concurrent: runs at a time; None for as many as the cluster has room for.
        cpus: logical CPUs of a run that trains in its task.
        gpus: GPUs of such a run, or a share of one; None for one where the cluster has any.
    """

    concurrent: int | None = None
    cpus: float = 1.0
    gpus: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why a step failed, and whether it may be tried again: a refusal would be the same again."""

    why: str
    again: bool


def run_steps(steps: Sequence[Step], resources: Resources) -> dict[str, str]:
    """Run the steps, each after those it needs.

    Returns:
        Folder -> why, of the steps that could not be done.

    Raises:
        ConfigError: `resources` are impossible, or this machine does not have them.
        GimpError: the cluster is not there.
    """
    check_resources(resources)
    if not steps:
        return {}
    config = steps[0].config
    workers = pipeline.workers_of(config)
    if not workers.count and not workers.num_cpus:
        workers = replace(workers, num_cpus=os.cpu_count())  # no Ray Data runs beside
    start_ray(workers)
    import ray

    fitted = fitted_resources(resources, config, ray.cluster_resources())
    return run_in_order(steps, lambda step: _start(step, fitted), _wait, fitted.concurrent)


def run_in_order(
    steps: Sequence[Step],
    start: Callable[[Step], Task],
    wait: Callable[[list[Task]], tuple[Task, Failure | None]],
    concurrent: int | None = None,
) -> dict[str, str]:
    """Run steps, however they are started and waited for.

    Args:
        steps: those that are not done; what is needed and is not among them is done.
        start: begins a step.
        wait: waits until one of the tasks ends, and returns it with its failure, if any.
        concurrent: steps at a time; None for no limit.

    Returns:
        Folder -> why, of the steps that could not be done.
    """
    listed = {step.uri for step in steps}
    waiting = list(steps)
    failed: dict[str, str] = {}
    done: set[str] = set()
    running: dict[Task, tuple[Step, int, float]] = {}

    def show(what: str) -> None:
        print(f"[{len(done) + len(failed)}/{len(steps)}] {what}", flush=True)

    while waiting or running:
        for step in list(waiting):
            broken = next((need for need in step.needs if need.uri in failed), None)
            if broken is not None:
                waiting.remove(step)
                failed[step.uri] = f"it needs {broken.name}, which failed: {failed[broken.uri]}"
                show(f"{step.name}: not run")
            elif concurrent is not None and len(running) >= concurrent:
                break
            elif all(need.uri in done or need.uri not in listed for need in step.needs):
                waiting.remove(step)
                running[start(step)] = (step, 1, time.monotonic())
        if not running:
            continue
        task, failure = wait(list(running))
        step, tried, since = running.pop(task)
        if failure is None:
            done.add(step.uri)
            show(f"{step.name}: done in {time.monotonic() - since:.0f} s")
        elif failure.again and tried < TRIES:
            print(f"{step.name}: failed, tried again: {failure.why}", flush=True)
            running[start(step)] = (step, tried + 1, time.monotonic())
        else:
            failed[step.uri] = failure.why
            show(f"{step.name}: failed: {failure.why}")
    return failed


def check_resources(resources: Resources) -> None:
    """Refuse impossible resources.

    Raises:
        ConfigError: names the option.
    """
    for name, value in (("concurrent", resources.concurrent), ("cpus_per_run", resources.cpus)):
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} must be above 0", found=str(value), fix=f"change --{name}")
    gpus = resources.gpus
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise ConfigError(
            "--gpus_per_run must be a share of one GPU, or a whole number", found=str(gpus), fix="change it"
        )


def fitted_resources(resources: Resources, config: Config, there: dict[str, float]) -> Resources:
    """The resources with their GPUs resolved, on a cluster that has `there`.

    Raises:
        ConfigError: a run would wait for ever on this machine; a cluster elsewhere may have nodes to come.
    """
    gpus = resources.gpus
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) >= 1 and config.train.use_gpu is not False else 0.0
    if not config.cluster.address and not os.environ.get("RAY_ADDRESS"):
        for name, wanted, kind in (("cpus_per_run", resources.cpus, "CPU"), ("gpus_per_run", gpus, "GPU")):
            if wanted > there.get(kind, 0):
                raise ConfigError(
                    f"this machine has no room for --{name} {wanted:g}",
                    expected=f"at most {there.get(kind, 0):g} {kind}",
                    found=f"{wanted:g}",
                    fix=f"lower --{name}, or give the address of a cluster",
                )
    return replace(resources, gpus=gpus)


def fitted_config(config: Config, resources: Resources) -> Config:
    """The config of a run in a task: it uses the threads and the GPU that the task has, and no others."""
    changes: dict[str, Any] = {"log.progress": False}
    if not config.train.most_workers:
        if not config.train.threads:
            changes["train.threads"] = max(1, int(resources.cpus))
        if not resources.gpus and config.train.use_gpu is None:
            changes["train.use_gpu"] = False  # a task without a GPU may still see one
    return with_changes(config, changes)


def _start(step: Step, resources: Resources) -> Any:
    import ray

    alone = not step.config.train.most_workers
    reserved = {"num_cpus": resources.cpus, "num_gpus": resources.gpus} if alone else {"num_cpus": 0.1}
    task = ray.remote(**reserved, max_retries=0)(_do)  # `run_in_order` counts the tries
    return task.options(name=step.name).remote(step.does, fitted_config(step.config, resources).model_dump())


def _do(does: str, tree: dict[str, Any]) -> None:
    """A step, in a Ray task."""
    (pipeline.pretrain_genes if does == "genes" else pipeline.run_all)(build_config(tree))


def _wait(tasks: list[Any]) -> tuple[Any, Failure | None]:
    import ray

    (ready,), _ = ray.wait(tasks, num_returns=1)
    try:
        ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        return ready, failure_of(error.cause)
    except ray.exceptions.RayError as error:  # its process is gone
        return ready, failure_of(error)
    return ready, None


def failure_of(cause: BaseException) -> Failure:
    """A failure in one line."""
    if isinstance(cause, GimpError):
        found = f" (found: {cause.found})" if cause.found else ""
        return Failure(f"{cause.what}{found}", again=not isinstance(cause, InputError | ConfigError))
    text = " ".join(str(cause).split())[:300]
    return Failure(f"{type(cause).__name__}: {text or 'no message'}", again=True)
