"""A table as LaTeX, for `\\usepackage{booktabs}`; everything that came from a user is escaped.

Left out: the numbers, which come from `reading.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gimp_ray.experiments.spec import FIGURES
from gimp_ray.experiments.writing import difference_text, paper_figures
from gimp_ray.reports.tables import interval_text

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that begins with one would be an option of the line break before it
    "]": "{]}",
    "\n": " ",
}


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex_table(result: dict[str, Any], caption: str, label: str) -> str:
    """The table, one `tabular` in a `table`.

    Args:
        result: of `reading.read_table`.
        caption: plain text.
        label: letters, digits and dashes.
    """
    figures, paper = list(result["shown"]), paper_figures(result)
    header = ["", "runs"]
    for name in figures:
        header += [FIGURES[name], "difference"]
    header += [f"paper, {FIGURES[name]}" for name in paper] + ["s a run"]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        f"\\caption{{{escaped(caption)}}}",
        f"\\label{{tab:{label}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        "\\toprule",
        _line(header),
        "\\midrule",
    ]
    group = None
    for row in result["rows"]:
        if row["group"] != group and row["group"]:
            lines.append(f"\\multicolumn{{{len(header)}}}{{l}}{{\\textit{{{escaped(row['group'])}}}}} \\\\")
        group = row["group"]
        lines.append(_line(_cells(row, figures, paper)))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def _cells(row: dict[str, Any], figures: Sequence[str], paper: Sequence[str]) -> list[str]:
    cells = [row["name"], str(row["runs"])]
    for name in figures:
        cells += [
            _interval(row["figures"].get(name)),
            difference_text(row["difference_to_first"].get(name)),
        ]
    cells += [f"{row['paper'][name]:.4f}" if name in row["paper"] else "" for name in paper]
    return [*cells, "" if row["seconds"] is None else f"{row['seconds']:.0f}"]


def _interval(figure: dict[str, Any] | None) -> str:
    return "" if not figure or figure["value"] is None else interval_text(figure)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(escaped(cell) for cell in cells) + " \\\\"
