"""Which checkpoints are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gimp_ray.engine.checkpoint import checkpoint_folders, latest_checkpoint, save_checkpoint


def save(folder: Path, step: int, keep: int) -> None:
    model = nn.Linear(2, 1)
    save_checkpoint(folder, step, model, torch.optim.AdamW(model.parameters()), {"world_size": 1}, keep)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (3, 6, 9, 12):
        save(tmp_path, step, keep)
    assert [folder.name[-2:] for folder in checkpoint_folders(tmp_path)] == ["03", "06", "09", "12"][-keep:]


def test_with_more_workers_steps_have_lower_numbers_and_the_newest_is_still_the_last_written(tmp_path: Path) -> None:
    save(tmp_path, 6, 2)
    save(tmp_path, 8, 2)
    save(tmp_path, 5, 2)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 5
    save(tmp_path, 6, 2)
    assert [folder.name[-1] for folder in checkpoint_folders(tmp_path)] == ["5", "6"]
