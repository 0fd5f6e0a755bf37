"""Validation records and figures of a classifier, shared by the supervised stages.

A record is one case: its id, its label, its class probabilities. Left out: the reported metrics and their intervals
(`gimp_ray.evaluation`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gimp_ray.evaluation import classification_metrics

Record = dict[str, Any]


def case_record(case_id: str, label: int, logits_C: Tensor) -> Record:
    """A case's record; probabilities in float64."""
    return {
        "case_id": case_id,
        "label": int(label),
        "probabilities": torch.softmax(logits_C.double(), dim=-1).cpu().tolist(),
    }


def by_case(records: list[Record]) -> list[Record]:
    """Records sorted by case id, one a case."""
    return [record for _, record in sorted({record["case_id"]: record for record in records}.items())]


def validation_figures(records: list[Record]) -> dict[str, float]:
    """Accuracy, cross-entropy in nats, and AUROC (one against the rest, macro) where every class is present."""
    ordered = by_case(records)
    labels = np.array([record["label"] for record in ordered])
    probabilities = np.array([record["probabilities"] for record in ordered])
    picked = probabilities[np.arange(len(labels)), labels]
    metrics = classification_metrics(labels, probabilities, [str(number) for number in range(probabilities.shape[1])])
    figures = {"accuracy": metrics["accuracy"], "loss": float(-np.log(np.maximum(picked, 1e-12)).mean())}
    return figures if metrics["auroc"] is None else figures | {"auroc": metrics["auroc"]}


def selection_score(figures: dict[str, float], select: str) -> list[float]:
    """What picks the best epoch: the chosen figure, ties by the loss. Larger is better."""
    if select == "loss":
        return [-figures["loss"]]
    return [figures.get(select, figures["accuracy"]), -figures["loss"]]
