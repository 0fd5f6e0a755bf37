"""Validation records and figures, shared by the supervised stages, and which figure picks the epoch.

A record is one case: its id, its truth, its predictions. The figure that picks the epoch is decided once a run, by the
truth of the validation cases, so epochs are never compared by figures of different kinds. Left out: the reported
metrics and their intervals (`gimp_ray.evaluation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimp_ray.errors import ConfigError
from gimp_ray.evaluation import classification_metrics

Record = dict[str, Any]

# the figures of each kind of target that can pick an epoch; the first does unless the config says otherwise
PICKING = {"class": ("accuracy", "auroc", "loss"), "labels": ("auroc", "loss"), "survival": ("cindex", "loss")}


def by_case(records: list[Record]) -> list[Record]:
    """Records sorted by case id, one a case."""
    return [record for _, record in sorted({record["case_id"]: record for record in records}.items())]


def class_figures(labels_N: NDArray[np.int64], p_NC: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy, cross-entropy in nats, and AUROC (one against the rest, macro) where every class is present."""
    picked_N = p_NC[np.arange(len(labels_N)), labels_N]
    metrics = classification_metrics(labels_N, p_NC, [str(number) for number in range(p_NC.shape[1])])
    figures = {"accuracy": metrics["accuracy"], "loss": float(-np.log(np.maximum(picked_N, 1e-12)).mean())}
    return figures if metrics["auroc"] is None else figures | {"auroc": metrics["auroc"]}


def picking_figure(kind: str, select: str, undefined: Mapping[str, str]) -> tuple[str, str | None]:
    """The figure that picks the epoch, and a note where it is not the one asked for.

    Args:
        kind: of the target.
        select: `finetune.select`.
        undefined: figures that the validation cases do not define, with the reason.

    Raises:
        ConfigError: the kind has no such figure.
    """
    asked = PICKING[kind][0] if select == "auto" else select
    if asked not in PICKING[kind]:
        raise ConfigError(
            f"finetune.select: {select} is no figure of target.kind: {kind}",
            expected=f"one of auto, {', '.join(PICKING[kind])}",
            found=select,
            fix="change finetune.select, or leave it at auto",
        )
    if asked not in undefined:
        return asked, None
    instead = _instead(kind)
    return instead, f"{asked} cannot pick the epoch, since {undefined[asked]}; in this run {instead} does"


def selection_score(figures: Mapping[str, float], select: str, kind: str = "class") -> list[float]:
    """What picks the best epoch: the chosen figure, ties by the loss. Larger is better.

    A figure that is asked for and absent is one that the validation cases do not define; what stands in for it is then
    the same in every epoch of a run.
    """
    asked = PICKING[kind][0] if select == "auto" else select
    chosen = asked if asked in figures else _instead(kind)
    return [-figures["loss"]] if chosen == "loss" else [figures[chosen], -figures["loss"]]


def _instead(kind: str) -> str:
    return "accuracy" if kind == "class" else "loss"
