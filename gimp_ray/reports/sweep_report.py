"""Figures and `sweep.md` of a sweep, from its `trials.parquet` alone.

Parallel coordinates (a line a trial over its values, coloured by the figure), marginals (the figure against each value,
with intervals over patients), and tables of the best trials and of those that failed. What is not over or was stopped
is shown as such: a stopped trial's figure is of an earlier epoch. Left out: runs; a trial's own page is its run's
`summary.md`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gimp_ray.errors import InputError
from gimp_ray.reports.figures import COLOURS, save_figure
from gimp_ray.reports.tables import METRICS_OF, TRANSDUCTIVE, duration_text, interval_text, markdown_table
from gimp_ray.runs.folder import write_text

Row = dict[str, Any]
BEST = 10
LOG_KINDS = ("loguniform",)
LISTS = ("choice", "grid")


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
        """Figures of the target's kind, with their names for people; tables that do not say the kind are of a class."""
        return METRICS_OF[self.about.get("kind", "class")]

    @property
    def keys(self) -> list[str]:
        """Config keys that vary."""
        return list(self.about["space"])

    @property
    def measured(self) -> list[Row]:
        """Trials with a figure, worst first, so that the best are drawn on top."""
        shown = [row for row in self.rows if row[self.metric] is not None]
        return sorted(shown, key=lambda row: (row[self.metric], -row["number"]))

    def kind(self, key: str) -> str:
        return str(next(iter(self.about["space"][key])))

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
    pictures = {}
    if sweep.measured:
        pictures = {"parallel_coordinates.png": parallel_figure(sweep), "marginals.png": marginal_figure(sweep)}
    for name, figure in pictures.items():
        save_figure(figure, folder / "figures" / name)
    sections = [
        f"# Sweep {folder.name}",
        head(sweep),
        "## Best trials",
        best_table(sweep),
        *([f"![{name.removesuffix('.png').replace('_', ' ')}](figures/{name})" for name in pictures]),
        failures_table(sweep),
        _how_to_go_on(sweep, folder),
    ]
    write_text(folder / "sweep.md", "\n\n".join(section for section in sections if section) + "\n")
    return folder / "sweep.md"


def head(sweep: Sweep) -> str:
    """What was searched, how, and how it went."""
    about, counts = sweep.about, Counter(row["status"] for row in sweep.rows)
    what = {
        "probe": f"a {about['probe']} probe on CLS_pat (fitted on training, scored on validation cases)",
        "finetune": "the fine-tuned model on validation cases",
    }[about["objective"]]
    seconds = sum(row["seconds"] or 0.0 for row in sweep.rows)
    space = markdown_table(
        ["config key", "searched"],
        [[f"`{key}`", f"{kind} {values}"] for key, spec in about["space"].items() for kind, values in spec.items()],
    )
    text = (
        f"{len(sweep.rows)} trials ({', '.join(f'{number} {status}' for status, number in sorted(counts.items()))}); "
        f"search {about['search']}, scheduler {about['scheduler']}; {sweep.titles[sweep.metric]} of {what}, measured "
        f"after epoch {', '.join(map(str, about['rungs']))}. Split {about['scheme']}, fold {about['fold']}. "
        f"Trials took {duration_text(seconds)} in all, one after another."
    )
    if about["transductive"]:
        text += f" {TRANSDUCTIVE}"
    return f"{text}\n\n{space}"


def best_table(sweep: Sweep, count: int = BEST) -> str:
    """The best trials that came to their end, with 95 % intervals over patients."""
    best = sweep.best(count)
    if not best:
        return "No trial came to its end."
    rows = [
        [
            row["trial"],
            *(value_text(row[f"param.{key}"]) for key in sweep.keys),
            *(interval_text(_interval(row, name)) for name in sweep.titles),
            row["epochs"],
            duration_text(row["seconds"]),
        ]
        for row in best
    ]
    header = ["trial", *(f"`{key}`" for key in sweep.keys), *sweep.titles.values(), "epochs", "time"]
    note = (
        "In brackets the 95 % interval over the validation patients "
        f"({sweep.about['resamples']} bootstrap resamples). The best of many trials on the same patients looks better "
        "than it is: what it is worth, the test part says, which no trial has seen."
    )
    if any(row["times_taken_over"] for row in best):
        note += (
            " With population based training the values are those a trial ended with; it had others before, and its "
            "config alone does not give its model."
        )
    return f"{markdown_table(header, rows)}\n\n{note}"


