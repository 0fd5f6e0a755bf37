"""A sweep's trials on Ray Tune: its schedulers, Optuna's suggestions, and the records kept while trials run.

Each command starts a Tune experiment of its own with the trials that are left, and gives it what is known: a scheduler
gets the measurements of trials that are over, Optuna their values, and a trial that goes on reports its own again.
Tune's experiment is removed afterwards, since restoring one would mean loading a pickle.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.search import Searcher

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine.launch import ray_storage, start_ray
from gimp_ray.errors import ConfigError
from gimp_ray.experiments.records import Record, finished, last_value, new_record, read_record, write_record
from gimp_ray.experiments.space import Dimension, Params, clipped, identity
from gimp_ray.experiments.sweep import SweepConfig, interval_of
from gimp_ray.experiments.trial import Setting, run_trial
from gimp_ray.io.storage import is_uri
from gimp_ray.runs.folder import RunFolder

KEPT = 4  # checkpoints that better trials of a population hand on
SPARE_CPUS = 1.0  # of each trial with workers, for Ray Data


@dataclass(frozen=True)
class FinishedTrial:
    """A trial that is over, as far as a scheduler asks."""

    trial_id: str


def connect(base: Config, sweep: SweepConfig) -> None:
    """Connect to the cluster, or start a local one with room for the trials that were asked for.

    Without `concurrent` a local cluster has the machine's cores and no more: trials that share a core gain nothing.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner points to what is thrown away
    workers = pipeline.workers_of(base)
    needed = (sweep.concurrent or 1) * _cpus_of_trial(base)
    wanted = workers.num_cpus or max(os.cpu_count() or 1, math.ceil(needed))
    start_ray(replace(workers, num_cpus=wanted))


def room(base: Config, sweep: SweepConfig) -> int | None:
    """Trials at a time: as asked, or what the cluster has room for; None where Tune itself sees to it."""
    if sweep.concurrent is not None or not base.train.most_workers:
        return sweep.concurrent
    there = ray.cluster_resources()
    fit = there.get("CPU", 0) / _cpus_of_trial(base)
    gpus = there.get("GPU", 0)
    if base.train.use_gpu or (base.train.use_gpu is None and gpus >= base.train.most_workers):
        fit = min(fit, gpus / base.train.most_workers)
    return max(1, int(fit))


def run_on_tune(setting: Setting, base: Config, space: list[Dimension], records: list[Record], epochs: int) -> None:
    """Run the trials that are left.

    Args:
        setting: what the trials share.
        base: the base config; the cluster is connected.
        space: the dimensions.
        records: of all trials so far; with `search: optuna` further ones are made as they are suggested.
        epochs: of a trial.
    """
    sweep = setting.sweep
    scheduler = scheduler_of(sweep, space, epochs)
    prime(scheduler, records, sweep.metric)
    left = [record for record in records if not finished(record)]
    options: dict[str, Any] = {}
    param_space: dict[str, Any] = {}
    if sweep.search == "optuna":
        over = sum(finished(record) for record in records)
        options = {"search_alg": OptunaSearch(setting, space, records), "num_samples": sweep.trials - over}
    else:
        entries = [{"name": record["name"], "params": record["params"]} for record in left]
        param_space = {"trial": tune.grid_search(entries)}
    sweeping = RunFolder(setting.uri)
    tuner = tune.Tuner(
        tune.with_resources(functools.partial(_trainable, setting), resources_of(base, sweep)),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=room(base, sweep),
            # a process that has imported torch serves the next trial too
            reuse_actors=True,
            # the config of a population's trial comes to be another's, its name does not
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
            **options,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{setting.session}",
            verbose=0,
            callbacks=[RecordCallback(setting)],
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT),
            **ray_storage(sweeping, "ray"),
        ),
    )
    tuner.fit()
    if not is_uri(setting.uri):  # what earlier commands left is of no use either
        for folder in (sweeping.path / "ray").glob("tune-*"):
            shutil.rmtree(folder, ignore_errors=True)


def scheduler_of(sweep: SweepConfig, space: list[Dimension], epochs: int) -> Any:
    """Tune's scheduler for the settings; epochs are its time."""
    common = {"time_attr": "epoch", "metric": sweep.metric, "mode": "max"}
    if sweep.scheduler == "asha":
        grace = min(sweep.grace, epochs)
        return ASHAScheduler(max_t=epochs, grace_period=grace, reduction_factor=sweep.reduction, **common)
    if sweep.scheduler == "median":
        # a trial is never put off: it would be started again for each measurement
        return MedianStoppingRule(grace_period=sweep.grace, min_time_slice=math.inf, **common)
    if sweep.scheduler == "pbt":
        return PopulationBasedTraining(
            perturbation_interval=interval_of(sweep, epochs),
            hyperparam_mutations={"trial": {"params": {one.key: _mutation(one) for one in space}}},
            custom_explore_fn=functools.partial(_within, space),
            log_config=False,
            **common,
        )
    return FIFOScheduler()


def prime(scheduler: Any, records: list[Record], metric: str) -> None:
    """Tell a scheduler what trials that are over had measured, oldest first."""
    if not isinstance(scheduler, ASHAScheduler | MedianStoppingRule):
        return
    for record in records:
        if not finished(record):
            continue
        past = FinishedTrial(record["name"])
        for report in record["reports"]:
            value = report["metrics"][metric]["value"]
            scheduler.on_trial_add(None, past)
            scheduler.on_trial_complete(None, past, {"epoch": report["epoch"], metric: value})


