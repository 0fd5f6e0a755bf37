"""What a sweep leaves behind: `trials.parquet`, `trials.json`, `best.yaml`, figures and `sweep.md`.

The tables are made from the records; figures and page from `trials.parquet` alone. A trial that was stopped has metrics
of an earlier epoch, and is shown as such.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gimp_ray.config import Config
from gimp_ray.config_files import to_yaml
from gimp_ray.errors import InputError
from gimp_ray.evaluation import METRICS
from gimp_ray.experiments.records import Record, best_of
from gimp_ray.experiments.runs import with_changes
from gimp_ray.experiments.space import LISTS, Dimension, dimensions
from gimp_ray.experiments.sweep import SweepConfig, rungs_of, stage_of
from gimp_ray.io.files import whole_file, write_json, write_text
from gimp_ray.reports.figures import COLOURS, save_figure
from gimp_ray.reports.tables import METRICS_OF, TRANSDUCTIVE, duration_text, interval_text, markdown_table
from gimp_ray.runs.folder import RunFolder

Row = dict[str, Any]
BEST = 10


def write_outputs(
    run: RunFolder, base: Config, sweep: SweepConfig, space: list[Dimension], records: list[Record]
) -> None:
    """Write everything anew, into the sweep's folder `run`, from the records of all trials."""
    with whole_file(run.path / "trials.parquet") as aside:
        pq.write_table(trials_table(base, sweep, space, records), aside)
    trials = []
    for record in records:
        last = record["reports"][-1] if record["reports"] else {}
        trials.append(
            {
                "trial": record["name"],
                "status": record["status"],
                "error": record["reason"] if record["status"] == "failed" else None,
                **{name: metric["value"] for name, metric in last.get("metrics", {}).items()},
                "epochs": last.get("epoch", 0),
                "seconds": last.get("seconds"),
                "run": record["run"],
                "params": record["params"],
            }
        )
    write_json(run.path / "trials.json", trials)
    best = best_of(records, sweep.metric)
    if best is not None:
        write_text(run.path / "best.yaml", best_text(base, sweep, best))
    write_sweep_report(run.path)
    run.push()


def trials_table(base: Config, sweep: SweepConfig, space: list[Dimension], records: list[Record]) -> pa.Table:
    """One row a trial.

    Columns: trial, number, status (waiting | done | stopped | failed), reason, `param.<key>` for every dimension,
    every metric of the target's kind with `<metric>_low` and `<metric>_high` (95 % over patients, of the last
    measurement), epochs (done), seconds (to the last measurement), times_taken_over, run (inside the sweep's folder).
    The metadata `gimp_sweep` has what a reader of the table must know, as JSON.
    """
    last = [record["reports"][-1] if record["reports"] else {} for record in records]
    columns: dict[str, Any] = {
        "trial": pa.array([record["name"] for record in records], pa.string()),
        "number": pa.array([record["number"] for record in records], pa.int64()),
        "status": pa.array([record["status"] for record in records], pa.string()),
        "reason": pa.array([record["reason"] for record in records], pa.string()),
    }
    columns |= {f"param.{one.key}": _values([record["params"][one.key] for record in records]) for one in space}
    for name in METRICS[base.target.kind]:
        for ending, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            values = [one["metrics"][name][key] if one else None for one in last]
            columns[f"{name}{ending}"] = pa.array(values, pa.float64())
    columns["epochs"] = pa.array([one.get("epoch", 0) for one in last], pa.int64())
    columns["seconds"] = pa.array([one.get("seconds") for one in last], pa.float64())
    columns["times_taken_over"] = pa.array([len(record["lineage"]) for record in records], pa.int64())
    columns["run"] = pa.array([record["run"] for record in records], pa.string())
    about = {
        **{name: getattr(sweep, name) for name in ("metric", "objective", "probe", "search", "scheduler", "resamples")},
        "kind": base.target.kind,
        "rungs": rungs_of(sweep, base.stage_train(stage_of(sweep)).epochs),
        "store": base.store,
        "scheme": base.split.scheme,
        "fold": base.split.fold,
        "transductive": base.split.transductive,
        "space": {one.key: {one.kind: list(one.values)} for one in space},
    }
    return pa.table(columns).replace_schema_metadata({"gimp_sweep": json.dumps(about)})


