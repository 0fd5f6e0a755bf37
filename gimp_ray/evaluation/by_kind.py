"""One way to the figures of every kind of target: truth and predictions in, figures with patient-level intervals out.

Which figures a kind has: a class, accuracy, balanced accuracy, macro F1, AUROC and recalls; labels, AUROC and average
precision, their means and by label; survival, Harrell's C. Left out: reading tables. Shapes: N cases, P predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimp_ray.evaluation.intervals import METRICS as CLASS_METRICS
from gimp_ray.evaluation.intervals import bootstrap_intervals, paired_difference
from gimp_ray.evaluation.label_intervals import LABEL_METRICS, label_difference, label_intervals
from gimp_ray.evaluation.survival_intervals import survival_difference, survival_intervals

METRICS = {
    "class": CLASS_METRICS,
    "labels": tuple(LABEL_METRICS),
    "survival": ("c_index",),
}


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of N cases.

    Attributes:
        kind: `class`, `labels` or `survival`.
        names: the classes, or the labels.
        values: class: `label` (N,) int64; labels: `truth` and `known` (N, P) bool; survival: `time` (N,) float64 and
            `event` (N,) bool.
    """

    kind: str
    names: tuple[str, ...]
    values: dict[str, NDArray[Any]]

    def of(self, rows: Sequence[int] | NDArray[np.int64]) -> Truth:
        """The truth of some of the cases."""
        chosen = np.asarray(rows, np.int64)
        return Truth(self.kind, self.names, {name: value[chosen] for name, value in self.values.items()})


def intervals_of(
    truth: Truth, patients: Sequence[str], predictions: NDArray[np.float64], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Every figure of the kind with its 95 % interval over patients.

    Args:
        truth: of N cases.
        patients: N patients.
        predictions: (N, P): a probability a class or label, or the risk in the first column.
        resamples: bootstrap resamples.
        seed: of the draw.

    Raises:
        InputError: shapes do not fit, or a prediction is not finite.
    """
    values = truth.values
    if truth.kind == "class":
        return bootstrap_intervals(patients, values["label"], predictions, truth.names, resamples, seed)
    if truth.kind == "labels":
        return label_intervals(patients, values["truth"], values["known"], predictions, truth.names, resamples, seed)
    return survival_intervals(patients, values["time"], values["event"], predictions[:, 0], resamples, seed)


def difference_of(
    truth: Truth,
    patients: Sequence[str],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`first` minus `second` on the same patients, figure by figure, as `intervals_of`."""
    values = truth.values
    if truth.kind == "class":
        return paired_difference(patients, values["label"], first, second, truth.names, resamples, seed)
    if truth.kind == "labels":
        return label_difference(patients, values["truth"], values["known"], first, second, truth.names, resamples, seed)
    return survival_difference(patients, values["time"], values["event"], first[:, 0], second[:, 0], resamples, seed)
