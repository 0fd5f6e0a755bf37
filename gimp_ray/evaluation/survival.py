"""Harrell's concordance index: of two patients, is the one with the higher risk the one with the earlier event?

Pairs that can be compared: i had an event, and j was followed for longer, or was censored at the very time of i's
event. Two events of one time are no pair. A pair of equal risks counts a half. Left out: the censoring-weighted index
(Uno), time-dependent AUROC, calibration. Shapes: N cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimp_ray.errors import InputError


def concordance_index(
    time: ArrayLike, event: ArrayLike, risk: ArrayLike, known: ArrayLike | None = None
) -> dict[str, Any]:
    """Harrell's C of predicted risks.

    Args:
        time: (N,) time to the event or to the last follow-up.
        event: (N,) bool, True = the event was seen.
        risk: (N,), higher = earlier event expected. Any scale: only the order counts.
        known: (N,) bool, False = the follow-up is missing; the case is left out. None = all are known.

    Returns:
        `c_index` (None where no pair can be compared), `reason` (None, or why), `n_cases`, `n_events`, `n_missing`,
        and `concordant`, `discordant`, `tied_risk`: numbers of pairs.

    Raises:
        InputError: shapes do not fit, `event` or `known` is not bool, a known time or its risk is not finite.
    """
    time_N, event_N, risk_N, missing = checked_follow_up(time, event, risk, known)
    concordant = discordant = tied = 0
    for i in np.flatnonzero(event_N):
        later_N = (time_N > time_N[i]) | ((time_N == time_N[i]) & ~event_N)
        concordant += int((risk_N[later_N] < risk_N[i]).sum())
        discordant += int((risk_N[later_N] > risk_N[i]).sum())
        tied += int((risk_N[later_N] == risk_N[i]).sum())
    pairs = concordant + discordant + tied
    return {
        "c_index": (concordant + 0.5 * tied) / pairs if pairs else None,
        "reason": None if pairs else no_pair_reason(event_N),
        "n_cases": len(time_N),
        "n_events": int(event_N.sum()),
        "n_missing": missing,
        "concordant": concordant,
        "discordant": discordant,
        "tied_risk": tied,
    }


def no_pair_reason(event_N: NDArray[np.bool_]) -> str:
    """Why no pair of cases can be compared."""
    if not event_N.any():
        return "no event was seen"
    return "no case was followed beyond an event"


def checked_follow_up(
    time: ArrayLike, event: ArrayLike, risk: ArrayLike, known: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64], int]:
    """The known cases' times, events and risks, and how many cases are missing."""
    time_N, event_N, risk_N = np.asarray(time, np.float64), np.asarray(event), np.asarray(risk, np.float64)
    known_N = np.ones(time_N.shape, np.bool_) if known is None else np.asarray(known)
    shapes = [values.shape for values in (time_N, event_N, risk_N, known_N)]
    if time_N.ndim != 1 or len(set(shapes)) != 1:
        raise InputError("times, events, risks and known do not fit together", expected="(N,) each", found=str(shapes))
    if len(time_N) and (event_N.dtype != np.bool_ or known_N.dtype != np.bool_):
        raise InputError(
            "event and known are to be true or false", expected="bool", found=f"{event_N.dtype} and {known_N.dtype}"
        )
    event_N, known_N = event_N.astype(np.bool_), known_N.astype(np.bool_)
    for name, values in (("time", time_N), ("risk", risk_N)):
        bad = int((~np.isfinite(values[known_N])).sum())
        if bad:
            raise InputError(f"a {name} is not finite", found=f"{bad} of {int(known_N.sum())} known cases")
    return time_N[known_N], event_N[known_N], risk_N[known_N], int((~known_N).sum())
