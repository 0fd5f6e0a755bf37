"""Two ranks, of which one alone meets a loss that is not finite, or one alone is asked to end: both do the same."""

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

from gimp_ray.config import Config
from gimp_ray.config_files import build_config, load_config
from gimp_ray.engine import stopping
from gimp_ray.engine.checkpoint import latest_checkpoint
from gimp_ray.engine.loop import Saving, train
from gimp_ray.engine.protocol import World
from gimp_ray.errors import GimpError
from gimp_ray.feed.batches import direct_batches
from gimp_ray.io.files import read_json, read_lines
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights

pytestmark = pytest.mark.ray  # the slow tier: two further processes import torch
SIZE = 2
FAULTY, AT = 1, 3  # on which rank something happens, in its which mini-batch


class Disturbed(Pretraining):
    """Pre-training with a fault in one mini-batch of a process."""

    fault: str | None = None
    seen = 0

    def loss(self, model: Any, batch: Any) -> Any:
        self.seen += 1
        loss, parts = super().loss(model, batch)
        if self.seen == AT and self.fault == "nan":
            return loss * float("nan"), parts
        if self.seen == AT and self.fault == "asked":
            stopping._asked.set()
        return loss, parts


def _train(rank: int, config: dict[str, Any], fault: str | None) -> dict[str, Any]:
    """One rank's part of a stage: how it ended, and what its weights are then."""
    run, kept = RunFolder(build_config(config).run or ""), {}
    task = Disturbed(config, str(run.path))
    task.fault = fault if rank == FAULTY else None
    build = task.build

    def keeping(device: torch.device) -> Any:
        kept["model"] = build(device)
        return kept["model"]

    task.build = keeping  # type: ignore[method-assign]
    stopping._asked.clear()
    try:
        ended = train(
            task,
            World(rank, SIZE),
            run,
            Saving(every_epochs=99),
            lambda start: direct_batches(task, start, rank, SIZE, 1),
        )
    except GimpError as error:
        ended = error.what
    stopping._asked.clear()
    total = sum(float(value.double().abs().sum()) for value in kept["model"].state_dict().values())
    return {"ended": ended, "weights": total.hex(), "mini_batches": task.seen}


def _rank(rank: int, port: int, jobs: list[tuple[dict[str, Any], str | None]], out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=SIZE)
    Path(f"{out}-{rank}.json").write_text(json.dumps([_train(rank, config, fault) for config, fault in jobs]))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name of a run -> its folder, and what each rank says of it."""
    folder = tmp_path_factory.mktemp("ranks")
    base = load_config(None, {"store": str(store_path), "genes.encoder": "none"}, base=TINY)

    def named(name: str, **more: Any) -> Config:
        return changed(base, run=str(folder / name), **more)

    skipping = named("skipped", train__skip_bad_batches=1)
    jobs = {
        "whole": (named("whole"), None),
        "skipped": (skipping, "nan"),
        "refused": (named("refused"), "nan"),
        "asked": (named("asked"), "asked"),
        "continued": (named("asked"), None),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listed = [(config.model_dump(), fault) for config, fault in jobs.values()]
    mp.start_processes(_rank, (port, listed, str(folder / "said")), nprocs=SIZE, start_method="spawn")
    said = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(SIZE)]
    return {
        name: (RunFolder(config.run or ""), [said[rank][number] for rank in range(SIZE)])
        for number, (name, (config, _)) in enumerate(jobs.items())
    }


def test_both_skip_a_step_that_is_bad_on_one_and_it_is_counted_once(ranks: dict[str, Any]) -> None:
    run, said = ranks["skipped"]
    assert [one["ended"] for one in said] == ["done", "done"]
    assert said[0]["weights"] == said[1]["weights"] != ranks["whole"][1][0]["weights"]
    skipped = [line for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "skipped"]
    assert [(line["step"], line["skipped"]) for line in skipped] == [(AT, 1)]
    assert read_json(run.model_card("pretrain"))["skipped_batches"] == 1


def test_both_refuse_before_the_weights_are_touched(ranks: dict[str, Any]) -> None:
    run, said = ranks["refused"]
    assert "the loss is not finite in stage 'pretrain'" in said[FAULTY]["ended"]
    assert "the gradient is not finite in stage 'pretrain'" in said[0]["ended"]
    for rank, one in enumerate(said):
        assert f"step {AT}, rank {rank}" in one["ended"] and one["mini_batches"] == AT
    assert said[0]["weights"] == said[1]["weights"] and not run.stage_done("pretrain")


def test_both_save_at_the_step_at_which_one_is_asked_to_end_and_go_on_to_the_same_bits(ranks: dict[str, Any]) -> None:
    run, said = ranks["asked"]
    assert [(one["ended"], one["mini_batches"]) for one in said] == [("preempted", AT)] * 2
    found = latest_checkpoint(run.checkpoints("pretrain"))
    assert found is not None and found[1]["step"] > AT, "it went on from there"
    _, continued = ranks["continued"]
    whole, undisturbed = ranks["whole"]
    assert [one["ended"] for one in continued] == ["done", "done"]
    assert continued[0]["mini_batches"] == undisturbed[0]["mini_batches"] - AT
    assert metrics(run, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(run.model_file("pretrain"), whole.model_file("pretrain"))
