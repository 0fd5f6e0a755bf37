"""Two ranks, without Ray: triplets over all workers are those of one worker with the whole batch, and accumulated
gradients travel once an optimiser step.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from gimp_ray import pipeline
from gimp_ray.config_files import build_config, load_config
from gimp_ray.engine import loop
from gimp_ray.engine.protocol import World
from gimp_ray.feed.batches import direct_batches
from gimp_ray.io.files import read_lines
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.nn.losses import gather_workers, triplet_loss
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights
from tests.conftest import TINY, changed

pytestmark = pytest.mark.ray  # the slow tier: two further processes import torch

LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 2, 1])
PATIENTS = torch.tensor([0, 1, 2, 3, 4, 0, 5, 6])
CASES = [(mining, average) for mining in ("batch_all", "batch_hard", "semi_hard") for average in ("active", "valid")]


def _linear() -> nn.Module:
    torch.manual_seed(5)
    return nn.Linear(6, 4).double()


def _step(model: nn.Module, rows: slice, mining: Any, average: Any, gather: bool) -> tuple[float, list[float]]:
    """A triplet loss on some of eight rows, beside a mean over rows as the masked patches are, and its gradient."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(6)).double()[rows]
    out = model(x)
    batch: tuple[Tensor, ...] = (out, LABELS[rows], PATIENTS[rows])
    # a worker's own copy of the labels must not stand in for what it gathers
    out_all, labels, patients = gather_workers(*batch) if gather else batch
    mined = triplet_loss(out_all, labels, mining=mining, average=average, patients_B=patients)
    (mined.loss + 0.1 * out.square().mean()).backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return mined.loss.item(), grads.tolist()


def _losses(rank: int, gather: bool) -> list[tuple[float, list[float]]]:
    rows = slice(4 * rank, 4 * rank + 4)
    return [_step(DistributedDataParallel(_linear()), rows, mining, average, gather) for mining, average in CASES]


def _unequal(rank: int) -> tuple[float, list[float]]:
    """Five rows on the first worker and three on the second, losses weighted as their cases are."""
    rows = slice(0, 5) if rank == 0 else slice(5, 8)
    model = DistributedDataParallel(_linear())
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(6)).double()[rows]
    out, labels, patients = gather_workers(model(x), LABELS[rows], PATIENTS[rows])
    mined = triplet_loss(out, labels, patients_B=patients)
    (mined.loss * (5 if rank == 0 else 3) / 4).backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return mined.loss.item(), grads.tolist()


def _train_counting(rank: int, size: int, config: dict[str, Any]) -> int:
    """Train the stage; how often gradients travelled."""
    synced = []
    as_it_is = loop._distribute

    def distribute(model: nn.Module, world: World, in_turn: bool) -> nn.Module:
        wrapped = as_it_is(model, world, in_turn)
        assert isinstance(wrapped, DistributedDataParallel)

        def hook(state, bucket):  # torch reads the annotations, and takes none or its own
            if bucket.is_last():
                synced.append(1)
            return allreduce_hook(dist.group.WORLD, bucket)  # averages, as without a hook

        wrapped.register_comm_hook(None, hook)
        return wrapped

    loop._distribute = distribute
    run = RunFolder(build_config(config).run or "")
    task = Pretraining(config, str(run.path))
    loop.train(task, World(rank, size), run, loop.Saving(), lambda start: direct_batches(task, start, rank, size, 1))
    loop._distribute = as_it_is
    return len(synced)


def _rank(rank: int, size: int, port: int, configs: list[dict[str, Any]], out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    found = {
        "global": _losses(rank, gather=True),
        "local": _losses(rank, gather=False),
        "unequal": _unequal(rank),
        "synced": [_train_counting(rank, size, config) for config in configs],
    }
    Path(f"{out}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Pre-training with two mini-batches an optimiser step: one worker with K = 4, two workers with K = 2."""
    folder = tmp_path_factory.mktemp("across")
    overrides = {"store": str(store_path), "model.dropout": 0, "genes.encoder": "none", "train.accumulate": 2}
    two = load_config(None, overrides, base=TINY)
    runs = {name: changed(two, run=str(folder / name), triplet__scope=name) for name in ("local", "global")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configs = [config.model_dump() for config in runs.values()]
    mp.start_processes(_rank, (2, port, configs, str(folder / "found")), nprocs=2, start_method="spawn")
    one = pipeline.pretrain(changed(two, run=str(folder / "one"), batch__cases_per_class=4, triplet__scope="global"))
    return {
        "one": one,
        **{name: RunFolder(config.run or "") for name, config in runs.items()},
        "ranks": [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)],
    }


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_loss_and_gradient_of_two_workers_are_those_of_one(runs: dict[str, Any], number: int) -> None:
    loss, grads = _step(_linear(), slice(0, 8), *CASES[number], gather=False)
    for rank in runs["ranks"]:
        assert rank["global"][number][0] == pytest.approx(loss, rel=1e-9)
        assert rank["global"][number][1] == pytest.approx(grads, rel=1e-9, abs=1e-12)
        assert rank["local"][number][1] != pytest.approx(grads, rel=1e-3), "so agreeing is not trivial"


def test_workers_may_have_different_numbers_of_cases(runs: dict[str, Any]) -> None:
    model = _linear()
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(6)).double()
    mined = triplet_loss(model(x), LABELS, patients_B=PATIENTS)
    mined.loss.backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).tolist()
    for rank in runs["ranks"]:
        assert rank["unequal"][0] == pytest.approx(mined.loss.item(), rel=1e-9)
        assert rank["unequal"][1] == pytest.approx(grads, rel=1e-9, abs=1e-12)


def figures(run: RunFolder, name: str) -> list[float]:
    return [line[name] for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]


@pytest.mark.parametrize("name", ["loss_tri", "loss_rec", "distance_positive", "distance_negative"])
def test_every_step_of_the_stage_agrees_with_one_worker(runs: dict[str, Any], name: str) -> None:
    one = figures(runs["one"], name)
    assert figures(runs["global"], name) == pytest.approx(one, rel=1e-5)
    assert len(one) > 2 and len(set(one)) > 1


def test_weights_of_the_stage_agree_with_one_worker(runs: dict[str, Any]) -> None:
    one, two, apart = (load_weights(runs[name].model_file("pretrain")) for name in ("one", "global", "local"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-5, msg=name)
    assert any(not torch.allclose(value, apart[name], rtol=1e-3, atol=1e-5) for name, value in one.items())


def test_gradients_travel_once_an_optimiser_step(runs: dict[str, Any]) -> None:
    updates = max(line["step"] for line in read_lines(runs["global"].metrics_log("pretrain")))
    assert updates > 2
    assert [rank["synced"] for rank in runs["ranks"]] == [[updates, updates]] * 2
