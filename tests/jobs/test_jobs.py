"""Every file of `jobs/` through `ray job submit` on a head with its dashboard: done, refused, killed, stopped, resumed.

A job with workers costs 30 to 50 s, so one run goes through all of them, and is disturbed on its way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import load_config, to_yaml
from gimp_ray.engine.checkpoint import latest_checkpoint
from gimp_ray.runs.folder import LOCK, RunFolder
from gimp_ray.store import CohortStore
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights
from tests.faults.running import steps_logged
from tests.jobs.head import ENDED, PATIENCE_S, ROOT, Head, head_started

# the jobs' time in all is minutes where others use the machine
pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]

# long enough for `ray job stop` to come in time, short enough to be made twice
EPOCHS, CHECKPOINT_EPOCHS, STEPS = 300, 10, 60


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Jobs have two minutes between `ray job stop` and SIGKILL, as in the deployments."""
    with head_started(RAY_JOB_STOP_WAIT_TIME_S="120", RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0") as started:
        yield started


@dataclass
class Seen:
    """A job that was disturbed, and what it left in the run folder."""

    job: dict[str, Any]
    printed: str
    steps: int
    checkpoint: int
    locked: bool


@dataclass
class Went:
    """A run that went through the jobs of its stages, pre-training killed once and stopped once."""

    config: Config
    run: RunFolder
    killed: Seen
    stopped: Seen
    printed: dict[str, str]


@pytest.fixture(scope="module")
def went(head: Head, store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Went:
    folder = tmp_path_factory.mktemp("jobs")
    tree = {
        "store": str(store_path),
        "run": str(folder / "run"),
        "train.workers": 1,
        "train.use_gpu": False,
        "train.epochs": EPOCHS,
        "checkpoint.every_epochs": CHECKPOINT_EPOCHS,
    }
    config = load_config(None, tree, base=TINY)
    file, run = folder / "run.yaml", RunFolder(config.run or "")
    file.write_text(to_yaml(config))
    printed = {}

    head.submit("genes", "pretrain_genes.py", "--config", file)
    printed["genes"] = head.succeeded("genes")
    killed = _disturbed(head, head.kill, "killed", file, run, {"RAY_JOB_STOP_WAIT_TIME_S": "0"})
    stopped = _disturbed(head, head.stop, "stopped", file, run)
    head.submit("resumed", "pretrain.py", "--config", file)
    printed["resumed"] = head.succeeded("resumed")
    for verb in ("finetune", "evaluate"):
        head.submit(verb, f"{verb}.py", "--run", run.path)
        printed[verb] = head.succeeded(verb)
    return Went(config, run, killed, stopped, printed)


def _disturbed(
    head: Head, stop: Callable[[str], None], name: str, file: Path, run: RunFolder, env: dict[str, str] | None = None
) -> Seen:
    """Pre-training as a job, stopped once it is past a checkpoint more than before."""
    before = steps_logged(run, "pretrain")
    head.submit(name, "pretrain.py", "--config", file, env=env)
    until = time.monotonic() + PATIENCE_S
    while steps_logged(run, "pretrain") < before + STEPS:
        assert head.job(name)["status"] not in ENDED and time.monotonic() < until, head.logs(name)
        time.sleep(0.1)
    stop(name)
    job = head.ended(name)
    head.wait_for_workers_to_go()
    found = latest_checkpoint(run.checkpoints("pretrain"))
    return Seen(
        job,
        head.logs(name),
        steps_logged(run, "pretrain"),
        found[1]["step"] if found else 0,
        (run.path / LOCK).exists(),
    )


def test_a_job_without_grace_is_killed_and_leaves_its_last_checkpoint_and_its_lock(went: Went) -> None:
    assert went.killed.job["status"] == "STOPPED" and went.killed.locked
    assert "preempted" not in went.killed.printed
    per_epoch = steps_logged(went.run, "pretrain") // EPOCHS
    assert went.killed.checkpoint > 0 and went.killed.checkpoint % (CHECKPOINT_EPOCHS * per_epoch) == 0


def test_a_stopped_job_is_saved_at_its_step(went: Went) -> None:
    assert went.stopped.job["status"] == "STOPPED" and not went.stopped.locked
    assert "preempted: the run is saved, and the same command goes on" in went.stopped.printed
    assert went.stopped.checkpoint == went.stopped.steps > went.killed.checkpoint


def test_the_same_command_goes_on_and_every_attempt_is_on_record(went: Went) -> None:
    attempts = [(attempt["stages"], attempt["status"]) for attempt in went.run.record()["attempts"]]
    both = ["genes", "pretrain"]
    assert attempts == [
        (["genes"], "done"),
        (both, "running"),  # what a killed one leaves
        (both, "preempted"),
        (both, "done"),
        (["finetune"], "done"),
        ([], "done"),
    ]
    assert went.stopped.steps < steps_logged(went.run, "pretrain")


def test_the_run_is_the_undisturbed_one_to_the_bit(went: Went, tmp_path: Path) -> None:
    """Of one command, without Ray."""
    whole = pipeline.run_all(changed(went.config, run=str(tmp_path / "whole"), train__workers=0))
    for stage in ("genes", "pretrain", "finetune"):
        assert metrics(went.run, stage) == metrics(whole, stage)
        assert same_weights(went.run.model_file(stage), whole.model_file(stage))
    assert json.loads((went.run.evaluation / "metrics.json").read_text()) == json.loads(
        (whole.evaluation / "metrics.json").read_text()
    )
    assert (went.run.path / "summary.md").exists()


def test_a_store_made_by_a_job_is_the_one_made_here(
    head: Head, cohort_sources: Path, store_path: Path, tmp_path: Path
) -> None:
    sources = {"--patches": cohort_sources / "patches", "--genes": cohort_sources / "genes.tsv"}
    words = [word for pair in sources.items() for word in pair]
    head.submit(
        "ingest",
        "ingest.py",
        *(*words, "--cases", cohort_sources / "cases.csv", "--out", tmp_path / "store", "--gene-unit", "FPKM"),
    )
    assert f"Store {tmp_path / 'store'}" in head.succeeded("ingest")
    made, here = (CohortStore.open(folder) for folder in (tmp_path / "store", store_path))
    assert made.fingerprint == here.fingerprint


def test_a_search_whose_trials_train_on_workers(head: Head, store_path: Path, tmp_path: Path) -> None:
    config = load_config(None, {"store": str(store_path), "train.workers": 1, "train.use_gpu": False}, base=TINY)
    (tmp_path / "run.yaml").write_text(to_yaml(changed(config, train__epochs=1, genes__encoder="none")))
    head.submit(
        "tune",
        "tune.py",
        *("--config", tmp_path / "run.yaml", "--run", tmp_path / "sweep", "--trials", "1", "--concurrent", "1"),
    )
    head.succeeded("tune")
    (trial,) = json.loads((tmp_path / "sweep" / "trials.json").read_text())
    assert trial["error"] is None and 0 <= trial["auroc"] <= 1
    assert RunFolder(trial["run"]).stage_done("pretrain")
    assert load_config(tmp_path / "sweep" / "best.yaml").mask.ratio == pytest.approx(trial["params"]["mask.ratio"])


def test_a_refused_job_fails_with_the_commands_exit_code_and_says_why(
    head: Head, store_path: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).write_text(json.dumps({"host": "a-node-that-is-gone", "pid": 1, "started": 0.0, "since": "today"}))
    there = ["--store", store_path, "--train.workers", 1]
    refused = {
        "unknown key": ["--run", tmp_path / "a", *there, "--train.lrr", 3],
        "no store": ["--run", tmp_path / "b", "--store", tmp_path / "nowhere", "--train.workers", 1],
        "another machine's lock": ["--run", run, *there],
    }
    for name, options in refused.items():
        head.submit(name.replace(" ", "-"), "pretrain.py", *options)
    said = {
        "unknown key": ["unknown config key 'train.lrr'", "fix: correct the key's name"],
        "no store": [str(tmp_path / "nowhere"), "fix: "],
        "another machine's lock": ["process 1 on a-node-that-is-gone, since today", f"remove {run / LOCK}"],
    }
    for name, words in said.items():
        job = head.ended(name.replace(" ", "-"))
        assert (job["status"], job["driver_exit_code"]) == ("FAILED", 2), job
        printed = head.logs(name.replace(" ", "-"))
        assert all(word in printed and word in job["message"] for word in words), printed
        assert "Traceback" not in printed


def test_who_waits_for_a_failed_job_gets_an_exit_code(head: Head, tmp_path: Path) -> None:
    code, printed = head.waited_for("waited", "evaluate.py", "--run", tmp_path / "none")
    assert code == 1 and "this run has no fine-tuned model" in printed


def test_the_doctor_asks_every_node_of_the_cluster(head: Head) -> None:
    called = subprocess.run(
        [sys.executable, "-m", "gimp_ray.cli.commands", "doctor", "--address", head.gcs()],
        cwd=ROOT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "PASS  Ray cluster    1 node(s), 6 CPUs, 0 GPUs\n" in called.stdout, called.stdout + called.stderr
