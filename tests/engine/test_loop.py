"""Pieces of the loop: the learning rate, running means, decay groups, batches on a device."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gimp_ray.engine.log import Meter, MetricsLog
from gimp_ray.engine.loop import _adamw, learning_rate, seed_mini_batch
from gimp_ray.engine.protocol import World
from gimp_ray.run_folder import read_lines


def settings(**values):
    return SimpleNamespace(**({"lr": 1.0, "warmup": 0.1, "weight_decay": 0.3} | values))


def test_the_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    rates = [learning_rate(settings(), step / 100, (step + 1) / 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and 0 < rates[-1] < 1e-3
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert learning_rate(settings(warmup=0), 0.0, 0.1) == 1.0


def test_means_are_over_what_was_added_and_survive_a_checkpoint() -> None:
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(value)})
    meter.add({"grad_norm": torch.tensor(4.0)})
    state = meter.state(World())
    assert Meter(state).means(World()) == {"loss": 3.0, "grad_norm": 4.0}, "each figure has its own count"
    resumed = Meter(state)
    resumed.add({"loss": torch.tensor(7.0)})
    assert resumed.means(World()) == {"loss": 4.0, "grad_norm": 4.0}
    assert Meter().means(World()) == {}


def test_means_are_weighted_and_leave_out_what_is_not_known() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "distance": torch.tensor(torch.nan)}, 3.0)
    meter.add({"loss": torch.tensor(5.0), "distance": torch.tensor(2.0)}, 1.0)
    meter.add({"loss": torch.tensor(9.0), "triplets": torch.tensor(torch.nan)}, 0.0)
    assert meter.means(World()) == {"loss": 2.0, "distance": 2.0}


def test_a_log_forgets_what_came_after_the_checkpoint_and_a_torn_line(tmp_path) -> None:
    log = MetricsLog(tmp_path, "pretrain", 0, active=True)
    for step in (1, 2, 3):
        log.write("step", 0, step, {"loss": float(step)})
    log.close()
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"time": 1, "st')
    again = MetricsLog(tmp_path, "pretrain", 2, active=True)
    again.write("step", 0, 3, {"loss": 30.0})
    again.close()
    assert [(line["step"], line["loss"]) for line in read_lines(file)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_ranks_other_than_the_first_write_nothing(tmp_path) -> None:
    log = MetricsLog(tmp_path / "stage", "pretrain", 0, active=False)
    log.write("step", 0, 1, {"loss": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_decay_is_on_matrices_alone_and_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model.token = nn.Parameter(torch.zeros(1, 1, 4))
    model[2].requires_grad_(False)
    groups = _adamw(model, settings()).param_groups
    assert [(group["weight_decay"], sorted(tuple(p.shape) for p in group["params"])) for group in groups] == [
        (0.3, [(4, 3)]),
        (0.0, [(1, 1, 4), (4,), (4,), (4,)]),
    ]


def test_mini_batches_draw_differently_and_repeatably() -> None:
    def draw(*key: int) -> float:
        seed_mini_batch(*key)
        return float(torch.rand(1))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(2, 2, 3)}) == 4
