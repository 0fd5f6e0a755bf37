"""What a sweep leaves behind, made from records: table, best config, figures, report. No Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.experiments.records import best_of, new_record, read_records, write_record
from gimp_ray.experiments.report import (
    best_text,
    marginal_figure,
    parallel_figure,
    read_sweep_table,
    trials_table,
    write_outputs,
    write_sweep_report,
)
from gimp_ray.experiments.search import search
from gimp_ray.experiments.sweep import SweepConfig, build_sweep, space_of
from gimp_ray.runs.folder import RunFolder
from tests.conftest import changed

SWEEP = build_sweep(
    {
        "space": {
            "mask.ratio": {"uniform": [0.25, 0.75]},
            "train.lr": {"loguniform": [1e-5, 1e-3]},
            "window.length": {"choice": [1500, 3000]},
            "triplet.mining": {"choice": ["batch_all", "batch_hard"]},
            "train.workers": {"choice": [0, [1, 2]]},
        },
        "scheduler": "asha",
        "trials": 5,
    }
)


def measured(value: float | None, epoch: int) -> dict[str, Any]:
    figure = {"value": value, "low": None if value is None else value - 0.1, "high": None if value is None else value}
    names = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
    return {"epoch": epoch, "metrics": dict.fromkeys(names, figure), "seconds": 10.0 * epoch}


def records_of(place: str) -> list[dict[str, Any]]:
    """Done, stopped with a better figure, failed, done and best, waiting."""
    values = [(0.3, 1e-4, 1500, "batch_all", 0), (0.4, 1e-3, 3000, "batch_hard", [1, 2])]
    records = [new_record(number, dict(zip(SWEEP.space, values[number % 2], strict=True))) for number in range(5)]
    records[0] |= {"status": "done", "reports": [measured(0.6, 1), measured(0.7, 9)]}
    records[1] |= {"status": "stopped", "reason": "by asha", "reports": [measured(0.95, 1)]}
    records[2] |= {"status": "failed", "reason": "the loss | is not finite", "reports": []}
    records[3] |= {"status": "done", "reports": [measured(0.5, 1), measured(0.8, 9)], "lineage": []}
    return records


@pytest.fixture
def base(tmp_path: Path) -> Config:
    return load_config(None, {"run": str(tmp_path), "store": "store", "train.epochs": 9, "train.lr": 5e-4})


def test_the_table_has_a_row_a_trial_with_the_last_figures_and_typed_values(base: Config, tmp_path: Path) -> None:
    table = trials_table(base, SWEEP, space_of(SWEEP), records_of(str(tmp_path)))
    rows = table.to_pylist()
    assert [row["trial"] for row in rows] == ["t000", "t001", "t002", "t003", "t004"]
    assert [row["status"] for row in rows] == ["done", "stopped", "failed", "done", "waiting"]
    assert [row["auroc"] for row in rows] == [0.7, 0.95, None, 0.8, None]
    assert rows[3]["auroc_low"] == pytest.approx(0.7) and rows[3]["epochs"] == 9 and rows[3]["seconds"] == 90
    assert [row["param.window.length"] for row in rows][:2] == [1500, 3000]
    # values of several kinds are text, and can be read again
    assert json.loads(rows[1]["param.train.workers"]) == [1, 2] and rows[0]["param.train.workers"] == "0"
    about = json.loads(table.schema.metadata[b"gimp_sweep"])
    assert about["rungs"] == [1, 3, 9] and list(about["space"]) == list(SWEEP.space)


def test_the_best_came_to_its_end_and_of_equals_is_the_first(tmp_path: Path) -> None:
    records = records_of(str(tmp_path))
    best = best_of(records, "auroc")
    assert best is not None and best["name"] == "t003"  # not the stopped one, whose figure is of epoch 1
    records[0]["reports"].append(measured(0.8, 9))
    again = best_of(records, "auroc")
    assert again is not None and again["name"] == "t000"
    assert best_of(records[1:3], "auroc") is None


def test_the_best_config_is_one_that_run_takes(base: Config, tmp_path: Path) -> None:
    records = records_of(str(tmp_path))
    file = tmp_path / "best.yaml"
    file.write_text(best_text(base, SWEEP, records[3]))
    config = load_config(file)
    assert (config.mask.ratio, config.train.lr, config.window.length) == (0.4, 1e-3, 3000)
    assert config.run is None and config.store == "store" and config.train.epochs == 9


@pytest.mark.slow
def test_everything_is_written_and_may_be_written_again(base: Config, tmp_path: Path) -> None:
    for _ in range(2):
        write_outputs(RunFolder(tmp_path), base, SWEEP, space_of(SWEEP), records_of(str(tmp_path)))
    text = (tmp_path / "sweep.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| t00")]
    assert [line.split(" |")[0] for line in table] == ["| t003", "| t000", "| t002"]  # best first, then the failed
    assert "0.800 [0.700, 0.800]" in table[0] and "the loss \\| is not finite" in table[2]
    figures = {file.name: file.stat().st_size for file in (tmp_path / "figures").iterdir()}
    assert set(figures) == {"parallel_coordinates.png", "marginals.png"} and min(figures.values()) > 5000
    trials = json.loads((tmp_path / "trials.json").read_text())
    assert [trial["error"] for trial in trials] == [None, None, "the loss | is not finite", None, None]


def test_lines_of_parallel_coordinates_stand_at_their_values(base: Config, tmp_path: Path) -> None:
    write_outputs(RunFolder(tmp_path), base, SWEEP, space_of(SWEEP), records_of(str(tmp_path)))
    sweep = read_sweep_table(tmp_path / "trials.parquet")
    (axes,) = parallel_figure(sweep).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 6]  # type: ignore[arg-type]
    assert len(lines) == 3  # trials with a figure
    worst = lines[0].get_ydata()
    assert list(worst) == pytest.approx([0.1, 0.5, 0.0, 0.0, 0.0, 0.0])  # type: ignore[arg-type]
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--"]
    assert len(marginal_figure(sweep).axes) == 8 and marginal_figure(sweep).axes[1].get_xscale() == "log"


def test_one_trial_and_no_trial_are_reported_too(base: Config, tmp_path: Path) -> None:
    one = records_of(str(tmp_path))[:1]
    write_outputs(RunFolder(tmp_path), base, SWEEP, space_of(SWEEP), one)
    assert "1 trials (1 done)" in (tmp_path / "sweep.md").read_text()
    none = tmp_path / "none"
    write_outputs(RunFolder(none), base, SWEEP, space_of(SWEEP), records_of(str(none))[4:])
    assert "No trial came to its end." in (none / "sweep.md").read_text() and not (none / "best.yaml").exists()


def test_tables_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table"):
        write_sweep_report(tmp_path)
    pq.write_table(pq.read_table(_some_table(tmp_path)), tmp_path / "trials.parquet")
    with pytest.raises(InputError, match="not of a sweep"):
        write_sweep_report(tmp_path)


def _some_table(folder: Path) -> Path:
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), folder / "other.parquet")
    return folder / "other.parquet"


def test_records_are_read_by_number_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    for number in (10, 2):
        write_record(str(tmp_path), new_record(number, {}))
    assert [record["name"] for record in read_records(str(tmp_path))] == ["t002", "t010"]
    (tmp_path / "records" / "t002.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_records(str(tmp_path))


def test_a_sweep_whose_trials_are_over_starts_no_ray(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gimp_ray.experiments import search as module

    base = changed(tiny, run=str(tmp_path / "sweep"))
    sweep = SweepConfig(space={"mask.ratio": {"choice": [0.3, 0.4]}}, search="grid")
    for number, ratio in enumerate((0.3, 0.4)):
        record = new_record(number, {"mask.ratio": ratio})
        write_record(base.run or "", record | {"status": "done", "reports": [measured(0.5 + ratio, 3)]})
    monkeypatch.setattr(module, "_run_left", lambda *rest: pytest.fail("nothing is left"))
    folder = search(base, sweep)
    assert load_config(folder / "best.yaml").mask.ratio == 0.4
    for record in read_records(base.run or ""):
        write_record(base.run or "", record | {"status": "failed", "reason": "it broke"})
    with pytest.raises(GimpError, match="no trial came to an end") as refusal:
        search(base, sweep)
    assert refusal.value.found == "it broke"


def test_a_search_needs_a_store_a_folder_and_validation_cases(tiny: Config) -> None:
    with pytest.raises(ConfigError, match="a store and a folder"):
        search(changed(tiny, run=None), SweepConfig())
    with pytest.raises(GimpError):
        search(changed(tiny, split__fold=99), SweepConfig())
