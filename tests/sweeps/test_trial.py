"""One trial in this process: its rungs, what a kill costs it, what it hands on, what it does when it cannot go on."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.evaluation import Truth, intervals_of
from gimp_ray.experiments import measure, trial
from gimp_ray.experiments.measure import probed
from gimp_ray.experiments.records import new_record, read_record, run_of, write_record
from gimp_ray.experiments.report import write_outputs
from gimp_ray.experiments.sweep import build_sweep, space_of
from gimp_ray.experiments.trial import Setting, handed_on, reason_of, run_trial
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder
from gimp_ray.store import CohortStore
from tests.conftest import changed
from tests.engine.test_resume import same_weights


class Killed(BaseException):
    """What a test does to a trial."""


class Told:
    """Takes a trial's measurements, and kills it after one of them."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.epochs: list[int] = []
        self.values: list[float] = []
        self.kept: Path | None = None
        self._kill_at = kill_at

    def __call__(self, figures: dict[str, Any], folder: Path | None) -> None:
        self.epochs.append(figures["epoch"])
        self.values.append(figures["accuracy"])
        if folder is not None and self.kept is not None:
            shutil.copytree(folder, self.kept / str(figures["epoch"]))
        if figures["epoch"] == self._kill_at:
            raise Killed


@pytest.fixture
def base(tiny: Config) -> Config:
    return changed(tiny, genes__encoder="none")


def made(base: Config, place: Path, session: str = "one", **sweep: Any) -> Setting:
    settings = build_sweep({"space": {"train.lr": {"choice": [1e-3, 1e-2]}}, "metric": "accuracy"} | sweep)
    return Setting(str(place), base.model_dump(), settings, session)


def begun(setting: Setting, number: int, lr: float) -> str:
    record = new_record(number, {"train.lr": lr})
    write_record(setting.uri, record)
    return str(record["name"])


@pytest.mark.slow
def test_a_killed_trial_goes_on_and_ends_in_the_weights_of_a_run_that_never_stopped(
    base: Config, tmp_path: Path
) -> None:
    place = tmp_path / "sweep"
    name = begun(made(base, place), 0, 1e-2)
    first, second = Told(kill_at=2), Told()
    with pytest.raises(Killed):
        run_trial(made(base, place, rungs=[1, 2]), name, {"train.lr": 1e-2}, first)
    run_trial(made(base, place, "two", rungs=[1, 2]), name, {"train.lr": 1e-2}, second)
    record = read_record(str(place), name)
    # what was measured is told to the new command's scheduler, and not measured again
    assert (first.epochs, second.epochs) == ([1, 2], [1, 2, 3]) and second.values[:2] == first.values
    assert record["status"] == "done" and [one["epoch"] for one in record["reports"]] == [1, 2, 3]
    run = RunFolder(run_of(str(place), record))
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["stopped", "stopped", "done"]
    straight = pipeline.pretrain(changed(base, run=str(tmp_path / "straight"), train__lr=1e-2))
    assert same_weights(run.model_file("pretrain"), straight.model_file("pretrain"))
    figure = record["reports"][-1]["metrics"]["accuracy"]
    assert figure["low"] <= figure["value"] <= figure["high"]
    seconds = [one["seconds"] for one in record["reports"]]
    assert seconds == sorted(seconds) and load_config(run.config_file).train.lr == 1e-2
    third = Told()
    run_trial(made(base, place, "three"), name, {"train.lr": 1e-2}, third)
    assert third.epochs == [] and len(run.record()["attempts"]) == 3


