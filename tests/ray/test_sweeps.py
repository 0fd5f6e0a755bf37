"""Sweeps on Ray Tune: a scheduler that stops trials, killed trials and killed sweeps, populations, Optuna.

One start of Ray and of a trial's process costs seconds, so one sweep meets several faults.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from ray.tune.schedulers import ASHAScheduler

from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.experiments import tune
from gimp_ray.experiments.records import new_record, read_record, read_records, run_of
from gimp_ray.experiments.search import search
from gimp_ray.experiments.sweep import SweepConfig, build_sweep, rungs_of, space_of
from gimp_ray.experiments.trial import Setting
from gimp_ray.io import storage
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY, changed
from tests.faults.running import Command, commanded, kill, steps_logged
from tests.object_storage.fixtures import bucket, s3_env, s3_server  # noqa: F401
from tests.sweeps import scripted

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

SCRIPTED = "from tests.sweeps.scripted import main; main()"


def sweeping(
    file: Path, output: Path, code: str = SCRIPTED, **environment: str
) -> contextlib.AbstractContextManager[Command]:
    """A scripted `gimp sweep` beside the test; killed at the end of the block, with all that it started."""
    return commanded(["-c", code, "sweep", "--config", str(file)], output, **environment)


def test_asha_stops_trials_and_a_killed_trial_and_a_killed_sweep_go_on(store_path: Path, tmp_path: Path) -> None:
    place = tmp_path / "sweep"
    file = tmp_path / "sweep.yaml"
    base = TINY | {"train": TINY["train"] | {"epochs": 4}, "checkpoint": {"every_steps": 1}, "cluster": {"num_cpus": 2}}
    tree = {
        "store": str(store_path),
        "run": str(place),
        "base": base | {"genes": {"encoder": "none"}},
        "space": {"mask.ratio": {"grid": [0.7, 0.6, 0.5, 0.4, 0.3]}},
        "search": "grid",
        "scheduler": "asha",
        "reduction": 2,
        "concurrent": 2,
    }
    file.write_text(yaml.safe_dump(tree))
    runs = [RunFolder(place / "trials" / f"t{number:03d}") for number in range(5)]
    runs[0].path.parent.mkdir(parents=True)
    scripted.held(runs[0]).write_text("2 1")  # past two rungs
    scripted.held(runs[4]).write_text("0 2")

    def over(*numbers: int) -> bool:
        records = {record["number"]: record["status"] for record in read_records(str(place))}
        return all(records.get(number) in ("done", "stopped") for number in numbers)

    with sweeping(file, tmp_path / "first.txt") as first:
        first.until(lambda: steps_logged(runs[0], "pretrain") >= 7)
        os.kill(json.loads((runs[0].path / ".run.lock").read_text())["pid"], signal.SIGKILL)
        first.until(lambda: len(runs[0].record()["attempts"]) > 3)
        scripted.held(runs[0]).unlink()
        first.until(lambda: over(0, 1, 2, 3) and steps_logged(runs[4], "pretrain") >= 2)
        below, said = first.below(), first.output()
        first.process.kill()
        first.process.wait()
    assert "t000: failed (its process is gone)" in said
    scripted.held(runs[4]).unlink()
    before = [run.record_file.read_bytes() for run in runs[:4]]
    earlier = _steps(runs[4])[0]["time"]

    try:
        with sweeping(file, tmp_path / "second.txt") as second:
            said = second.succeeded()
    finally:
        kill(below)  # Ray's agents of the first command outlive it for a minute
    assert "1 trial(s) to run, 4 are over" in said and "sweep: done" in said
    # no trial that was over ran again, and the other one went on from its own checkpoint
    assert [run.record_file.read_bytes() for run in runs[:4]] == before
    assert _steps(runs[4])[0]["time"] == earlier
    for run in (runs[0], runs[4]):
        steps = [line["step"] for line in _steps(run)]
        assert steps == list(range(1, len(steps) + 1))
    rows = {row["trial"]: row for row in pq.read_table(place / "trials.parquet").to_pylist()}
    assert rows["t000"]["status"] == "done" and rows["t000"]["epochs"] == 4
    # the last one is stopped by what the killed command's trials had measured
    for name in ("t002", "t003", "t004"):
        assert (rows[name]["status"], rows[name]["epochs"]) == ("stopped", 1), rows
    assert load_config(place / "best.yaml").mask.ratio == 0.7
    assert (place / "sweep.md").exists() and not list((place / "ray").glob("tune-*"))


def test_a_sweep_in_object_storage_is_whole_there_and_known_on_another_machine(
    bucket: str,  # noqa: F811
    store_path: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "sweep.yaml"
    base = TINY | {"train": TINY["train"] | {"epochs": 2}, "genes": TINY["genes"] | {"train": {"epochs": 1}}}
    tree = {
        "store": str(store_path),
        "run": f"{bucket}/sweep",
        "base": base,
        "space": {"mask.ratio": {"grid": [0.3, 0.6]}},
        "search": "grid",
        "rungs": [1],
        "metric": "accuracy",
        "concurrent": 2,
    }
    file.write_text(yaml.safe_dump(tree))
    code = "from gimp_ray.cli.commands import main; main()"
    said = []
    for machine in ("first", "second"):
        cache = str(tmp_path / machine)
        with sweeping(file, tmp_path / f"{machine}.txt", code, GIMP_RAY_CACHE=cache) as command:
            said.append(command.succeeded())
    assert "2 trial(s) to run, 0 are over" in said[0] and "to run" not in said[1]
    records = read_records(f"{bucket}/sweep")
    assert [[report["epoch"] for report in record["reports"]] for record in records] == [[1, 2], [1, 2]]
    filesystem, root = storage.resolve(f"{bucket}/sweep")
    there = set(storage.files_below(filesystem, root))
    assert {"sweep.md", "trials.parquet", "best.yaml", "sweep.yaml", "figures/marginals.png"} <= there
    assert {f"trials/{name}/pretrain.safetensors" for name in ("t000", "t001")} <= there
    assert sum(name.startswith("shared/genes/") and name.endswith("/genes.safetensors") for name in there) == 1


def _steps(run: RunFolder) -> list[dict[str, Any]]:
    return [line for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]


def test_in_a_population_a_worse_trial_takes_a_better_one_over(
    cluster: None, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "_trainable", scripted.trainable)
    base = changed(tiny, run=str(tmp_path / "sweep"), genes__encoder="none", train__epochs=6)
    sweep = build_sweep(
        {
            "space": {"mask.ratio": {"uniform": [0.3, 0.7]}},
            "scheduler": "pbt",
            "interval": 1,
            "trials": 2,
            "concurrent": 2,
        }
    )
    folder = search(base, sweep)
    records = read_records(base.run or "")
    assert [record["status"] for record in records] == ["done", "done"]
    taken = [(record, step) for record in records for step in record["lineage"]]
    assert taken, [record["reports"] for record in records]
    for record, step in taken:
        assert step["name"] != record["name"] and 0 < step["epoch"] < 6
        assert 0.3 <= step["after"]["mask.ratio"] <= 0.7
    # each is a run of its own, whose config is what it trained under
    for record in records:
        run = RunFolder(run_of(base.run or "", record))
        assert run.stage_done("pretrain")
        assert run.path.name == record["name"] + (f"-{len(record['lineage']) + 1}" if record["lineage"] else "")
        assert load_config(run.config_file).mask.ratio == pytest.approx(record["params"]["mask.ratio"])
    assert "population based training" in (folder / "sweep.md").read_text()


def test_optuna_searches_and_the_median_stops(cluster: None, tiny: Config, tmp_path: Path) -> None:
    base = changed(tiny, run=str(tmp_path / "sweep"), genes__encoder="none", train__epochs=2)
    sweep = build_sweep(
        {
            "space": {"train.lr": {"loguniform": [1e-4, 1e-2]}, "mask.ratio": {"uniform": [0.3, 0.7]}},
            "search": "optuna",
            "scheduler": "median",
            "rungs": [1],
            "trials": 3,
            "concurrent": 2,
            "metric": "accuracy",
        }
    )
    folder = search(base, sweep)
    records = read_records(base.run or "")
    assert len(records) == 3 and {record["status"] for record in records} <= {"done", "stopped"}
    for record in records:
        run = load_config(RunFolder(run_of(base.run or "", record)).config_file)
        assert (run.train.lr, run.mask.ratio) == (record["params"]["train.lr"], record["params"]["mask.ratio"])
        assert 1e-4 <= run.train.lr <= 1e-2 and 0.3 <= run.mask.ratio <= 0.7
        assert [report["epoch"] for report in record["reports"]] == [1, 2][: len(record["reports"])]
    assert len({record["params"]["train.lr"] for record in records}) == 3, "each is another suggestion"
    best = load_config(folder / "best.yaml")
    assert best.train.lr in {record["params"]["train.lr"] for record in records}
    # the same command has nothing left to do
    before = [RunFolder(run_of(base.run or "", record)).record_file.read_bytes() for record in records]
    search(base, sweep)
    assert [RunFolder(run_of(base.run or "", record)).record_file.read_bytes() for record in records] == before


def test_a_trial_that_cannot_go_on_is_reported_and_the_others_are_not_touched(
    cluster: None, tiny: Config, tmp_path: Path
) -> None:
    base = changed(tiny, run=str(tmp_path / "sweep"), genes__encoder="none", train__epochs=1, finetune__init="scratch")
    sweep = build_sweep(
        {
            "space": {"train.lr": {"choice": [1e-3, 1e30]}},
            "search": "grid",
            "metric": "accuracy",
            "max_failures": 1,
            "probe": "knn",
        }
    )
    folder = search(base, sweep)
    good, bad = read_records(base.run or "")
    assert good["status"] == "done" and bad["status"] == "failed" and "finite" in bad["reason"]
    assert "Failed trials" in (folder / "sweep.md").read_text()
    # one try, and one more
    assert len(RunFolder(run_of(base.run or "", bad)).record()["attempts"]) == 2


# Below, Tune's own parts without a cluster.


def finished(number: int, params: dict[str, Any], values: list[float], status: str = "done") -> dict[str, Any]:
    figures = [{"auroc": {"value": value, "low": None, "high": None}} for value in values]
    reports = [{"epoch": 3**rung, "metrics": one, "seconds": 1.0} for rung, one in enumerate(figures)]
    return new_record(number, params) | {"status": status, "reports": reports}


@pytest.mark.parametrize(
    "base, sweep, there, asked, at_a_time",
    [
        ({"train.workers": 0}, {}, {"CPU": 8}, {"CPU": 1}, None),
        ({"train.workers": 0}, {}, {"CPU": 8, "GPU": 1}, {"CPU": 1, "GPU": 1}, None),
        ({"train.workers": 0}, {"gpus_per_trial": 0.25}, {"CPU": 8, "GPU": 1}, {"CPU": 1, "GPU": 0.25}, None),
        ({"train.workers": 0}, {"gpus_per_trial": 0}, {"CPU": 8, "GPU": 1}, {"CPU": 1}, None),
        ({"train.workers": 0, "train.use_gpu": False}, {}, {"CPU": 8, "GPU": 1}, {"CPU": 1}, None),
        ({"train.workers": 0, "train.cpus_per_worker": 4}, {"concurrent": 3}, {"CPU": 8}, {"CPU": 4}, 3),
        # two workers, a CPU for Ray Data, and the trial's own process
        ({"train.workers": 2}, {}, {"CPU": 10}, {"CPU": 0.1}, 3),
        ({"train.workers": 2}, {}, {"CPU": 100, "GPU": 4}, {"CPU": 0.1}, 2),
        ({"train.workers": 2, "train.use_gpu": False}, {}, {"CPU": 10, "GPU": 4}, {"CPU": 0.1}, 3),
        ({"train.workers": [1, 4]}, {}, {"CPU": 2}, {"CPU": 0.1}, 1),
    ],
)
def test_trials_get_what_they_need_and_as_many_run_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
    base: dict[str, Any],
    sweep: dict[str, Any],
    there: dict[str, float],
    asked: dict[str, float],
    at_a_time: int | None,
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    config, settings = load_config(None, base), build_sweep(sweep)
    assert tune.resources_of(config, settings) == asked
    assert tune.room(config, settings) == at_a_time


@pytest.mark.parametrize("grace, reduction, epochs", [(1, 3, 20), (1, 2, 16), (4, 3, 100), (2, 4, 9), (1, 3, 1)])
def test_trials_are_measured_where_asha_decides(grace: int, reduction: int, epochs: int) -> None:
    sweep = SweepConfig(scheduler="asha", grace=grace, reduction=reduction)
    scheduler = tune.scheduler_of(sweep, space_of(sweep), epochs)
    rungs = sorted(int(milestone) for milestone, _ in scheduler._brackets[0]._rungs)
    assert [rung for rung in rungs if rung < epochs] == rungs_of(sweep, epochs)[:-1]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_scheduler_knows_what_trials_of_an_earlier_command_measured(name: str) -> None:
    sweep = SweepConfig(scheduler=name, grace=1)  # type: ignore[arg-type]
    records = [finished(number, {}, [0.8, 0.9, 0.9]) for number in range(4)]
    primed, fresh = (tune.scheduler_of(sweep, [], 9) for _ in range(2))
    tune.prime(primed, records, "auroc")
    decisions = []
    for scheduler in (primed, fresh):
        trial = tune.FinishedTrial("new")
        with contextlib.suppress(NotImplementedError):
            scheduler.on_trial_add(None, trial)
        controller = type("Controller", (), {"get_live_trials": lambda self: []})()
        decisions.append(scheduler.on_trial_result(controller, trial, {"epoch": 1, "auroc": 0.5}))
    assert decisions == [ASHAScheduler.STOP, ASHAScheduler.CONTINUE]


def test_optuna_goes_on_from_the_records(tmp_path: Path) -> None:
    sweep = build_sweep({"space": {"train.lr": {"loguniform": [1e-5, 1e-1]}}, "search": "optuna", "trials": 81})
    space = space_of(sweep)
    setting = Setting(str(tmp_path), {}, sweep, "one")
    lrs = [10 ** (-5 + 4 * number / 19) for number in range(20)]
    # the best rate is 1e-4
    records = [finished(n, {"train.lr": lr}, [1 - abs(math.log10(lr) + 4) / 4]) for n, lr in enumerate(lrs)]
    records.append(new_record(20, {"train.lr": 0.05}))
    searcher = tune.OptunaSearch(setting, space, records)
    told = searcher._study.get_trials(deepcopy=False)
    values = [record["reports"][0]["metrics"]["auroc"]["value"] for record in records[:20]]
    assert [one.value for one in told if one.value is not None] == values
    # first what was begun and is not over, under its own name
    assert searcher.suggest("a") == {"trial": {"name": "t020", "params": {"train.lr": 0.05}}}
    found = []
    for number in range(60):
        trial = searcher.suggest(f"b{number}")["trial"]  # type: ignore[index]
        assert trial["name"] == f"t{21 + number:03d}"
        assert read_record(str(tmp_path), trial["name"])["params"] == trial["params"]
        found.append(trial["params"]["train.lr"])
    # it has learnt from what it was told: of a search that knows nothing a quarter lies there
    assert sum(10**-4.5 < lr < 10**-3.5 for lr in found) >= 25


def test_optuna_does_not_begin_with_the_same_suggestions_again(tmp_path: Path) -> None:
    sweep = build_sweep({"space": {"train.lr": {"loguniform": [1e-5, 1e-1]}}, "search": "optuna"})
    setting = Setting(str(tmp_path), {}, sweep, "one")
    first = tune.OptunaSearch(setting, space_of(sweep), [])
    params = [first.suggest(f"a{number}")["trial"]["params"] for number in range(3)]  # type: ignore[index]
    again = tune.OptunaSearch(setting, space_of(sweep), [])
    assert [again.suggest(f"a{n}")["trial"]["params"] for n in range(3)] == params  # type: ignore[index]
    records = [finished(number, one, [0.5]) for number, one in enumerate(params)]
    then = tune.OptunaSearch(setting, space_of(sweep), records)
    assert then.suggest("b")["trial"]["params"] not in params  # type: ignore[index]
