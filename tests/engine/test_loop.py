"""Pieces of the loop: running means, the log, and what a mini-batch draws."""

from __future__ import annotations

import torch

from gimp_ray.engine.log import Meter, MetricsLog, weigh
from gimp_ray.engine.loop import seed_mini_batch
from gimp_ray.engine.protocol import World
from gimp_ray.io.files import read_lines


def test_means_are_over_what_was_added_and_survive_a_checkpoint() -> None:
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add(weigh({"loss": torch.tensor(value)}))
    meter.add(weigh({"grad_norm": torch.tensor(4.0)}))
    state = meter.state(World())
    assert Meter(state).means(World()) == {"loss": 3.0, "grad_norm": 4.0}, "each figure has its own count"
    resumed = Meter(state)
    resumed.add(weigh({"loss": torch.tensor(7.0)}))
    assert resumed.means(World()) == {"loss": 4.0, "grad_norm": 4.0}
    assert Meter().means(World()) == {}


def test_means_are_weighted_and_leave_out_what_is_not_known() -> None:
    meter = Meter()
    meter.add(weigh({"loss": torch.tensor(1.0), "distance": torch.tensor(torch.nan)}, 3.0))
    meter.add(weigh({"loss": torch.tensor(5.0), "distance": torch.tensor(2.0)}, 1.0))
    meter.add(weigh({"loss": torch.tensor(9.0), "triplets": torch.tensor(torch.nan)}, 0.0))
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


def test_mini_batches_draw_differently_and_repeatably() -> None:
    def draw(*key: int) -> float:
        seed_mini_batch(*key)
        return float(torch.rand(1))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(2, 2, 3)}) == 4
