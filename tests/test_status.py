"""What `gimp status` says of a run folder: in progress, ended, killed, empty, in object storage, and none at all."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from click.testing import CliRunner

from gimp_ray.cli.status import status as status_command
from gimp_ray.config import Config
from gimp_ray.engine.progress import duration
from gimp_ray.errors import InputError
from gimp_ray.pipeline import pretrain
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.status import format_status, run_status
from tests.conftest import changed

NOW = 1.8e9


def attempt(status: str = "running", **values: Any) -> dict[str, Any]:
    return {
        "started": "2026-11-22T08:00:00+0000",
        "host": "node-1",
        "command": "gimp run",
        "stages": ["genes", "pretrain"],
        "status": status,
    } | values


def line(step: int, kind: str = "step", **values: Any) -> dict[str, Any]:
    return {
        "time": NOW - 100 + step,
        "stage": "pretrain",
        "epoch": (step - 1) // 10,
        "step": step,
        "kind": kind,
    } | values


def a_run(folder: Path, attempts: list[dict[str, Any]], lines: list[dict[str, Any]], done: tuple[str, ...] = ()) -> str:
    """A run folder as a run leaves it; all files are as old as their newest line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"attempts": attempts}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"epochs": 4}, "genes": {"train": {"epochs": 3}}}))
    for stage in done:
        (folder / f"{stage}.safetensors").write_text("w")
        (folder / f"{stage}.json").write_text("{}")
    if lines:
        (folder / "pretrain" / "checkpoints" / "step-00000020").mkdir(parents=True)
        (folder / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    for file in folder.rglob("*"):
        os.utime(file, (NOW - 90, NOW - 90))
    return str(folder)


def test_a_run_in_progress_says_where_it_is(tmp_path: Path) -> None:
    lines = [line(10, loss=1.5), line(10, "epoch", loss=1.6, seconds=9.0), line(14, loss=1.25, steps=40, eta=60.0)]
    place = a_run(tmp_path / "a", [attempt()], lines, done=("genes",))
    with (tmp_path / "a/pretrain/metrics.jsonl").open("a") as log:
        log.write('{"time": 18000')  # a line being written
    os.utime(tmp_path / "a/pretrain/metrics.jsonl", (NOW - 90, NOW - 90))
    found = run_status(place, now=NOW)
    assert (found.state, found.stage, found.failures, found.seconds_since_sign) == ("running", "pretrain", (), 86.0)
    genes, stage = found.stages
    assert (genes.name, genes.state, genes.epochs) == ("genes", "done", 3)
    assert (stage.state, stage.epoch, stage.epochs, stage.step, stage.steps) == ("begun", 1, 4, 14, 40)
    assert (stage.checkpoint, stage.last, stage.eta) == (20, {"loss": 1.25}, 60.0)
    text = format_status(found, now=NOW - 86 + 20)
    assert "epoch 1/4, step 14/40 (35%), about 40 s left, newest checkpoint step-00000020" in text
    assert "step 14: loss 1.25" in text and "node-1: running" in text


def test_a_stage_that_patience_ended_is_done_and_says_so(tmp_path: Path) -> None:
    lines = [line(10, loss=1.5, steps=40), line(10, "epoch", loss=1.6, seconds=9.0)]
    place = a_run(tmp_path / "a", [attempt("done")], lines, done=("pretrain",))
    found = run_status(place, now=NOW)
    assert [stage.state for stage in found.stages if stage.name == "pretrain"] == ["done"]
    assert "pretrain  done, ended early after epoch 1/4, step 10\n" in format_status(found) + "\n"


def test_a_killed_run_is_silent_and_an_earlier_one_ended_without_a_word(tmp_path: Path) -> None:
    place = a_run(tmp_path / "a", [attempt(), attempt()], [line(1, loss=2.0)])
    at_work = run_status(place, now=NOW)
    assert at_work.state == "running"
    assert at_work.failures == ("attempt 1: ended without a recorded status (killed, or the machine failed)",)
    later = run_status(place, now=NOW + 3600)
    assert later.state == "silent" and len(later.failures) == 2
    assert "the same command goes on" in format_status(later)


def restart(step: int, **values: Any) -> dict[str, Any]:
    return {
        "time": f"2026-11-22T08:{step:02d}:00+0000",
        "reason": f"worker {step} died: SIGKILL",
        "step": step,
    } | values


def test_restarts_of_workers_are_told_with_their_reasons_and_what_went_on(tmp_path: Path) -> None:
    long = {"time": "t", "reason": "why " * 99}
    attempts = [
        attempt("failed: GimpError: no", ended="2026-11-22T08:30:00+0000", restarts=[{}]),
        attempt(workers=3, restarts=[restart(2, workers=4), long, restart(4, workers=1)]),
    ]
    found = run_status(a_run(tmp_path / "a", attempts, [line(4, loss=1.0, epochs=4, mini_batches=12)]), now=NOW)
    assert found.workers == 3 and [one["attempt"] for one in found.restarts] == [1, 2, 2, 2]
    assert found.stages[-1].last == {"loss": 1.0} and found.restarts[2]["reason"] == "why " * 99
    text = format_status(found)
    assert "running with 3 workers, last sign of life" in text
    assert "on node-1: failed after 30 min 0 s, 1 restart of workers" in text and "running, 3 restarts" in text
    told = [row[10:] for row in text.splitlines() if row.startswith(("restarts", "          attempt"))]
    assert told == [
        "4, the last 3:",
        "attempt 2, 2026-11-22T08:02:00+0000: worker 2 died: SIGKILL; went on with 4 workers from step 2",
        "attempt 2, t: " + "why " * 39 + "...",
        "attempt 2, 2026-11-22T08:04:00+0000: worker 4 died: SIGKILL; went on with 1 worker from step 4",
    ]
    first = run_status(a_run(tmp_path / "c", attempts[:1], []), now=NOW)
    assert "attempt 1, ?: no reason noted\n" in format_status(first)
    over = run_status(a_run(tmp_path / "b", [attempt("done", workers=2, restarts=[])], []), now=NOW)
    assert over.workers is None and over.restarts == () and "\nrestarts" not in format_status(over)


def test_lines_far_apart_are_no_silence(tmp_path: Path) -> None:
    place = a_run(tmp_path / "a", [attempt()], [line(i, time=NOW - 4000 + 1000 * i) for i in range(1, 4)])
    assert run_status(place, now=NOW + 1000).state == "running"
    assert run_status(place, now=NOW + 5000).state == "silent"


@pytest.mark.parametrize(
    "noted, state, reason",
    [
        ("failed: InputError: a case has no slide", "failed", "attempt 1: InputError: a case has no slide"),
        ("failed: KeyboardInterrupt: ", "interrupted", "attempt 1: KeyboardInterrupt"),
        ("preempted", "preempted", None),
        ("stopped", "stopped", None),
        ("done", "done", None),
    ],
)
def test_an_ended_run_says_how(tmp_path: Path, noted: str, state: str, reason: str | None) -> None:
    place = a_run(tmp_path / "a", [attempt(noted, ended="2026-11-22T09:02:00+0000")], [line(1, loss=1.0)])
    found = run_status(place, now=NOW + 1e6)
    assert found.state == state and found.failures == ((reason,) if reason else ())
    text = format_status(found)
    assert (reason or state) in text and "after 1 h 2 min" in text


def test_a_real_run_and_its_json(tiny: Config, tmp_path: Path) -> None:
    config = changed(tiny, run=str(tmp_path / "run"))
    pretrain(config)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    answer = CliRunner().invoke(status_command, [str(tmp_path / "run"), "--json"])
    assert answer.exit_code == 0
    tree = json.loads(answer.output)
    assert tree["restarts"] == [] and tree["workers"] is None
    assert tree["state"] == "done" and [stage["state"] for stage in tree["stages"]] == ["done", "done"]
    last = tree["stages"][-1]
    assert last["epoch"] == last["epochs"] == config.train.epochs and last["last"]["loss"] > 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before, "asking changes nothing"
    assert "done" in CliRunner().invoke(status_command, [str(tmp_path / "run")]).output
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "The run took one attempt, with no restart of workers. No training step was skipped." in summary
    RunFolder(tmp_path / "run").update(lambda record: record["attempts"][-1].update(restarts=[restart(5)]))
    text = CliRunner().invoke(status_command, [str(tmp_path / "run")]).output
    assert "restarts  1:" in text and "worker 5 died: SIGKILL; went on from step 5" in text


def test_an_empty_folder_and_one_that_only_has_a_config(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.x1").write_text("half")
    assert run_status(str(tmp_path)).state == "empty"
    answer = CliRunner().invoke(status_command, [str(tmp_path)])
    assert answer.exit_code == 0 and "empty" in answer.output
    (tmp_path / "config.yaml").write_text("traim: {epochs: 3}\n")
    found = run_status(str(tmp_path))
    assert (found.state, found.stage) == ("not begun", None) and "traim" in found.notes[0]


@pytest.mark.parametrize(
    "names, fix", [(["manifest.json"], "gimp info"), (["trials.json"], "one of its trials"), (["x.py"], "--run")]
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, names: list[str], fix: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="no run folder") as refused:
        run_status(str(tmp_path))
    assert refused.value.found == ", ".join(names) and fix in (refused.value.fix or "")


def test_what_is_not_there_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        run_status(str(tmp_path / "missing"))
    (tmp_path / "run.json").write_text("[1, 2")
    with pytest.raises(InputError, match="record cannot be read") as refused:
        run_status(str(tmp_path))
    assert str(refused.value.file).endswith("run.json")


def test_a_run_in_object_storage_is_read_without_a_copy(
    tmp_path: Path, there: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "cache"))
    there.put(a_run(tmp_path / "a", [attempt()], [line(3, loss=0.5)]), "/runs/a", recursive=True)
    found = run_status("memory://runs/a", now=time.time())
    assert (found.run, found.state, found.stages[-1].last) == ("memory://runs/a", "running", {"loss": 0.5})
    assert not (tmp_path / "cache").exists()


def test_an_attempt_that_has_only_begun(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a")
    run.update(lambda record: record.update(attempts=[attempt()]))
    found = run_status(str(tmp_path / "a"))
    assert (found.state, found.stage) == ("running", "genes")
    assert [stage.state for stage in found.stages] == ["waiting", "waiting"]


def test_durations_are_in_two_units() -> None:
    assert [duration(s) for s in (0.4, 75, 7500, 200000)] == ["0 s", "1 min 15 s", "2 h 5 min", "2 d 7 h"]
