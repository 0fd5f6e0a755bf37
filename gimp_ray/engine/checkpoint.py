"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all, and where a stage goes on from them.

A checkpoint holds the model, the optimiser's moments, the position in the plan, running averages and the best
validation score, and nothing that depends on the number of workers. There is no random state in it: every mini-batch
seeds its draws from (seed, epoch, its number). `state.json` says what the stage was made from, has the SHA-256 of the
tensors and of the best epoch's weights, and a checksum of its own, so that what was changed since is found.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from gimp_ray.engine.protocol import TrainTask, World
from gimp_ray.errors import GimpError, InputError
from gimp_ray.io.files import read_json, whole_folder, write_json
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import (
    Inputs,
    changed_inputs,
    digest_of,
    load_weights,
    part,
    read_checked,
    refuse_changed,
    sha256_of,
    with_checksum,
)

FORMAT = 4
STALE_SECONDS = 3600.0
State = dict[str, Any]


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
    state: State = field(default_factory=dict)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What is trained, copied to the host's memory, so that training may go on while it is written."""
    tensors = {f"model.{name}": _copied(value) for name, value in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": _copied(value) for key, value in moments.items()}
    return tensors


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: State, keep: int) -> Path:
    """Write `folder/step-NNNNNNNN`, named by the optimiser steps done, and remove all but the newest `keep`.

    `state` has the stage's `inputs`.
    """
    target = folder / f"step-{step:08d}"
    with whole_folder(target) as aside:
        save_file(tensors, aside / "state.safetensors")
        proof = {"digest": digest_of(state["inputs"]), "tensors_sha256": sha256_of(aside / "state.safetensors")}
        write_json(aside / "state.json", with_checksum({"format": FORMAT, "step": step, **state, **proof}))
    for old in checkpoint_folders(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def remove_stale(folder: Path) -> None:
    """Remove what a killed process left half-written, once it is an hour old."""
    for aside in folder.glob(".step-*") if folder.is_dir() else []:
        if time.time() - aside.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(aside, ignore_errors=True)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoints of a stage, oldest first."""
    return sorted(folder.glob("step-????????")) if folder.is_dir() else []


def best_file(stage: Path, epoch: int) -> Path:
    """Weights of a best epoch in a stage's folder; named by the epoch, so that they and a checkpoint stay together."""
    return stage / f"best-epoch-{epoch:04d}.safetensors"


def read_state(path: Path) -> State:
    """What a checkpoint holds besides tensors; these are not read.

    Raises:
        GimpError: it is of another format.
        InputError: it was changed since it was written.
    """
    file = path / "state.json"
    tree = read_json(file) if file.exists() else None
    if isinstance(tree, dict) and isinstance(tree.get("format"), int) and tree["format"] != FORMAT:
        raise GimpError(
            "the checkpoint was written by another version",
            file=path,
            expected=f"format {FORMAT}",
            found=f"format {tree['format']}",
            fix="continue the run with the version that began it, or use a new run folder",
        )
    state = read_checked(file)
    if path.name != f"step-{state['step']:08d}":
        raise InputError("the checkpoint is of another step", file=path, found=f"step {state['step']}")
    return state


def latest_checkpoint(
    folder: Path, inputs: Inputs | None = None, set_aside: bool = False, files: Mapping[str, str] | None = None
) -> tuple[Path, State] | None:
    """The newest whole checkpoint and its state.

    Args:
        folder: the stage's checkpoints.
        inputs: what the stage is made from; one made from something else is passed over. None takes any.
        set_aside: give those that are passed over another name, and say so; for one process alone.
        files: paths of the files that the stage starts from, for the message.

    Raises:
        ConfigError, InputError: there are some, and all were made from something else, or are damaged.
        GimpError: the newest one is of another format.
    """
    passed: dict[Path, Exception] = {}
    other: State | None = None
    found: tuple[Path, State] | None = None
    for path in reversed(checkpoint_folders(folder)):
        try:
            state = read_state(path)
            if inputs is not None and changed_inputs(state["inputs"], inputs):
                other = other or state
                raise InputError("it is of another run, or of other settings")
            _verify(path, state)
            found = path, state
            break
        except (OSError, InputError) as error:
            passed[path] = error
    if found is None and inputs is not None and other is not None:
        refuse_changed(other["inputs"], inputs, str(folder.parents[1]), files)
    # one that lacks a file was cut off on its way to object storage
    damaged = [path for path, why in passed.items() if not isinstance(why, FileNotFoundError)]
    if found is None and damaged:
        raise InputError(
            "no checkpoint of the stage is whole",
            file=damaged[0],
            found=_in_a_line(passed[damaged[0]]),
            fix=f"bring one back from a copy, or remove {folder} to begin the stage anew",
        )
    for path, why in passed.items() if set_aside else ():
        aside = path.with_name(f"damaged-{path.name}")
        print(f"note: checkpoint {path} is set aside as {aside.name}: {_in_a_line(why)}", flush=True)
        shutil.rmtree(aside, ignore_errors=True)  # one brought from object storage may come again
        path.rename(aside)
    return found


def load_checkpoint(path: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors into the model and the optimiser.

    Raises:
        InputError: they are not those that were written.
    """
    tensors = load_weights(path / "state.safetensors", state["tensors_sha256"])
    model.load_state_dict(part(tensors, "model"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part(tensors, "optimizer").items():
        number, key = name.split(".", 1)
        moments.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def adopt_checkpoint(folder: Path, inputs: Inputs) -> None:
    """Let a stage go on from a checkpoint that was made with other settings, as a search over schedules wants it."""
    found = latest_checkpoint(folder)
    if found is not None:
        path, state = found
        del state["checksum"]
        write_json(path / "state.json", with_checksum(state | {"inputs": inputs, "digest": digest_of(inputs)}))


def find_start(stage: str, inputs: Inputs, run: RunFolder, set_aside: bool = False) -> Start:
    """Where the checkpoints here say a stage goes on; arguments as `latest_checkpoint`."""
    found = latest_checkpoint(run.checkpoints(stage), inputs, set_aside)
    if found is None:
        return Start()
    path, state = found
    return Start(state["position"], state["step"], path, state)


def agreed_start(task: TrainTask, run: RunFolder, world: World) -> Start:
    """Where all ranks go on, whatever number of workers wrote the checkpoint: rank 0 looks, and tells the others."""
    agreed: list[Start | None] = [None]
    if world.rank == 0:
        run.pull_stage(task.name)
        remove_stale(run.checkpoints(task.name))
        agreed = [find_start(task.name, task.inputs, run, set_aside=True)]
    if world.size > 1:
        dist.broadcast_object_list(agreed, device=world.device if world.device.type == "cuda" else None)
    start = agreed[0]
    assert start is not None
    if start.path is not None and world.rank != 0:
        # of a run in object storage each machine has a copy of its own
        run.pull_checkpoint(task.name, start.path.name)
        start = replace(start, path=run.checkpoints(task.name) / start.path.name)
    return start


def _verify(path: Path, state: State) -> None:
    """Refuse a checkpoint whose tensors, or the best epoch's weights that it means, are not what was written.

    Raises:
        InputError, OSError: says which.
    """
    files = {path / "state.safetensors": state["tensors_sha256"]}
    if state.get("best_epoch") is not None:
        files[best_file(path.parents[1], state["best_epoch"])] = state["best_sha256"]
    for file, expected in files.items():
        found = sha256_of(file)
        if found != expected:
            raise InputError(
                f"{file.name} is damaged", file=file, expected=f"SHA-256 {expected}", found=f"SHA-256 {found}"
            )


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _copied(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
