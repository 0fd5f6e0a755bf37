"""Cox's loss on two ranks, without Ray: risk sets are of the mini-batches of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.io.files import read_lines
from gimp_ray.runs.model import load_weights
from tests.conftest import changed
from tests.engine.test_two_workers import run_on_two_ranks

pytestmark = pytest.mark.ray  # the slow tier: two further processes import torch


def test_two_ranks_with_half_a_mini_batch_each_learn_what_one_rank_does(tiny: Config, tmp_path: Path) -> None:
    """12 cases are three mini-batches of 4: in the second step a rank is idle, and its repeated case must not count."""
    base = changed(
        tiny,
        target__kind="survival",
        target__loss="cox",
        finetune__init="scratch",
        finetune__dropout=0,
        genes__encoder="none",
        model__dropout=0,
    )
    one = pipeline.finetune(changed(base, run=str(tmp_path / "one"), finetune__batch_size=8))
    two = run_on_two_ranks(changed(base, run=str(tmp_path / "two"), finetune__batch_size=4), ["finetune"])
    logs = [read_lines(run.metrics_log("finetune")) for run in (one, two)]
    losses = [[line["loss"] for line in log if line["kind"] == "step"] for log in logs]
    assert len(losses[0]) >= 6 and max(losses[0]) > 0.1
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-5)
    weights = [load_weights(run.model_file("finetune")) for run in (one, two)]
    weights[0].pop("net.head.3.bias")  # adds to every risk alike: its gradient is rounding, which AdamW makes large
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)
