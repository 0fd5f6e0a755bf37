"""The sections of the config that every method has; a method brings the others (`gimp_ray.methods`).

A config is plain data: read from YAML, changed by dotted overrides (`--train.lr 3e-4`), checked at construction,
saved in the run folder. Unknown keys and impossible values are refused with the key's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from gimp_ray.config_training import FREE, PATH, Section, StageTrainConfig, TrainConfig


class SplitConfig(Section):
    """Which stored split a run uses; every fitted thing sees its training part alone."""

    scheme: str = Field("kfold", description="name of a split scheme stored in the store")
    fold: int = Field(0, ge=0, description="fold of that scheme")
    transductive: bool = Field(
        False,
        description="pre-train on the cases of all parts (labels of the training part alone); every table then says so",
    )


class TargetConfig(Section):
    """What fine-tuning predicts of a case; truth is in the store's case table."""

    kind: Literal["class", "labels", "survival"] = Field(
        "class", description="one class a case; several labels, each yes or no; or the time to an event"
    )
    columns: list[str] = Field(
        [], description="class: one column of the case table in place of label; labels: the columns, each yes or no"
    )
    time: str = Field("survival_months", description="survival: column with the time to event or last follow-up")
    event: str = Field("event", description="survival: column that says whether the event was seen")
    loss: Literal["nll", "cox"] = Field(
        "nll", description="survival: likelihood of hazards in time bins, or Cox's over the mini-batches of all workers"
    )
    bins: int = Field(4, ge=2, description="survival with nll: time bins, with equal numbers of training events")

    @model_validator(mode="after")
    def _columns_of_the_kind(self) -> TargetConfig:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("target.columns has a column twice")
        if self.kind == "labels" and not self.columns:
            raise ValueError("target.columns must name the labels, such as [TP53, KRAS], with target.kind: labels")
        most = {"class": 1, "survival": 0}.get(self.kind, len(self.columns))
        if len(self.columns) > most:
            raise ValueError(f"target.columns takes at most {most} of them with target.kind: {self.kind}")
        return self


class EvaluateConfig(Section):
    """What is reported beside the model."""

    part: Literal["test", "val"] = Field("test", description="part of the split that is reported")
    resamples: int = Field(1000, ge=10, description="patient-level bootstrap resamples")
    reference_rows: bool = Field(True, description="genes alone, and mean-pooled patches, beside the model")
    missing: list[Literal["images", "genes"]] = Field(
        [],
        description="also report GiMP with this modality missing: its side is the mean of the training cases",
    )


class CheckpointConfig(Section):
    """When a run saves what it needs to continue."""

    every_steps: int | None = Field(None, ge=1, description="optimiser steps between checkpoints, besides one an epoch")
    every_epochs: int = Field(1, ge=1, description="epochs between checkpoints")
    every_minutes: float | None = Field(
        None, gt=0, description="minutes between checkpoints, besides those by steps and epochs"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept")


class LogConfig(Section):
    """Where the figures go besides the run's own log and TensorBoard."""

    mlflow: str | None = Field(None, description="MLflow tracking URI, such as http://HOST:5000 or file:///mlruns")
    wandb: str | None = Field(None, description="Weights & Biases project; offline unless WANDB_API_KEY is set")
    progress: bool = Field(True, description="a live progress line where stderr is a terminal")


class StageSettings(TrainConfig):
    """The training settings of one stage, and how it is logged."""

    log: LogConfig = LogConfig()


class FeedConfig(Section):
    """How batches reach a worker."""

    read_in: Literal["worker", "ray_data"] = Field(
        "worker",
        description="worker: Ray Data streams the plan, workers read the windows; ray_data: Ray Data carries them",
    )
    ahead: int = Field(2, ge=0, description="mini-batches read ahead of the step")
    threads: int = Field(2, ge=1, description="threads that read a mini-batch's windows")
    cache: Literal["none", "host", "device"] = Field(
        "none", description="keep bags from their first use on in each worker's memory, or on its GPU"
    )
    cache_gb: float | None = Field(
        None,
        gt=0,
        description="largest size of a worker's cache; unset: half of its share of the memory free at the start",
    )
    verify: bool = Field(False, description="compare every row group of patches with its checksum as it is read")

    @model_validator(mode="after")
    def _cached_where_read(self) -> FeedConfig:
        if self.cache != "none" and self.read_in == "ray_data":
            raise ValueError(
                "feed.cache needs feed.read_in: worker; with ray_data windows are read in Ray's tasks, not in workers"
            )
        return self


class ClusterConfig(Section):
    """Where Ray runs."""

    address: str | None = Field(None, description="address of a running cluster; unset: RAY_ADDRESS, else a local one")
    num_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a local cluster; unset: cores, and always enough for Ray Data"
    )
    resize_seconds: float = Field(
        60, gt=0, description="how often Ray looks for room for more workers, where train.workers is a range"
    )
    start_seconds: float | None = Field(
        None,
        gt=0,
        description="how long a start of the workers may take before it is tried anew, three times; unset: 30 where "
        "train.workers is a range, else RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, or 60",
    )


class MethodName(Section):
    """Which method is trained (docs/methods.md)."""

    name: str = Field("gimp", description="gimp, another of `gimp methods`, or your own module such as my_package.mine")


class Config(Section):
    """What every run has, whatever its method; a method's config is a subclass with its own sections."""

    # the section whose `train` changes the training of a stage, by the stage's name
    trained_by: ClassVar[Mapping[str, str]] = {}

    store: str | None = Field(None, description="the cohort store", json_schema_extra=PATH)
    run: str | None = Field(None, description="the run folder", json_schema_extra=PATH)
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, plans, masks, dropout and resampling")
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()
    method: MethodName = MethodName()
    target: TargetConfig = TargetConfig()
    evaluate: EvaluateConfig = Field(EvaluateConfig(), json_schema_extra=FREE)
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), json_schema_extra=FREE)
    log: LogConfig = Field(LogConfig(), json_schema_extra=FREE)
    feed: FeedConfig = Field(FeedConfig(), json_schema_extra=FREE)
    cluster: ClusterConfig = Field(ClusterConfig(), json_schema_extra=FREE)

    def stage_train(self, stage: str) -> StageSettings:
        """The training settings of a stage: `train`, with what its section says differently."""
        changed: dict[str, Any] = {}
        if stage in self.trained_by:
            # a stop holds for the stage that it was said of
            train: StageTrainConfig = getattr(self, self.trained_by[stage]).train
            changed = {"stop_after": None} | train.model_dump(exclude_none=True)
        return StageSettings(**(self.train.model_dump() | changed), log=self.log)
