"""The optimiser of a stage and its learning rate: three optimisers, three schedules, both exact after a checkpoint."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gimp_ray.engine.checkpoint import load_checkpoint, read_state, save_checkpoint, snapshot
from gimp_ray.engine.optimizing import learning_rate, make_optimizer


def settings(**values):
    plain = {"lr": 1.0, "warmup": 0.1, "weight_decay": 0.3, "optimizer": "adamw", "betas": (0.9, 0.999)}
    return SimpleNamespace(**(plain | {"lookahead": 0, "schedule": "cosine"} | values))


def test_the_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    rates = [learning_rate(settings(), step / 100, (step + 1) / 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and 0 < rates[-1] < 1e-3
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert learning_rate(settings(warmup=0), 0.0, 0.1) == 1.0


def test_a_constant_rate_stays_and_a_linear_one_falls_to_zero_by_equal_steps() -> None:
    for schedule, wanted in (("constant", [2.0] * 4), ("linear", [2.0, 1.5, 1.0, 0.5])):
        made = settings(lr=2.0, warmup=0.0, schedule=schedule)
        assert [learning_rate(made, k / 4, (k + 1) / 4) for k in range(4)] == pytest.approx(wanted)
    warmed = settings(warmup=0.5, schedule="linear")
    assert [learning_rate(warmed, k / 4, (k + 1) / 4) for k in range(4)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_an_unknown_optimiser_or_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer"):
        make_optimizer(nn.Linear(2, 2), settings(optimizer="sgd"))
    with pytest.raises(ValueError, match="schedule"):
        learning_rate(settings(schedule="step"), 0.5, 0.6)


def test_adamw_decays_matrices_alone_and_leaves_frozen_weights_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model.token = nn.Parameter(torch.zeros(1, 1, 4))
    model[2].requires_grad_(False)
    groups = make_optimizer(model, settings()).param_groups
    assert [(group["weight_decay"], sorted(tuple(p.shape) for p in group["params"])) for group in groups] == [
        (0.3, [(4, 3)]),
        (0.0, [(1, 1, 4), (4,), (4,), (4,)]),
    ]


def test_adam_puts_the_decay_of_every_weight_into_its_gradient() -> None:
    """One step of Adam by hand: the first update is lr times the sign of gradient + decay * weight."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(-3.0)
    optimizer = make_optimizer(model, settings(optimizer="adam", lr=0.1, weight_decay=1.0, betas=(0.5, 0.9)))
    model.weight.grad, model.bias.grad = torch.tensor([[-1.0]]), torch.tensor([1.0])
    optimizer.step()
    # gradients with decay: -1 + 2 = 1 and 1 - 3 = -2
    assert model.weight.item() == pytest.approx(1.9) and model.bias.item() == pytest.approx(-2.9)
    assert optimizer.defaults["betas"] == (0.5, 0.9)


def test_radam_is_rectified_adam() -> None:
    """While the variance is not tractable RAdam steps along the mean gradient, so its first step is lr * gradient."""
    model = nn.Linear(1, 1, bias=False)
    start = model.weight.item()
    optimizer = make_optimizer(model, settings(optimizer="radam", lr=0.1, weight_decay=0.0))
    model.weight.grad = torch.tensor([[0.25]])
    optimizer.step()
    assert model.weight.item() == pytest.approx(start - 0.1 * 0.25)


def test_lookahead_takes_the_weights_half_the_way_back_to_slow_ones() -> None:
    """By hand: RAdam's first steps are lr * mean gradient, 0.1 each; each third step the slow weight moves half way."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = make_optimizer(model, settings(optimizer="radam", lr=0.1, weight_decay=0.0, lookahead=3))
    slow = fast = model.weight.item()
    for number in range(1, 6):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
        fast -= 0.1
        if number == 3:
            slow += (fast - slow) / 2
            fast = slow
        assert model.weight.item() == pytest.approx(fast, abs=1e-6), number
    assert optimizer.state[model.weight]["slow"].item() == pytest.approx(slow, abs=1e-6)


def test_lookahead_leaves_weights_without_a_gradient_alone() -> None:
    model = nn.Linear(1, 1)
    optimizer = make_optimizer(model, settings(optimizer="adam", lookahead=1))
    model.weight.grad = torch.ones(1, 1)
    bias = model.bias.item()
    optimizer.step()
    assert model.bias.item() == bias and not optimizer.state[model.bias]


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("name", ["adamw", "adam", "radam"])
def test_an_optimiser_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(name: str, ahead: int, tmp_path: Path) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        return model, make_optimizer(model, settings(optimizer=name, lr=0.01, lookahead=ahead))

    whole, optimizer = fresh()
    for number in range(8):
        step(whole, optimizer, number)
    first, stopped = fresh()
    for number in range(4):
        step(first, stopped, number)
    path = save_checkpoint(tmp_path, 4, snapshot(first, stopped), {"inputs": {}}, keep=1)
    second, continued = fresh()
    load_checkpoint(path, read_state(path), second, continued)
    for number in range(4, 8):
        step(second, continued, number)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
