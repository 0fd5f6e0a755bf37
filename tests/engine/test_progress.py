"""The progress line of training in other processes: what it shows of a log, and that it never interferes."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from rich.console import Console

from gimp_ray.config import Config
from gimp_ray.engine import progress
from gimp_ray.engine.log import MetricsLog
from gimp_ray.engine.progress import ProgressLine, following
from gimp_ray.io.files import read_lines
from gimp_ray.pipeline import run_all
from gimp_ray.runs.folder import RunFolder
from tests.conftest import changed

PATIENCE_S = 120.0


class Screen(io.StringIO):
    """What a terminal got."""

    seen = 0

    def shows(self, text: str) -> None:
        """Wait until it got a text, after what was waited for before."""
        until = time.monotonic() + PATIENCE_S
        while (found := self.getvalue().find(text, self.seen)) < 0:
            assert time.monotonic() < until, f"{text!r} is not in {self.getvalue()[self.seen :]!r}"
            time.sleep(0.01)
        self.seen = found + len(text)


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """The terminal; logs are looked at often."""
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    monkeypatch.setattr(progress, "REMOTE_POLL_S", 0.01)
    return Screen()


def terminal(out: Screen, width: int = 200) -> Console:
    return Console(file=out, force_terminal=True, width=width, color_system=None)


def line(step: int, kind: str = "step", **values: Any) -> str:
    about = {"time": 1e9 + step, "stage": "x", "epoch": (step - 1) // 10, "step": step, "kind": kind, "loss": 1 / step}
    return json.dumps(about | values) + "\n"


def append(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as log:
        log.write(text)


def test_the_line_follows_stages_and_a_log_that_is_cut_back(out: Screen, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    append(run.metrics_log("genes"), line(7, loss=77.0))
    append(run.metrics_log("pretrain"), line(3, loss=33.0, steps=40))
    with following(run, ["genes", "pretrain"], console=terminal(out)):
        append(run.metrics_log("genes"), line(8, loss=1.5) + line(8, "epoch") + '{"time": 1')
        out.shows("genes epoch 1 ")
        append(run.metrics_log("pretrain"), line(12, steps=40, epochs=4, data_wait=1.0, seconds=4.0, eta=75.0))
        out.shows("pretrain epoch 2/4")
        out.shows("12/40 loss 0.08333, data wait 25%, 1 min 15 s left")
        # the workers started again, on fewer of them, from the checkpoint of step 5
        log = MetricsLog(tmp_path / "pretrain", "pretrain", 5, active=True, steps=60)
        out.shows("3/40 loss 33")
        log.write("step", 0, 6, {"loss": 66.0})
        out.shows("pretrain epoch 1/4")
        out.shows("6/60 loss 66")
        append(run.metrics_log("genes"), line(9, loss=99.0))
        append(run.metrics_log("pretrain"), line(7, steps=60))
        out.shows("7/60")
        assert "loss 99" not in out.getvalue() and "77" not in out.getvalue()
        log.close()
    out.shows("\x1b[?25h")  # the cursor is back
    assert not following_threads()


def following_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "progress line"]


def test_a_stage_that_is_finished_leaves_no_line(out: Screen, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with following(run, ["pretrain"], console=terminal(out)):
        append(run.metrics_log("pretrain"), line(40, steps=40))
        out.shows("40/40")
        out.shows("\x1b[?25h")  # the cursor is back
        append(run.metrics_log("pretrain"), line(39, steps=40))  # its last checkpoint was gone on from
        out.shows("39/40")


def test_only_the_end_of_a_long_log_is_read(out: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TAIL", 300)
    run = RunFolder(tmp_path)
    with following(run, ["pretrain"], console=terminal(out)):
        append(run.metrics_log("pretrain"), "".join(line(step, steps=900) for step in range(1, 900)))
        out.shows("899/900")


@pytest.mark.parametrize("shown, stages, is_terminal", [(True, 1, False), (False, 1, True), (True, 0, True)])
def test_nothing_is_started_where_nothing_would_be_seen(
    out: Screen, tmp_path: Path, shown: bool, stages: int, is_terminal: bool
) -> None:
    console = Console(file=out, force_terminal=is_terminal)
    with following(RunFolder(tmp_path), ["pretrain"] * stages, shown, console):
        assert not following_threads()
        append(tmp_path / "pretrain/metrics.jsonl", line(1))
    assert out.getvalue() == ""


def test_nothing_that_is_wrong_with_the_line_reaches_the_run(
    out: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(KeyError, match="the run's own"), following(run, ["pretrain"], console=terminal(out)):
        append(run.metrics_log("pretrain"), "[1, 2]\nno json\n" + line(2) + '{"kind": "step"}\n')
        out.shows("2/?")
        raise KeyError("the run's own")

    def breaks(*_: Any) -> None:
        raise RuntimeError("no such terminal")

    monkeypatch.setattr(ProgressLine, "update", breaks)
    with following(run, ["pretrain"], console=terminal(out)):
        append(run.metrics_log("pretrain"), line(3))
        until = time.monotonic() + PATIENCE_S
        while following_threads() and time.monotonic() < until:
            time.sleep(0.01)
    assert capsys.readouterr().out == "note: no progress line from here on: RuntimeError: no such terminal\n"
    monkeypatch.setattr(progress, "resolve", breaks)
    with following(run, ["pretrain"], console=terminal(out)):
        pass
    assert "no such terminal" in capsys.readouterr().out


def test_a_look_that_hangs_holds_up_nothing_and_says_nothing_afterwards(
    out: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, looked, answer = RunFolder(tmp_path), threading.Event(), threading.Event()

    def hangs(tail: bytes) -> None:
        looked.set()
        answer.wait(PATIENCE_S)
        raise ValueError("the storage is gone")

    monkeypatch.setattr(progress, "_newest_step", hangs)
    monkeypatch.setattr(progress, "CLOSE_S", 0.01)
    with following(run, ["pretrain"], console=terminal(out)):
        append(run.metrics_log("pretrain"), line(4))
        assert looked.wait(PATIENCE_S)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "progress line")
    answer.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and out.getvalue() == "" and capsys.readouterr().out == ""


def test_a_log_that_cannot_be_read_now_is_read_later(
    out: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failed = RunFolder(tmp_path), []
    real = progress._newest_step

    def reads(tail: bytes) -> dict[str, Any] | None:
        if not failed:
            failed.append(True)
            raise OSError("stale file handle")
        return real(tail)

    monkeypatch.setattr(progress, "_newest_step", reads)
    with following(run, ["pretrain"], console=terminal(out)):
        append(run.metrics_log("pretrain"), line(4))
        out.shows("4/?")


def test_of_a_run_in_object_storage_the_newer_of_copy_and_object_is_shown(
    out: Screen, tmp_path: Path, there: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "cache"))
    run = RunFolder("memory://runs/a")
    with following(run, ["pretrain"], console=terminal(out)):
        text = line(5, steps=40)
        while "5/40" not in out.getvalue():  # the first look only sees what is there, whenever that is
            there.pipe_file("/runs/a/pretrain/metrics.jsonl", (text := text + "\n").encode())
            time.sleep(0.05)
        append(run.metrics_log("pretrain"), line(6, steps=40))
        out.shows("6/40")
        append(run.metrics_log("pretrain"), line(4, steps=40))  # an old copy, brought here by another process
        there.pipe_file("/runs/a/pretrain/metrics.jsonl", (line(5, steps=40) + line(9, steps=40)).encode())
        out.shows("9/40")


@pytest.mark.slow
def test_the_stages_of_a_real_run_and_what_they_log_of_waiting(
    out: Screen, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads take a known time and nothing is read ahead, so each batch is waited for."""
    from gimp_ray.learn.pretrain import Pretraining
    from gimp_ray.learn.supervise import Supervised

    for task in (Pretraining, Supervised):
        real = task.read
        monkeypatch.setattr(task, "read", lambda self, row, real=real: (time.sleep(0.02), real(self, row))[1])
    short = {"train__epochs": 1, "genes__train__epochs": 1, "finetune__train__epochs": 1}
    config = changed(tiny, run=str(tmp_path / "run"), feed__ahead=0, evaluate__reference_rows=False, **short)
    run = RunFolder(tmp_path / "run")
    with following(run, ["genes", "pretrain", "finetune"], console=terminal(out)):
        run_all(config)
    shown = out.getvalue()
    for stage in ("genes", "pretrain", "finetune"):
        assert f"{stage} epoch " in shown
        lines = read_lines(run.metrics_log(stage))
        steps = sum(one["kind"] == "step" for one in lines)
        for kind in ("step", "epoch"):
            ours = [one for one in lines if one["kind"] == kind]
            assert all(0 < one["data_wait"] <= one["seconds"] for one in ours)
            assert sum(one["data_wait"] for one in ours) >= 0.02 * steps
    assert "cases/s" in shown and "data wait" in shown and "left" in shown and "active_triplets" in shown


