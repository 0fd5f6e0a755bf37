"""Figures of one run under every bootstrap weighting, by the kind of target.

The sums are those of `gimp_ray.evaluation`; this file hands them a table of predictions. Shapes: R resamples, N cases,
C classes, P labels.
"""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.evaluation import encode_labels
from gimp_ray.evaluation.intervals import METRICS, weighted_metrics
from gimp_ray.evaluation.label_intervals import LABEL_METRICS, weighted_figures
from gimp_ray.evaluation.metrics import check_predictions
from gimp_ray.evaluation.resampling import once
from gimp_ray.evaluation.survival import checked_follow_up
from gimp_ray.evaluation.survival_intervals import weighted_c_index

Floats = NDArray[np.float64]
Figures = dict[str, Floats]
Scores = tuple[dict[str, float], Figures]


def score(kind: str, table: pa.Table, weights_RN: Floats) -> Scores:
    """The figures of a run's predictions: over the cases as they are, and under every weighting.

    Args:
        kind: `class`, `labels` or `survival`.
        table: rows of `predictions.parquet`.
        weights_RN: (R, N) how often every row counts.

    Returns:
        {figure: value} and {figure: (R,)}, NaN where a figure is not defined. Of labels, `auroc` and
        `average_precision` are means, and `auroc <label>` and `average_precision <label>` are each label's.

    Raises:
        InputError: predictions that cannot be used, or a kind that is not known.
    """
    figures = {"class": _class, "labels": _labels, "survival": _survival}.get(kind)
    if figures is None:
        raise InputError("the runs predict something that tables do not know", found=kind)
    with warnings.catch_warnings():
        # a resample of all folds may have nobody of a small one: its figures are then not defined, and NaN says so
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        drawn = figures(table, weights_RN)
    return {name: float(value[0]) for name, value in figures(table, once(table.num_rows)).items()}, drawn


def _class(table: pa.Table, weights_RN: Floats) -> Figures:
    classes, p_NC = _probabilities(table)
    labels_N, p_NC = check_predictions(encode_labels(table["label"].to_pylist(), classes), p_NC, classes)
    found = weighted_metrics(weights_RN, labels_N, p_NC, classes)
    return {name: found[name] for name in METRICS}


def _labels(table: pa.Table, weights_RN: Floats) -> Figures:
    labels, p_NP = _probabilities(table)
    truths = [table[f"true_{name}"] for name in labels]
    known_NP = np.stack([truth.is_valid().to_numpy() for truth in truths], axis=1)
    truth_NP = np.stack([truth.fill_null(False).to_numpy() for truth in truths], axis=1)
    found = weighted_figures(weights_RN, truth_NP, known_NP, p_NP)
    # means hold the labels that these cases define, whatever is drawn
    both = (truth_NP & known_NP).any(axis=0) & (~truth_NP & known_NP).any(axis=0)
    kept = both & ~np.isnan(p_NP).all(axis=0)
    means = {
        name: found[name][:, kept].mean(axis=1) if kept.any() else np.full(len(weights_RN), np.nan) for name in found
    }
    return means | {
        f"{name} {label}": found[name][:, place] for name in LABEL_METRICS for place, label in enumerate(labels)
    }


def _survival(table: pa.Table, weights_RN: Floats) -> Figures:
    time_N, event_N, risk_N, _ = checked_follow_up(
        table["time"].to_numpy(), table["event"].to_numpy(), table["risk"].to_numpy(), None
    )
    return {"c_index": weighted_c_index(weights_RN, time_N, event_N, risk_N)}


def _probabilities(table: pa.Table) -> tuple[list[str], Floats]:
    """Names of classes or labels, and the probability of each, (N, C)."""
    names = [name.removeprefix("prob_") for name in table.column_names if name.startswith("prob_")]
    return names, np.stack([table[f"prob_{name}"].to_numpy().astype(np.float64) for name in names], axis=1)
