"""Metrics of a classifier on one set of cases, by scikit-learn.

What a class that no case has means for them is said once, here: it has no recall, averages over classes leave it out,
and AUROC is not defined (None, with the reason). Shapes: N cases, C classes. Left out: intervals (`intervals.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score, roc_auc_score

from gimp_ray.errors import InputError


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of predicted probabilities; the prediction is the most probable class.

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
    predicted_N = p_NC.argmax(axis=1)
    present = np.unique(labels_N).tolist()
    recall = recall_score(labels_N, predicted_N, labels=present, average=None)
    support = np.bincount(labels_N, minlength=len(classes))
    reason = absent_reason(support, classes)
    return {
        "n_cases": len(labels_N),
        "accuracy": float(accuracy_score(labels_N, predicted_N)),
        "balanced_accuracy": float(np.mean(recall)) if len(present) == 1 else _balanced(labels_N, predicted_N),
        "macro_f1": float(f1_score(labels_N, predicted_N, labels=present, average="macro", zero_division=0)),
        "auroc": _auroc(labels_N, p_NC) if reason is None else None,
        "auroc_reason": reason,
        "recall": dict.fromkeys(classes) | dict(zip([classes[i] for i in present], recall.tolist(), strict=True)),
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
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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


def _balanced(labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64]) -> float:
    import warnings

    with warnings.catch_warnings():
        # scikit-learn warns of predictions of an absent class; its average leaves the class out, as ours do
        warnings.simplefilter("ignore", UserWarning)
        return float(balanced_accuracy_score(labels_N, predicted_N))


def _auroc(labels_N: NDArray[np.int64], p_NC: NDArray[np.float64]) -> float:
    if p_NC.shape[1] == 2:
        return float(roc_auc_score(labels_N, p_NC[:, 1]))
    one_vs_rest = [roc_auc_score(labels_N == index, p_NC[:, index]) for index in range(p_NC.shape[1])]
    return float(np.mean(one_vs_rest))
