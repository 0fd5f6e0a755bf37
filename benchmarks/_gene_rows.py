"""The rows of a gene benchmark: per fold, settings chosen on the validation part, then the test part predicted once.

Each method is fitted twice: on the training part, and with the settings so chosen on training + validation. Logistic
regression has nothing to choose, so the validation part would otherwise be lost to it; the networks get the same second
fit. Left out: files and tables (`_tables.py`). Shape suffixes: N cases of the cohort, S seeds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from _gene_fits import NetSettings, Probabilities, logistic_regression, networks
from _gene_folds import Fold, GeneCohort, folds
from sklearn.metrics import roc_auc_score

from gimp_ray.evaluation import bootstrap_intervals, paired_difference
from gimp_ray.nn.gene_input import SelectBy

REFERENCE = "Logistic regression"
REFERENCES: dict[str, SelectBy] = {REFERENCE: "variance", "Logistic regression, genes by F-score": "f_score"}
TRAIN, REFIT = "train", "train + val"
Log = Callable[[str], None]


def measure(
    cohort: GeneCohort,
    methods: Mapping[str, Sequence[NetSettings]],
    seeds: int,
    fitted_on: Sequence[str] = (TRAIN, REFIT),
    log: Log = print,
) -> dict[str, Any]:
    """Measure logistic regression and every method on all folds.

    Args:
        cohort: expression and labels.
        methods: name -> candidate settings, among which each fold chooses on its validation part.
        seeds: networks a method; 0 .. seeds - 1.
        fitted_on: which fits are reported; `REFIT` alone saves the first where there is nothing to choose.
        log: takes a line of progress.

    Returns:
        {"rows": one dict a row, "chosen": {method: settings' name by fold}, "seconds": float, "cases": int,
        "probabilities": {method: {trained on: {case: one value a seed, 0 means the first}}}}.
    """
    start = time.monotonic()
    N = len(cohort.case_ids)
    predictions = {name: {on: np.full((n, N), np.nan) for on in fitted_on} for name, n in _networks(methods, seeds)}
    chosen: dict[str, list[str]] = {name: [] for name in methods}
    fold_N = np.zeros(N, dtype=np.int64)
    for fold in folds(cohort.labels):
        fold_N[fold.test] = fold.index
        for on in fitted_on:
            rows = fold.train if on == TRAIN else np.concatenate([fold.train, fold.val])
            x, y, test = cohort.expression[rows], cohort.labels[rows], cohort.expression[fold.test]
            for name, select_by in REFERENCES.items():
                predictions[name][on][0, fold.test] = logistic_regression(x, y, test, select_by)
        for name, candidates in methods.items():
            settings, by_seed = _one_fold(cohort, fold, candidates, seeds, fitted_on)
            chosen[name].append(settings.name)
            for on, values in by_seed.items():
                predictions[name][on][:, fold.test] = values
            log(f"fold {fold.index} {name}: {settings.name} ({time.monotonic() - start:.0f} s)")
    return {
        "cases": N,
        "rows": _rows(cohort, predictions, fold_N),
        "chosen": chosen,
        "seconds": round(time.monotonic() - start),
        "probabilities": {
            name: {
                on: dict(zip(cohort.case_ids, values.T.round(5).tolist(), strict=True)) for on, values in by_on.items()
            }
            for name, by_on in predictions.items()
        },
    }


def _networks(methods: Mapping[str, Sequence[NetSettings]], seeds: int) -> list[tuple[str, int]]:
    return [*((name, 1) for name in REFERENCES), *((name, seeds) for name in methods)]


def _one_fold(
    cohort: GeneCohort, fold: Fold, candidates: Sequence[NetSettings], seeds: int, fitted_on: Sequence[str]
) -> tuple[NetSettings, dict[str, list[Probabilities]]]:
    """The settings with the lowest validation log loss of their first network, and the test part's probabilities."""
    x, y = cohort.expression, cohort.labels
    train, both = fold.train, np.concatenate([fold.train, fold.val])
    evaluate = [x[fold.val], x[fold.test]]
    settings, tests = candidates[0], {}
    if TRAIN in fitted_on or len(candidates) > 1:
        first = {settings: networks(settings, x[train], y[train], evaluate, [0])[0] for settings in candidates}
        val_labels = y[fold.val].numpy()
        settings = min(first, key=lambda candidate: _log_loss(first[candidate][0], val_labels))
    if TRAIN in fitted_on:
        more = networks(settings, x[train], y[train], evaluate, range(1, seeds))
        tests[TRAIN] = [test for _, test in [first[settings], *more]]
    if REFIT in fitted_on:
        refits = networks(settings, x[both], y[both], evaluate[1:], range(seeds))
        tests[REFIT] = [test for (test,) in refits]
    return settings, tests


def _log_loss(p: Probabilities, labels: np.ndarray) -> float:
    return float(-np.log(np.where(labels == 1, p, 1 - p).clip(1e-6)).mean())


def _rows(
    cohort: GeneCohort, predictions: dict[str, dict[str, np.ndarray]], fold_N: np.ndarray
) -> list[dict[str, Any]]:
    rows = []
    for on in predictions[REFERENCE]:
        reference_N = predictions[REFERENCE][on][0]
        for name, by_on in predictions.items():
            values_SN = by_on[on]
            if len(values_SN) > 1:
                rows.append(_row(cohort, f"{name}, one network", on, values_SN, reference_N, fold_N))
                name = f"{name}, {len(values_SN)} averaged"  # noqa: PLW2901
            rows.append(_row(cohort, name, on, values_SN.mean(axis=0, keepdims=True), reference_N, fold_N))
    return rows


def _row(
    cohort: GeneCohort, name: str, on: str, values_SN: np.ndarray, reference_N: np.ndarray, fold_N: np.ndarray
) -> dict[str, Any]:
    """A row; with several seeds each case stands there once a seed, and the patients drawn keep all of theirs."""
    S, labels_N = len(values_SN), cohort.labels.numpy()
    cases, labels = cohort.case_ids * S, np.tile(labels_N, S)
    p, reference = _two(values_SN.ravel()), _two(np.tile(reference_N, S))
    intervals = bootstrap_intervals(cases, labels, p, cohort.classes)
    difference = paired_difference(cases, labels, p, reference, cohort.classes)
    by_fold = [
        [roc_auc_score(labels_N[fold_N == fold], values_N[fold_N == fold]) for fold in np.unique(fold_N)]
        for values_N in values_SN
    ]
    accuracy_by_fold = [float(((values_SN > 0.5) == labels_N)[:, fold_N == fold].mean()) for fold in np.unique(fold_N)]
    keep = ("accuracy", "auroc")
    return {
        "method": name,
        "trained_on": on,
        "seeds": S,
        **{metric: intervals[metric] for metric in keep},
        "minus_reference": {metric: difference[metric] for metric in keep},
        "auroc_mean_of_folds": float(np.mean(by_fold)),
        "accuracy_by_fold": accuracy_by_fold,
        "accuracy_by_seed": ((values_SN > 0.5) == labels_N).mean(axis=1).tolist(),
    }


def _two(p: np.ndarray) -> np.ndarray:
    return np.stack([1 - p, p], axis=1)
