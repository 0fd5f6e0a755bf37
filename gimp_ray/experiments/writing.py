"""A table as Markdown, CSV and JSON. LaTeX is `latex.py`, figures are `drawing.py`.

The Markdown is for people and has everything a table needs to be judged: which cases, what the intervals cover, the
rows that are missing and why, and which pre-training saw reported cases.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from gimp_ray.evaluation import METRICS
from gimp_ray.experiments.spec import FIGURES
from gimp_ray.reports.tables import duration_text, interval_text, markdown_table

PARTS = {"test": "test", "val": "validation"}


def caption(result: dict[str, Any]) -> str:
    """Which cases, which runs, what the brackets and differences are, and whether pre-training was transductive."""
    first = next(row["name"] for row in result["rows"] if not row["reference"])
    folds, seeds = len(result["folds"]), len(result["seeds"])
    text = (
        f"Mean over {folds} fold{'s' * (folds > 1)} ({result['scheme']}) x {seeds} seed{'s' * (seeds > 1)} on "
        f"{PARTS[result['part']]} cases, {result['n_cases']} cases of {result['n_patients']} patients in all. In "
        f"brackets the 95 % interval over patients ({result['resamples']} bootstrap resamples of all patients, "
        f"averaged over seeds). Differences are to the first row, '{first}', paired by patient, fold and seed."
    )
    if paper_figures(result):
        text += " The paper's figures are of its own cohort and split, as a reference."
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


def markdown_page(result: dict[str, Any], figures: dict[str, str], command: str) -> str:
    """The page of a table.

    Args:
        result: of `reading.read_table`.
        figures: file beside the page -> what it shows.
        command: that makes the table again.
    """
    blocks = [
        f"# {result['title']}",
        caption(result),
        _table(result),
        _notes(result),
        _by_label(result),
        _missing(result),
    ]
    blocks += [f"![{what}]({name})\n\n*{what}.*" for name, what in figures.items()]
    blocks += [_cost(result), f"Made by `{command}`. The same command runs what is missing and writes the table anew."]
    return "\n\n".join(block for block in blocks if block) + "\n"


def csv_text(result: dict[str, Any]) -> str:
    """One line a row; every figure with its interval, its deviation over runs and its difference to the first row."""
    named = list(dict.fromkeys(name for row in result["rows"] for name in row["figures"]))
    paper = paper_figures(result)
    header = ["row", "group", "reference", "transductive", "runs"]
    for name in named:
        header += [name, f"{name}_low", f"{name}_high", f"{name}_sd"]
        header += [f"{name}_difference", f"{name}_difference_low", f"{name}_difference_high"]
    header += [f"paper_{name}" for name in paper] + ["seconds_a_run", "seconds_total"]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(header)
    for row in result["rows"]:
        line = [row["name"], row["group"], row["reference"], row["name"] in result["transductive"], row["runs"]]
        for name in named:
            figure, difference = row["figures"].get(name, {}), row["difference_to_first"].get(name, {})
            line += [figure.get(key) for key in ("value", "low", "high", "sd")]
            line += [difference.get(key) for key in ("value", "low", "high")]
        line += [row["paper"].get(name) for name in paper] + [row["seconds"], row["seconds_total"]]
        lines.writerow(["" if cell is None else cell for cell in line])
    return text.getvalue()


def paper_figures(result: dict[str, Any]) -> list[str]:
    """The figures that some row has from a publication, of the kind of target that the table is of."""
    return [name for name in METRICS[result["kind"]] if any(name in row["paper"] for row in result["rows"])]


def difference_text(figure: dict[str, Any] | None) -> str:
    """`+0.012 [-0.003, +0.027]`, or nothing where there is no difference."""
    if not figure or figure["value"] is None:
        return ""
    value, low, high = (None if figure[key] is None else signed(figure[key]) for key in ("value", "low", "high"))
    return str(value) if low is None else f"{value} [{low}, {high}]"


def signed(value: float) -> str:
    """Three decimals with a sign; what rounds to nothing is +0.000 and not -0.000."""
    return f"{round(value, 3) + 0.0:+.3f}"


def _table(result: dict[str, Any]) -> str:
    shown, paper = result["shown"], paper_figures(result)
    grouped = any(row["group"] for row in result["rows"])
    header = [*(["group"] if grouped else []), "row", "runs"]
    for name in shown:
        header += [FIGURES[name], f"{FIGURES[name]}, minus first row"]
    header += [f"paper: {FIGURES[name]}" for name in paper] + ["time of a run"]
    notes, lines, group = _marks(result), [], None
    for row in result["rows"]:
        line = [f"{row['name']}{notes.get(row['name'], '')}", row["runs"]]
        if grouped:
            line = ["" if row["group"] == group else row["group"], *line]
            group = row["group"]
        for name in shown:
            line += [interval_text(row["figures"].get(name)), difference_text(row["difference_to_first"].get(name))]
        line += [f"{row['paper'][name]:.4f}" if name in row["paper"] else "" for name in paper]
        lines.append([*line, "" if row["seconds"] is None else duration_text(row["seconds"])])
    return markdown_table(header, lines)


def _marks(result: dict[str, Any]) -> dict[str, str]:
    """Row -> the mark that leads to its note."""
    noted = [row["name"] for row in result["rows"] if row["note"]]
    return {name: f" ({number})" for number, name in enumerate(noted, start=1)}


def _notes(result: dict[str, Any]) -> str:
    marks = _marks(result)
    return "\n".join(f"{marks[row['name']].strip()} {row['note']}\n" for row in result["rows"] if row["note"]).strip()


def _by_label(result: dict[str, Any]) -> str:
    """Each label's figures, of a table of several labels."""
    named = dict.fromkeys(name for row in result["rows"] for name in row["figures"] if name not in FIGURES)
    if not named:
        return ""
    lines = [[row["name"], *(interval_text(row["figures"].get(name)) for name in named)] for row in result["rows"]]
    header = ["row", *(" ".join([FIGURES[kind], label]) for kind, _, label in (name.partition(" ") for name in named))]
    return f"## By label\n\n{markdown_table(header, lines)}"


def _missing(result: dict[str, Any]) -> str:
    if not result["missing"]:
        return ""
    lines = [[one["row"], one["fold"], one["seed"], one["why"]] for one in result["missing"]]
    return f"## Missing runs\n\n{markdown_table(['row', 'fold', 'seed', 'why'], lines)}"


def _cost(result: dict[str, Any]) -> str:
    total = sum(row["seconds_total"] or 0.0 for row in result["rows"])
    return (
        f"The runs took {duration_text(total)} of computing in all, one after another; what several rows share is "
        "counted for each of them, so that a row's time is what it would take alone."
    )
