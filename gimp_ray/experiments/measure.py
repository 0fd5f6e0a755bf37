"""What a trial is worth: metrics on the validation part, with intervals over patients.

`probe`: a logistic regression or k nearest neighbours on CLS_pat, fitted on the training split. `finetune`: the
fine-tuned model's own predictions, of a class, labels or survival. Both from an embedding of the model as it is after
some epoch; where the stage is not over, the model file is made of its newest checkpoint (`finetune`: of the best epoch
so far, as its end would). The test part is never embedded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine.checkpoint import latest_checkpoint
from gimp_ray.errors import GimpError, InputError
from gimp_ray.evaluation import METRICS, Truth, encode_labels, intervals_of
from gimp_ray.io.files import whole_file
from gimp_ray.learn.stage import open_store
from gimp_ray.learn.targets import saved_target
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights, part, read_card, save_model
from gimp_ray.scoring import cases_of
from gimp_ray.store.splits import patient_column

Floats = NDArray[np.float64]
NEIGHBOURS = 20


def metrics_of(config: Config, run: RunFolder, stage: str, probe: str, resamples: int) -> dict[str, Any]:
    """Measure a run's stage as it is now.

    Args:
        config: of the run.
        run: its folder.
        stage: `pretrain` or `finetune`; begun, over or not.
        probe: `logistic` or `knn`, for `pretrain`.
        resamples: of the bootstrap.

    Returns:
        {metric: {"value", "low", "high"}} on validation cases, the metrics of the target's kind.

    Raises:
        InputError: the training split has one class, and no probe can be fitted.
    """
    folder = run.path / "probe"
    over = run.stage_done(stage)
    model = run.model_file(stage) if over else _model_now(config, run, stage, folder / "model.safetensors")
    out = folder / "embeddings.parquet"
    parts = ["train", "val"] if stage == "pretrain" else ["val"]
    pipeline.embed(config, run.place_of(model), run.place_of(out), parts)
    run.pull()
    table = pq.read_table(out)
    found = _probed(table, probe) if stage == "pretrain" else _predicted(table, model, config)
    with whole_file(folder / "predictions.parquet") as aside:
        columns = {name: found.predictions[:, number] for number, name in enumerate(found.columns)}
        pq.write_table(pa.table({"case_id": found.ids, **found.said, **columns}), aside)
    run.push()
    patients = patient_column(pa.array(found.ids, pa.string()), open_store(config).cases).to_pylist()
    intervals = intervals_of(found.truth, patients, found.predictions, resamples, config.seed)
    return {name: {key: intervals[name][key] for key in ("value", "low", "high")} for name in METRICS[found.truth.kind]}


@dataclass(frozen=True, eq=False)
class _Found:
    """What was predicted of N validation cases.

    Attributes:
        ids: N case ids.
        truth: what is true of them.
        said: the same as columns of a table.
        columns: P names.
        predictions: (N, P).
    """

    ids: list[str]
    truth: Truth
    said: dict[str, Any]
    columns: list[str]
    predictions: Floats


def probed(table: pa.Table, probe: str) -> tuple[list[str], list[str], Floats, list[str]]:
    """Fit a probe on the training cases of an embedding and ask it about the validation cases.

    Args:
        table: case_id, part, label, cls_pat.
        probe: `logistic` or `knn`.

    Returns:
        Validation cases, their labels, probabilities (N, C), and the C classes.

    Raises:
        InputError: there is one class to fit on.
    """
    part_of, labels = (np.array(table[name].to_pylist()) for name in ("part", "label"))
    vectors_ND = np.array(table["cls_pat"].to_pylist(), np.float64)
    train, val = part_of == "train", part_of == "val"
    if len(set(labels[train])) < 2:
        raise InputError(
            "a probe cannot be fitted to one class",
            expected="training cases of at least two classes",
            found=", ".join(sorted(set(labels[train]))) or "no cases",
            fix="choose another split",
        )
    model = _probe(probe, int(train.sum())).fit(vectors_ND[train], labels[train])
    classes = sorted(set(labels))
    # a class of validation that training lacks is never predicted
    probabilities_NC = np.zeros((int(val.sum()), len(classes)))
    probabilities_NC[:, [classes.index(name) for name in model.classes_]] = model.predict_proba(vectors_ND[val])
    ids = np.array(table["case_id"].to_pylist())[val].tolist()
    return ids, labels[val].tolist(), probabilities_NC, [str(name) for name in classes]


def _probe(kind: str, cases: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "knn":
        return KNeighborsClassifier(min(NEIGHBOURS, cases), weights="distance", metric="cosine")
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


def _probed(table: pa.Table, probe: str) -> _Found:
    ids, labels, probabilities_NC, classes = probed(table, probe)
    truth = Truth("class", tuple(classes), {"label": encode_labels(labels, classes)})
    return _Found(ids, truth, {"label": labels}, [f"prob_{name}" for name in classes], probabilities_NC)


def _predicted(table: pa.Table, model: Path, config: Config) -> _Found:
    """The fine-tuned model's own predictions, of whatever kind its target is."""
    target = saved_target(read_card(model), open_store(config))
    cases = cases_of(table, target)
    said = {name: cases.columns[name] for name in cases.columns.column_names}
    return _Found(cases.ids, cases.truth, said, list(target.columns), cases.predictions)


def _model_now(config: Config, run: RunFolder, stage: str, file: Path) -> Path:
    """A model file, card beside it, of a stage that is not over."""
    run.pull_models()
    run.pull_stage(stage)
    found = latest_checkpoint(run.checkpoints(stage))
    if found is None:
        raise GimpError(
            f"stage '{stage}' has no checkpoint to measure",
            file=run.place_of(run.checkpoints(stage)),
            fix="give the same command again",
        )
    path, state = found
    without_cache = config.model_copy(update={"feed": config.feed.model_copy(update={"cache": "none"})})
    task = pipeline.make_stage(stage, without_cache, run.place)
    model = task.build(torch.device("cpu"))
    best = state["best_epoch"]
    if best is None:
        weights = part(load_weights(path / "state.safetensors", state["tensors_sha256"]), "model")
    else:
        weights = load_weights(run.stage(stage) / f"best-epoch-{best:04d}.safetensors", state["best_sha256"])
    model.load_state_dict(weights)
    tensors, card = task.export(model)
    save_model(file, tensors, card | {"stage": stage, "epochs": state["epoch"], "best_epoch": best})
    run.push()
    return file
