"""Running stages on Ray Train: one worker group goes through all the stages of a run, one after another.

A worker group costs 20 to 40 s to start, so a run asks for one only once. Every stage's dataset is made anew at each
(re)start of the group, so it begins at the stage's last checkpoint and is for as many workers as there are then.
Checkpoints and logs are ours, in the run folder; Ray's own bookkeeping of an attempt stays under `RUN/ray`. With 0
workers the same stages run in this process, without Ray.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gimp_ray.engine import stopping
from gimp_ray.engine.checkpoint import find_start
from gimp_ray.engine.loop import Report, Saving, agreed, gather_records, train
from gimp_ray.engine.progress import following
from gimp_ray.engine.protocol import CohortWork, TrainTask, World
from gimp_ray.engine.record import note_restart, note_stage, note_workers
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.feed.batches import direct_batches, plan_dataset, shard_batches
from gimp_ray.io.net import is_port_open
from gimp_ray.io.storage import is_uri, resolve, waiting_for_storage
from gimp_ray.runs.folder import RunFolder

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@dataclass(frozen=True)
class Job:
    """One thing for the workers to do: train a task, or do some work over the cohort.

    Attributes:
        name: the stage's name.
        factory: importable function that makes the `TrainTask` or `CohortWork`.
        arguments: its JSON-like keyword arguments.
        trains: whether it makes a `TrainTask`.
    """

    name: str
    factory: Callable[..., Any]
    arguments: Mapping[str, Any]
    trains: bool = True


@dataclass(frozen=True)
class Workers:
    """What the workers are, and how batches reach them.

    Attributes:
        count: how many; 0 trains in this process without Ray.
        at_least: as few as this will do where the cluster has no room for `count`; None for `count`.
        resize_seconds: how often Ray looks whether there is room for more, where there are fewer than `count`.
        start_seconds: how long a start of theirs may take before it is tried anew; None for 30 where `at_least` is
            given, and else what the environment says, or 60.
        progress: whether the command shows a live line of what they do.
    """

    count: int = 1
    at_least: int | None = None
    resize_seconds: float = 60.0
    start_seconds: float | None = None
    progress: bool = True
    use_gpu: bool | None = None
    cpus: float = 1
    threads: int = 0
    max_failures: int = 3
    read_in: str = "worker"
    ahead: int = 2
    address: str | None = None
    num_cpus: int | None = None
    saving: Saving = field(default_factory=Saving)


def run_jobs(jobs: list[Job], run: RunFolder, workers: Workers, report_epochs: bool = False) -> str:
    """Do the jobs in order on `workers.count` Ray Train workers, or in this process for 0.

    Returns:
        `done`, `stopped` where a stage's `stop_after` ended the run, or `preempted` where SIGTERM did.

    Raises:
        Terminated: SIGTERM came where there was nothing to save first.
        GimpError: a job refused its input or could not go on.
    """
    if not jobs:
        return "done"
    if workers.count == 0:
        return _run_here(jobs, run, workers)
    return _run_on_ray(jobs, run, workers, report_epochs)


def _run_here(jobs: list[Job], run: RunFolder, workers: Workers) -> str:
    use_gpu = torch.cuda.is_available() if workers.use_gpu is None else workers.use_gpu
    world = World(device=torch.device("cuda" if use_gpu else "cpu"))
    if workers.threads:
        torch.set_num_threads(workers.threads)

    def make_batches(job: Job, task: TrainTask) -> Callable[[int], Any]:
        return lambda start: direct_batches(task, start, world.rank, world.size, workers.ahead)

    return _go_through(jobs, run, workers.saving, world, make_batches, None)


@waiting_for_storage()
def _go_through(
    jobs: list[Job],
    run: RunFolder,
    saving: Saving,
    world: World,
    make_batches: Callable[[Job, TrainTask], Callable[[int], Any]],
    report: Report | None,
) -> str:
    """What every rank does: each job in turn, those already done skipped."""
    for job in jobs:
        if agreed(world, [stopping.asked()])[0]:
            return "preempted"
        run.pull_models()
        if job.trains and run.stage_done(job.name):
            continue
        started = time.time()
        made = job.factory(**job.arguments)
        if job.trains:
            outcome = train(made, world, run, saving, make_batches(job, made), report)
            if outcome != "done":
                return outcome
        else:
            _do_work(made, world)
        if world.rank == 0:
            note_stage(run, job.name, time.time() - started)
    return "done"


def _do_work(work: CohortWork, world: World) -> None:
    records = gather_records(work.run(world), world)
    if world.rank == 0:
        work.write(records)


def _run_on_ray(jobs: list[Job], run: RunFolder, workers: Workers, report_epochs: bool) -> str:
    """Train until the jobs are done; a failure costs a restart from the last checkpoints, a refusal none."""
    start_ray(workers)
    stopping.listen_again()  # Ray's own handler would end the cluster before anything is saved
    stages = [job.name for job in jobs if job.trains]
    with stopping.passing_on(_place(run)), following(run, stages, workers.progress):
        return _fit(jobs, run, workers, report_epochs)


def _fit(jobs: list[Job], run: RunFolder, workers: Workers, report_epochs: bool) -> str:
    """Ray's controller starts failed workers anew; where it gave up itself, for want of room or of its node, another
    one is started.
    """
    import ray.train

    from gimp_ray.engine.failures import failure, failures_in, first_reason, refusal_in

    given_up = 0
    while not stopping.asked():
        try:
            return str(_trainer(jobs, run, workers, report_epochs).fit().return_value)
        except ray.train.TrainingFailedError as error:
            failures = failures_in(error)
            refusal = refusal_in(failures)
            if refusal is not None:
                raise refusal from None
            if stopping.asked():  # who sent the signal took the workers as well
                break
            if not given_up and _never_started(error) and not _room(workers):
                raise _no_room(workers) from error
            given_up += 1
            if isinstance(error, ray.train.WorkerGroupError) or 0 <= workers.max_failures < given_up:
                raise failure(failures) from error
            reason = first_reason(failures)
            with waiting_for_storage():
                note_restart(run, reason)
            print(f"the cluster gave up, trying again from the last checkpoint: {reason}", flush=True)
    return "preempted"


def _place(run: RunFolder) -> str:
    """The run folder as every node may name it."""
    return run.place if is_uri(run.place) else str(run.path.resolve())


def _trainer(jobs: list[Job], run: RunFolder, workers: Workers, report_epochs: bool) -> Any:
    import ray.train
    from ray.train.torch import TorchTrainer

    from gimp_ray.engine.failures import AfterFailures

    use_gpu = _use_gpu(workers)
    place = _place(run)
    return TorchTrainer(
        _worker,
        train_loop_config={
            "jobs": jobs,
            "run": place,
            "saving": asdict(workers.saving),
            "threads": workers.threads,
            "ahead": workers.ahead,
            "report_epochs": report_epochs,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count if workers.at_least is None else (workers.at_least, workers.count),
            use_gpu=use_gpu,
            resources_per_worker=_resources(workers, use_gpu),
            elastic_resize_monitor_interval_s=workers.resize_seconds,
        ),
        run_config=ray.train.RunConfig(
            # Ray's own state of an attempt must never decide where the next one begins, so each has its own name
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            **ray_storage(run, "ray"),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures, controller_failure_limit=3),
            callbacks=[AfterFailures(place, workers.max_failures)],
        ),
        # what is read is made where the number of workers is known
        datasets={job.name: _placeholder for job in jobs if job.trains},
        dataset_config=_planned_data(jobs, place, workers.read_in),
    )


def ray_storage(run: RunFolder, folder: str = "") -> dict[str, Any]:
    """`storage_path` and `storage_filesystem` of Ray's own bookkeeping: a folder of the run that every node reaches."""
    if not is_uri(run.place):
        return {"storage_path": str(run.path.resolve() / folder)}
    filesystem, root = resolve(f"{run.place}/{folder}")
    return {"storage_path": root, "storage_filesystem": filesystem}


