"""Bootstrap resamples of patients as weights of rows, and figures of a binary score under them.

Patients are drawn with replacement, with all rows of a patient, so a resample is a vector of weights and the figures of
all resamples are a few matrix products. The interval is the 2.5 % to 97.5 % percentile. A resample in which a figure is
not defined does not count for it. Left out: which figures a kind of target has (`intervals.py`, `label_intervals.py`,
`survival_intervals.py`). Shapes: R resamples, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimp_ray.errors import InputError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Interval = dict[str, Any]


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
    """(1, N) weights under which every row counts once: the figures themselves."""
    return np.ones((1, rows))


def interval(value: float, drawn_R: Floats) -> Interval:
    """The figure with its 95 % interval; all three None where it is not defined."""
    kept = drawn_R[np.isfinite(drawn_R)]
    if not np.isfinite(value) or kept.size == 0:
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(kept, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


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
