"""The metrics of every kind of target, under any weights of the cases.

A class: accuracy, balanced accuracy, macro F1, AUROC and recalls. A class without cases has no recall, averages over
classes leave it out, and AUROC is not defined. Labels: AUROC and average precision of each label over the cases in
which it is known, and their means over the labels that have cases of both kinds. Survival: Harrell's C.

Weights make the metrics of all bootstrap resamples a few matrix products. Shapes: R weightings, N cases, C classes,
P labels, or predictions of any kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimp_ray.errors import InputError
from gimp_ray.evaluation.survival import checked_follow_up, weighted_c_index

METRICS = {
    "class": ("accuracy", "balanced_accuracy", "macro_f1", "auroc"),
    "labels": ("auroc", "average_precision"),
    "survival": ("c_index",),
}
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of N cases.

    Attributes:
        kind: `class`, `labels` or `survival`.
        names: the classes, or the labels.
        values: class: `label` (N,) int64; labels: `truth` and `known` (N, P) bool (where `known` is False, truth and
            prediction may be anything); survival: `time` (N,) float64 and `event` (N,) bool.
    """

    kind: str
    names: Sequence[str]
    values: dict[str, NDArray[Any]]

    def of(self, rows: Sequence[int] | NDArray[np.int64]) -> Truth:
        """The truth of some of the cases."""
        chosen = np.asarray(rows, np.int64)
        return Truth(self.kind, self.names, {name: np.asarray(value)[chosen] for name, value in self.values.items()})

    def checked(self, predictions: ArrayLike) -> Floats:
        """Predictions (N, P) of these cases as an array: a probability a class or label, or the risk in column 0.

        A label whose probabilities are all NaN was not predicted, and has no metric.

        Raises:
            InputError: shapes do not fit, or a prediction is not finite.
        """
        p_NP = np.asarray(predictions, np.float64)
        if self.kind == "class":
            return check_predictions(self.values["label"], p_NP, self.names)[1]
        if self.kind == "survival":
            checked_follow_up(self.values["time"], self.values["event"], p_NP[:, 0])
            return p_NP
        truth_NP, known_NP = np.asarray(self.values["truth"]), np.asarray(self.values["known"])
        shapes = [x.shape for x in (truth_NP, known_NP, p_NP)]
        if set(shapes) != {(len(truth_NP), len(self.names))} or not len(truth_NP):
            raise InputError(
                "truth, known and probabilities do not fit together",
                expected=f"(N, {len(self.names)}) each, N > 0",
                found=", ".join(str(shape) for shape in shapes),
            )
        if truth_NP.dtype != np.bool_ or known_NP.dtype != np.bool_:
            raise InputError(
                "truth and known are to be bool", expected="bool", found=f"{truth_NP.dtype}, {known_NP.dtype}"
            )
        for p, name in enumerate(self.names):
            finite = np.isfinite(p_NP[known_NP[:, p], p])
            if finite.any() and not finite.all():
                raise InputError(f"a probability of '{name}' is not finite", found=f"{int((~finite).sum())} values")
        return p_NP

    def weighted(self, predictions: Floats, weights_RN: Floats) -> dict[str, Floats]:
        """Every metric of checked predictions under every weighting: (R,), NaN where it is not defined.

        Of a class also `recall` (R, C); of labels both metrics are those of each label, (R, P).
        """
        if self.kind == "class":
            return _weighted_class(weights_RN, np.asarray(self.values["label"], np.int64), predictions)
        if self.kind == "survival":
            time_N, event_N, risk_N, _ = checked_follow_up(self.values["time"], self.values["event"], predictions[:, 0])
            return {"c_index": weighted_c_index(weights_RN, time_N, event_N, risk_N)}
        truth_NP, known_NP = self.values["truth"], self.values["known"]
        found = {name: np.full((len(weights_RN), len(self.names)), np.nan) for name in METRICS["labels"]}
        for p in range(len(self.names)):
            rows = known_NP[:, p] & np.isfinite(predictions[:, p])
            for name, metric in (("auroc", binary_auroc), ("average_precision", binary_average_precision)):
                if rows.any():
                    found[name][:, p] = metric(weights_RN[:, rows], truth_NP[rows, p], predictions[rows, p])
        return found


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of predicted probabilities, without intervals; the prediction is the most probable class.

    Args:
        labels: (N,) class index of every case.
        probabilities: (N, C).
        classes: C names.

    Returns:
        `n_cases`, `accuracy`, `balanced_accuracy`, `macro_f1`, `auroc` (two classes: of the second; more: macro one
        against the rest; None where a class is absent), `auroc_reason` (None, or why), `recall` and `support` by class.

    Raises:
        InputError: shapes do not fit, a label is no class, a probability is not finite, or there is no case.
    """
    labels_N, p_NC = check_predictions(labels, probabilities, classes)
    found = _weighted_class(np.ones((1, len(labels_N))), labels_N, p_NC)
    support = np.bincount(labels_N, minlength=len(classes))
    recall = [float(value) if count else None for value, count in zip(found["recall"][0], support, strict=True)]
    reason = absent_reason(support, classes)
    return {
        "n_cases": len(labels_N),
        **{name: float(found[name][0]) for name in METRICS["class"]},
        **({} if reason is None else {"auroc": None}),
        "auroc_reason": reason,
        "recall": dict(zip(classes, recall, strict=True)),
        "support": dict(zip(classes, support.tolist(), strict=True)),
    }


def encode_labels(labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Class names as class indices.

    Raises:
        InputError: a name is no class.
    """
    number = {name: index for index, name in enumerate(classes)}
    unknown = sorted(set(labels) - set(number))
    if unknown:
        raise InputError("a label is not a class", expected=", ".join(classes), found=", ".join(unknown))
    return np.array([number[label] for label in labels], np.int64)


