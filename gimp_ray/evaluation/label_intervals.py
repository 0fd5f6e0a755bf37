"""Several labels a case: AUROC and average precision of each, and their means, with patient-level intervals.

A label counts the cases in which it is known. A label with cases of one kind alone has no figure, and the means leave
it out; which labels the means hold is decided by the cases, so it is the same in every resample. A resample in which
one of them has cases of one kind does not count for a mean. Left out: figures that need a threshold. Shapes: R
resamples, N cases, P labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gimp_ray.errors import InputError
from gimp_ray.evaluation.resampling import (
    Bools,
    Floats,
    binary_auroc,
    binary_average_precision,
    draw_patients,
    interval,
    once,
)

LABEL_METRICS = {"auroc": binary_auroc, "average_precision": binary_average_precision}
Figures = dict[str, Floats]


def label_intervals(
    patients: Sequence[str],
    truth: ArrayLike,
    known: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC and average precision with their 95 % intervals over patients.

    Args:
        patients: N patients; a patient may have several rows.
        truth: (N, P) bool.
        known: (N, P) bool; where it is False, truth and probability may be anything.
        probabilities: (N, P). A label whose probabilities are all NaN was not predicted, and has no figure.
        labels: P names.
        resamples: bootstrap resamples.
        seed: of the draw.

    Returns:
        {"auroc", "average_precision": {"value", "low", "high"}}, means over the labels that have them, and
        {"labels": {label: the same two, "n_known", "n_positive"}}. All three are None, with a "reason", where a figure
        is not defined.

    Raises:
        InputError: shapes do not fit, or some probabilities of a label are not finite.
    """
    truth_NP, known_NP, p_NP = _checked(truth, known, probabilities, labels)
    weights_RN = draw_patients(patients, len(truth_NP), resamples, seed)
    value, drawn = (
        weighted_figures(weights, truth_NP, known_NP, p_NP) for weights in (once(len(truth_NP)), weights_RN)
    )
    return _nested(value, drawn, truth_NP, known_NP, _reasons(truth_NP, known_NP, [p_NP], labels), labels)


def label_difference(
    patients: Sequence[str],
    truth: ArrayLike,
    known: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    labels: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`first` minus `second` on the same patients, as `label_intervals`; both see the same resamples. Means are over
    the labels that both methods have.
    """
    truth_NP, known_NP, first_NP = _checked(truth, known, first, labels)
    _, _, second_NP = _checked(truth, known, second, labels)
    weights_RN = draw_patients(patients, len(truth_NP), resamples, seed)
    value, drawn = (
        _minus(
            weighted_figures(weights, truth_NP, known_NP, first_NP),
            weighted_figures(weights, truth_NP, known_NP, second_NP),
        )
        for weights in (once(len(truth_NP)), weights_RN)
    )
    reasons = _reasons(truth_NP, known_NP, [first_NP, second_NP], labels)
    return _nested(value, drawn, truth_NP, known_NP, reasons, labels)


def label_metrics(
    truth: ArrayLike, known: ArrayLike, probabilities: ArrayLike, labels: Sequence[str]
) -> dict[str, float | None]:
    """The means without intervals: `auroc` and `average_precision`, None where no label defines them."""
    truth_NP, known_NP, p_NP = _checked(truth, known, probabilities, labels)
    reasons = _reasons(truth_NP, known_NP, [p_NP], labels)
    value = weighted_figures(once(len(truth_NP)), truth_NP, known_NP, p_NP)
    nested = _nested(value, value, truth_NP, known_NP, reasons, labels)
    return {name: nested[name]["value"] for name in LABEL_METRICS}


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


def _checked(
    truth: ArrayLike, known: ArrayLike, probabilities: ArrayLike, labels: Sequence[str]
) -> tuple[Bools, Bools, Floats]:
    truth_NP, known_NP, p_NP = np.asarray(truth), np.asarray(known), np.asarray(probabilities, np.float64)
    shapes = [x.shape for x in (truth_NP, known_NP, p_NP)]
    if set(shapes) != {(len(truth_NP), len(labels))} or not len(truth_NP):
        raise InputError(
            "truth, known and probabilities do not fit together",
            expected=f"(N, {len(labels)}) each, with N > 0",
            found=str(shapes),
        )
    if truth_NP.dtype != np.bool_ or known_NP.dtype != np.bool_:
        raise InputError("truth and known are to be bool", expected="bool", found=f"{truth_NP.dtype}, {known_NP.dtype}")
    for p, name in enumerate(labels):
        finite = np.isfinite(p_NP[known_NP[:, p], p])
        if finite.any() and not finite.all():
            raise InputError(f"a probability of '{name}' is not finite", found=f"{int((~finite).sum())} values")
    return truth_NP, known_NP, p_NP


def _reasons(truth_NP: Bools, known_NP: Bools, methods: Sequence[Floats], labels: Sequence[str]) -> dict[str, str]:
    """Why labels have no figure."""
    reasons = one_sided(truth_NP, known_NP, labels)
    for p, name in enumerate(labels):
        if any(not np.isfinite(p_NP[known_NP[:, p], p]).any() for p_NP in methods):
            reasons.setdefault(name, "not predicted")
    return reasons


def weighted_figures(weights_RN: Floats, truth_NP: Bools, known_NP: Bools, p_NP: Floats) -> Figures:
    """Every figure of every label under every weighting, (R, P) each, NaN where it is not defined."""
    found = {name: np.full((len(weights_RN), truth_NP.shape[1]), np.nan) for name in LABEL_METRICS}
    for p in range(truth_NP.shape[1]):
        rows = known_NP[:, p] & np.isfinite(p_NP[:, p])
        for name, figure in LABEL_METRICS.items():
            if rows.any():
                found[name][:, p] = figure(weights_RN[:, rows], truth_NP[rows, p], p_NP[rows, p])
    return found


def _minus(first: Figures, second: Figures) -> Figures:
    return {name: first[name] - second[name] for name in first}


def _nested(
    value: Figures,
    drawn: Figures,
    truth_NP: Bools,
    known_NP: Bools,
    reasons: Mapping[str, str],
    labels: Sequence[str],
) -> dict[str, Any]:
    """Means over the labels that have a figure, and the figures by label."""
    kept = [p for p, name in enumerate(labels) if name not in reasons]
    nothing = {"value": None, "low": None, "high": None}
    row: dict[str, Any] = {}
    for name in LABEL_METRICS:
        row[name] = nothing | {"reason": "; ".join(f"{label}: {why}" for label, why in reasons.items())}
        if kept:
            row[name] = interval(float(value[name][0, kept].mean()), drawn[name][:, kept].mean(axis=1))
    row["labels"] = {
        label: {
            metric: nothing | {"reason": reasons[label]}
            if label in reasons
            else interval(float(value[metric][0, p]), drawn[metric][:, p])
            for metric in LABEL_METRICS
        }
        | {"n_known": int(known_NP[:, p].sum()), "n_positive": int((truth_NP & known_NP)[:, p].sum())}
        for p, label in enumerate(labels)
    }
    return row
