"""Kaplan and Meier's (1958) estimate of the share that outlives a time, with censored cases.

At each time t with d events and n cases at risk the share is multiplied by 1 - d / n; a case censored at t is still at
risk at t. Left out: confidence bands, the log-rank test (a threshold chosen on the cases it is tested on has no honest
p-value).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimp_ray.evaluation.survival import checked_follow_up


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

    time: NDArray[np.float64]
    share: NDArray[np.float64]
    at_risk: NDArray[np.int64]
    censored: NDArray[np.float64]
    censored_share: NDArray[np.float64]


def kaplan_meier(time: ArrayLike, event: ArrayLike) -> SurvivalCurve:
    """The curve of some cases.

    Args:
        time: (N,) time to the event or to the last follow-up, 0 or more.
        event: (N,) bool, True = the event was seen.

    Raises:
        InputError: shapes do not fit, `event` is not bool, or a time is not finite.
    """
    time_N, event_N, _, _ = checked_follow_up(time, event, np.zeros(np.shape(time)), None)
    times_T = np.unique(np.r_[0.0, time_N[event_N]])
    at_risk_T = (time_N >= times_T[:, None]).sum(axis=1)
    events_T = ((time_N == times_T[:, None]) & event_N).sum(axis=1)
    share_T = np.cumprod(1 - events_T / np.maximum(at_risk_T, 1))
    censored_C = np.sort(time_N[~event_N])
    place_C = np.searchsorted(times_T, censored_C, side="right") - 1
    return SurvivalCurve(times_T, share_T, at_risk_T.astype(np.int64), censored_C, share_T[place_C])
