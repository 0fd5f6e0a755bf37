"""Compared methods on two ranks without Ray: no parameter goes without a gradient, and two ranks are one worker with
twice the cases.
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

from gimp_ray.config import Config
from gimp_ray.engine.loop import Saving, train
from gimp_ray.engine.protocol import World
from gimp_ray.feed.batches import direct_batches
from gimp_ray.learn.supervise import Supervised
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights
from tests.conftest import changed
from tests.tasks.test_methods import config_of, gene_sets, trained

pytestmark = pytest.mark.ray  # the slow tier: two further processes import torch
# losses of their own, and parts that are trained in turn
NAMES = ("dsmil", "clam_mb", "pathomic")
__all__ = ["gene_sets"]


def _rank(rank: int, size: int, port: int, configs: list[dict[str, Any]]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    for config in configs:
        task = Supervised(config, config["run"])

        def batches(start: int, task: Supervised = task) -> Any:
            return direct_batches(task, start, rank, size, 1)

        train(task, World(rank, size), RunFolder(config["run"]), Saving(), batches)
    dist.destroy_process_group()


def test_two_ranks_train_what_one_trains_with_twice_the_cases(tiny: Config, gene_sets: str, tmp_path: Path) -> None:
    def configs(size: int, folder: str) -> list[Config]:
        settings = {"method__batch_size": size, "method__train": {"epochs": 2, "lr": 1e-3, "accumulate": 1}}
        return [
            config_of(changed(tiny, run=str(tmp_path / folder / name)), name, gene_sets, dropout=0.0, **settings)
            for name in NAMES
        ]

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pairs = configs(2, "two")
    mp.start_processes(_rank, (2, port, [config.model_dump() for config in pairs]), nprocs=2, start_method="spawn")
    for one, two in zip(configs(4, "one"), pairs, strict=True):
        alone = load_weights(trained(one).model_file("finetune"))
        together = load_weights(RunFolder(str(two.run)).model_file("finetune"))
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name], rtol=1e-3, atol=2e-5, msg=f"{one.method.name} {name}")
