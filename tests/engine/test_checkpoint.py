"""Which checkpoints are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gimp_ray.engine.checkpoint import checkpoint_folders, load_checkpoint, read_state, save_checkpoint, snapshot


def save(folder: Path, step: int, keep: int) -> None:
    model = nn.Linear(2, 1)
    save_checkpoint(
        folder, step, snapshot(model, torch.optim.AdamW(model.parameters())), {"world_size": 1, "inputs": {}}, keep
    )


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (3, 6, 9, 12):
        save(tmp_path, step, keep)
    assert [folder.name[-2:] for folder in checkpoint_folders(tmp_path)] == ["03", "06", "09", "12"][-keep:]


def test_a_snapshot_is_what_was_trained_when_it_was_taken(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    for _ in range(2):
        taken = snapshot(model, optimizer)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    path = save_checkpoint(tmp_path, 1, taken, {"world_size": 1, "inputs": {}}, 1)
    load_checkpoint(path, read_state(path), model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(optimizer.state.values(), moments, strict=True))
