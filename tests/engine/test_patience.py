"""A stage with `patience` ends early, keeps the best epoch, and is done whichever way it came there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine.checkpoint import checkpoint_folders
from gimp_ray.io.files import read_json, read_lines
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights
from tests.conftest import changed

EPOCHS, PATIENCE = 12, 2
TRAIN = {"epochs": EPOCHS, "lr": 3e-2}


@pytest.fixture
def method(tiny: Config) -> Config:
    """A quick method whose rate is too high, so that its best epoch comes early."""
    return changed(
        tiny,
        method__name="mean_pool",
        method__options={"hidden": [8]},
        method__train=TRAIN,
        finetune__select="loss",
        checkpoint__every_epochs=1,
        checkpoint__keep=99,
    )


def epochs_of(run: RunFolder) -> list[int]:
    return [line["epoch"] for line in read_lines(run.metrics_log("finetune")) if line["kind"] == "epoch"]


def best_of(run: RunFolder) -> int:
    return int(read_json(run.model_card("finetune"))["best_epoch"])


def ends_after(whole: RunFolder, patience: int, at_least: int = 0) -> int:
    """Epochs after which a stage is to end, from the figures of one that had them all."""
    lines = [line for line in read_lines(whole.metrics_log("finetune")) if line["kind"] == "validation"]
    best = 0
    for line in lines:
        now = line["epoch"]
        if line["loss"] < lines[best]["loss"]:
            best = now
        if now + 1 >= at_least and now - best >= patience:
            return now + 1
    return len(lines)


def same_weights(one: RunFolder, other: RunFolder) -> bool:
    a, b = (load_weights(run.model_file("finetune")) for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def patient(method: Config, folder: Path, **more: int) -> Config:
    return changed(method, run=str(folder), method__train=TRAIN | {"patience": PATIENCE} | more)


def test_it_ends_when_no_epoch_was_better_and_keeps_the_best(
    method: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = pipeline.finetune(method)
    assert len(epochs_of(whole)) == EPOCHS and "ended_after" not in read_json(whole.model_card("finetune"))
    capfd.readouterr()
    wanted = ends_after(whole, PATIENCE)
    assert wanted < EPOCHS, "the cohort has a best epoch to find"
    run = pipeline.finetune(patient(method, tmp_path / "patient"))
    assert run.stage_done("finetune") and epochs_of(run) == list(range(wanted))
    assert best_of(run) == wanted - 1 - PATIENCE and read_json(run.model_card("finetune"))["ended_after"] == wanted
    assert f"ended after {wanted} of {EPOCHS} epochs" in capfd.readouterr().out
    later = pipeline.finetune(patient(method, tmp_path / "later", min_epochs=wanted + 1))
    assert len(epochs_of(later)) == ends_after(whole, PATIENCE, wanted + 1) > wanted


def test_killed_or_stopped_anywhere_it_ends_at_the_same_epoch(method: Config, tmp_path: Path) -> None:
    run = pipeline.finetune(patient(method, tmp_path / "run"))
    ended = len(epochs_of(run))
    stopped = patient(method, tmp_path / "stopped")
    pipeline.finetune(changed(stopped, method__train=TRAIN | {"patience": PATIENCE, "stop_after": ended - 1}))
    other = pipeline.finetune(stopped)
    assert epochs_of(other) == epochs_of(run) and same_weights(run, other)
    # killed after its last checkpoint, before the model was written
    other.model_file("finetune").unlink()
    before = checkpoint_folders(other.checkpoints("finetune"))
    pipeline.finetune(stopped)
    assert checkpoint_folders(other.checkpoints("finetune")) == before and same_weights(run, other)
    assert best_of(other) == best_of(run)


def test_a_stage_without_validation_trains_all_its_epochs(tiny: Config) -> None:
    run = pipeline.pretrain(changed(tiny, genes__encoder="none", train__patience=1))
    epochs = [line["epoch"] for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "epoch"]
    assert epochs == [0, 1, 2] and run.stage_done("pretrain")
