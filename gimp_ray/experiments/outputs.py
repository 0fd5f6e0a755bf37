"""What a sweep leaves behind: `trials.parquet`, `trials.json`, `best.yaml`, figures and `sweep.md`.

All of it is made from the records, any number of times. Left out: how the figures are drawn
(`gimp_ray/reports/sweep_report.py`, from `trials.parquet` alone).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gimp_ray.config import Config
from gimp_ray.config_files import to_yaml
from gimp_ray.evaluation import METRICS
from gimp_ray.experiments.records import Record, best_of
from gimp_ray.experiments.settings import SweepConfig, config_with, rungs_of, stage_of
from gimp_ray.experiments.space import Dimension
from gimp_ray.reports.sweep_report import write_sweep_report
from gimp_ray.runs.folder import RunFolder, whole_file, write_json, write_text


def write_outputs(
    run: RunFolder, base: Config, sweep: SweepConfig, space: list[Dimension], records: list[Record]
) -> None:
    """Write everything anew.

    Args:
        run: the sweep's folder.
        base: what every trial shares.
        sweep: the settings.
        space: the dimensions.
        records: of all trials.
    """
    with whole_file(run.path / "trials.parquet") as aside:
        pq.write_table(trials_table(base, sweep, space, records), aside)
    write_json(run.path / "trials.json", [_plain(record) for record in records])
    best = best_of(records, sweep.metric)
    if best is not None:
        write_text(run.path / "best.yaml", best_text(base, sweep, best))
    write_sweep_report(run.path)
    run.push()


def trials_table(base: Config, sweep: SweepConfig, space: list[Dimension], records: list[Record]) -> pa.Table:
    """One row a trial.

    Columns: trial, number, status (waiting | done | stopped | failed), reason, `param.<key>` for every dimension,
    every metric of the target's kind with `<metric>_low` and `<metric>_high` (95 % over patients, of the last
    measurement), epochs (done), seconds (to the last measurement), times_taken_over, run. The metadata `gimp_sweep` has
    what a reader of the table must know, as JSON.
    """
    figures = [record["reports"][-1]["figures"] if record["reports"] else {} for record in records]
    columns: dict[str, Any] = {
        "trial": pa.array([record["name"] for record in records], pa.string()),
        "number": pa.array([record["number"] for record in records], pa.int64()),
        "status": pa.array([record["status"] for record in records], pa.string()),
        "reason": pa.array([record["reason"] for record in records], pa.string()),
    }
    columns |= {f"param.{one.key}": _values([record["params"][one.key] for record in records]) for one in space}
    for name in METRICS[base.target.kind]:
        for ending, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            values = [one[name][key] if one else None for one in figures]
            columns[f"{name}{ending}"] = pa.array(values, pa.float64())
    last = [record["reports"][-1] if record["reports"] else {} for record in records]
    columns["epochs"] = pa.array([one.get("epoch", 0) for one in last], pa.int64())
    columns["seconds"] = pa.array([one.get("seconds") for one in last], pa.float64())
    columns["times_taken_over"] = pa.array([len(record["lineage"]) for record in records], pa.int64())
    columns["run"] = pa.array([record["run"] for record in records], pa.string())
    return pa.table(columns).replace_schema_metadata({"gimp_sweep": json.dumps(_about(base, sweep, space))})


def best_text(base: Config, sweep: SweepConfig, best: Record) -> str:
    """The best trial's config as YAML that `gimp run --config` takes, with a comment that says where it is from."""
    figure = best["reports"][-1]["figures"][sweep.metric]
    lines = [
        f"# the best of a sweep: trial {best['name']}, {sweep.metric} {figure['value']:.4f} on validation",
        f"# its run: {best['run']}",
    ]
    if best["lineage"]:
        lines.append("# values it ended with; population based training changed them on the way (see its record)")
    return "\n".join(lines) + "\n" + to_yaml(config_with(base.model_dump(), best["params"] | {"run": None}))


def _about(base: Config, sweep: SweepConfig, space: list[Dimension]) -> dict[str, Any]:
    epochs = base.stage_train(stage_of(sweep)).epochs
    return {
        "metric": sweep.metric,
        "kind": base.target.kind,
        "objective": sweep.objective,
        "probe": sweep.probe,
        "search": sweep.search,
        "scheduler": sweep.scheduler,
        "rungs": rungs_of(sweep, epochs),
        "resamples": sweep.resamples,
        "store": base.store,
        "scheme": base.split.scheme,
        "fold": base.split.fold,
        "transductive": base.split.transductive,
        "space": {one.key: {one.kind: list(one.values)} for one in space},
    }


def _values(values: list[Any]) -> pa.Array:
    """Numbers as numbers, truths as truths, anything else as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {int} or kinds <= {int, float}:
        return pa.array(values, pa.bool_() if kinds == {bool} else pa.int64() if kinds == {int} else pa.float64())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(record: Record) -> dict[str, Any]:
    last = record["reports"][-1] if record["reports"] else {}
    figures = {name: figure["value"] for name, figure in last.get("figures", {}).items()}
    return {
        "trial": record["name"],
        "status": record["status"],
        "error": record["reason"] if record["status"] == "failed" else None,
        **figures,
        "epochs": last.get("epoch", 0),
        "seconds": last.get("seconds"),
        "run": record["run"],
        "params": record["params"],
    }


def files_of(run: RunFolder) -> list[str]:
    """The files a user looks at, as they would name them."""
    names = ("sweep.md", "trials.parquet", "best.yaml")
    return [run.place_of(Path(run.path / name)) for name in names]