@pytest.mark.slow
def test_a_moved_or_copied_sweep_goes_on_where_it_is(tiny: Config, tmp_path: Path) -> None:
    """Killed after one epoch, copied and moved: the copy and the moved one each go on, with the same encoder."""
    first, params = tmp_path / "first", {"train.lr": 1e-2}
    setting = made(changed(tiny, genes__train__epochs=1), first, rungs=[1])
    with pytest.raises(Killed):
        run_trial(setting, begun(setting, 0, 1e-2), params, Told(kill_at=1))
    shutil.copytree(first, tmp_path / "copy")
    shutil.move(first, tmp_path / "moved")
    before = {file: file.read_bytes() for file in (tmp_path / "moved").rglob("*") if file.is_file()}
    runs = []
    for place in ("copy", "moved"):
        there = made(changed(tiny, genes__train__epochs=1), tmp_path / place, "two", rungs=[1])
        record = read_record(there.uri, "t000")
        trial.check_unchanged(there, [record])
        run_trial(there, "t000", params, Told())
        runs.append(RunFolder(run_of(there.uri, read_record(there.uri, "t000"))))
        assert runs[-1].path.is_relative_to(tmp_path / place)
        assert len(list((tmp_path / place / "shared" / "genes").iterdir())) == 1 and not first.exists()
        if place == "copy":  # what it is a copy of is as it was
            assert {file: file.read_bytes() for file in before} == before
    assert same_weights(runs[0].model_file("pretrain"), runs[1].model_file("pretrain"))
    other = made(changed(tiny, genes__train__epochs=1, window__length=32), tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"another 'window\.length'"):
        trial.check_unchanged(other, [read_record(other.uri, "t000")])


@pytest.mark.slow
def test_a_fine_tuned_trial_is_measured_by_its_best_epoch_so_far(base: Config, tmp_path: Path) -> None:
    short = changed(base, train__epochs=1)
    setting = made(short, tmp_path / "sweep", objective="finetune", rungs=[1, 2, 3])
    told = Told()
    run_trial(setting, begun(setting, 0, 1e-2), {"train.lr": 1e-2}, told)
    assert told.epochs == [1, 2, 3]
    run = RunFolder(run_of(setting.uri, read_record(setting.uri, "t000")))
    assert run.stage_done("finetune")
    lines = [line for line in read_lines(run.metrics_log("finetune")) if line["kind"] == "validation"]
    best = [max(lines[: epoch + 1], key=lambda line: (line["accuracy"], -line["loss"])) for epoch in range(3)]
    assert told.values == pytest.approx([line["accuracy"] for line in best])


@pytest.mark.slow
def test_a_trial_that_patience_ended_is_done_and_measured_once_more_at_no_later_rung(
    base: Config, tmp_path: Path
) -> None:
    """At a rate of nothing no epoch is better than the first, so two of patience end it after three of six."""
    method = {"method__name": "mean_pool", "method__options": {"hidden": [8]}, "finetune__select": "loss"}
    train = {"epochs": 6, "patience": 2, "lr": 1e-30, "weight_decay": 0}
    setting = made(changed(base, **method, method__train=train), tmp_path / "s", objective="finetune", rungs=[2, 4, 6])
    told = Told()
    run_trial(setting, begun(setting, 0, 1e-2), {"train.lr": 1e-2}, told)
    assert told.epochs == [2, 4]
    record = read_record(setting.uri, "t000")
    assert record["status"] == "done" and RunFolder(run_of(setting.uri, record)).stage_done("finetune")


@pytest.mark.slow
def test_a_trial_of_survival_is_measured_by_its_c_index(base: Config, tmp_path: Path) -> None:
    target = {"target__kind": "survival", "method__name": "abmil", "method__options": {"dim": 16, "attention_dim": 8}}
    survival = changed(base, **target, method__train={"epochs": 2})
    setting = made(survival, tmp_path / "sweep", objective="finetune", metric="c_index")
    told: list[dict[str, Any]] = []
    run_trial(setting, begun(setting, 0, 1e-2), {"train.lr": 1e-2}, lambda figures, _: told.append(figures))
    record = read_record(setting.uri, "t000")
    assert record["status"] == "done" and 0 <= told[-1]["c_index"] <= 1
    predicted = pq.read_table(RunFolder(run_of(setting.uri, record)).path / "probe" / "predictions.parquet")
    assert {"case_id", "time", "event", "risk"} <= set(predicted.column_names)
    truth = Truth("survival", (), {"time": predicted["time"].to_numpy(), "event": predicted["event"].to_numpy()})
    risk_N1 = predicted["risk"].to_numpy()[:, None]
    expected = intervals_of(truth, predicted["case_id"].to_pylist(), risk_N1, 20)["c_index"]["value"]
    assert told[-1]["c_index"] == pytest.approx(expected)
    write_outputs(RunFolder(setting.uri), survival, setting.sweep, space_of(setting.sweep), [record])
    assert "C-index" in (Path(setting.uri) / "sweep.md").read_text()
    assert "c_index_low" in pq.read_table(Path(setting.uri) / "trials.parquet").column_names


