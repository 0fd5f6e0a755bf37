"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all.

A checkpoint holds the model, the optimiser's moments, the position in the plan, running averages and the best
validation score, and nothing that depends on the number of workers. There is no random state in it: every mini-batch
seeds its draws from (seed, epoch, its number). Nothing here ever runs a pickle.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gimp_ray.errors import GimpError, InputError
from gimp_ray.runs.folder import read_json, whole_folder, write_json
from gimp_ray.runs.weights import part

log = logging.getLogger(__name__)
FORMAT = 3
STALE_SECONDS = 3600.0


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What is trained, copied to the host's memory, so that training may go on while it is written."""
    tensors = {f"model.{name}": _copied(value) for name, value in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": _copied(value) for key, value in moments.items()}
    return tensors


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write `folder/step-NNNNNNNN`, named by the optimiser steps done, and remove all but the newest `keep`."""
    target = folder / f"step-{step:08d}"
    with whole_folder(target) as aside:
        save_file(tensors, aside / "state.safetensors")
        write_json(aside / "state.json", {"format": FORMAT, "step": step, **state})
    for old in checkpoint_folders(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def remove_stale(folder: Path) -> None:
    """Remove what a killed process left half-written, once it is old enough to be nobody's any more."""
    for aside in folder.glob(".step-*") if folder.is_dir() else []:
        if time.time() - aside.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(aside, ignore_errors=True)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoints of a stage, oldest first."""
    return sorted(folder.glob("step-????????")) if folder.is_dir() else []


def latest_checkpoint(folder: Path, set_aside: bool = False) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state.

    Args:
        folder: the stage's checkpoints.
        set_aside: give damaged ones another name, and say so; for one process alone.

    Raises:
        GimpError: the newest whole checkpoint is of another format.
    """
    for path in reversed(checkpoint_folders(folder)):
        try:
            state = read_json(path / "state.json")
            with safe_open(path / "state.safetensors", framework="pt"):
                pass
        except (OSError, SafetensorError, InputError) as error:
            if set_aside:
                log.warning("checkpoint %s is damaged and set aside: %s", path, error)
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)  # one brought from object storage may come again
                path.rename(aside)
            continue
        if state.get("format") != FORMAT:
            raise GimpError(
                "the checkpoint was written by another version",
                file=path,
                expected=f"format {FORMAT}",
                found=f"format {state.get('format')}",
                fix="continue the run with the version that began it, or use a new run folder",
            )
        return path, state
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors into the model and the optimiser."""
    tensors = load_file(path / "state.safetensors")
    model.load_state_dict(part(tensors, "model"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part(tensors, "optimizer").items():
        number, key = name.split(".", 1)
        moments.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _copied(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
