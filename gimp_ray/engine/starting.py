"""Where a stage goes on: at the position of its newest whole checkpoint, whatever number of workers wrote it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gimp_ray.engine.checkpoint import latest_checkpoint, remove_stale
from gimp_ray.engine.protocol import TrainTask, World
from gimp_ray.runs.folder import RunFolder


@dataclass(frozen=True)
class Start:
    """Where a stage goes on.

    Attributes:
        position: mini-batches that are done, over all epochs and ranks.
        step: optimiser steps that are done.
        path: the checkpoint, None at the beginning.
        state: what it holds besides tensors.
    """

    position: int = 0
    step: int = 0
    path: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)


def find_start(stage: str, run: RunFolder, set_aside: bool = False) -> Start:
    """Where the checkpoints here say a stage goes on.

    Args:
        stage: its name.
        run: the run folder.
        set_aside: give damaged checkpoints another name; for one process alone.
    """
    found = latest_checkpoint(run.checkpoints(stage), set_aside)
    if found is None:
        return Start()
    path, state = found
    return Start(state["position"], state["step"], path, state)


def agreed_start(task: TrainTask, run: RunFolder, world: World) -> Start:
    """Where all ranks go on: rank 0 looks, and says."""
    agreed: list[Start | None] = [None]
    if world.rank == 0:
        run.pull_stage(task.name)
        remove_stale(run.checkpoints(task.name))
        agreed = [find_start(task.name, run, set_aside=True)]
    if world.size > 1:
        dist.broadcast_object_list(agreed, device=world.device if world.device.type == "cuda" else None)
    start = agreed[0]
    assert start is not None
    if start.path is not None and world.rank != 0:
        # of a run in object storage each machine has a copy of its own
        run.pull_checkpoint(task.name, start.path.name)
        start = replace(start, path=run.checkpoints(task.name) / start.path.name)
    return start
