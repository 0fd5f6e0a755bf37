"""What the engine asks of what it trains: a task, its training settings, and work done once over a cohort.

The engine knows no model, objective or config by name; whatever satisfies these protocols can be trained on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gimp_ray.feed.plan import Plan, Row
from gimp_ray.feed.windows import Arrays

Tensors = dict[str, Tensor]
Record = dict[str, Any]
# how a task is optimised: an object with the fields of `gimp_ray.config_training.TrainConfig`
Settings = Any


@dataclass(frozen=True)
class World:
    """Where a worker stands: its rank, the number of ranks, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class TrainTask(Protocol):
    """What is trained: a plan and its reads (`gimp_ray.feed.batches.Source`), a model, an objective, an evaluation."""

    @property
    def name(self) -> str:
        """Name of the stage, and of its folder in the run folder."""

    @property
    def inputs(self) -> dict[str, Any]:
        """All that its result depends on, as plain data; what a checkpoint must have been made from to go on."""

    @property
    def seed(self) -> int: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def plan(self) -> Plan: ...

    @property
    def in_turn(self) -> bool:
        """Whether a step may leave parameters without a gradient, which costs ranks a look at the graph each step."""

    def read(self, row: Row) -> Arrays: ...

    def build(self, device: torch.device) -> nn.Module:
        """The model with its starting weights, on the device; whatever else a worker needs is made ready too."""

    def loss(self, model: nn.Module, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a mini-batch, and its parts for the log; `model` may be wrapped for distribution."""

    def validate(self, model: nn.Module, world: World) -> list[Record] | None:
        """This rank's share of the validation records, or None where the task has no validation."""

    def score(self, records: list[Record]) -> tuple[dict[str, float], list[float]]:
        """Validation figures of all ranks' records, and the score (larger is better, compared in order) that picks
        the epoch.
        """

    def export(self, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
        """Weights of the final model, and the card that makes them usable."""


class CohortWork(Protocol):
    """Work done once over a cohort, shared among the ranks, such as embedding every case."""

    @property
    def name(self) -> str: ...

    def run(self, world: World) -> list[Record]:
        """This rank's records."""

    def write(self, records: list[Record]) -> None:
        """Write all ranks' records; called on rank 0."""