def check_predictions(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]
) -> tuple[NDArray[np.int64], Floats]:
    """Labels (N,) and probabilities (N, C) as arrays, or an InputError that says what does not fit."""
    labels_N, p_NC = np.asarray(labels), np.asarray(probabilities, np.float64)
    if labels_N.ndim != 1 or len(labels_N) == 0 or p_NC.shape != (len(labels_N), len(classes)):
        raise InputError(
            "labels and probabilities do not fit together",
            expected=f"(N,) with N > 0 and (N, {len(classes)})",
            found=f"{labels_N.shape} and {p_NC.shape}",
        )
    if not np.issubdtype(labels_N.dtype, np.integer) or labels_N.min() < 0 or labels_N.max() >= len(classes):
        raise InputError("a label is no class index", expected=f"0 to {len(classes) - 1}", found=str(labels_N.dtype))
    if not np.isfinite(p_NC).all():
        raise InputError("a predicted probability is not finite", found=f"{int((~np.isfinite(p_NC)).sum())} values")
    return labels_N.astype(np.int64), p_NC


def absent_reason(support: NDArray[np.int64], classes: Sequence[str]) -> str | None:
    """Why AUROC is not defined, or None."""
    absent = [name for name, count in zip(classes, support, strict=True) if count == 0]
    return f"no case of class {', '.join(absent)}" if absent else None


def one_sided(truth_NP: Bools, known_NP: Bools, labels: Sequence[str]) -> dict[str, str]:
    """Labels that have no case of both kinds, with the reason."""
    reasons = {}
    for p, name in enumerate(labels):
        values = truth_NP[known_NP[:, p], p]
        if not len(values):
            reasons[name] = "not known of any case"
        elif values.all() or not values.any():
            reasons[name] = "no case without it" if values.all() else "no case with it"
    return reasons


def label_reasons(truth: Truth, methods: Sequence[Floats]) -> dict[str, str]:
    """Labels without a metric, and why: cases of one kind alone, or not predicted by one of the methods."""
    known_NP = truth.values["known"]
    reasons = one_sided(truth.values["truth"], known_NP, truth.names)
    for p, name in enumerate(truth.names):
        if any(not np.isfinite(p_NP[known_NP[:, p], p]).any() for p_NP in methods):
            reasons.setdefault(name, "not predicted")
    return reasons