def _values(values: list[Any]) -> pa.Array:
    """Numbers as numbers, booleans as booleans, anything else as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {int} or kinds <= {int, float}:
        return pa.array(values, pa.bool_() if kinds == {bool} else pa.int64() if kinds == {int} else pa.float64())
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(texts, pa.string())


def best_text(base: Config, sweep: SweepConfig, best: Record) -> str:
    """The best trial's config as YAML that `gimp run --config` takes, with a comment that names the trial."""
    value = best["reports"][-1]["metrics"][sweep.metric]["value"]
    lines = [
        f"# the best of a sweep: trial {best['name']}, {sweep.metric} {value:.4f} on validation",
        f"# its run, in the sweep's folder: {best['run']}",
    ]
    if best["lineage"]:
        lines.append("# values it ended with; population based training changed them on the way (see its record)")
    return "\n".join(lines) + "\n" + to_yaml(with_changes(base, best["params"] | {"run": None}))


@dataclass(frozen=True)
class Sweep:
    """A sweep's table.

    Attributes:
        rows: one a trial, column -> value.
        about: metric, objective, search, scheduler, space and the like.
    """

    rows: list[Row]
    about: dict[str, Any]

    @property
    def metric(self) -> str:
        return str(self.about["metric"])

    @property
    def titles(self) -> dict[str, str]:
        """Metrics of the target's kind, with their names for people."""
        return METRICS_OF[self.about["kind"]]

    @property
    def space(self) -> list[Dimension]:
        return dimensions(self.about["space"])

    @property
    def measured(self) -> list[Row]:
        """Trials with a metric, worst first, so that the best are drawn on top."""
        shown = [row for row in self.rows if row[self.metric] is not None]
        return sorted(shown, key=lambda row: (row[self.metric], -row["number"]))

    def best(self, count: int = BEST) -> list[Row]:
        """Trials that came to their end, best first."""
        return [row for row in reversed(self.measured) if row["status"] == "done"][:count]


def read_sweep_table(file: Path) -> Sweep:
    """A `trials.parquet`.

    Raises:
        InputError: the file is missing, or was not written by a sweep.
    """
    if not file.exists():
        raise InputError("the sweep has no table of trials", file=file, fix="run `gimp sweep` on the folder first")
    table = pq.read_table(file)
    about = (table.schema.metadata or {}).get(b"gimp_sweep")
    if about is None:
        raise InputError("the table is not of a sweep", file=file, expected="metadata gimp_sweep", found="none")
    return Sweep(table.to_pylist(), json.loads(about))


def write_sweep_report(folder: Path) -> Path:
    """Draw a sweep's figures and write its `sweep.md`; both may be made again at any time.

    Args:
        folder: the sweep's, with `trials.parquet`.

    Returns:
        Path of `sweep.md`.
    """
    sweep = read_sweep_table(folder / "trials.parquet")
    sections = [f"# Sweep {folder.name}", _head(sweep), "## Best trials", _best_table(sweep)]
    if sweep.measured:
        for name, figure in (("parallel coordinates", parallel_figure(sweep)), ("marginals", marginal_figure(sweep))):
            file = save_figure(figure, folder / "figures" / f"{name.replace(' ', '_')}.png")
            sections.append(f"![{name}](figures/{file.name})")
    sections.append(_failures_table(sweep))
    if sweep.best(1):
        sections.append(
            f"## The best config\n\n`best.yaml` has it whole: `gimp run --config {folder.name}/best.yaml --run RUN` "
            "trains it anew, fine-tunes and evaluates it on the test part."
        )
    write_text(folder / "sweep.md", "\n\n".join(section for section in sections if section) + "\n")
    return folder / "sweep.md"


