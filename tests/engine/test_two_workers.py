"""Two ranks, without Ray: half the cases a class on each of two workers give the MPM losses of one worker with all of
them.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import build_config
from gimp_ray.engine.loop import Saving, train
from gimp_ray.engine.protocol import World
from gimp_ray.feed.batches import direct_batches
from gimp_ray.io.files import read_lines
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.learn.supervise import Supervised
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights
from tests.conftest import changed

pytestmark = pytest.mark.ray  # the slow tier: two further processes import torch

TASKS: dict[str, Any] = {"pretrain": Pretraining, "finetune": Supervised}


def _rank(rank: int, size: int, port: int, config: dict[str, Any], stages: list[str]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    run = RunFolder(build_config(config).run or "")
    for stage in stages:
        task = TASKS[stage](config, str(run.path))

        def batches(start: int, task: Any = task) -> Any:
            return direct_batches(task, start, rank, size, 1)

        train(task, World(rank, size), run, Saving(), batches)
    dist.destroy_process_group()


def run_on_two_ranks(config: Config, stages: list[str]) -> RunFolder:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_rank, (2, port, config.model_dump(), stages), nprocs=2, start_method="spawn")
    return RunFolder(config.run or "")


@pytest.fixture(scope="module")
def pair(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """MPM pre-training on one worker with K = 4, and on two workers with K = 2; then fine-tuning on both."""
    from gimp_ray.config_files import load_config
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("pair")
    tiny = load_config(
        None, {"store": str(store_path), "model.dropout": 0, "triplet.weight": 0, "finetune.dropout": 0}, base=TINY
    )
    one = pipeline.pretrain(changed(tiny, run=str(folder / "one"), batch__cases_per_class=4))
    genes = changed(tiny, run=str(folder / "two"), batch__cases_per_class=2)
    pipeline.pretrain_genes(genes)
    two = run_on_two_ranks(genes, ["pretrain"])
    return one, two


def losses(run: RunFolder) -> list[float]:
    return [line["loss_rec"] for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]


def test_mpm_losses_of_every_step_agree(pair: tuple[RunFolder, RunFolder]) -> None:
    one, two = pair
    assert len(losses(one)) == len(losses(two)) > 3
    assert losses(one) == pytest.approx(losses(two), abs=1e-6)
    # the losses move, so agreeing is not trivial
    assert len(set(losses(one))) == len(losses(one))


def test_weights_after_training_agree(pair: tuple[RunFolder, RunFolder]) -> None:
    one, two = (load_weights(run.model_file("pretrain")) for run in pair)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-5, msg=name)


def test_two_ranks_write_one_run_folder(pair: tuple[RunFolder, RunFolder]) -> None:
    _, two = pair
    steps = [line["step"] for line in read_lines(two.metrics_log("pretrain")) if line["kind"] == "step"]
    assert steps == sorted(set(steps))
    assert two.stage_done("pretrain")


def test_validation_of_two_ranks_covers_every_case_once(tiny: Config, pair: tuple[RunFolder, RunFolder]) -> None:
    """Fine-tuning with one case a rank is fine-tuning with two cases on one worker: same figures on validation."""
    source = str(pair[0].model_file("pretrain"))
    base = changed(tiny, model__dropout=0, finetune__dropout=0, finetune__init=source)
    one = pipeline.finetune(changed(base, run=str(tiny.run) + "-one", finetune__batch_size=2))
    two = run_on_two_ranks(changed(base, run=str(tiny.run) + "-two", finetune__batch_size=1), ["finetune"])
    figures = [
        [
            (line["accuracy"], line["loss"])
            for line in read_lines(run.metrics_log("finetune"))
            if line["kind"] == "validation"
        ]
        for run in (one, two)
    ]
    assert len(figures[0]) == 3
    for (accuracy_one, loss_one), (accuracy_two, loss_two) in zip(*figures, strict=True):
        assert accuracy_one == accuracy_two and loss_one == pytest.approx(loss_two, rel=1e-4)