def label_metrics(truth: Truth, probabilities: ArrayLike) -> dict[str, float | None]:
    """Means over the labels, without intervals: `auroc` and `average_precision`, None where no label defines them."""
    p_NP = truth.checked(probabilities)
    reasons = label_reasons(truth, [p_NP])
    kept = [p for p, name in enumerate(truth.names) if name not in reasons]
    found = truth.weighted(p_NP, np.ones((1, len(p_NP))))
    return {name: float(value[0, kept].mean()) if kept else None for name, value in found.items()}


def _weighted_class(weights_RN: Floats, labels_N: NDArray[np.int64], p_NC: Floats) -> dict[str, Floats]:
    C = p_NC.shape[1]
    cell_NK = np.eye(C * C)[labels_N * C + p_NC.argmax(axis=1)]
    confusion_RCC = (weights_RN @ cell_NK).reshape(-1, C, C)  # true class, predicted class
    true_RC, predicted_RC = confusion_RCC.sum(axis=2), confusion_RCC.sum(axis=1)
    hit_RC = np.diagonal(confusion_RCC, axis1=1, axis2=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall_RC = hit_RC / true_RC
        # the denominator of an absent class may be positive; averages leave it out all the same
        f1_RC = np.where(true_RC > 0, 2 * hit_RC / (true_RC + predicted_RC), np.nan)
        # NaN of one class makes the mean NaN: with a class absent, the average would not be the same quantity
        scored = [1] if C == 2 else range(C)
        return {
            "accuracy": hit_RC.sum(axis=1) / true_RC.sum(axis=1),
            "balanced_accuracy": np.nanmean(recall_RC, axis=1),
            "macro_f1": np.nanmean(f1_RC, axis=1),
            "auroc": np.mean([binary_auroc(weights_RN, labels_N == c, p_NC[:, c]) for c in scored], axis=0),
            "recall": recall_RC,
        }


def binary_auroc(weights_RN: Floats, positive_N: Bools, score_N: Floats) -> Floats:
    """(R,) probability that a positive scores above a negative, ties a half; NaN without one of both."""
    positive_RU, negative_RU = _by_score(weights_RN, positive_N, score_N)
    below_RU = np.cumsum(negative_RU, axis=1) - negative_RU
    won_R = (positive_RU * (below_RU + 0.5 * negative_RU)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = won_R / (positive_RU.sum(axis=1) * negative_RU.sum(axis=1))
    return found


def binary_average_precision(weights_RN: Floats, positive_N: Bools, score_N: Floats) -> Floats:
    """(R,) sum over thresholds of (recall gained) x (precision), as scikit-learn has it; NaN without a positive."""
    positive_RU, negative_RU = (x[:, ::-1] for x in _by_score(weights_RN, positive_N, score_N))
    found_RU = np.cumsum(positive_RU, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # where nothing is drawn yet nothing is gained either
        precision_RU = np.nan_to_num(found_RU / (found_RU + np.cumsum(negative_RU, axis=1)))
        precision_R: Floats = (positive_RU * precision_RU).sum(axis=1) / found_RU[:, -1]
    return precision_R


def _by_score(weights_RN: Floats, positive_N: Bools, score_N: Floats) -> tuple[Floats, Floats]:
    """(R, U) weight of the positives and of the negatives at each of the U different scores, ascending."""
    order = np.argsort(score_N, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score_N[order]) > 0])  # runs of equal scores
    sorted_RN, positive_N = weights_RN[:, order], positive_N[order]
    positive_RU = np.add.reduceat(sorted_RN * positive_N, starts, axis=1)
    negative_RU = np.add.reduceat(sorted_RN * ~positive_N, starts, axis=1)
    return positive_RU, negative_RU