SCRIPT = """
import json, sys, time
from pathlib import Path
from gimp_ray.engine import progress
from gimp_ray.runs.folder import RunFolder
progress.POLL_S = 0.01
run = RunFolder(sys.argv[1])
log = run.metrics_log("pretrain")
log.parent.mkdir()
with progress.following(run, ["pretrain"]):
    log.write_text(json.dumps({"kind": "step", "step": 3, "steps": 9, "epoch": 0, "loss": 0.5}) + "\\n")
    while sys.stdout is sys.__stdout__ or not hasattr(sys.stdout, "rich_proxied_file"):
        time.sleep(0.01)
    print("(RayTrainWorker pid=7) pretrain epoch 1/3", file=sys.stdout)
    print("a warning of a worker", file=sys.stderr)
    time.sleep(0.5)
assert sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
print("the end")
"""


def test_what_workers_print_stays_readable_above_the_line(tmp_path: Path) -> None:
    """On a real terminal, as Ray prints what its workers print: whole lines, in this process."""
    master, slave = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=slave, stderr=slave, env=env) as child:
        os.close(slave)
        seen = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # the other side was closed
                break
            if not part:
                break
            seen += part
    os.close(master)
    text = seen.decode()
    assert child.returncode == 0, text
    for printed in ("(RayTrainWorker pid=7) pretrain epoch 1/3", "a warning of a worker"):
        # from an emptied row to the end of the line, before the progress line is drawn again below
        before, _, after = text.partition(printed)
        assert before.endswith("\x1b[2K") and after.startswith("\r\n"), repr(text)
        assert "3/9" in after
    assert text.endswith("the end\r\n") and "\x1b[?25h" in text
