"""The base class of config sections, the keys of `train`, and the keys that a stage may override."""

from __future__ import annotations

from functools import reduce
from typing import Annotated, Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

Precision = Literal["fp32", "bf16"]
Optimizer = Literal["adamw", "adam", "radam"]
Schedule = Literal["cosine", "constant", "linear"]
Beta = Annotated[float, Field(ge=0, lt=1)]


# marks of a key: it does not change what is computed, so a run may go on with another value; it holds for every stage
FREE: dict[str, Any] = {"free": True}
WHOLE_RUN: dict[str, Any] = {"free": True, "whole_run": True}
# a file, whose content counts and whose path does not; relative to the working folder where it is given
PATH: dict[str, Any] = {"free": True, "path": True}


class Section(BaseModel):
    """A group of keys: unknown keys are errors, values do not change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _laid_over_defaults(cls, given: Any) -> Any:
        """What is given of a section changes its default here, which may say more than the section's own defaults."""
        if not isinstance(given, dict):
            return given
        tree = dict(given)
        for name, value in given.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(value, dict) and isinstance(default, Section):
                tree[name] = default.model_dump(exclude_unset=True) | value
        return tree


class TrainConfig(Section):
    """How a stage is trained. A stage may override every key but those of the whole run."""

    epochs: int = Field(100, ge=1, description="passes over the training split (paper: 100 for pre-training)")
    lr: float = Field(1e-4, gt=0, description="peak learning rate (paper: 1e-4)")
    weight_decay: float = Field(
        1e-2, ge=0, description="adamw: decoupled, on matrices alone; adam and radam: L2, on every weight"
    )
    optimizer: Optimizer = Field("adamw", description="adamw, adam or radam")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="decay of the optimiser's two running means")
    lookahead: int = Field(
        0, ge=0, description="optimiser steps after which the weights go back half the way to slow ones; 0: never"
    )
    schedule: Schedule = Field("cosine", description="after the warm-up: cosine or linear to zero, or constant")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with a linear warm-up")
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0 for no clipping")
    accumulate: int = Field(1, ge=1, description="mini-batches of a worker per optimiser step")
    precision: Precision = Field("fp32", description="bf16: autocast; weights and optimiser stay in fp32")
    compile: bool = Field(
        False, json_schema_extra=FREE, description="torch.compile the model: slow first steps, then faster ones"
    )
    workers: Annotated[int, Field(ge=0)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2)] = Field(
        1,
        json_schema_extra=WHOLE_RUN,
        description="Ray Train workers; 0 trains in this process without Ray; [1, 4]: as many as there is room for, "
        "from 1 to 4, and a run goes on with fewer when a node is lost, with more when one comes",
    )
    use_gpu: bool | None = Field(
        None, json_schema_extra=WHOLE_RUN, description="one GPU a worker; unset: where the cluster has one"
    )
    cpus_per_worker: float = Field(
        1, gt=0, json_schema_extra=WHOLE_RUN, description="logical CPUs Ray reserves for each worker"
    )
    threads: int = Field(
        0,
        ge=0,
        json_schema_extra=WHOLE_RUN,
        description="torch threads of a worker; 0: the host's cores shared among its workers",
    )
    max_failures: int = Field(
        3, ge=-1, json_schema_extra=WHOLE_RUN, description="automatic restarts from the last checkpoint after a failure"
    )
    patience: int = Field(
        0,
        ge=0,
        description="end a stage after this many epochs of which none was better on validation; 0: all epochs. The "
        "best epoch is kept either way",
    )
    min_epochs: int = Field(0, ge=0, description="epochs that patience lets pass before it ends a stage")
    log_every: int = Field(
        10, ge=1, json_schema_extra=FREE, description="optimiser steps between two lines of the metrics log"
    )
    skip_bad_batches: int = Field(
        0,
        ge=0,
        json_schema_extra=WHOLE_RUN,
        description="optimiser steps a stage may skip because a loss or gradient is not finite; 0: it stops",
    )
    stop_after: int | None = Field(
        None,
        ge=1,
        json_schema_extra=FREE,
        description="stop this stage cleanly after this epoch; the same command without it continues",
    )

    @model_validator(mode="after")
    def _range_of_workers(self) -> TrainConfig:
        if isinstance(self.workers, list) and (len(self.workers) != 2 or self.workers[0] > self.workers[1]):
            raise ValueError("train.workers must be a number, or a range such as [1, 4]")
        return self

    @property
    def most_workers(self) -> int:
        """The number of workers, or the most of a range."""
        return self.workers[-1] if isinstance(self.workers, list) else self.workers

    @property
    def fewest_workers(self) -> int | None:
        """The fewest of a range; None where the number is fixed."""
        return self.workers[0] if isinstance(self.workers, list) else None


def _annotated(kind: Any, rule: Any) -> Any:
    return Annotated[kind, rule]


def _overridable() -> dict[str, Any]:
    """The keys of `train` that a stage may override, None by default, under the same constraints."""
    kept = {key: field for key, field in TrainConfig.model_fields.items() if field.json_schema_extra != WHOLE_RUN}
    return {
        # a union written with | cannot hold a type made at run time
        key: (
            Optional[reduce(_annotated, field.metadata, field.annotation)],  # noqa: UP045
            Field(None, json_schema_extra=field.json_schema_extra, description=f"as train.{key}"),
        )
        for key, field in kept.items()
    }


class StageTrainConfig(create_model("StageTrainKeys", __base__=Section, **_overridable())):  # type: ignore[misc]
    """What a stage overrides of `train`; an unset key is inherited."""