def start_ray(workers: Workers) -> None:
    """Connect to the cluster, or start a local one with CPUs to spare for Ray Data."""
    # before Ray is imported: short polls, since a report waits for one, and no wait for capacity that is gone
    for name, value in {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        START_TIMEOUT: "60",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # lines printed by rank 0 would come twice, and relative paths would not mean what they meant
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }.items():
        os.environ.setdefault(name, value)
    wait = workers.start_seconds
    if wait is None and workers.at_least is not None:
        # a cluster's own setting is made for a fixed number, which has to wait until its nodes are up; for a while
        # after a node is gone Ray still counts it, and a start that counts on it must be given up first
        wait = 30
    if wait is not None:
        os.environ[START_TIMEOUT] = f"{wait:g}"
    address = workers.address or os.environ.get("RAY_ADDRESS")
    if not address:
        # nobody preempts a worker of one machine
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray

    if ray.is_initialized():
        return
    if address:
        if not is_port_open(address):
            raise GimpError(
                f"nobody listens at the Ray cluster's address {address}",
                fix="check cluster.address and RAY_ADDRESS, and `ray status` on the head node",
            )
        ray.init(address=address, log_to_driver=True)
        return
    needed = int(workers.count * workers.cpus) + 3
    # the dashboard's server also answers Train's own questions, which fill the log with warnings without it
    ray.init(
        address="local",
        num_cpus=workers.num_cpus or max(os.cpu_count() or 1, needed),
        include_dashboard=True,
        logging_level="WARNING",
    )