@pytest.mark.slow
def test_a_trial_takes_another_over_with_its_weights_and_its_own_values(base: Config, tmp_path: Path) -> None:
    place = tmp_path / "sweep"
    setting = made(base, place, scheduler="pbt", interval=1, rungs=[1, 2])
    better, worse = begun(setting, 0, 1e-3), begun(setting, 1, 1e-2)
    donor, first = Told(kill_at=2), Told(kill_at=1)
    donor.kept = tmp_path / "handed on"
    with pytest.raises(Killed):
        run_trial(setting, better, {"train.lr": 1e-3}, donor)
    with pytest.raises(Killed):
        run_trial(setting, worse, {"train.lr": 1e-2}, first)
    with pytest.raises(Killed):
        run_trial(setting, worse, {"train.lr": 8e-4}, Told(kill_at=2), donor.kept / "1")
    # started again with what it was given, which it has taken over already
    run_trial(setting, worse, {"train.lr": 8e-4}, Told(), donor.kept / "1")
    record = read_record(setting.uri, worse)
    assert [(one["name"], one["epoch"]) for one in record["lineage"]] == [(better, 1)]
    assert record["lineage"][0]["before"] == {"train.lr": 1e-2} and record["params"] == {"train.lr": 8e-4}
    assert record["status"] == "done" and record["run"].endswith(f"{worse}-2")
    run, former = RunFolder(run_of(setting.uri, record)), RunFolder(f"{setting.uri}/trials/{worse}")
    assert load_config(run.config_file).train.lr == 8e-4 and load_config(former.config_file).train.lr == 1e-2
    mine, theirs = (
        [line for line in read_lines(one.metrics_log("pretrain")) if line["kind"] == "epoch"]
        for one in (run, RunFolder(f"{setting.uri}/trials/{better}"))
    )
    assert [line["epoch"] for line in mine] == [0, 1, 2]
    assert mine[0]["loss"] == theirs[0]["loss"] and mine[1]["loss"] != theirs[1]["loss"]


@pytest.mark.parametrize("error, final", [(GimpError("it broke"), False), (InputError("it is wrong"), True)])
def test_a_failure_is_noted_with_its_reason_and_a_refusal_is_not_tried_again(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: GimpError, final: bool
) -> None:
    calls = []

    def fail(*rest: Any, **more: Any) -> None:
        calls.append(rest)
        raise error

    monkeypatch.setattr(trial, "train_to", fail)
    setting = made(base, tmp_path / "sweep")
    name = begun(setting, 0, 1e-3)
    for _ in range(2):
        with pytest.raises(GimpError, match="it "):
            run_trial(setting, name, {"train.lr": 1e-3}, Told())
    record = read_record(setting.uri, name)
    assert record["reason"] == str(error) and record["status"] == ("failed" if final else "waiting")
    assert len(calls) == (1 if final else 2)


def test_a_trials_config_is_the_base_with_its_values_in_its_folder(tiny: Config, tmp_path: Path) -> None:
    base = changed(tiny, genes__encoder="none", train__threads=0, train__cpus_per_worker=3)
    setting = made(base, tmp_path, gpus_per_trial=0)
    config, genes = trial.config_of(setting, {"train.lr": 5e-3}, str(tmp_path / "run"))
    assert (config.train.lr, config.run, config.log.progress) == (5e-3, str(tmp_path / "run"), False)
    assert (config.train.threads, config.train.use_gpu, config.genes.checkpoint, genes) == (3, False, None, None)


@pytest.mark.parametrize(
    "key, values, shared",
    [
        ("mask.ratio", [0.3, 0.6], True),
        ("train.lr", [1e-4, 1e-3], True),  # stage genes has a rate of its own
        ("train.weight_decay", [0.0, 0.1], False),  # which it inherits
        ("genes.groups", [4, 2], False),
        ("model.dim", [16, 32], False),
        ("split.fold", [0, 1], False),
        ("seed", [0, 1], False),
    ],
)
def test_trials_share_a_gene_encoder_where_they_would_train_the_same_one(
    tiny: Config, tmp_path: Path, key: str, values: list[Any], shared: bool
) -> None:
    setting = made(tiny, tmp_path)
    steps = [trial.config_of(setting, {key: value}, str(tmp_path / "run"))[1] for value in values]
    assert all(steps) and (steps[0].uri == steps[1].uri) is shared  # type: ignore[union-attr]


