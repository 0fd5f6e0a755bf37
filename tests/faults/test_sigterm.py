"""SIGTERM: the run is saved, the exit code says so, and the same command goes on to the same bits."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine.checkpoint import latest_checkpoint
from gimp_ray.engine.stopping import EXIT_CODE, FLAG, asked, deferred, listening
from gimp_ray.runs.folder import LOCK, RunFolder
from tests.conftest import changed
from tests.engine.test_resume import metrics, same_weights
from tests.faults.running import started, wait_for_steps


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_asked_to_end_is_saved_at_its_step_and_goes_on(tiny: Config, tmp_path: Path, accumulate: int) -> None:
    config = changed(
        tiny, genes__encoder="none", train__epochs=60, train__accumulate=accumulate, checkpoint__every_epochs=60
    )
    run = RunFolder(config.run or "")
    with started("pretrain", config, tmp_path / "run.yaml") as process:
        wait_for_steps(process, run, "pretrain", 10)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == EXIT_CODE == 143, output
    assert "preempted: the run is saved" in output and "Traceback" not in output
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["preempted"]
    assert not (run.path / LOCK).exists() and not run.stage_done("pretrain")
    found = latest_checkpoint(run.checkpoints("pretrain"))
    assert found is not None and found[1]["step"] >= 10
    assert found[1]["position"] % found[1]["mini_batches"] % accumulate == 0
    pipeline.pretrain(config)
    whole = pipeline.pretrain(changed(config, run=str(tmp_path / "whole")))
    assert metrics(run, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(run.model_file("pretrain"), whole.model_file("pretrain"))


def test_outside_of_training_the_command_ends_on_the_spot() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, listening():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_does_not_wait_for_the_step() -> None:
    with listening():
        assert not asked()
        with pytest.raises(SystemExit), deferred():
            signal.raise_signal(signal.SIGTERM)
            assert asked()
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.ray
def test_on_ray_the_workers_save_and_the_same_command_goes_on(tiny: Config, tmp_path: Path) -> None:
    config = changed(
        tiny,
        genes__encoder="none",
        train__epochs=200,
        train__workers=1,
        checkpoint__every_epochs=200,
        train__use_gpu=False,
    )
    run = RunFolder(config.run or "")
    with started("pretrain", config, tmp_path / "run.yaml") as process:
        wait_for_steps(process, run, "pretrain", 10)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["preempted"]
    found = latest_checkpoint(run.checkpoints("pretrain"))
    assert found is not None and found[1]["step"] >= 10 and not (run.path / FLAG).exists()
    # without Ray: the same bits, and a start in a second
    pipeline.pretrain(changed(config, train__workers=0))
    whole = pipeline.pretrain(changed(config, train__workers=0, run=str(tmp_path / "whole")))
    assert same_weights(run.model_file("pretrain"), whole.model_file("pretrain"))
