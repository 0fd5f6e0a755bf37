"""A table as Markdown, CSV, LaTeX and figures, from the plain data of `results.read_table`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gimp_ray.evaluation import METRICS
from gimp_ray.experiments.spec import NAMES
from gimp_ray.reports.figures import COLOURS, tsne_figure
from gimp_ray.reports.reading import vectors
from gimp_ray.reports.tables import duration_text, interval_text, markdown_table

PARTS = {"test": "test", "val": "validation"}
DPI = 150  # of `save_figure`
# what LaTeX would not print as it is; a row that begins with [ would be an option of the line break before it
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " "}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}"}
)


def caption(result: dict[str, Any]) -> str:
    """Which cases, which runs, what the brackets and differences are, and whether pre-training was transductive."""
    first = next(row["name"] for row in result["rows"] if not row["baseline"])
    folds, seeds = len(result["folds"]), len(result["seeds"])
    text = (
        f"Mean over {folds} fold{'s' * (folds > 1)} ({result['scheme']}) x {seeds} seed{'s' * (seeds > 1)} on "
        f"{PARTS[result['part']]} cases, {result['n_cases']} cases of {result['n_patients']} patients in all. In "
        f"brackets the 95 % confidence interval over patients ({result['resamples']} bootstrap resamples of all "
        f"patients, averaged over seeds). Differences are to the first row, '{first}', paired by patient, fold and "
        "seed."
    )
    if paper_metrics(result):
        text += " The paper's values are of its own cohort and split, for orientation."
    if result["transductive"]:
        text += (
            " TRANSDUCTIVE: pre-training saw the images and genes of the reported cases (not their labels) in "
            f"{', '.join(result['transductive'])}; do not compare with rows that did not."
        )
    left_out = ", ".join(f"{name} ({why})" for name, why in result.get("left_out", {}).items())
    if left_out:
        text += f" Left out: {left_out}."
    if result["missing"]:
        text += f" INCOMPLETE: {len(result['missing'])} runs are missing."
    return f"{text} {result['note']}".strip()


def shown_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table, as text: what Markdown and LaTeX show."""
    shown, paper = result["shown"], paper_metrics(result)
    header = ["group", "row", "runs"]
    for name in shown:
        header += [NAMES[name], f"{NAMES[name]}, minus first row"]
    header += [f"paper: {NAMES[name]}" for name in paper] + ["time of a run"]
    lines, group, marks = [], None, _marks(result)
    for row in result["rows"]:
        line = ["" if row["group"] == group else row["group"], row["name"] + marks.get(row["name"], ""), row["runs"]]
        group = row["group"]
        for name in shown:
            line += [interval_text(row["metrics"].get(name)), difference_text(row["difference_to_first"].get(name))]
        line += [f"{row['paper'][name]:.4f}" if name in row["paper"] else "" for name in paper]
        lines.append([str(cell) for cell in [*line, "" if row["seconds"] is None else duration_text(row["seconds"])]])
    if not any(row["group"] for row in result["rows"]):
        header, lines = header[1:], [line[1:] for line in lines]
    return header, lines