def test_a_metric_that_is_not_defined_is_refused(base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"value": None, "low": None, "high": None}
    monkeypatch.setattr(trial, "train_to", lambda *rest, **more: None)
    monkeypatch.setattr(trial, "metrics_of", lambda *rest: {"accuracy": nothing, "auroc": nothing})
    setting = made(base, tmp_path / "sweep", metric="auroc")
    with pytest.raises(InputError, match="auroc"):
        run_trial(setting, begun(setting, 0, 1e-3), {"train.lr": 1e-3}, Told())


def test_a_trial_waits_for_a_dying_process_to_leave_its_run(tmp_path: Path) -> None:
    run, tries = RunFolder(tmp_path / "run"), []
    free = threading.Event()

    def hold() -> None:
        with run.one_command():
            free.set()
            time.sleep(0.5)

    def work() -> None:
        tries.append(time.monotonic())
        with run.one_command():
            pass

    holder = threading.Thread(target=hold)
    holder.start()
    free.wait()
    trial._when_free(work)
    holder.join()
    assert len(tries) >= 2


def test_what_is_handed_on_is_the_newest_checkpoint(base: Config, tmp_path: Path) -> None:
    config = changed(base, run=str(tmp_path / "run"), train__epochs=2)
    run = pipeline.pretrain(config)
    record = new_record(0, {"train.lr": 1e-3}) | {"reports": [{"epoch": 2}]}
    with handed_on(run, "pretrain", record) as folder:
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    newest = sorted(run.checkpoints("pretrain").iterdir())[-1].name
    kept = [f"pretrain/checkpoints/{newest}/state.{end}" for end in ("json", "safetensors")]
    assert names == ["donor.json", *kept, "pretrain/metrics.jsonl"]


@pytest.mark.parametrize("probe", ["logistic", "knn"])
def test_a_probe_fits_training_cases_and_is_asked_about_validation_alone(probe: str) -> None:
    rng = np.random.default_rng(0)
    labels = ["LUAD", "LUSC"] * 15 + ["rare"]
    parts = ["train"] * 20 + ["val"] * 8 + ["test"] * 2 + ["val"]
    centres = {"LUAD": 3.0, "LUSC": -3.0, "rare": 0.0}
    vectors = np.array([centres[label] for label in labels])[:, None] + rng.normal(size=(31, 4))
    table = pa.table(
        {"case_id": [f"c{number}" for number in range(31)], "part": parts, "label": labels, "cls_pat": vectors.tolist()}
    )
    ids, truth, probabilities, classes = probed(table, probe)
    assert classes == ["LUAD", "LUSC", "rare"]
    assert ids == [f"c{number}" for number in (*range(20, 28), 30)]
    assert np.allclose(probabilities.sum(axis=1), 1) and (probabilities[:, 2] == 0).all()
    assert [classes[best] for best in probabilities[:8].argmax(axis=1)] == truth[:8]
    one_class = table.filter(pa.array([label == "LUAD" for label in labels]))
    with pytest.raises(InputError, match="one class"):
        probed(one_class, probe)


def test_intervals_are_over_the_patients_that_the_store_names(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config, drawn = changed(base, train__epochs=1), []
    run = pipeline.pretrain(config)
    cases = CohortStore.open(config.store or "").cases
    named = cases.append_column("patient_id", pa.array([f"P{row // 2}" for row in range(cases.num_rows)]))

    def intervals(truth: Truth, patients: list[str], *rest: Any) -> Any:
        drawn.extend(patients)
        return intervals_of(truth, patients, *rest)

    monkeypatch.setattr(measure, "open_store", lambda config: SimpleNamespace(cases=named))
    monkeypatch.setattr(measure, "intervals_of", intervals)
    measure.metrics_of(config, run, "pretrain", "knn", 20)
    validation = pq.read_table(run.path / "probe" / "predictions.parquet")["case_id"].to_pylist()
    patient = dict(zip(named["case_id"].to_pylist(), named["patient_id"].to_pylist(), strict=True))
    assert drawn == [patient[case] for case in validation] and validation


def test_reasons_fit_in_a_line() -> None:
    assert reason_of(ValueError("a\nb")) == "ValueError: a"
    assert reason_of(GimpError("no room", found="2 CPU\nin all")) == "no room: 2 CPU"
    assert reason_of(KeyError()) == "KeyError: KeyError"
