"""A random search over config keys on Ray Tune; every trial is an ordinary run folder, pre-trained and probed.

A trial's figure is a logistic regression on CLS_pat, fitted on the training split and scored on validation; the test
part is never looked at. Left out, for now: early stopping of trials, model-based searchers, resuming a killed search.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field

from gimp_ray import pipeline
from gimp_ray.config import Config, Section
from gimp_ray.config_files import build_config, load_config, merge, to_yaml, with_absolute_paths
from gimp_ray.engine.launch import ray_storage, start_ray
from gimp_ray.errors import ConfigError, GimpError
from gimp_ray.run_folder import RunFolder, write_json, write_text

Dimension = dict[Literal["uniform", "loguniform", "choice"], list[Any]]

# the specification's four
DEFAULT_SPACE: dict[str, Dimension] = {
    "mask.ratio": {"uniform": [0.25, 0.75]},
    "window.length": {"choice": [1500, 3000, 6000]},
    "triplet.margin": {"uniform": [0.2, 1.6]},
    "train.lr": {"loguniform": [1e-5, 1e-3]},
}


class SweepConfig(Section):
    """What a search tries, and how much of it."""

    space: dict[str, Dimension] = Field(
        DEFAULT_SPACE, description="config key -> {uniform: [low, high]} | {loguniform: ...} | {choice: [...]}"
    )
    trials: int = Field(8, ge=1)
    concurrent: int = Field(1, ge=1, description="trials at a time")
    metric: Literal["accuracy", "auroc"] = Field("auroc", description="of the probe on validation; larger is better")
    seed: int = Field(0, ge=0)


def search(base: Config, sweep: SweepConfig) -> Path:
    """Run the search in `base.run` and write `trials.json` and `best.yaml` there.

    Returns:
        The folder on this machine, a copy where `base.run` is in object storage.

    Raises:
        ConfigError: no run folder or store was given, or a key of the space is unknown.
        GimpError: no trial came to an end.
    """
    if base.run is None or base.store is None:
        raise ConfigError(
            "a search needs a store and a folder", expected="--store STORE --run SWEEPDIR", found="one of them missing"
        )
    base = with_absolute_paths(base)
    run, tree = RunFolder(base.run or ""), base.model_dump()
    folder = run.path
    for key in sweep.space:
        _with(tree, {key: _example(key, sweep.space[key])})
    start_ray(pipeline.workers_of(base))
    from ray import tune

    trainable = functools.partial(_trial, tree, f"{run.place}/trials")
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(base)),
        param_space={key: _domain(tune, dimension) for key, dimension in sweep.space.items()},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode="max",
            num_samples=sweep.trials,
            max_concurrent_trials=sweep.concurrent,
            search_alg=tune.search.BasicVariantGenerator(random_state=sweep.seed, max_concurrent=sweep.concurrent),
        ),
        run_config=tune.RunConfig(name="tune", verbose=0, **ray_storage(run)),
    )
    results = tuner.fit()
    trials = [
        {"error": str(result.error) if result.error else None, **_plain(result.metrics or {}), "params": result.config}
        for result in results
    ]
    write_json(folder / "trials.json", trials)
    run.push()
    finished = [trial for trial in trials if trial["error"] is None and trial.get(sweep.metric) is not None]
    if not finished:
        raise GimpError(
            "no trial came to an end",
            file=run.place_of(folder / "trials.json"),
            found=str(trials[0]["error"] if trials else "no trials"),
        )
    best = max(finished, key=lambda trial: trial[sweep.metric])
    write_text(folder / "best.yaml", to_yaml(_with(tree, best["params"] | {"run": None})))
    run.push()
    return folder


def probe(run: RunFolder) -> dict[str, float]:
    """Accuracy and AUROC on validation of a logistic regression on CLS_pat of the training split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    run.pull()
    table = pq.read_table(run.evaluation / "probe.parquet")
    part = np.array(table["part"].to_pylist())
    labels = np.array(table["label"].to_pylist())
    vectors = np.array(table["cls_pat"].to_pylist())
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    model.fit(vectors[part == "train"], labels[part == "train"])
    truth, scores = labels[part == "val"], model.predict_proba(vectors[part == "val"])
    figures = {"accuracy": float(accuracy_score(truth, model.classes_[scores.argmax(axis=1)]))}
    binary = scores.shape[1] == 2
    figures["auroc"] = float(roc_auc_score(truth, scores[:, 1] if binary else scores, multi_class="ovr"))
    return figures


def _trial(tree: dict[str, Any], folder: str, params: dict[str, Any]) -> None:
    from ray import tune

    trial_id = tune.get_context().get_trial_id()
    config = _with(tree, params | {"run": f"{folder}/{trial_id}"})
    run = pipeline.pretrain(config)
    model, out = run.place_of(run.model_file("pretrain")), run.place_of(run.evaluation / "probe.parquet")
    pipeline.embed(config, model, out, ["train", "val"])
    tune.report({**probe(run), "run": run.place})


def _with(tree: dict[str, Any], changes: dict[str, Any]) -> Config:
    """The config of a tree with dotted changes, checked."""
    copy: dict[str, Any] = {}
    merge(copy, tree)
    return load_config(None, changes, base=build_config(copy).model_dump())


def _example(key: str, dimension: Dimension) -> Any:
    kinds = {"uniform": 2, "loguniform": 2, "choice": None}
    (kind, values), *others = dimension.items()
    wanted = kinds.get(kind)
    if others or not values or (wanted is not None and len(values) != wanted):
        raise ConfigError(
            f"the search space of '{key}' cannot be read",
            expected="one of uniform: [low, high], loguniform: [low, high], choice: [...]",
            found=str(dimension),
        )
    return values[0]


def _domain(tune: Any, dimension: Dimension) -> Any:
    ((kind, values),) = dimension.items()
    # YAML reads 1e-5 as a word
    return tune.choice(values) if kind == "choice" else getattr(tune, kind)(*(float(value) for value in values))


def _resources(base: Config) -> dict[str, float]:
    """A trial that trains in its own process needs that process's share; else its workers ask for theirs."""
    if base.train.workers:
        return {"CPU": 0.1}
    import ray

    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1 if base.train.use_gpu is None else base.train.use_gpu
    return {"CPU": base.train.cpus_per_worker} | ({"GPU": 1} if use_gpu else {})


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: metrics.get(key) for key in ("accuracy", "auroc", "run", "time_total_s", "trial_id")}
