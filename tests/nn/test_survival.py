"""Survival losses against sums written out case by case, and against answers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from gimp_ray.nn.survival import cox_loss, discrete_time_nll, discrete_time_risk, fit_time_edges, time_bin

TIME = torch.tensor([5.0, 3.0, 3.0, 8.0, 3.0, 5.0, 1.0])
EVENT = torch.tensor([True, True, True, False, False, True, True])


def theta(n: int = 7) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def cox_by_hand(risk: np.ndarray, time: np.ndarray, event: np.ndarray, efron: bool) -> float:
    """The log partial likelihood time by time, as the equations have it."""
    total = 0.0
    for t in np.unique(time[event]):
        tied = [i for i in range(len(time)) if event[i] and time[i] == t]
        at_risk = sum(math.exp(risk[i]) for i in range(len(time)) if time[i] >= t)
        of_tied = sum(math.exp(risk[i]) for i in tied)
        for number, i in enumerate(tied):
            total += risk[i] - math.log(at_risk - (number / len(tied) * of_tied if efron else 0.0))
    return -total / event.sum()


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_with_ties_and_censoring(ties):
    expected = cox_by_hand(theta().detach().numpy(), TIME.numpy(), EVENT.numpy(), ties == "efron")
    assert cox_loss(theta(), TIME, EVENT, ties=ties).item() == pytest.approx(expected, abs=1e-12)


def test_cox_of_equal_risks_counts_those_at_risk():
    # events at 1, 2 with 3, 2 at risk: log 3 + log 2; the last is censored
    loss = cox_loss(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx((math.log(3) + math.log(2)) / 2)
    # three tied events, nobody else: Efron log 3! / 3, Breslow log 3
    tied, all_three = torch.ones(3), torch.ones(3, dtype=torch.bool)
    assert cox_loss(torch.zeros(3), tied, all_three).item() == pytest.approx(math.log(6) / 3)
    assert cox_loss(torch.zeros(3), tied, all_three, ties="breslow").item() == pytest.approx(math.log(3))


def test_cox_does_not_depend_on_order_or_on_a_shift():
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    here = cox_loss(theta(), TIME, EVENT)
    torch.testing.assert_close(cox_loss(theta()[order] + 7, TIME[order], EVENT[order]), here)


def test_cox_gradient():
    assert torch.autograd.gradcheck(lambda x: cox_loss(x, TIME, EVENT), (theta(),))


def test_cox_is_finite_for_risks_far_apart():
    risk = torch.tensor([800.0, -800.0, -810.0], dtype=torch.float64, requires_grad=True)
    loss = cox_loss(risk, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-10)) / 2, abs=1e-10)
    assert torch.isfinite(risk.grad).all()


@pytest.mark.parametrize("loss", ["cox", "discrete"])
def test_missing_follow_up_is_as_if_the_case_were_not_there(loss):
    known = torch.tensor([True, True, False, True, True, False, True])
    if loss == "cox":
        scores = theta()
        time = TIME.masked_fill(~known, torch.nan)
        here, without = cox_loss(scores, time, EVENT, known), cox_loss(theta()[known], TIME[known], EVENT[known])
    else:
        scores = torch.randn(7, 4, dtype=torch.float64).requires_grad_()
        bins = torch.tensor([0, 1, 2, 3, 2, 1, 0])
        here = discrete_time_nll(scores, bins.masked_fill(~known, -9), EVENT, known)
        without = discrete_time_nll(scores[known], bins[known], EVENT[known])
    torch.testing.assert_close(here, without)
    here.backward()
    assert (scores.grad[~known] == 0).all() and (scores.grad[known] != 0).any()


@pytest.mark.parametrize("known", [torch.zeros(3, dtype=torch.bool), None])
def test_nothing_to_learn_from_is_zero_with_a_gradient(known):
    risk = torch.randn(3, requires_grad=True)
    cox_loss(risk, torch.ones(3), torch.zeros(3, dtype=torch.bool), known).backward()
    assert (risk.grad == 0).all()
    logits = torch.randn(3, 4, requires_grad=True)
    nothing = torch.zeros(3, dtype=torch.bool)
    discrete_time_nll(logits, torch.zeros(3, dtype=torch.int64), nothing, nothing).backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_discrete_time_case_by_case(alpha):
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bins, event = [0, 3, 1, 3, 0], [True, True, False, False, False]
    hazards, total = 1 / (1 + np.exp(-logits.numpy())), 0.0
    for h, y, seen in zip(hazards, bins, event, strict=True):
        if seen:
            total -= math.log(np.prod(1 - h[:y]) * h[y])
        else:
            total -= (1 - alpha) * math.log(np.prod(1 - h[: y + 1]))
    loss = discrete_time_nll(logits, torch.tensor(bins), torch.tensor(event), alpha=alpha)
    assert loss.item() == pytest.approx(total / 5, abs=1e-12)


def test_discrete_time_probabilities_of_all_outcomes_sum_to_one():
    logits = torch.randn(1, 3, dtype=torch.float64).expand(4, 3)
    outcomes = [discrete_time_nll(logits[:1], torch.tensor([y]), torch.tensor([True])) for y in range(3)]
    outcomes.append(discrete_time_nll(logits[:1], torch.tensor([2]), torch.tensor([False])))
    assert sum(math.exp(-loss.item()) for loss in outcomes) == pytest.approx(1)


def test_risk_of_a_discrete_model_falls_with_survival():
    # hazards 1/2, 1/2: S = 1/2, 1/4
    assert discrete_time_risk(torch.zeros(1, 2)).item() == pytest.approx(-0.75)
    risk = discrete_time_risk(torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]]))
    assert risk[0] > risk[1] > risk[2]


def test_time_bins_hold_equal_numbers_of_events():
    time = torch.arange(16.0)
    event = torch.arange(16) % 2 == 0  # 0, 2, ..., 14
    edges = fit_time_edges(time, event, 4)
    assert torch.equal(torch.bincount(time_bin(time[event], edges)), torch.tensor([2, 2, 2, 2]))
    assert time_bin(torch.tensor([-1.0, 1e9]), edges).tolist() == [0, 3]
    assert time_bin(edges, edges).tolist() == [1, 2, 3]


def test_bad_input_is_refused():
    yes = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="efron"):
        cox_loss(torch.zeros(3), torch.ones(3), yes, ties="exact")
    with pytest.raises(ValueError, match="bool"):
        cox_loss(torch.zeros(3), torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="finite"):
        cox_loss(torch.zeros(3), torch.tensor([1.0, torch.nan, 2.0]), yes)
    with pytest.raises(ValueError, match=r"must be \(3,\)"):
        cox_loss(torch.zeros(3), torch.ones(2), yes)
    with pytest.raises(ValueError, match="0 to 3"):
        discrete_time_nll(torch.zeros(3, 4), torch.tensor([0, 4, 1]), yes)
    with pytest.raises(ValueError, match="alpha"):
        discrete_time_nll(torch.zeros(3, 4), torch.tensor([0, 1, 1]), yes, alpha=2)
    with pytest.raises(ValueError, match="too few"):
        fit_time_edges(torch.ones(3), yes, 4)
    with pytest.raises(ValueError, match="too few"):
        fit_time_edges(torch.arange(3.0), ~yes, 4)
