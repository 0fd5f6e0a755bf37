"""Patient-level bootstrap: how far a metric would move with other patients.

Patients are drawn with replacement, with all rows of a patient, so a resample is a vector of weights, and the metrics
of all resamples are a few matrix products (1,000 resamples of 200 cases: hundredths of a second). The 95 % confidence
interval is the 2.5 % to 97.5 % percentile; a resample in which a metric is not defined does not count for it. It covers
the choice of patients, not the seed or the split. Shapes: R resamples, N rows, P predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gimp_ray.errors import InputError
from gimp_ray.evaluation.metrics import METRICS, Floats, Truth, absent_reason, label_reasons
from gimp_ray.evaluation.survival import no_pair_reason


def intervals_of(
    truth: Truth, patients: Sequence[str], predictions: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Every metric of the kind with its 95 % confidence interval over patients.

    Args:
        truth: of N cases.
        patients: N patients; a patient may have several rows.
        predictions: (N, P): a probability a class or label, or the risk in the first column.
        resamples: bootstrap resamples.
        seed: of the draw.

    Returns:
        {metric: {"value", "low", "high"}}, all three None where a metric is not defined, with a "reason". Of a class
        also {"recall": {class: the same}}; of labels the metrics are means over the labels that have them, and
        {"labels": {label: the same metrics, "n_known", "n_positive"}}; of survival also "n_events".

    Raises:
        InputError: shapes do not fit, or a prediction is not finite.
    """
    return _bootstrap(truth, patients, [predictions], resamples, seed)


def difference_of(
    truth: Truth, patients: Sequence[str], first: ArrayLike, second: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """`first` minus `second` on the same patients and resamples, metric by metric, as `intervals_of`.

    An interval without zero: other patients would show a difference too. Means of labels are over those of both.
    """
    return _bootstrap(truth, patients, [first, second], resamples, seed)


def draw_patients(patients: Sequence[str], rows: int, resamples: int, seed: int) -> Floats:
    """(R, N) how often every row counts; rows of one patient share their weight.

    Raises:
        InputError: there is not one patient a row.
    """
    if len(patients) != rows:
        raise InputError("case ids do not fit the labels", expected=f"{rows} ids", found=f"{len(patients)}")
    names, patient_N = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn[:, patient_N].astype(np.float64)


def once(rows: int) -> Floats:
    """(1, N) weights under which every row counts once."""
    return np.ones((1, rows))


def _bootstrap(
    truth: Truth, patients: Sequence[str], methods: Sequence[ArrayLike], resamples: int, seed: int
) -> dict[str, Any]:
    checked = [truth.checked(predictions) for predictions in methods]
    rows = len(checked[0])
    value, drawn = (
        _minus([truth.weighted(predictions, weights) for predictions in checked])
        for weights in (once(rows), draw_patients(patients, rows, resamples, seed))
    )
    if truth.kind == "labels":
        return _label_row(truth, value, drawn, label_reasons(truth, checked))
    found: dict[str, Any] = {name: _interval(value[name][0], drawn[name]) for name in METRICS[truth.kind]}
    if truth.kind == "survival":
        event_N = np.asarray(truth.values["event"], np.bool_)
        if found["c_index"]["value"] is None:
            found["c_index"]["reason"] = no_pair_reason(event_N)
        return found | {"n_events": int(event_N.sum())}
    reason = absent_reason(np.bincount(truth.values["label"], minlength=len(truth.names)), truth.names)
    if reason is not None:
        found["auroc"]["reason"] = reason
    recalls = {name: _interval(value["recall"][0, c], drawn["recall"][:, c]) for c, name in enumerate(truth.names)}
    return found | {"recall": recalls}


def _label_row(
    truth: Truth, value: Mapping[str, Floats], drawn: Mapping[str, Floats], reasons: Mapping[str, str]
) -> dict[str, Any]:
    # which labels the means hold is decided by the cases, so it is the same in every resample
    kept = [p for p, name in enumerate(truth.names) if name not in reasons]
    why = "; ".join(f"{label}: {reason}" for label, reason in reasons.items())
    row: dict[str, Any] = {
        name: _interval(value[name][0, kept].mean(), drawn[name][:, kept].mean(axis=1)) if kept else _none(why)
        for name in value
    }
    known_NP = truth.values["known"]
    row["labels"] = {
        label: {
            name: _none(reasons[label]) if label in reasons else _interval(value[name][0, p], drawn[name][:, p])
            for name in value
        }
        | {"n_known": int(known_NP[:, p].sum()), "n_positive": int((truth.values["truth"] & known_NP)[:, p].sum())}
        for p, label in enumerate(truth.names)
    }
    return row


def _minus(found: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
    """The metrics of the only method, or of the first minus the second."""
    return found[0] if len(found) == 1 else {name: found[0][name] - found[1][name] for name in found[0]}


def _interval(value: float, drawn_R: Floats) -> dict[str, Any]:
    kept = drawn_R[np.isfinite(drawn_R)]
    if not np.isfinite(value) or kept.size == 0:
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(kept, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _none(reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "reason": reason}
