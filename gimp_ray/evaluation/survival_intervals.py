"""Harrell's C with patient-level intervals: which pairs can be compared is `survival.py`'s business, how often a pair
counts is the product of how often its patients were drawn.

A resample without a comparable pair does not count. Left out: calibration, time-dependent AUROC. Shapes: R resamples,
N cases, E cases with an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gimp_ray.evaluation.resampling import Bools, Floats, draw_patients, interval, once
from gimp_ray.evaluation.survival import checked_follow_up, no_pair_reason

_CELLS = 1 << 24  # of the matrix of pairs at once


def survival_intervals(
    patients: Sequence[str],
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The C-index with its 95 % interval over patients.

    Args:
        patients: N patients; a patient may have several rows.
        time: (N,) time to the event or to the last follow-up.
        event: (N,) bool, True = the event was seen.
        risk: (N,), higher = earlier event expected.
        resamples: bootstrap resamples.
        seed: of the draw.

    Returns:
        {"c_index": {"value", "low", "high"}, "n_events"}; all three are None, with a "reason", where no pair can be
        compared.

    Raises:
        InputError: shapes do not fit, `event` is not bool, a time or risk is not finite.
    """
    time_N, event_N, risk_N, _ = checked_follow_up(time, event, risk, None)
    weights_RN = draw_patients(patients, len(time_N), resamples, seed)
    value, drawn = (weighted_c_index(weights, time_N, event_N, risk_N) for weights in (once(len(time_N)), weights_RN))
    return _row(value, drawn, event_N)


def survival_difference(
    patients: Sequence[str],
    time: ArrayLike,
    event: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """C-index of the risks `first` minus that of `second` on the same patients, as `survival_intervals`; both see the
    same resamples.
    """
    time_N, event_N, first_N, _ = checked_follow_up(time, event, first, None)
    second_N = checked_follow_up(time, event, second, None)[2]
    weights_RN = draw_patients(patients, len(time_N), resamples, seed)
    value, drawn = (
        weighted_c_index(weights, time_N, event_N, first_N) - weighted_c_index(weights, time_N, event_N, second_N)
        for weights in (once(len(time_N)), weights_RN)
    )
    return _row(value, drawn, event_N)


def _row(value: Floats, drawn: Floats, event_N: Bools) -> dict[str, Any]:
    found = interval(float(value[0]), drawn)
    if not np.isfinite(value[0]):
        found["reason"] = no_pair_reason(event_N)
    return {"c_index": found, "n_events": int(event_N.sum())}


def weighted_c_index(weights_RN: Floats, time_N: Floats, event_N: Bools, risk_N: Floats) -> Floats:
    """(R,) C-index under every weighting, NaN without a pair."""
    won_R, pairs_R = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
    events = np.flatnonzero(event_N)
    size = max(1, _CELLS // max(1, len(time_N)))
    for block in (events[at : at + size] for at in range(0, len(events), size)):
        time_E1, risk_E1 = time_N[block, None], risk_N[block, None]
        later_EN = (time_N > time_E1) | ((time_N == time_E1) & ~event_N)
        score_EN = later_EN * ((risk_N < risk_E1) + 0.5 * (risk_N == risk_E1))
        weights_RE = weights_RN[:, block]
        won_R += ((weights_RE @ score_EN) * weights_RN).sum(axis=1)
        pairs_R += ((weights_RE @ later_EN.astype(np.float64)) * weights_RN).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = won_R / pairs_R
    return found
