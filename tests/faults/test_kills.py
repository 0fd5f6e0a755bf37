"""Two commands on one run folder, and a command that was killed: the next one of its kind does as if nothing was."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.errors import InputError
from gimp_ray.run_folder import LOCK, RunFolder
from tests.conftest import changed
from tests.engine.test_resume import metrics, same_weights
from tests.faults.running import started, wait_for_steps


@pytest.fixture
def long(tiny: Config) -> Config:
    """Pre-training of many short epochs, a checkpoint each."""
    return changed(tiny, genes__encoder="none", train__epochs=40, checkpoint__every_epochs=3)


def test_a_second_command_is_refused_and_a_killed_ones_lock_taken_over(long: Config, tmp_path: Path) -> None:
    run = RunFolder(long.run or "")
    with started("pretrain", long, tmp_path / "run.yaml") as first:
        wait_for_steps(first, run, "pretrain", 20)
        first.send_signal(signal.SIGSTOP)
        before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        with pytest.raises(InputError, match="another command is at work on this run") as refusal:
            pipeline.pretrain(long)
        assert f"process {first.pid} on this machine, since 20" in (refusal.value.found or "")
        assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before
        first.kill()
        first.wait()
    assert (run.path / LOCK).exists()
    pipeline.pretrain(long)
    assert not (run.path / LOCK).exists()
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["running", "done"]
    whole = pipeline.pretrain(changed(long, run=str(tmp_path / "whole")))
    assert metrics(run, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(run.model_file("pretrain"), whole.model_file("pretrain"))


@pytest.mark.parametrize("lock", ["{", json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0, "since": "today"})])
def test_a_lock_of_another_machine_or_one_that_cannot_be_read_is_respected(tiny: Config, lock: str) -> None:
    run = RunFolder(tiny.run or "")
    run.path.mkdir()
    (run.path / LOCK).write_text(lock)
    with pytest.raises(InputError, match="another command is at work") as refusal:
        pipeline.pretrain(tiny)
    assert LOCK in (refusal.value.fix or "") and [file.name for file in run.path.iterdir()] == [LOCK]