def markdown_page(result: dict[str, Any], figures: dict[str, str], command: str) -> str:
    """The page of a table, with all that is needed to judge it.

    Args:
        result: of `results.read_table`.
        figures: file beside the page -> what it shows.
        command: that makes the table again.
    """
    notes = [
        f"{mark.strip()} {row['note']}" for row in result["rows"] for mark in [_marks(result).get(row["name"])] if mark
    ]
    blocks = [f"# {result['title']}", caption(result), markdown_table(*shown_table(result)), "\n\n".join(notes)]
    by_label = dict.fromkeys(name for row in result["rows"] for name in row["metrics"] if name not in NAMES)
    if by_label:
        header = [" ".join([NAMES[kind], label]) for kind, _, label in (name.partition(" ") for name in by_label)]
        lines = [
            [row["name"], *(interval_text(row["metrics"].get(name)) for name in by_label)] for row in result["rows"]
        ]
        blocks += ["## By label", markdown_table(["row", *header], lines)]
    if result["missing"]:
        lines = [[one["row"], one["fold"], one["seed"], one["why"]] for one in result["missing"]]
        blocks += ["## Missing runs", markdown_table(["row", "fold", "seed", "why"], lines)]
    total = sum(row["seconds_total"] or 0.0 for row in result["rows"])
    blocks += [f"![{what}]({name})\n\n*{what}.*" for name, what in figures.items()]
    blocks += [
        f"The runs took {duration_text(total)} of computing in all, one after another; what several rows share is "
        "counted for each of them, so that a row's time is what it would take alone.",
        f"Made by `{command}`. The same command runs what is missing and writes the table anew.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def latex_table(result: dict[str, Any], caption: str, label: str) -> str:
    """The table for `\\usepackage{booktabs}`, one `tabular` in a `table`; all text is escaped.

    Args:
        result: of `results.read_table`.
        caption: plain text.
        label: letters, digits and dashes.
    """
    header, lines = shown_table(result)
    text = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in [header, *lines]]
    return "\n".join(
        [
            *(r"% needs \usepackage{booktabs}", r"\begin{table}"),
            *(rf"\caption{{{caption.translate(_LATEX)}}}", rf"\label{{tab:{label}}}"),
            *(rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\toprule", text[0], r"\midrule", *text[1:]),
            *(r"\bottomrule", r"\end{tabular}", r"\end{table}", ""),
        ]
    )


def csv_text(result: dict[str, Any]) -> str:
    """One line a row; every metric with its interval, its deviation over runs and its difference to the first row."""
    lines = []
    for row in result["rows"]:
        line = {"row": row["name"], "group": row["group"], "baseline": row["baseline"]}
        line |= {"transductive": row["name"] in result["transductive"], "runs": row["runs"]}
        for name in dict.fromkeys(name for row in result["rows"] for name in row["metrics"]):
            metric, difference = row["metrics"].get(name, {}), row["difference_to_first"].get(name, {})
            line |= {f"{name}{end}": metric.get(end.strip("_") or "value") for end in ("", "_low", "_high", "_sd")}
            line |= {
                f"{name}_difference{end}": difference.get(end.strip("_") or "value") for end in ("", "_low", "_high")
            }
        line |= {f"paper_{name}": row["paper"].get(name) for name in paper_metrics(result)}
        lines.append(line | {"seconds_a_run": row["seconds"], "seconds_total": row["seconds_total"]})
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def paper_metrics(result: dict[str, Any]) -> list[str]:
    """The metrics that a publication reports for some row, of the table's kind of target."""
    return [name for name in METRICS[result["kind"]] if any(name in row["paper"] for row in result["rows"])]


def difference_text(metric: dict[str, Any] | None) -> str:
    """`+0.012 [-0.003, +0.027]`, or nothing where there is no difference; what rounds to nothing is +0.000."""
    if not metric or metric["value"] is None:
        return ""
    value, low, high = (
        None if metric[key] is None else f"{round(metric[key], 3) + 0.0:+.3f}" for key in ("value", "low", "high")
    )
    return str(value) if low is None else f"{value} [{low}, {high}]"


def _marks(result: dict[str, Any]) -> dict[str, str]:
    """Row -> the mark that leads to its note."""
    noted = [row["name"] for row in result["rows"] if row["note"]]
    return {name: f" ({number})" for number, name in enumerate(noted, start=1)}


# figures


def rows_figure(result: dict[str, Any]) -> Figure:
    """Every row's metrics with their intervals, one panel a metric, coloured by group; the paper's as hollow diamonds.

    Args:
        result: of `results.read_table`.
    """
    rows, shown = result["rows"], result["shown"]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure = Figure(figsize=(3.2 + 3.4 * len(shown), 1.1 + 0.3 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, shown, strict=True):
        for at, row in enumerate(rows):
            colour = COLOURS[groups.index(row["group"]) % len(COLOURS)]
            found = row["metrics"].get(name) or {}
            if found.get("low") is not None:
                axes.plot([found["low"], found["high"]], [at, at], color=colour, linewidth=1.6)
            if found.get("value") is not None:
                axes.plot(found["value"], at, "s" if row["baseline"] else "o", color=colour, markersize=5)
            if name in row["paper"]:
                axes.plot(row["paper"][name], at, "D", color=colour, markerfacecolor="none", markersize=5)
        first = rows[0]["metrics"].get(name) or {}
        if first.get("value") is not None:
            axes.axvline(first["value"], color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        axes.set_xlabel(NAMES[name])
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [_plain(row["name"]) for row in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    note = " (transductive rows, see caption)" if result["transductive"] else ""
    figure.suptitle(_plain(f"{result['title']}{note}"), fontsize=10)
    return figure


def tsne_panel(tables: Sequence[tuple[str, pa.Table]], part: str, title: str) -> Figure:
    """Maps (t-SNE) of CLS_pat side by side, two in a line.

    Args:
        tables: name of a row, and its table with `case_id`, `part`, `label` and `cls_pat`.
        part: whose cases are drawn.
        title: words after each row's name.
    """
    classes = sorted({label for _, table in tables for label in table["label"].to_pylist()})
    images = []
    for name, table in tables:
        kept = table.filter(pc.equal(table["part"], part))
        figure = tsne_figure(vectors(kept), kept["label"].to_pylist(), classes, _plain(f"{name}, {title}"))
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        images.append(np.asarray(canvas.buffer_rgba()).copy())
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns, lines = min(2, len(images)), (len(images) + 1) // 2
    panel = Figure(figsize=(columns * width / DPI, lines * height / DPI), dpi=DPI)
    for number, image in enumerate(images):
        axes = panel.add_axes(((number % 2) / columns, 1 - (number // 2 + 1) / lines, 1 / columns, 1 / lines))
        axes.imshow(image)
        axes.set_axis_off()
    return panel


def read_vectors(file: Path) -> pa.Table | None:
    """The columns of a table of embeddings that a map needs; None where there is no such file or no CLS_pat in it."""
    if not file.exists() or "cls_pat" not in pq.read_schema(file).names:
        return None
    return pq.read_table(file, columns=["case_id", "part", "label", "cls_pat"])


def _plain(text: str) -> str:
    """Text that Matplotlib draws as it is: what stands between two $ would be a formula."""
    return text.replace("$", r"\$")
