"""Figures of a table: its rows with their intervals, and maps (t-SNE) of CLS_pat of some rows side by side.

Left out: t-SNE itself, which is `gimp_ray.reports`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from gimp_ray.experiments.spec import FIGURES
from gimp_ray.reports.figures import COLOURS, tsne_figure
from gimp_ray.reports.reading import vectors
from gimp_ray.runs.folder import whole_file

DPI = 110


def rows_figure(result: dict[str, Any]) -> Figure:
    """Every row's figures with their intervals, one panel a figure, coloured by group; the paper's as hollow diamonds.

    Args:
        result: of `reading.read_table`.
    """
    rows, shown = result["rows"], result["shown"]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure = Figure(figsize=(3.2 + 3.4 * len(shown), 1.1 + 0.3 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, shown, strict=True):
        for place, row in enumerate(rows):
            _draw(axes, place, row, name, COLOURS[groups.index(row["group"]) % len(COLOURS)])
        first = rows[0]["figures"].get(name) or {}
        if first.get("value") is not None:
            axes.axvline(first["value"], color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        axes.set_xlabel(FIGURES[name])
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [_plain(row["name"]) for row in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    note = " (transductive rows, see caption)" if result["transductive"] else ""
    figure.suptitle(_plain(f"{result['title']}{note}"), fontsize=10)
    return figure


def tsne_panel(tables: Sequence[tuple[str, pa.Table]], part: str, classes: Sequence[str], title: str) -> NDArray[Any]:
    """Maps of CLS_pat side by side, two in a line.

    Args:
        tables: name of a row, and its table with `case_id`, `part`, `label` and `cls_pat`.
        part: whose cases are drawn.
        classes: in the order of their colours.
        title: words after each row's name.

    Returns:
        (height, width, 4) uint8, an image.
    """
    images = []
    for name, table in tables:
        kept = table.filter(pa.compute.equal(table["part"], part))
        figure = tsne_figure(vectors(kept), kept["label"].to_pylist(), classes, _plain(f"{name}, {title}"))
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        images.append(np.asarray(canvas.buffer_rgba()).copy())
    lines = [_side_by_side(images[at : at + 2], axis=1) for at in range(0, len(images), 2)]
    return _side_by_side(lines, axis=0)


def save_image(image: NDArray[Any], file: Path) -> Path:
    """Write an image as PNG, whole or not at all."""
    with whole_file(file) as aside:
        imsave(aside, image, format="png", dpi=DPI)
    return file


def read_vectors(file: Path) -> pa.Table | None:
    """The columns of a table of embeddings that a map needs; None where there is no such file or no CLS_pat in it."""
    if not file.exists() or "cls_pat" not in pq.read_schema(file).names:
        return None
    return pq.read_table(file, columns=["case_id", "part", "label", "cls_pat"])


def _plain(text: str) -> str:
    """Text that Matplotlib draws as it is: what stands between two $ would be a formula."""
    return text.replace("$", r"\$")


def _draw(axes: Axes, place: int, row: dict[str, Any], name: str, colour: str) -> None:
    found = row["figures"].get(name) or {}
    if found.get("value") is not None:
        if found["low"] is not None:
            axes.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=1.6)
        axes.plot(found["value"], place, "s" if row["reference"] else "o", color=colour, markersize=5)
    if name in row["paper"]:
        axes.plot(row["paper"][name], place, "D", color=colour, markerfacecolor="none", markersize=5)


def _side_by_side(images: Sequence[NDArray[Any]], axis: int) -> NDArray[Any]:
    """Images joined along an axis, on white where one is smaller."""
    other = 1 - axis
    size = max(image.shape[other] for image in images)
    padded = []
    for image in images:
        room = [(0, 0), (0, 0), (0, 0)]
        room[other] = (0, size - image.shape[other])
        padded.append(np.pad(image, room, constant_values=255))
    return np.concatenate(padded, axis=axis)
