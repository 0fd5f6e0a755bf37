"""Survival with censored cases: Harrell's concordance index and the Kaplan-Meier estimate.

Shapes: R resamples, N cases, E cases with an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimp_ray.errors import InputError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_CELLS = 1 << 24  # of the matrix of pairs at once


def concordance_index(
    time: ArrayLike, event: ArrayLike, risk: ArrayLike, known: ArrayLike | None = None
) -> dict[str, Any]:
    """Harrell's C: how often, of two patients, the one with the higher risk has the earlier event.

    Pairs that can be compared: i had an event, and j was followed for longer, or was censored at the very time of i's
    event. Two events of one time are no pair. A pair of equal risks counts a half.

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


def weighted_c_index(weights_RN: Floats, time_N: Floats, event_N: Bools, risk_N: Floats) -> Floats:
    """(R,) C-index under every weighting of the cases, NaN without a pair. A pair counts the product of its weights."""
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


def no_pair_reason(event_N: Bools) -> str:
    """Why no pair of cases can be compared."""
    return "no case was followed beyond an event" if event_N.any() else "no event was seen"


def checked_follow_up(
    time: ArrayLike, event: ArrayLike, risk: ArrayLike, known: ArrayLike | None = None
) -> tuple[Floats, Bools, Floats, int]:
    """The known cases' times, events and risks, and how many cases are missing.

    Raises:
        InputError: see `concordance_index`.
    """
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


@dataclass(frozen=True, eq=False)
class SurvivalCurve:
    """A step function: from `time[k]` on, until the next one, the share `share[k]` is without an event.

    Attributes:
        time: (T,) times of events, ascending, the first being 0.
        share: (T,) the first being 1, unless an event is at 0.
        at_risk: (T,) cases at risk at each time.
        censored: (C,) times of the censored cases.
        censored_share: (C,) the share at these times.
    """

    time: Floats
    share: Floats
    at_risk: NDArray[np.int64]
    censored: Floats
    censored_share: Floats


def kaplan_meier(time: ArrayLike, event: ArrayLike) -> SurvivalCurve:
    """Kaplan and Meier's (1958) estimate: at each time with d events and n at risk the share falls by 1 - d / n.

    A case censored at a time is still at risk at it. There are no confidence bands and no log-rank test: a threshold
    chosen on the cases it is tested on has no valid p-value.

    Args:
        time: (N,) time to the event or to the last follow-up, 0 or more.
        event: (N,) bool, True = the event was seen.

    Raises:
        InputError: shapes do not fit, `event` is not bool, or a time is not finite.
    """
    time_N, event_N, _, _ = checked_follow_up(time, event, np.zeros(np.shape(time)))
    times_T = np.unique(np.r_[0.0, time_N[event_N]])
    at_risk_T = (time_N >= times_T[:, None]).sum(axis=1)
    events_T = ((time_N == times_T[:, None]) & event_N).sum(axis=1)
    share_T = np.cumprod(1 - events_T / np.maximum(at_risk_T, 1))
    censored_C = np.sort(time_N[~event_N])
    step_C = np.searchsorted(times_T, censored_C, side="right") - 1
    return SurvivalCurve(times_T, share_T, at_risk_T.astype(np.int64), censored_C, share_T[step_C])