def _use_gpu(workers: Workers) -> bool:
    import ray

    if workers.use_gpu is not None:
        return workers.use_gpu
    there, needed = int(ray.cluster_resources().get("GPU", 0)), workers.at_least or workers.count
    if 0 < there < needed:
        print(f"note: {there} GPU(s) for {needed} workers, so all train on CPUs; see train.use_gpu", flush=True)
    return there >= needed


def _resources(workers: Workers, use_gpu: bool) -> dict[str, float]:
    return {"CPU": workers.cpus} | ({"GPU": 1} if use_gpu else {})


def _placeholder() -> Any:
    import ray.data

    return ray.data.range(1)


def _planned_data(jobs: list[Job], run: str, read_in: str) -> Any:
    """Ray's question for each rank's data, answered with what the plan has left for so many ranks.

    Rows reach ranks in the plan's order: row i goes to rank i mod n.
    """
    import ray.data
    import ray.train

    class PlannedData(ray.train.DataConfig):
        """Makes a stage's dataset when the first rank asks for it, anew for every start of the worker group."""

        def configure(self, datasets: Any, world_size: int, *rest: Any, **more: Any) -> Any:
            planned = {
                job.name: _dataset(job, run, world_size, read_in) for job in jobs if job.trains and job.name in datasets
            }
            return super().configure(planned, world_size, *rest, **more)

    return PlannedData(execution_options=ray.data.ExecutionOptions(preserve_order=True), enable_shard_locality=False)


def _dataset(job: Job, run: str, world_size: int, read_in: str) -> Any:
    """A stage's dataset from its last checkpoint on."""
    folder, start = RunFolder(run), 0
    with waiting_for_storage():
        # on a machine that need not be a worker's
        folder.pull_models()
        if not folder.stage_done(job.name):
            folder.pull_stage(job.name)
            with contextlib.suppress(ConfigError, InputError):  # the first worker looks too, and its refusal is shown
                start = find_start(job.name, job.factory(**job.arguments).inputs, folder).position
    return plan_dataset(job.factory, job.arguments, start, world_size, read_in)  # type: ignore[arg-type]


def _worker(config: dict[str, Any]) -> str:
    """What Ray Train runs on every rank."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    torch.set_num_threads(config["threads"] or cores)

    # all at once: their coordinators then start while the first stage is made ready
    shards = {job.name: ray.train.get_dataset_shard(job.name) for job in config["jobs"] if job.trains}

    def make_batches(job: Job, task: TrainTask) -> Callable[[int], Any]:
        return lambda start: shard_batches(shards[job.name], task, start, world.rank, config["ahead"])

    report = ray.train.report if config["report_epochs"] else None
    run, saving = RunFolder(config["run"]), Saving(**config["saving"])
    if world.rank == 0:
        with waiting_for_storage():
            note_workers(run, world.size)
    with stopping.watching(config["run"]) if world.rank == 0 else contextlib.nullcontext():
        return _go_through(config["jobs"], run, saving, world, make_batches, report)


def _never_started(error: Exception) -> bool:
    """Whether the cluster had no room for the workers within the time that a start may take."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _room(workers: Workers) -> bool:
    """Whether the nodes that are up could hold the fewest workers, had they nothing else to do; a start that took long
    all the same is tried again.
    """
    import ray

    there, count = ray.cluster_resources(), workers.at_least or workers.count
    return all(there.get(kind, 0) >= count * each for kind, each in _resources(workers, _use_gpu(workers)).items())


def _no_room(workers: Workers) -> GimpError:
    import ray

    there = ray.cluster_resources()
    each = _resources(workers, _use_gpu(workers))
    return GimpError(
        "the cluster had no room for the workers",
        expected=f"{workers.at_least or workers.count} worker(s) of "
        + ", ".join(f"{n:g} {k}" for k, n in each.items()),
        found=", ".join(f"{there.get(kind, 0):g} {kind} in all" for kind in ("CPU", "GPU")) + ", other jobs' included",
        fix=f"start nodes, lower train.workers or give a range ([1, {workers.count}]), lower train.cpus_per_worker, or "
        "raise cluster.start_seconds where nodes take longer to come; Ray Data needs a CPU besides",
    )