def _head(sweep: Sweep) -> str:
    """What was searched, how, and how many trials ended how."""
    about, counts = sweep.about, Counter(row["status"] for row in sweep.rows)
    what = {
        "probe": f"a {about['probe']} probe on CLS_pat (fitted on training, scored on validation cases)",
        "finetune": "the fine-tuned model on validation cases",
    }[about["objective"]]
    seconds = sum(row["seconds"] or 0.0 for row in sweep.rows)
    searched = [[f"`{one.key}`", f"{one.kind} {list(one.values)}"] for one in sweep.space]
    text = (
        f"{len(sweep.rows)} trials ({', '.join(f'{number} {status}' for status, number in sorted(counts.items()))}); "
        f"search {about['search']}, scheduler {about['scheduler']}; {sweep.titles[sweep.metric]} of {what}, measured "
        f"after epoch {', '.join(map(str, about['rungs']))}. Split {about['scheme']}, fold {about['fold']}. "
        f"Trials took {duration_text(seconds)} in all, one after another."
    )
    if about["transductive"]:
        text += f" {TRANSDUCTIVE}"
    return f"{text}\n\n{markdown_table(['config key', 'searched'], searched)}"


def _best_table(sweep: Sweep) -> str:
    """The best trials that came to their end, with 95 % confidence intervals over patients."""
    best = sweep.best()
    if not best:
        return "No trial came to its end."
    rows = []
    for row in best:
        ends = {"value": "", "low": "_low", "high": "_high"}
        intervals = [{key: row[f"{name}{end}"] for key, end in ends.items()} for name in sweep.titles]
        values = [_shown(row[f"param.{one.key}"]) for one in sweep.space]
        rows.append(
            [row["trial"], *values, *map(interval_text, intervals), row["epochs"], duration_text(row["seconds"])]
        )
    header = ["trial", *(f"`{one.key}`" for one in sweep.space), *sweep.titles.values(), "epochs", "time"]
    note = (
        "In brackets the 95 % confidence interval over the validation patients "
        f"({sweep.about['resamples']} bootstrap resamples). The best of many trials on the same patients looks better "
        "than it is: judge it on the test part, which no trial has seen."
    )
    if any(row["times_taken_over"] for row in best):
        note += (
            " With population based training the values are those a trial ended with; it had others before, and its "
            "config alone does not give its model."
        )
    return f"{markdown_table(header, rows)}\n\n{note}"


def _failures_table(sweep: Sweep) -> str:
    failed = [row for row in sweep.rows if row["status"] == "failed"]
    if not failed:
        return ""
    rows = [
        [row["trial"], *(_shown(row[f"param.{one.key}"]) for one in sweep.space), row["epochs"], row["reason"] or "-"]
        for row in failed
    ]
    header = ["trial", *(f"`{one.key}`" for one in sweep.space), "epochs", "reason"]
    again = "The sweep's command with `--retry-failed true` tries them again, from their own checkpoints."
    return f"## Failed trials\n\n{markdown_table(header, rows)}\n\n{again}"


class Scale(NamedTuple):
    """Where the values of a dimension are on an axis: heights of the measured trials (0 to 1); ticks with texts."""

    heights: list[float]
    ticks: list[tuple[float, str]]


