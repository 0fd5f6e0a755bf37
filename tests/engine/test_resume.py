"""A run that was stopped and continued is the run that was not: same metrics, same weights, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine.checkpoint import checkpoint_folders, latest_checkpoint
from gimp_ray.errors import ConfigError, GimpError
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights
from tests.conftest import changed

TIMES = {"time", "seconds", "data_wait", "cases_per_s", "eta"}


def metrics(run: RunFolder, stage: str) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key not in TIMES} for line in read_lines(run.metrics_log(stage))
    ]


def same_weights(a: Path, b: Path) -> bool:
    one, two = load_weights(a), load_weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Every stage in one go."""
    from gimp_ray.config_files import load_config
    from tests.conftest import TINY

    return pipeline.run_all(
        load_config(None, {"store": str(store_path), "run": str(tmp_path_factory.mktemp("whole") / "run")}, base=TINY)
    )


@pytest.mark.parametrize("stage", ["genes", "pretrain", "finetune"])
@pytest.mark.parametrize("after", [1, 2])
def test_stopped_after_an_epoch_and_continued(tiny: Config, whole: RunFolder, stage: str, after: int) -> None:
    key = "train__stop_after" if stage == "pretrain" else f"{stage}__train__stop_after"
    run = pipeline.run_all(changed(tiny, **{key: after}))
    assert not run.stage_done(stage)
    assert {line["epoch"] for line in read_lines(run.metrics_log(stage))} == set(range(after))
    pipeline.run_all(tiny)
    for name in ("genes", "pretrain", "finetune"):
        assert metrics(run, name) == metrics(whole, name)
        assert same_weights(run.model_file(name), whole.model_file(name))
    assert (run.path / "evaluation" / "metrics.json").read_text() == (
        whole.path / "evaluation" / "metrics.json"
    ).read_text()


def test_continued_in_the_middle_of_an_epoch(tiny: Config, whole: RunFolder, tmp_path: Path) -> None:
    """A run that died between two checkpoints goes on from the last one; what came after it is done again."""
    every = changed(tiny, checkpoint__every_steps=1, checkpoint__keep=99)
    first = pipeline.pretrain(every)
    folders = checkpoint_folders(first.checkpoints("pretrain"))
    steps = [int(folder.name.removeprefix("step-")) for folder in folders]
    per_epoch = json.loads((folders[0] / "state.json").read_text())["mini_batches"]
    middle = [step for step in steps if step % per_epoch][2]
    for folder, step in zip(folders, steps, strict=True):
        if step > middle:
            shutil.rmtree(folder)
    first.model_file("pretrain").unlink()
    pipeline.pretrain(every)
    assert metrics(first, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(first.model_file("pretrain"), whole.model_file("pretrain"))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tiny: Config, whole: RunFolder) -> None:
    run = pipeline.pretrain(changed(tiny, train__stop_after=2))
    newest = checkpoint_folders(run.checkpoints("pretrain"))[-1]
    torn = newest / "state.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    pipeline.pretrain(tiny)
    assert (newest.parent / f"damaged-{newest.name}").is_dir()
    assert metrics(run, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(run.model_file("pretrain"), whole.model_file("pretrain"))


def test_only_the_newest_checkpoints_are_kept(tiny: Config) -> None:
    run = pipeline.pretrain_genes(changed(tiny, checkpoint__keep=1))
    assert len(checkpoint_folders(run.checkpoints("genes"))) == 1
    found = latest_checkpoint(run.checkpoints("genes"))
    assert found is not None and found[1]["epoch"] == 3


def test_a_finished_run_is_left_as_it_is(tiny: Config) -> None:
    run = pipeline.pretrain(tiny)
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*.safetensors")}
    pipeline.pretrain(tiny)
    assert {file: file.stat().st_mtime_ns for file in run.path.rglob("*.safetensors")} == before


def test_a_run_folder_refuses_other_settings(tiny: Config) -> None:
    pipeline.pretrain(changed(tiny, train__stop_after=1))
    with pytest.raises(ConfigError, match=r"mask\.ratio") as refusal:
        pipeline.pretrain(changed(tiny, mask__ratio=0.25))
    assert (refusal.value.expected, refusal.value.found) == ("0.5", "0.25")


def test_a_run_folder_may_go_on_with_another_number_of_workers_threads_or_reads(tiny: Config) -> None:
    pipeline.pretrain(changed(tiny, train__stop_after=1))
    run = pipeline.pretrain(changed(tiny, feed__ahead=3, feed__threads=2, checkpoint__keep=3))
    assert run.stage_done("pretrain")


def test_a_loss_that_is_not_finite_stops_with_its_place_named(tiny: Config) -> None:
    with pytest.raises(GimpError, match=r"stage 'pretrain', epoch 1, step \d") as refusal:
        pipeline.pretrain(changed(tiny, train__lr=1e30, train__clip_norm=0, train__warmup=0))
    assert "case numbers" in str(refusal.value) and "train.lr" in str(refusal.value)
    assert RunFolder(tiny.run or "").record()["attempts"][-1]["status"].startswith("failed: GimpError")


def test_a_setting_that_a_begun_stage_inherits_is_refused_too(tiny: Config) -> None:
    pipeline.pretrain_genes(changed(tiny, genes__train__stop_after=1))
    with pytest.raises(ConfigError, match=r"train\.accumulate"):
        pipeline.pretrain_genes(changed(tiny, train__accumulate=2))
    # what only a later stage uses may still change
    assert pipeline.pretrain_genes(changed(tiny, mask__ratio=0.3)).stage_done("genes")


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(
    tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gimp_ray.engine import loop

    clip, calls = loop._clip, []

    def poisoned(stage):
        calls.append(1)
        return clip(stage) * (float("inf") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(loop, "_clip", poisoned)
    with pytest.raises(GimpError, match=r"the gradient is not finite in stage 'pretrain', epoch 2, step 4"):
        pipeline.pretrain(changed(tiny, genes__encoder="none", checkpoint__every_steps=1))
    monkeypatch.undo()
    run = pipeline.pretrain(changed(tiny, genes__encoder="none", checkpoint__every_steps=1))
    assert all(torch.isfinite(value).all() for value in load_weights(run.model_file("pretrain")).values())


def test_the_best_epochs_weights_are_the_checkpoints_own(tiny: Config, whole: RunFolder) -> None:
    """A better epoch after the last checkpoint leaves the weights the checkpoint means alone."""
    run = pipeline.pretrain_genes(changed(tiny, genes__train__stop_after=2, checkpoint__every_epochs=2))
    found = latest_checkpoint(run.checkpoints("genes"))
    assert found is not None
    kept = run.stage("genes") / f"best-epoch-{found[1]['best_epoch']:04d}.safetensors"
    assert [file.name for file in run.stage("genes").glob("best-epoch-*")] == [kept.name]
    before = kept.read_bytes()
    (run.stage("genes") / "best-epoch-0009.safetensors").write_bytes(b"of an epoch that was lost")
    pipeline.pretrain_genes(changed(tiny, checkpoint__every_epochs=2))
    assert same_weights(run.model_file("genes"), whole.model_file("genes"))
    assert not kept.exists() or kept.read_bytes() == before
    assert not (run.stage("genes") / "best-epoch-0009.safetensors").exists()


def test_a_checkpoint_of_another_version_is_refused_and_left_alone(tiny: Config) -> None:
    run = pipeline.pretrain_genes(changed(tiny, genes__train__stop_after=1))
    (newest,) = checkpoint_folders(run.checkpoints("genes"))
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(GimpError, match="another version"):
        pipeline.pretrain_genes(tiny)
    assert newest.is_dir()
