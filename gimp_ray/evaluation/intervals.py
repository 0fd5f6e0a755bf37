"""Patient-level bootstrap intervals of a classifier: how far a metric would move with other patients.

All metrics of all resamples are a few matrix products (1,000 resamples of 200 cases: hundredths of a second). A
resample without a class does not count for a metric that needs the class. The interval covers the choice of patients
only: not the seed, not the split. Shapes: R resamples, N rows, C classes. Left out: how patients are drawn
(`resampling.py`), bias-corrected (BCa) intervals, tests of significance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimp_ray.evaluation.metrics import absent_reason, check_predictions
from gimp_ray.evaluation.resampling import Floats, Interval, binary_auroc, draw_patients, interval, once

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")


def bootstrap_intervals(
    case_ids: Sequence[str],
    labels: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric with its 95 % interval over patients.

    Args:
        case_ids: N patients; a patient may have several rows.
        labels: (N,) class index.
        probabilities: (N, C).
        classes: C names.
        resamples: bootstrap resamples.
        seed: of the draw.

    Returns:
        {metric: {"value", "low", "high"}} for accuracy, balanced_accuracy, macro_f1 and auroc, and
        {"recall": {class: the same}}. All three are None where a metric is not defined; `auroc` then has a "reason".

    Raises:
        InputError: shapes do not fit, or a value is not usable.
    """
    labels_N, p_NC = check_predictions(labels, probabilities, classes)
    weights_RN = draw_patients(case_ids, len(labels_N), resamples, seed)
    value = weighted_metrics(once(len(labels_N)), labels_N, p_NC, classes)
    drawn = weighted_metrics(weights_RN, labels_N, p_NC, classes)
    intervals = {name: interval(value[name][0], drawn[name]) for name in value}
    reason = absent_reason(np.bincount(labels_N, minlength=len(classes)), classes)
    if reason is not None:
        intervals["auroc"]["reason"] = reason
    return _nested(intervals, classes)


def paired_difference(
    case_ids: Sequence[str],
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    classes: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`first` minus `second` on the same patients, with its 95 % interval; both see the same resamples.

    Args:
        case_ids: N patients.
        labels: (N,) class index.
        first: (N, C) probabilities of one method.
        second: (N, C) probabilities of the other, in the same order.
        classes: C names.
        resamples: bootstrap resamples.
        seed: of the draw.

    Returns:
        As `bootstrap_intervals`, for differences. An interval without zero: other patients would show a difference too.
    """
    labels_N, first_NC = check_predictions(labels, first, classes)
    _, second_NC = check_predictions(labels, second, classes)
    weights_RN = draw_patients(case_ids, len(labels_N), resamples, seed)
    once_1N = once(len(labels_N))
    value_a, value_b = (weighted_metrics(once_1N, labels_N, p, classes) for p in (first_NC, second_NC))
    drawn_a, drawn_b = (weighted_metrics(weights_RN, labels_N, p, classes) for p in (first_NC, second_NC))
    intervals = {name: interval(value_a[name][0] - value_b[name][0], drawn_a[name] - drawn_b[name]) for name in value_a}
    return _nested(intervals, classes)


def weighted_metrics(
    weights_RN: Floats, labels_N: NDArray[np.int64], p_NC: Floats, classes: Sequence[str]
) -> dict[str, Floats]:
    """Every metric of every weighting, (R,) each, NaN where not defined; recalls under `recall/<class>`."""
    C = len(classes)
    cell_NK = np.eye(C * C)[labels_N * C + p_NC.argmax(axis=1)]
    confusion_RCC = (weights_RN @ cell_NK).reshape(-1, C, C)  # true class, predicted class
    true_RC, predicted_RC = confusion_RCC.sum(axis=2), confusion_RCC.sum(axis=1)
    hit_RC = np.diagonal(confusion_RCC, axis1=1, axis2=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall_RC = hit_RC / true_RC
        # the denominator of an absent class may be positive; averages leave it out all the same
        f1_RC = np.where(true_RC > 0, 2 * hit_RC / (true_RC + predicted_RC), np.nan)
        metrics = {
            "accuracy": hit_RC.sum(axis=1) / true_RC.sum(axis=1),
            "balanced_accuracy": np.nanmean(recall_RC, axis=1),
            "macro_f1": np.nanmean(f1_RC, axis=1),
            "auroc": _auroc(weights_RN, labels_N, p_NC),
        }
    return metrics | {f"recall/{name}": recall_RC[:, index] for index, name in enumerate(classes)}


def _auroc(weights_RN: Floats, labels_N: NDArray[np.int64], p_NC: Floats) -> Floats:
    if p_NC.shape[1] == 2:
        return binary_auroc(weights_RN, labels_N == 1, p_NC[:, 1])
    # NaN of one class makes the mean NaN: with a class absent, the average would not be the same quantity
    return np.mean([binary_auroc(weights_RN, labels_N == c, p_NC[:, c]) for c in range(p_NC.shape[1])], axis=0)


def _nested(intervals: dict[str, Interval], classes: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {name: intervals[name] for name in METRICS}
    return row | {"recall": {name: intervals[f"recall/{name}"] for name in classes}}