def scale_of(one: Dimension, rows: list[Row]) -> Scale:
    """The axis of a dimension: a list's values in the list's order, a range from its low to its high end."""
    values = [row[f"param.{one.key}"] for row in rows]
    if one.kind in LISTS:
        # the table's column may have made 1 of a list 1.0, and has a list among the values as JSON
        floats = any(isinstance(value, float) for value in values)
        texts = list(dict.fromkeys([*(_listed(value, floats) for value in one.values), *sorted(map(_shown, values))]))
        last = max(1, len(texts) - 1)
        at = {text: number / last if len(texts) > 1 else 0.5 for number, text in enumerate(texts)}
        return Scale([at[_shown(value)] for value in values], [(height, text) for text, height in at.items()])
    low, high = one.values[:2]
    if one.kind == "loguniform":
        heights = [math.log(value / low) / math.log(high / low) for value in values]
        middle = math.sqrt(low * high)
    else:
        heights = [(value - low) / (high - low) for value in values]
        middle = (low + high) / 2
    return Scale(heights, [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")])


def parallel_figure(sweep: Sweep) -> Figure:
    """Parallel coordinates: an axis a config key, the last for the metric; a line a trial, stopped ones dashed."""
    rows, space = sweep.measured, sweep.space
    scores = np.array([row[sweep.metric] for row in rows])
    low, high = float(scores.min()), float(scores.max())
    spread = (scores - low) / (high - low) if high > low else np.full(len(scores), 0.5)
    ends = [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")] if high > low else [(0.5, f"{low:.3f}")]
    scales = [*(scale_of(one, rows) for one in space), Scale(spread.tolist(), ends)]
    figure = Figure(figsize=(2.0 + 1.6 * len(scales), 4.2), layout="constrained")
    axes = figure.add_subplot()
    colour, norm = colormaps["viridis"], Normalize(low, high if high > low else low + 1e-9)
    for number, row in enumerate(rows):
        over = row["status"] == "done"
        axes.plot(
            range(len(scales)),
            [scale.heights[number] for scale in scales],
            "-" if over else "--",
            color=colour(norm(row[sweep.metric])),
            alpha=0.9 if over else 0.35,
            linewidth=1.6 if over else 1.0,
        )
    for at, scale in enumerate(scales):
        axes.axvline(at, color="#444444", linewidth=0.8, zorder=0)
        for height, text in scale.ticks:
            axes.text(at + 0.03, height, text, fontsize=8, va="center", color="#222222")
    names = [*(one.key for one in space), f"{sweep.titles[sweep.metric]}\n(0 to 1)"]
    axes.set_xticks(range(len(scales)), names, fontsize=9)
    axes.set(xlim=(-0.35, len(space) + 0.45), ylim=(-0.06, 1.06), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0)
    stopped = sum(row["status"] != "done" for row in rows)
    axes.set_title(f"{len(rows)} trials" + (f", {stopped} not to their end (dashed)" if stopped else ""), fontsize=10)
    return figure


def marginal_figure(sweep: Sweep) -> Figure:
    """The metric against the value of each config key, with 95 % intervals; hollow where a trial was stopped."""
    space = sweep.space
    columns = min(len(space), 4)
    lines = math.ceil(len(space) / columns)
    figure = Figure(figsize=(3.1 * columns + 0.6, 2.9 * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, one in zip(grid, space, strict=False):
        _marginal(axes, sweep, one)
    if len({row["status"] == "done" for row in sweep.measured}) == 2:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    for axes in grid[len(space) :]:
        axes.set_axis_off()
    for number in range(0, len(space), columns):
        grid[number].set_ylabel(f"{sweep.titles[sweep.metric]} on validation (0 to 1)", fontsize=9)
    return figure


def _marginal(axes: Axes, sweep: Sweep, one: Dimension) -> None:
    rows = sweep.measured
    scale, listed = scale_of(one, rows), one.kind in LISTS
    step = 1 / max(1, len(scale.ticks) - 1)
    for over, label in ((True, "to its end"), (False, "stopped earlier")):
        chosen = [
            (row, height) for row, height in zip(rows, scale.heights, strict=True) if (row["status"] == "done") == over
        ]
        if not chosen:
            continue
        # trials of one value of a list stand beside one another
        beside = [0.5 * step * (row["number"] / max(1, len(sweep.rows) - 1) - 0.5) for row, _ in chosen]
        scores = np.array([row[sweep.metric] for row, _ in chosen])
        low, high = (
            np.array([row[f"{sweep.metric}{end}"] for row, _ in chosen], np.float64) for end in ("_low", "_high")
        )
        axes.errorbar(
            [height + aside for (_, height), aside in zip(chosen, beside, strict=True)]
            if listed
            else [row[f"param.{one.key}"] for row, _ in chosen],
            scores,
            yerr=np.nan_to_num(np.maximum([scores - low, high - scores], 0.0)),
            fmt="o",
            color=COLOURS[0] if over else "#888888",
            markerfacecolor=COLOURS[0] if over else "white",
            ecolor="#BBBBBB",
            elinewidth=0.8,
            markersize=5,
            label=label,
        )
    if listed:
        heights, texts = zip(*scale.ticks, strict=True)
        axes.set_xticks(heights, texts, fontsize=8)
        axes.set_xlim(min(heights) - step / 2, max(heights) + step / 2)
    elif one.kind == "loguniform":
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(one.values[0] / 1.2, one.values[1] * 1.2)
    axes.set_xlabel(one.key, fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _shown(value: Any) -> str:
    """A value of the table as text."""
    return f"{value:.4g}" if isinstance(value, float) else "not set" if value is None else str(value)


def _listed(value: Any, floats: bool) -> str:
    """A value of a list as the table shows it."""
    if isinstance(value, list | dict):
        return json.dumps(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return _shown(float(value) if floats and number else value)
