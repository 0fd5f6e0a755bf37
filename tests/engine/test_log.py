"""What stands beside the metrics log: the pace of a stage, the progress line, and trackers that never stop a run."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from gimp_ray.config import Config, LogConfig, StageSettings
from gimp_ray.engine import trackers
from gimp_ray.engine.log import MetricsLog
from gimp_ray.engine.progress import Pace, ProgressLine, shown_figures
from gimp_ray.engine.trackers import Sender, require_trackers
from gimp_ray.errors import ConfigError
from gimp_ray.io.files import read_lines
from gimp_ray.pipeline import pretrain
from gimp_ray.runs.folder import RunFolder
from tests.conftest import changed


def test_the_pace_counts_cases_of_all_workers_and_says_what_is_left() -> None:
    now = [0.0]
    pace = Pace(start=10, limit=20, workers=2, clock=lambda: now[0])
    for _ in range(4):
        pace.batch(cases=3, waited=0.5)
        now[0] += 2.0
    assert pace.figures() == {"seconds": 8.0, "data_wait": 2.0, "cases_per_s": 3.0, "eta": 12.0}
    pace.batch(cases=3, waited=0.0)
    now[0] += 1.0
    assert pace.figures() == {"seconds": 1.0, "data_wait": 0.0, "cases_per_s": 6.0, "eta": 9.0}, "since the last call"


def test_the_line_on_a_terminal_shows_epoch_step_and_figures() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    line = ProgressLine("pretrain", 5, 40, True, console)
    figures = {"loss": 1.25, "active_triplets": 0.5, "cases_per_s": 12.0, "seconds": 4.0, "data_wait": 1.0, "eta": 90}
    line.update(1, 12, figures)
    line.close()
    line.close()
    for shown in ("pretrain epoch 2/5", "12/40", "loss 1.25", "active_triplets 50%", "12 cases/s", "data wait 25%"):
        assert shown in out.getvalue()
    assert shown_figures(figures).endswith("1 min 30 s left")


def test_no_line_where_stderr_is_no_terminal_or_none_is_wanted() -> None:
    for shown, terminal in ((True, False), (False, True)):
        out = io.StringIO()
        line = ProgressLine("pretrain", 5, 40, shown, Console(file=out, force_terminal=terminal))
        line.update(0, 1, {"loss": 1.0})
        line.close()
        assert out.getvalue() == ""


def test_a_run_notes_speed_waits_and_what_is_left(tiny: Config, tmp_path: Path) -> None:
    run = pretrain(changed(tiny, run=str(tmp_path / "run")))
    lines = read_lines(run.metrics_log("pretrain"))
    steps = [line for line in lines if line["kind"] == "step"]
    assert all(line["cases_per_s"] > 0 and 0 <= line["data_wait"] <= line["seconds"] + 0.01 for line in steps)
    assert steps[-1]["eta"] == 0.0 and steps[-1]["step"] == steps[-1]["steps"]
    assert all(line["eta"] > 0 for line in steps[:-1])


class Recorder:
    """Stands in for a tracker."""

    def __init__(self, fail_at: str | None = None) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.failed: bool | None = None
        self._fail_at = fail_at

    def write(self, kind: str, step: int, when: float, figures: dict[str, float]) -> None:
        if self._fail_at == "write":
            raise ConnectionError("nobody answers")
        self.lines.append((kind, step, figures))

    def close(self, failed: bool) -> None:
        if self._fail_at == "close":
            raise SystemExit(3)
        self.failed = failed


def test_a_tracker_gets_every_line_and_the_end(tmp_path: Path) -> None:
    tracker = Recorder()
    sender = Sender("a tracker", lambda: tracker)
    trackers.send([sender], "step", 3, {"loss": 1.0, "note": "no number"})
    trackers.send([sender], "epoch", 4, {"loss": 2})
    sender.close(failed=True)
    assert tracker.lines == [("step", 3, {"loss": 1.0}), ("epoch", 4, {"loss": 2.0})] and tracker.failed is True


@pytest.mark.parametrize("fail_at", ["open", "write", "close"])
def test_a_tracker_that_fails_is_warned_about_once_and_dropped(fail_at: str, capsys: pytest.CaptureFixture) -> None:
    def made() -> Recorder:
        if fail_at == "open":
            raise OSError("no such server")
        return Recorder(fail_at)

    sender = Sender("a tracker", made)
    for step in range(50):
        sender.write("step", step, 0.0, {"loss": 1.0})
        time.sleep(0.001)
    sender.close(failed=False)
    assert capsys.readouterr().out.count("note: a tracker gets no more figures") == 1


def test_a_tracker_that_hangs_holds_up_nothing(capsys: pytest.CaptureFixture) -> None:
    never = threading.Event()
    sender = Sender("a tracker", lambda: never.wait(20) or Recorder(), close_s=0.1)
    started = time.perf_counter()
    sender.write("step", 1, 0.0, {"loss": 1.0})
    sender.close(failed=False)
    assert time.perf_counter() - started < 5
    assert "did not answer within 0.1 s" in capsys.readouterr().out
    never.set()


def test_a_package_that_is_missing_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda package: False)
    settings = StageSettings(log=LogConfig(mlflow="file:///x"))
    with pytest.raises(ConfigError, match=r"log.mlflow") as refused:
        MetricsLog(tmp_path, "pretrain", 0, active=False, settings=settings)
    assert "gimp-ray[mlflow]" in (refused.value.fix or "")
    with pytest.raises(ConfigError, match=r"log.wandb"):
        require_trackers(LogConfig(wandb="gimp"))
    require_trackers(LogConfig())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_package_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, tiny: Config, workers: int
) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda package: False)
    with pytest.raises(ConfigError, match=r"log.mlflow"):
        pretrain(changed(tiny, log__mlflow="http://mlflow:5000", train__workers=workers))
    assert "attempts" not in RunFolder(tiny.run or "").record()


def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A module `mlflow` with as much of its client as is used; what it was asked is noted."""
    calls: list[tuple[Any, ...]] = []

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            calls.append(("client", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return "1"

        def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
            calls.append(("create", run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            calls.extend(("metric", run, metric.key, metric.step) for metric in metrics)
            calls.extend(("param", item.key, item.value) for item in params if item.key == "lr")

        def set_terminated(self, run: str, status: str) -> None:
            calls.append(("status", run, status))

    root, tracking, entities = ModuleType("mlflow"), ModuleType("mlflow.tracking"), ModuleType("mlflow.entities")
    tracking.MlflowClient = Client
    entities.Metric = lambda key, value, when, step: SimpleNamespace(key=key, value=value, step=step)
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)
    for module in (root, tracking, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_mlflow_gets_the_figures_and_its_run_is_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_mlflow(monkeypatch)
    settings = StageSettings(lr=0.5, log=LogConfig(mlflow="http://mlflow:5000"))
    with MetricsLog(tmp_path, "pretrain", 0, True, 9, settings, "s3://b/runs/a") as log:
        log.write("step", 0, 3, {"loss": 1.0})
    assert calls == [
        ("client", "http://mlflow:5000"),
        ("create", "a-pretrain"),
        ("param", "lr", "0.5"),
        ("metric", "r1", "step/loss", 3),
        ("status", "r1", "FINISHED"),
    ]
    calls.clear()
    with pytest.raises(RuntimeError), MetricsLog(tmp_path, "pretrain", 3, True, 9, settings, "s3://b/runs/a") as log:
        log.write("step", 0, 4, {"loss": 1.0})
        raise RuntimeError
    assert ("create", "a-pretrain") not in calls and calls[-1] == ("status", "r1", "FAILED")


def test_a_stage_restarted_before_its_first_checkpoint_stays_one_run_unless_its_settings_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = fake_mlflow(monkeypatch)
    created = []
    for folder, lr, uri in (("a", 0.5, "x"), ("a", 0.5, "x"), ("a", 0.1, "x"), ("a", 0.1, "y"), ("b", 0.1, "y")):
        calls.clear()
        settings = StageSettings(lr=lr, log=LogConfig(mlflow=f"http://{uri}:5000"))
        with MetricsLog(tmp_path / folder, "pretrain", 0, True, 9, settings, f"runs/{folder}") as log:
            log.write("step", 0, 1, {"loss": 1.0})
        created.append(("create", f"{folder}-pretrain") in calls)
    assert created == [True, False, True, True, True]
    (tmp_path / "b" / "mlflow.json").write_text("{")
    with MetricsLog(tmp_path / "b", "pretrain", 1, True, 9, settings, "runs/b") as log:
        log.write("step", 0, 2, {"loss": 1.0})
    assert calls.count(("create", "b-pretrain")) == 2, "a damaged note costs a new run, and nothing else"


def test_wandb_is_offline_unless_the_environment_has_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inits: list[dict[str, Any]] = []
    logged: list[dict[str, float]] = []
    ended: list[int] = []

    def finish(exit_code: int) -> None:
        ended.append(exit_code)

    run = SimpleNamespace(define_metric=lambda *a, **k: None, log=logged.append, finish=finish)
    module = ModuleType("wandb")
    module.init = lambda **given: inits.append(given) or run
    module.Settings = lambda **given: given
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    settings = StageSettings(log=LogConfig(wandb="gimp"))
    with MetricsLog(tmp_path, "genes", 0, True, 9, settings, "runs/a") as log:
        log.write("epoch", 0, 3, {"loss": 1.0})
    monkeypatch.setenv("WANDB_API_KEY", "k")
    with MetricsLog(tmp_path, "genes", 3, True, 9, settings, "runs/a") as log:
        log.write("epoch", 1, 6, {"loss": 0.5})
    assert [(given["project"], given["name"], given["mode"]) for given in inits] == [
        ("gimp", "a-genes", "offline"),
        ("gimp", "a-genes", "online"),
    ]
    assert inits[0]["id"] == inits[1]["id"], "a run that goes on is the same run"
    assert logged == [{"optimiser_step": 3, "epoch/loss": 1.0}, {"optimiser_step": 6, "epoch/loss": 0.5}]
    assert ended == [0, 0]


@pytest.mark.slow
def test_a_run_ends_well_with_an_mlflow_that_does_not(
    monkeypatch: pytest.MonkeyPatch, tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fake_mlflow(monkeypatch)
    monkeypatch.delattr(sys.modules["mlflow.tracking"], "MlflowClient")
    run = pretrain(changed(tiny, run=str(tmp_path / "run"), log__mlflow="http://nowhere:1"))
    assert run.stage_done("pretrain")
    assert capsys.readouterr().out.count("note: MLflow gets no more figures") == 2, "once a stage"


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_the_real_packages_offline(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip(package, reason=f"the optional extra {package} is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    log = LogConfig(mlflow=(tmp_path / "ml").as_uri()) if package == "mlflow" else LogConfig(wandb="gimp")
    for begun, step in ((0, 1), (0, 1), (1, 2)):  # begun, restarted before a checkpoint, and after one
        with MetricsLog(tmp_path / "a", "genes", begun, True, 9, StageSettings(log=log), "runs/a") as metrics:
            metrics.write("step", 0, step, {"loss": float(step)})
    known = json.loads((tmp_path / "a" / f"{package}.json").read_text())["run"]
    if package == "mlflow":
        from mlflow.tracking import MlflowClient

        found = MlflowClient(tracking_uri=(tmp_path / "ml").as_uri())
        assert [m.value for m in found.get_metric_history(known, "step/loss")] == [1.0, 1.0, 2.0]
        assert found.get_run(known).info.status == "FINISHED"
    else:
        # each attempt has a folder of its own, which `wandb sync` sends to the same run
        folders = [*(tmp_path / "a" / "wandb").glob("offline-run-*")]
        assert folders and all(folder.name.endswith(f"-{known}") for folder in folders)


@pytest.mark.slow
def test_trackers_and_the_line_may_change_between_attempts(tiny: Config) -> None:
    pretrain(changed(tiny, train__stop_after=1))
    run = pretrain(changed(tiny, log__progress=False))
    assert RunFolder(run.path).stage_done("pretrain")


def test_rays_gauges_get_loss_speed_and_the_share_of_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: dict[str, float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            shown[self.name] = value
            assert tags == {"stage": "pretrain"}

    ray, util, metrics = ModuleType("ray"), ModuleType("ray.util"), ModuleType("ray.util.metrics")
    ray.is_initialized = lambda: True
    metrics.Gauge = Gauge
    for module in (ray, util, metrics):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with MetricsLog(tmp_path, "pretrain", 0, True) as log:
        log.write("step", 0, 1, {"loss": 1.5, "seconds": 4.0, "data_wait": 1.0, "cases_per_s": 8.0})
        log.write("epoch", 0, 1, {"loss": 9.0})
        deadline = time.monotonic() + 60
        while len(shown) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert shown == {"gimp_loss": 1.5, "gimp_cases_per_s": 8.0, "gimp_data_wait_share": 0.25}
    assert shown == {"gimp_loss": 1.5, "gimp_cases_per_s": 0.0, "gimp_data_wait_share": 0.25}, "the stage ended"
