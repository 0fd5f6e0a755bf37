"""Figures of a run: confusion matrix, Kaplan-Meier curves, map of CLS_pat, training curves.

Matplotlib's objects, not pyplot: nothing is global and no display is needed. Colours: Okabe and Ito.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from sklearn.manifold import TSNE

from gimp_ray.evaluation import kaplan_meier
from gimp_ray.io.files import whole_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
PART_MARKERS = {"train": ("o", 18, 0.35), "val": ("^", 34, 0.8), "test": ("s", 34, 0.95)}
FEWEST_FOR_TSNE = 5
NAMES = {"loss": "loss", "loss_rec": "reconstruction", "loss_tri": "triplet", "active_triplets": "active triplets"}


def confusion_figure(labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str], title: str) -> Figure:
    """Confusion matrix: counts as text, colour by the share of the true class.

    Args:
        labels: true class of every case.
        predicted: predicted class of every case.
        classes: order of rows and columns.
        title: of the figure.
    """
    number = {name: index for index, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, ([number[name] for name in labels], [number[name] for name in predicted]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.6 + 0.75 * len(classes)
    figure = Figure(figsize=(size + 0.9, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.55 else "#222222"
        text = f"{counts[row, column]}\n{shares[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), [f"{name}\n(n={counts[i].sum()})" for i, name in enumerate(classes)])
    axes.set(xlabel="predicted class (cases)", ylabel="true class (cases)")
    axes.set_title(title, fontsize=10)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def survival_figure(time: Sequence[float], event: Sequence[bool], risk: Sequence[float], title: str) -> Figure:
    """Kaplan-Meier curves of the half of the cases with the higher predicted risk and of the other half.

    The halves are cut at the median risk of these cases; a case at the median is in the lower half. Ticks are censored
    cases.

    Args:
        time: to the event or to the last follow-up, in the unit of the case table.
        event: whether the event was seen.
        risk: predicted, higher = earlier event.
        title: of the figure.
    """
    time_N, event_N, risk_N = np.asarray(time, np.float64), np.asarray(event, np.bool_), np.asarray(risk, np.float64)
    figure = Figure(figsize=(6.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    higher_N = risk_N > np.median(risk_N)
    halves = {"lower risk": (~higher_N, COLOURS[0]), "higher risk": (higher_N, COLOURS[1])}
    for name, (half_N, colour) in halves.items():
        if not half_N.any():
            continue
        curve = kaplan_meier(time_N[half_N], event_N[half_N])
        shown = f"{name} ({int(half_N.sum())} cases, {int(event_N[half_N].sum())} events)"
        ends = np.append(curve.time, time_N[half_N].max()), np.append(curve.share, curve.share[-1])
        axes.step(*ends, where="post", color=colour, label=shown)
        axes.plot(curve.censored, curve.censored_share, "|", color=colour, markersize=8)
    axes.set(xlabel="time (unit of the case table)", ylabel="share without an event", ylim=(-0.03, 1.03))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def tsne_figure(
    vectors: ArrayLike,
    labels: Sequence[str],
    classes: Sequence[str],
    title: str,
    parts: Sequence[str | None] | None = None,
) -> Figure:
    """Map of patient vectors: t-SNE in two dimensions, one point a case, coloured by class, shaped by part.

    Args:
        vectors: (N, D), one vector a case.
        labels: class of every case.
        classes: in the order of their colours.
        title: of the figure.
        parts: train, val or test of every case.
    """
    x_ND = np.asarray(vectors, np.float64)
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    if len(x_ND) < FEWEST_FOR_TSNE:
        axes.text(0.5, 0.5, f"{len(x_ND)} cases: too few for a map", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    _scatter(axes, _tsne(x_ND), np.asarray(labels), classes, parts)
    axes.set(xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)", xticks=[], yticks=[])
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def curves_figure(stage: str, lines: Sequence[dict[str, Any]]) -> Figure | None:
    """Training curves of a stage over its epochs: losses left, shares (0 to 1) right; None where nothing was logged."""
    series = _series(lines)
    by_panel = {"loss (no unit)": _is_loss, "share (0 to 1)": _is_share}
    panels = [
        (label, names) for label, belongs in by_panel.items() if (names := [key for key in series if belongs(key[1])])
    ]
    if not panels:
        return None
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 3.4), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            kind, metric = name
            colour = COLOURS[sorted({n for _, n in names}).index(metric) % len(COLOURS)]
            epochs, values = zip(*series[name], strict=True)
            marker = "o" if len(epochs) < 25 else None
            shown = f"{NAMES.get(metric, metric)}, {kind}"
            style = "-" if kind == "training" else "--"
            axes.plot(epochs, values, style, color=colour, label=shown, marker=marker, markersize=3.5)
        axes.set(xlabel="epoch", ylabel=label)
        if label.startswith("share"):
            axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"Stage {stage}", fontsize=11)
    return figure


def save_figure(figure: Figure, file: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with whole_file(file) as aside:
        figure.savefig(aside, format="png", dpi=150, facecolor="white")
    return file


def _tsne(x_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    # perplexity is a guess at the number of neighbours; 30 is customary, and few cases have fewer
    perplexity = min(30.0, (len(x_ND) - 1) / 3)
    spread = x_ND.std()
    if not spread > 0:  # all the same: a map of nothing is a point
        return np.zeros((len(x_ND), 2))
    embedding = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(x_ND / spread)
    return np.asarray(embedding, np.float64)


def _scatter(
    axes: Axes,
    xy_N2: NDArray[np.float64],
    labels: NDArray[np.str_],
    classes: Sequence[str],
    parts: Sequence[str | None] | None,
) -> None:
    part_of = np.array([part or "" for part in (parts if parts is not None else [None] * len(labels))])
    order = list(PART_MARKERS)
    for part in sorted(set(part_of.tolist()), key=lambda name: order.index(name) if name in order else -1):
        marker, size, alpha = PART_MARKERS.get(part, ("o", 28, 0.8))
        for index, name in enumerate(classes):
            here = (part_of == part) & (labels == name)
            if here.any():
                label = f"{name} {part}".strip() + f" ({int(here.sum())})"
                colour = COLOURS[index % len(COLOURS)]
                x, y = xy_N2[here].T
                axes.scatter(x, y, s=size, marker=marker, c=colour, alpha=alpha, label=label, linewidths=0)


def _series(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(training | validation, metric) -> (epoch from 1, value)."""
    kinds = {"epoch": "training", "validation": "validation"}
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for line in lines:
        kind = kinds.get(str(line.get("kind")))
        for name, value in line.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
            if kind and number and (_is_loss(name) or _is_share(name)):
                series.setdefault((kind, name), []).append((int(line["epoch"]) + 1, float(value)))
    return series


def _is_loss(name: str) -> bool:
    return name == "loss" or name.startswith("loss_")


def _is_share(name: str) -> bool:
    return name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "cindex") or name.startswith("active")
