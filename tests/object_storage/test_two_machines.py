"""Two workers on two machines: each rank has a cache of its own, and nothing else in common but the bucket."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gimp_ray.config import Config
from gimp_ray.config_files import build_config, load_config
from gimp_ray.engine.launch import Job, _go_through
from gimp_ray.engine.loop import Saving
from gimp_ray.engine.protocol import World
from gimp_ray.feed.batches import direct_batches
from gimp_ray.learn.predict import CohortWork
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.learn.supervise import Supervised
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights
from tests.object_storage.server import S3Server

pytestmark = pytest.mark.ray  # the slow tier: further processes import torch
TASKS: dict[str, Any] = {"genes": functools.partial(Supervised, stage="genes"), "pretrain": Pretraining}


def _rank(rank: int, port: int, attempts: list[dict[str, Any]], caches: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for number, config in enumerate(attempts):
        os.environ["GIMP_RAY_CACHE"] = f"{caches}/attempt-{number}-rank-{rank}"
        _all_stages(config, World(rank, 2))
    dist.destroy_process_group()


def _all_stages(tree: dict[str, Any], world: World) -> None:
    config = build_config(tree)
    run = RunFolder(config.run or "")
    jobs = [Job(stage, task, {"config": tree, "run": run.place}) for stage, task in TASKS.items()]
    given = {
        "config": tree,
        "model": run.place_of(run.model_file("pretrain")),
        "out": run.place_of(run.evaluation / "embeddings.parquet"),
        "parts": ["val"],
    }
    jobs.append(Job("embed", CohortWork, given, trains=False))

    def batches(job: Job, task: Any) -> Any:
        return lambda start: direct_batches(task, start, world.rank, world.size, 1)

    _go_through(jobs, run, Saving(), world, batches, None)


def on_two_machines(attempts: list[Config], caches: Path) -> None:
    """One attempt after the other, each on two machines that have nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    trees = [config.model_dump() for config in attempts]
    mp.start_processes(_rank, (port, trees, str(caches)), nprocs=2, start_method="spawn")


def test_machines_that_share_only_the_bucket_train_as_those_that_share_a_folder(
    store_path: Path, tmp_path: Path, bucket: str, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = load_config(None, {"store": str(store_path), "run": str(tmp_path / "run")}, base=TINY)
    remote = changed(local, run=f"{bucket}/runs/a")
    on_two_machines([local, changed(remote, train__stop_after=2), remote], tmp_path / "caches")
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "mine"))
    here, there = RunFolder(local.run or ""), RunFolder(remote.run or "")
    there.pull()
    for stage in TASKS:
        assert metrics(here, stage) == metrics(there, stage)
        assert same_weights(here.model_file(stage), there.model_file(stage))
    file = Path("evaluation") / "embeddings.parquet"
    assert (here.path / file).read_bytes() == (there.path / file).read_bytes()
    assert set(there.record()["stages"]) == {"genes", "pretrain", "embed"}
    # the second worker fetched what it began with, and wrote nothing of its own
    (copy,) = (file for file in (tmp_path / "caches" / "attempt-2-rank-1" / "runs").iterdir() if file.is_dir())
    found = {str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()}
    assert not any("metrics" in name or "evaluation" in name for name in found)
    assert sum(name.endswith("state.json") for name in found) == 1