def failures_table(sweep: Sweep) -> str | None:
    """Trials that failed, with their reason; None where all went well."""
    failed = [row for row in sweep.rows if row["status"] == "failed"]
    if not failed:
        return None
    rows = [
        [row["trial"], *(value_text(row[f"param.{key}"]) for key in sweep.keys), row["epochs"], row["reason"] or "-"]
        for row in failed
    ]
    header = ["trial", *(f"`{key}`" for key in sweep.keys), "epochs", "reason"]
    again = "The sweep's command with `--retry-failed true` tries them again, from their own checkpoints."
    return f"## Failed trials\n\n{markdown_table(header, rows)}\n\n{again}"


def parallel_figure(sweep: Sweep) -> Figure:
    """Parallel coordinates: an axis a config key, the last for the figure; a line a trial, stopped ones dashed."""
    rows, keys = sweep.measured, sweep.keys
    scores = np.array([row[sweep.metric] for row in rows])
    figure = Figure(figsize=(2.0 + 1.6 * (len(keys) + 1), 4.2), layout="constrained")
    axes = figure.add_subplot()
    heights = np.array([[*(_heights(sweep, key, rows)[i] for key in keys), 0.0] for i in range(len(rows))])
    low, high = float(scores.min()), float(scores.max())
    heights[:, -1] = (scores - low) / (high - low) if high > low else 0.5
    colour = colormaps["viridis"]
    norm = Normalize(low, high if high > low else low + 1e-9)
    for row, line in zip(rows, heights, strict=True):
        over = row["status"] == "done"
        axes.plot(
            range(len(line)),
            line,
            "-" if over else "--",
            color=colour(norm(row[sweep.metric])),
            alpha=0.9 if over else 0.35,
            linewidth=1.6 if over else 1.0,
        )
    for place, key in enumerate(keys):
        _scale(axes, place, _marks(sweep, key, rows))
    _scale(axes, len(keys), [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")] if high > low else [(0.5, f"{low:.3f}")])
    axes.set_xticks(range(len(keys) + 1), [*keys, f"{sweep.titles[sweep.metric]}\n(0 to 1)"], fontsize=9)
    axes.set(xlim=(-0.35, len(keys) + 0.45), ylim=(-0.06, 1.06), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0)
    stopped = sum(row["status"] != "done" for row in rows)
    axes.set_title(f"{len(rows)} trials" + (f", {stopped} not to their end (dashed)" if stopped else ""), fontsize=10)
    return figure


def marginal_figure(sweep: Sweep) -> Figure:
    """The figure against the value of each config key, with 95 % intervals; hollow where a trial was stopped."""
    keys, rows = sweep.keys, sweep.measured
    columns = min(len(keys), 4)
    lines = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(3.1 * columns + 0.6, 2.9 * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, key in zip(grid, keys, strict=False):
        _marginal(axes, sweep, key, rows)
    if len({row["status"] == "done" for row in rows}) == 2:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    for axes in grid[len(keys) :]:
        axes.set_axis_off()
    for number in range(0, len(keys), columns):
        grid[number].set_ylabel(f"{sweep.titles[sweep.metric]} on validation (0 to 1)", fontsize=9)
    return figure


def value_text(value: Any) -> str:
    """A value as a reader says it."""
    return f"{value:.4g}" if isinstance(value, float) else "not set" if value is None else str(value)


def _marginal(axes: Axes, sweep: Sweep, key: str, rows: Sequence[Row]) -> None:
    listed = _listed(sweep, key, rows)
    for over, label in ((True, "to its end"), (False, "stopped earlier")):
        chosen = [row for row in rows if (row["status"] == "done") == over]
        if not chosen:
            continue
        values = [row[f"param.{key}"] for row in chosen]
        # trials of one value of a list stand beside one another
        places = (
            values
            if listed is None
            else [
                listed.index(value_text(value)) + 0.5 * (_share(row["number"], 0, len(sweep.rows) - 1) - 0.5)
                for value, row in zip(values, chosen, strict=True)
            ]
        )
        scores = np.array([row[sweep.metric] for row in chosen])
        bounds = [(row[f"{sweep.metric}_low"], row[f"{sweep.metric}_high"]) for row in chosen]
        errors = [
            (0.0, 0.0) if low is None else (score - low, high - score)
            for score, (low, high) in zip(scores, bounds, strict=True)
        ]
        axes.errorbar(
            places,
            scores,
            yerr=np.maximum(np.array(errors).T, 0.0),
            fmt="o",
            color=COLOURS[0] if over else "#888888",
            markerfacecolor=COLOURS[0] if over else "white",
            ecolor="#BBBBBB",
            elinewidth=0.8,
            markersize=5,
            label=label,
        )
    if listed is not None:
        axes.set_xticks(range(len(listed)), listed, fontsize=8)
        axes.set_xlim(-0.5, len(listed) - 0.5)
    elif sweep.kind(key) in LOG_KINDS:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = next(iter(sweep.about["space"][key].values()))
        axes.set_xlim(low / 1.2, high * 1.2)
    axes.set_xlabel(key, fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _listed(sweep: Sweep, key: str, rows: Sequence[Row]) -> list[str] | None:
    """The values of a dimension that is a list, as text in the list's order; None for a range of numbers."""
    if sweep.kind(key) not in LISTS:
        return None
    values = next(iter(sweep.about["space"][key].values()))
    # the table's column may have made 1 of a list 1.0
    floats = any(isinstance(row[f"param.{key}"], float) for row in rows)
    texts = [value_text(float(value) if floats and _number(value) else _plain(value)) for value in values]
    return texts + sorted({value_text(row[f"param.{key}"]) for row in rows} - set(texts))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A list or mapping among the values stands in the table as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _heights(sweep: Sweep, key: str, rows: Sequence[Row]) -> list[float]:
    """Where trials cross the axis of a key, 0 to 1."""
    values = [row[f"param.{key}"] for row in rows]
    listed = _listed(sweep, key, rows)
    if listed is not None:
        return [_share(listed.index(value_text(value)), 0, len(listed) - 1) for value in values]
    low, high = next(iter(sweep.about["space"][key].values()))[:2]
    if sweep.kind(key) in LOG_KINDS:
        return [_share(math.log(value), math.log(low), math.log(high)) for value in values]
    return [_share(value, low, high) for value in values]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _marks(sweep: Sweep, key: str, rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Heights and texts beside the axis of a key."""
    listed = _listed(sweep, key, rows)
    if listed is not None:
        return [(_share(place, 0, len(listed) - 1), text) for place, text in enumerate(listed)]
    low, high = next(iter(sweep.about["space"][key].values()))[:2]
    middle = math.sqrt(low * high) if sweep.kind(key) in LOG_KINDS else (low + high) / 2
    return [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")]


def _scale(axes: Axes, place: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(place, color="#444444", linewidth=0.8, zorder=0)
    for height, text in marks:
        axes.text(place + 0.03, height, text, fontsize=8, va="center", color="#222222")


def _interval(row: Row, metric: str) -> dict[str, Any]:
    return {"value": row[metric], "low": row[f"{metric}_low"], "high": row[f"{metric}_high"]}


def _how_to_go_on(sweep: Sweep, folder: Path) -> str:
    if not sweep.best(1):
        return ""
    return (
        "## The best config\n\n"
        f"`best.yaml` has it whole: `gimp run --config {folder.name}/best.yaml --run RUN` trains it anew, fine-tunes "
        "and evaluates it on the test part."
    )
