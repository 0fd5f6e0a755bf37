"""Survival: Cox's partial likelihood and the discrete-time likelihood, with cases whose follow-up is not known.

Cox (1972): a case's hazard is h0(t) exp(theta); the loss is the mean over events of -log P(who has the event | someone
of those at risk has it). Ties of events by Efron (1977), the default, or Breslow (1974). Discrete time (Zadeh & Schmid
2020, as MCAT and PORPOISE use it): time is cut into K bins, a network gives one logit a bin, h_k = sigmoid(logit_k) is
the hazard inside bin k and S_k = prod_{j <= k} (1 - h_j) the probability to outlive it.

The partial likelihood is not a sum over cases: the risk sets are those of the rows given, so small mini-batches change
what is optimised. Gather over workers first (`gather_workers`).

Shape suffixes: B batch, V cases with known follow-up, E those of them with an event, K time bins.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Ties = Literal["efron", "breslow"]


def cox_loss(
    log_risk_B: Tensor, time_B: Tensor, event_B: Tensor, known_B: Tensor | None = None, ties: Ties = "efron"
) -> Tensor:
    """Negative log partial likelihood, averaged over the events. In float32 at least, under autocast too.

    With E_t the events of time t, d = |E_t|, and everyone whose time is t or later at risk:

        Breslow: sum_{i in E_t} theta_i - d log sum_{risk} exp theta
        Efron:   sum_{i in E_t} theta_i - sum_{l=0}^{d-1} log(sum_{risk} exp theta - l/d sum_{E_t} exp theta)

    A case censored at t is still at risk at t. Memory grows with E times V.

    Args:
        log_risk_B: (B,) theta, higher = earlier event.
        time_B: (B,) time to the event or to the last follow-up, any unit.
        event_B: (B,) bool, True = the event was seen, False = censored.
        known_B: (B,) bool, False = the follow-up of this case is missing; its other values may then be anything.
        ties: how events of one time are treated.

    Returns:
        scalar. Without an event it is 0 and still has a (zero) gradient, so that a distributed backward pass does not
        hang.

    Raises:
        ValueError: shapes that do not fit, `event_B` or `known_B` not bool, a known time that is not finite, unknown
            `ties`.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"ties must be 'efron' or 'breslow': found {ties!r}")
    known_B = _check(log_risk_B, time_B, event_B, known_B, log_risk_B.shape[:1])
    with torch.autocast(log_risk_B.device.type, enabled=False):
        theta_V = log_risk_B.to(torch.promote_types(log_risk_B.dtype, torch.float32))[known_B]
        time_V, event_V = time_B[known_B], event_B[known_B]
        if not bool(event_V.any()):
            return theta_V.sum() * 0.0
        theta_E, time_E = theta_V[event_V], time_V[event_V]
        at_risk_EV = time_V >= time_E[:, None]
        # a plain matrix: exact where risks differ by many orders, and in one order of summation on every device
        log_denominator_E = theta_V.masked_fill(~at_risk_EV, -torch.inf).logsumexp(dim=1)
        if ties == "efron":
            tied_EE = time_E == time_E[:, None]
            share_E = tied_EE.tril(-1).sum(dim=1) / tied_EE.sum(dim=1)
            log_tied_E = theta_E.masked_fill(~tied_EE, -torch.inf).logsumexp(dim=1)
            ratio_E = (log_tied_E - log_denominator_E).clamp_max(0).exp()
            log_denominator_E = log_denominator_E + torch.log1p(-share_E * ratio_E)
        return (log_denominator_E - theta_E).mean()


