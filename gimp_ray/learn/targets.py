"""What is predicted of a case: a class, several labels, or survival. One seam for losses, validation and tables.

A target knows the truth of the store's cases, and turns a network's O numbers a case into a loss and into the P
predictions that tables hold. Each kind is one small file: `class_target`, `label_target`, `survival_target`. Cases
whose truth is not known are left out of the labelled stage, and counted. Left out: networks, and reported figures with
their intervals (`gimp_ray.evaluation`).

Shape suffixes: B batch, O outputs of a network, P predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from gimp_ray.config import Config
from gimp_ray.engine.protocol import Record, Tensors
from gimp_ray.errors import InputError
from gimp_ray.feed.windows import Arrays
from gimp_ray.learn.class_target import class_target, saved_class_target
from gimp_ray.learn.label_target import label_target, saved_label_target
from gimp_ray.learn.survival_target import saved_survival_target, survival_target
from gimp_ray.store import CohortStore

Parts = Mapping[str, Sequence[str]]


class Target(Protocol):
    """What fine-tuning, and every compared method, predicts of a case."""

    @property
    def kind(self) -> str:
        """`class`, `labels` or `survival`."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the O numbers a network gives a case: classes; labels; bin_1 .. bin_K, or risk for Cox."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the P predictions in tables: prob_<class>; prob_<label>; risk, then what else the kind knows."""

    def known(self, case_ids: Sequence[str]) -> list[str]:
        """Those of the cases whose truth is known, in order."""

    def arrays(self, case_ids: Sequence[str]) -> Arrays:
        """The truth of some cases as numpy arrays, rows as `case_ids`: `target`, and where the kind needs them
        `target_known`, `target_time`, `target_event`.
        """

    def classes_of(self, case_ids: Sequence[str]) -> NDArray[np.int64] | None:
        """(n,) numbers of classes by which genes can be scored, of cases whose truth is known; None where there are
        none, or too many for so few cases.
        """

    def truths(self, case_ids: Sequence[str]) -> dict[str, pa.Array]:
        """The truth of some cases as columns of a table, null where it is not known: label; true_<label>; time and
        event.
        """

    def loss(self, logits_BO: Tensor, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a mini-batch, which holds what `arrays` gives as tensors; and its parts for the log."""

    def predict(self, logits_BO: Tensor) -> Tensor:
        """(B, P) float64."""

    def record(self, case_id: str, predictions_P: Tensor) -> Record:
        """A validation record: case_id, predictions, and the truth."""

    def figures(self, records: list[Record]) -> dict[str, float]:
        """Validation figures: `loss`, and accuracy and auroc; auroc; or cindex, as far as the cases define them."""

    def selected(self, case_ids: Sequence[str], select: str) -> tuple[str, str | None]:
        """The figure that picks the epoch in a run with these validation cases, from their truth alone; and a note
        where it is not the one that was asked for.

        Raises:
            ConfigError: the kind has no such figure.
        """

    def score(self, figures: dict[str, float], select: str) -> list[float]:
        """What picks the epoch, compared in order; larger is better. Ties by the loss."""

    def check(self, training_cases: Sequence[str], cases_per_step: int) -> list[str]:
        """Notes on a training part that makes little sense for this target.

        Args:
            training_cases: those with a known truth.
            cases_per_step: cases in a mini-batch of all workers.

        Raises:
            InputError, ConfigError: it makes none.
        """

    def card(self) -> dict[str, Any]:
        """What rebuilds the target, for the model's card."""


def make_target(config: Config, store: CohortStore, training_cases: Sequence[str]) -> Target:
    """The target of a config on a store; what is fitted is fitted on the training cases alone.

    Raises:
        InputError: a column is absent or of the wrong type, or the training cases do not allow what is fitted.
    """
    target = config.target
    if target.kind == "labels":
        return label_target(store, target.columns)
    if target.kind == "survival":
        return survival_target(store, target.time, target.event, target.loss, target.bins, training_cases)
    return class_target(store, target.columns[0] if target.columns else "label")


def saved_target(card: dict[str, Any], store: CohortStore) -> Target:
    """The target a model was trained for, from the model's card, with the truth of a store as far as it has the
    columns. A card that says nothing of a target is of a classifier of the stored label.
    """
    said = card.get("target")
    if said is None:
        said = {"kind": "class", "column": "label", "outputs": list(card["classes"])}
    if said["kind"] == "labels":
        return saved_label_target(said, store)
    return saved_survival_target(said, store) if said["kind"] == "survival" else saved_class_target(said, store)


def known_parts(target: Target, parts: Parts) -> dict[str, tuple[str, ...]]:
    """The parts of a split without the cases whose truth is not known."""
    return {name: tuple(target.known(cases)) for name, cases in parts.items()}


def left_out(target: Target, parts: Parts) -> dict[str, int]:
    """How many cases of each part have no known truth."""
    return {name: len(cases) - len(target.known(cases)) for name, cases in parts.items()}


def check_target(target: Target, parts: Parts, select: str, cases_per_step: int) -> list[str]:
    """What is to be said of a target on a split before anything is started; for a task's `preflight` to print.

    Args:
        target: the target.
        parts: case ids of train, val and test.
        select: `finetune.select`.
        cases_per_step: cases in a mini-batch of all workers.

    Raises:
        InputError, ConfigError: the target cannot be trained on this split.
    """
    known, without = known_parts(target, parts), left_out(target, parts)
    if not known["train"]:
        raise InputError(
            "no training case has a known target",
            found=f"{len(parts['train'])} training cases, all without {_what(target)}",
            fix="choose another target or split, or correct the case table and ingest again",
        )
    notes = []
    if any(without.values()):
        counted = ", ".join(f"{count} of {len(parts[name])} {name}" for name, count in without.items() if count)
        notes.append(f"cases without {_what(target)} are left out: {counted}")
    empty = [name for name in ("val", "test") if parts[name] and not known[name]]
    notes += [f"no {name} case has {_what(target)}, so there is nothing to compare with" for name in empty]
    notes += target.check(known["train"], cases_per_step)
    if known["val"]:
        note = target.selected(known["val"], select)[1]
        notes += [] if note is None else [note]
    return notes


def batch_arrays(target: Target, case_ids: Sequence[str], share: float) -> Arrays:
    """The target's arrays of a mini-batch; `share` is its row's. A rank that has nothing left repeats a case, which
    must not count in a loss over the cases of all ranks.
    """
    arrays = target.arrays(case_ids)
    if not share and "target_known" in arrays:
        arrays["target_known"] = np.zeros_like(arrays["target_known"])
    return arrays


def _what(target: Target) -> str:
    return {"class": "a known class", "labels": "a known label", "survival": "a known follow-up"}[target.kind]