def optuna_space(space: list[Dimension]) -> dict[str, Any]:
    """The dimensions as Optuna's distributions.

    Raises:
        ConfigError: a value of a list is a list itself.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for one in space:
        if one.finite:
            if not all(isinstance(value, str | int | float | bool | None) for value in one.values):
                raise ConfigError(
                    f"Optuna cannot choose among the values of '{one.key}'",
                    expected="numbers, words, true, false or null",
                    found=str(list(one.values)),
                    fix="use search: random",
                )
            found[one.key] = CategoricalDistribution(one.values)
        elif one.kind == "randint":
            found[one.key] = IntDistribution(*one.values)
        elif one.kind == "quniform":
            found[one.key] = FloatDistribution(one.values[0], one.values[1], step=one.values[2])
        else:
            low, high = one.values
            found[one.key] = FloatDistribution(low, high, log=one.kind == "loguniform")
    return found


class OptunaSearch(Searcher):
    """Optuna's suggestions (TPE) as numbered trials; each has its record before it is begun.

    Args:
        setting: of the sweep.
        space: its dimensions.
        records: of trials so far: Optuna learns from those that are over; the others are suggested again first.
    """

    def __init__(self, setting: Setting, space: list[Dimension], records: list[Record]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__(metric=setting.sweep.metric, mode="max")
        self._setting, self._known, self._space = setting, len(records), optuna_space(space)
        # with the first seed again, the first suggestions would come again
        sampler = optuna.samplers.TPESampler(seed=setting.sweep.seed + 1_000_003 * len(records))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._open: dict[str, Any] = {}
        self._left = {identity(one["params"]): one["name"] for one in records if not finished(one)}
        for record in records:
            if not finished(record):
                self._study.enqueue_trial(record["params"])
                continue
            value = last_value(record, setting.sweep.metric)
            state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
            past = optuna.trial.create_trial(
                params=record["params"], distributions=self._space, value=value, state=state
            )
            self._study.add_trial(past)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        suggested = self._open[trial_id] = self._study.ask(self._space)
        params = dict(suggested.params)
        name = self._left.pop(identity(params), None)
        if name is None:
            record = new_record(self._known, params)
            write_record(self._setting.uri, record)
            self._known, name = self._known + 1, record["name"]
        return {"trial": {"name": name, "params": params}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        from optuna.trial import TrialState

        suggested = self._open.pop(trial_id, None)
        if suggested is None:
            return
        value = None if error else (result or {}).get(self._metric)
        self._study.tell(suggested, value, state=TrialState.FAIL if value is None else None)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the records have everything."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its records")


class RecordCallback(tune.Callback):
    """Writes into a trial's record how it ended, where its own process cannot, and prints a line for each event."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        metric = self._setting.sweep.metric
        epoch, value = result.get("epoch"), result.get(metric)
        if epoch is not None and value is not None:
            print(f"{trial}: epoch {epoch}, {metric} {value:.4f}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = read_record(self._setting.uri, str(trial))
        if not finished(record):
            # its process waits for an answer, and writes nothing
            record["status"], record["reason"] = "stopped", f"by {self._setting.sweep.scheduler}"
            write_record(self._setting.uri, record)
        print(f"{trial}: {record['status']}", flush=True)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = read_record(self._setting.uri, str(trial))["reason"] or "its process is gone"
        print(f"{trial}: failed ({reason}), and is started again from its own checkpoint", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = read_record(self._setting.uri, str(trial))
        record["status"] = "failed"
        record["reason"] = record["reason"] or "its process was killed, or ran out of memory"
        write_record(self._setting.uri, record)
        print(f"{trial}: failed: {record['reason']}", flush=True)


def resources_of(base: Config, sweep: SweepConfig) -> dict[str, float]:
    """What Tune reserves for a trial: what its process needs, or next to nothing where its workers ask for theirs."""
    if base.train.most_workers:
        return {"CPU": 0.1}
    gpus = sweep.gpus_per_trial
    if gpus is None:
        there = ray.cluster_resources().get("GPU", 0) >= 1
        gpus = float(there if base.train.use_gpu is None else base.train.use_gpu)
    return {"CPU": base.train.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def _trainable(setting: Setting, config: dict[str, Any]) -> None:
    """What Tune runs in a trial's process."""

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        tune.report(metrics, checkpoint=None if folder is None else tune.Checkpoint.from_directory(str(folder)))

    name, params = tune.get_context().get_trial_name(), config["trial"]["params"]
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        run_trial(setting, name, params, report)
        return
    with checkpoint.as_directory() as folder:
        run_trial(setting, name, params, report, Path(folder))


def _name_of(trial: Any) -> str:
    return str(trial.config["trial"]["name"])


def _cpus_of_trial(base: Config) -> float:
    train = base.train
    workers = train.most_workers * train.cpus_per_worker
    return workers + SPARE_CPUS + 0.1 if workers else train.cpus_per_worker


def _mutation(one: Dimension) -> Any:
    """How population based training draws a value anew; else it multiplies by 0.8 or 1.2, or goes to a neighbour."""
    if one.finite:
        return list(one.values)
    if one.kind == "randint":
        return tune.randint(one.values[0], one.values[1] + 1)
    draw: Callable[..., Any] = tune.loguniform if one.kind == "loguniform" else tune.uniform
    return draw(*one.values[:2])


def _within(space: list[Dimension], config: dict[str, Any]) -> dict[str, Any]:
    trial = config["trial"]
    params: Params = clipped(space, trial["params"])
    return config | {"trial": trial | {"params": params}}
