"""Losses that are not finite, memory that runs out, a disk that is full: what is said, and what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine import loop
from gimp_ray.engine.checkpoint import checkpoint_folders, latest_checkpoint
from gimp_ray.errors import GimpError, InputError
from gimp_ray.io.files import read_json, read_lines
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights
from tests.conftest import changed
from tests.engine.test_resume import metrics, same_weights
from tests.full_disk import files_of_at_most


@pytest.fixture
def images(tiny: Config) -> Config:
    return changed(tiny, genes__encoder="none")


def bad_at(monkeypatch: pytest.MonkeyPatch, *bad: int) -> None:
    """Make the loss of some mini-batches of pre-training, counted from 1 over the process, not a number."""
    loss, calls = Pretraining.loss, []

    def poisoned(self, model, batch):
        calls.append(1)
        total, parts = loss(self, model, batch)
        return (total * float("nan") if len(calls) in bad else total), parts

    monkeypatch.setattr(Pretraining, "loss", poisoned)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bad_steps_are_skipped_counted_and_named(
    images: Config, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    bad_at(monkeypatch, 3, 5)
    run = pipeline.pretrain(changed(images, train__skip_bad_batches=2, train__accumulate=accumulate))
    lines = read_lines(run.metrics_log("pretrain"))
    skipped = [line for line in lines if line["kind"] == "skipped"]
    assert [(line["step"], line["skipped"]) for line in skipped] == [(-(-3 // accumulate), 1), (-(-5 // accumulate), 2)]
    assert all(line["cases"] and all(0 <= case < 20 for case in line["cases"]) for line in skipped)
    # a step that was skipped has no figures, and the others have theirs
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert not {line["step"] for line in skipped} & set(steps) and steps
    assert read_json(run.model_card("pretrain"))["skipped_batches"] == 2
    assert all(torch.isfinite(value).all() for value in load_weights(run.model_file("pretrain")).values())


def test_one_more_than_may_be_skipped_stops_and_a_higher_number_goes_on(
    images: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(images, train__skip_bad_batches=1, checkpoint__every_steps=1)
    bad_at(monkeypatch, 2, 4)
    with pytest.raises(GimpError, match=r"the loss or gradient is not finite in stage 'pretrain'.* step 4") as refusal:
        pipeline.pretrain(config)
    assert "case numbers [" in str(refusal.value) and "after 1 skipped" in str(refusal.value)
    monkeypatch.undo()
    bad_at(monkeypatch, 1)
    run = pipeline.pretrain(changed(config, train__skip_bad_batches=2))
    assert read_json(run.model_card("pretrain"))["skipped_batches"] == 2, "the count is in the checkpoint"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_ran_out(images: Config, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_):
        raise error

    monkeypatch.setattr(Pretraining, "loss", full)
    with pytest.raises(GimpError, match="has not enough memory for stage 'pretrain'") as refusal:
        pipeline.pretrain(images)
    assert all(knob in (refusal.value.fix or "") for knob in ("window.length", "batch.cases_per_class", "bf16"))


def test_other_errors_stay_what_they_are(images: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Pretraining, "loss", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        pipeline.pretrain(images)


def test_a_disk_that_is_full_leaves_the_last_checkpoint(images: Config, tmp_path: Path) -> None:
    run = RunFolder(images.run or "")
    pipeline.pretrain(changed(images, train__stop_after=1))
    (before,) = checkpoint_folders(run.checkpoints("pretrain"))
    content = {file.name: file.read_bytes() for file in before.iterdir()}
    weights = (before / "state.safetensors").stat().st_size
    for size in (weights - 100, 8000):
        with files_of_at_most(size), pytest.raises(InputError, match="the run folder cannot be written") as refusal:
            pipeline.pretrain(images)
        assert "free space" in (refusal.value.fix or "") and "File too large" in (refusal.value.found or "")
        assert {file.name: file.read_bytes() for file in before.iterdir()} == content
        assert [path.name for path in run.checkpoints("pretrain").iterdir()] == [before.name]
    pipeline.pretrain(images)
    whole = pipeline.pretrain(changed(images, run=str(tmp_path / "whole")))
    assert metrics(run, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(run.model_file("pretrain"), whole.model_file("pretrain"))


def test_a_disk_that_is_full_from_the_start(images: Config) -> None:
    with files_of_at_most(0), pytest.raises(InputError, match="the run folder cannot be written"):
        pipeline.pretrain(images)
    assert not Path(images.run or "").exists()


def test_checkpoints_by_the_clock(images: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes on by 40 s a step, every second step is saved where a minute is asked for."""
    seconds = iter(range(0, 10**6, 40))
    late, now = loop._late, [0.0]

    def ticking(stage) -> bool:
        now[0] = float(next(seconds)) + 40
        return late(stage)

    monkeypatch.setattr(loop, "_late", ticking)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    run = pipeline.pretrain(
        changed(images, checkpoint__every_minutes=1.0, checkpoint__every_epochs=99, checkpoint__keep=99)
    )
    monkeypatch.undo()
    steps = [int(folder.name.removeprefix("step-")) for folder in checkpoint_folders(run.checkpoints("pretrain"))]
    assert len(steps) > 2 and steps[:2] == [2, 4]
    found = latest_checkpoint(run.checkpoints("pretrain"))
    assert found is not None and found[1]["epoch"] == 3