def discrete_time_nll(
    logits_BK: Tensor, bin_B: Tensor, event_B: Tensor, known_B: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """Negative log-likelihood of hazards in time bins, averaged over the known cases. In float32 at least.

    An event in bin y costs -log S_{y-1} - log h_y (S_{-1} = 1); a case censored in bin y costs -log S_y: it counts as
    having outlived its bin, as in MCAT.

    Args:
        logits_BK: (B, K) one logit a bin, sigmoid = hazard.
        bin_B: (B,) int64, the bin of the time, 0 to K - 1 (`time_bin`).
        event_B: (B,) bool.
        known_B: (B,) bool, False = missing; its other values may then be anything.
        alpha: in [0, 1], share of the weight taken off the censored cases (MCAT; its default is 0).

    Returns:
        scalar; of no known case, 0 with a (zero) gradient.

    Raises:
        ValueError: shapes that do not fit, `event_B` or `known_B` not bool, a known bin out of range, `alpha` outside
            [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1]: found {alpha}")
    if logits_BK.ndim != 2 or logits_BK.shape[1] < 1:
        raise ValueError(f"logits must be (B, K): found {tuple(logits_BK.shape)}")
    known_B = _check(None, bin_B, event_B, known_B, logits_BK.shape[:1])
    K = logits_BK.shape[1]
    bin_V, event_V = bin_B[known_B], event_B[known_B]
    if bin_B.is_floating_point() or bool(((bin_V < 0) | (bin_V >= K)).any()):
        raise ValueError(f"time bins must be integers from 0 to {K - 1}")
    with torch.autocast(logits_BK.device.type, enabled=False):
        logits_VK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))[known_B]
        if len(logits_VK) == 0:
            return logits_VK.sum() * 0.0
        log_outlived_VK = F.logsigmoid(-logits_VK)
        place_K = torch.arange(K, device=logits_BK.device)
        before_V = log_outlived_VK.masked_fill(place_K >= bin_V[:, None], 0.0).sum(dim=1)
        event_term_V = before_V + F.logsigmoid(logits_VK).gather(1, bin_V[:, None])[:, 0]
        censored_term_V = before_V + log_outlived_VK.gather(1, bin_V[:, None])[:, 0]
        return -torch.where(event_V, event_term_V, (1 - alpha) * censored_term_V).mean()


def discrete_time_risk(logits_BK: Tensor) -> Tensor:
    """(B, K) logits -> (B,) risk, -sum_k S_k: higher = earlier event. What the C-index of a discrete model ranks."""
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    return -F.logsigmoid(-logits_BK).cumsum(dim=1).exp().sum(dim=1)


def fit_time_edges(time_N: Tensor, event_N: Tensor, num_bins: int = 4) -> Tensor:
    """Inner edges (K - 1,) of time bins with equal numbers of the events seen. Of training cases alone.

    Raises:
        ValueError: shapes that do not fit, a time that is not finite, fewer than 2 bins, or events of too few different
            times for that many bins.
    """
    if num_bins < 2:
        raise ValueError(f"num_bins must be >= 2: found {num_bins}")
    _check(None, time_N, event_N, None, time_N.shape[:1])
    times_E = time_N[event_N].double()
    quantiles = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64, device=times_E.device)[1:-1]
    edges_K = times_E.quantile(quantiles) if len(times_E) else times_E
    if len(edges_K.unique()) < num_bins - 1 or bool((edges_K[:1] <= times_E.min()).any()):
        raise ValueError(f"{len(times_E)} events are too few, or too often of one time, for {num_bins} time bins")
    return edges_K


def time_bin(time_B: Tensor, edges_K: Tensor) -> Tensor:
    """(B,) times -> (B,) int64 bins, 0 to K - 1. A time on an edge is in the later bin."""
    return torch.bucketize(time_B.double(), edges_K.double(), right=True)


def _check(
    log_risk_B: Tensor | None, time_B: Tensor, event_B: Tensor, known_B: Tensor | None, rows: torch.Size
) -> Tensor:
    """Shapes and types of what is known; returns `known_B`, made where it is None."""
    if known_B is None:
        known_B = torch.ones(rows, dtype=torch.bool, device=time_B.device)
    named = {"log_risk_B": log_risk_B, "time": time_B, "event": event_B, "known": known_B}
    for name, values in named.items():
        if values is not None and values.shape != rows:
            raise ValueError(f"{name} must be {tuple(rows)}: found {tuple(values.shape)}")
    if event_B.dtype != torch.bool or known_B.dtype != torch.bool:
        raise ValueError(f"event and known must be bool: found {event_B.dtype} and {known_B.dtype}")
    if not bool(torch.isfinite(time_B[known_B]).all()):
        raise ValueError("a time that is said to be known is not finite")
    return known_B
