"""The metrics of a table's rows over folds and seeds, read from run folders; plain data that `write.py` writes.

A row's metric is the mean over its runs, each on the test cases of its fold. For the 95 % confidence interval patients
are drawn with replacement from all patients of all folds, with all their cases; every run is scored on what was drawn
of its fold and the mean over runs is taken again: its 2.5 % to 97.5 % percentile. All runs see the same draws, so a
difference between rows is paired by patient, fold and seed. The interval covers the choice of test patients. It does
not cover seeds, which the standard deviation over runs (`sd`) shows, nor other training cases.
Shapes: S runs, R resamples, N cases, C classes, P labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.evaluation import METRICS, Truth, encode_labels
from gimp_ray.evaluation.bootstrap import draw_patients, once
from gimp_ray.experiments.runs import Cell, missing_modality, seconds_of
from gimp_ray.experiments.spec import SHOWN, TableSpec
from gimp_ray.runs.folder import RunFolder
from gimp_ray.store import CohortStore
from gimp_ray.store.splits import patient_column

Floats = NDArray[np.float64]
BASELINES = "Baselines"


@dataclass(frozen=True)
class RunScores:
    """The metrics of one run.

    Attributes:
        fold: of the split.
        seed: of the run.
        cases: ids of the cases it is scored on, sorted.
        value: metric -> value, NaN where it is not defined.
        drawn: metric -> (R,) the same under every resample.
    """

    fold: int
    seed: int
    cases: tuple[str, ...]
    value: Mapping[str, float]
    drawn: Mapping[str, Floats]


@dataclass
class _Row:
    """Predictions of one row: (fold, seed) -> table of the reported part, sorted by case; seconds of its runs."""

    name: str
    group: str
    tables: dict[tuple[int, int], pa.Table] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


def read_table(
    table: TableSpec, cells: Sequence[Cell], store: CohortStore, missing: Mapping[str, str]
) -> dict[str, Any]:
    """The table as plain data.

    The baselines (genes alone, mean-pooled patches) stand in every table; their predictions come from the first row
    whose runs have them, fold by fold. With `evaluate.missing` a row is followed by its metrics without a modality.

    Args:
        table: what it is.
        cells: its runs.
        store: the store, open; names the patients.
        missing: folders of runs that are not done, with the reason.

    Returns:
        `title`, `note`, `kind`, `shown` (metrics to show), `part`, `scheme`, `folds`, `seeds`, `resamples`, `n_cases`,
        `n_patients`, `transductive` (names of rows), `missing` (one entry a run: row, fold, seed, why), and `rows`:
        name, group, note, paper, baseline, runs, `metrics` ({metric: value, low, high, sd}), `difference_to_first`
        (the same), `seconds` (mean of a run) and `seconds_total`.

    Raises:
        InputError: a file of a run cannot be read, or runs do not fit together.
    """
    config = cells[0].step.config
    rows = _rows(table, [cell for cell in cells if cell.step.uri not in missing], config.evaluate.part)
    cases = sorted({case for row in rows for one in row.tables.values() for case in one["case_id"].to_pylist()})
    patients = dict(zip(cases, patient_column(pa.array(cases, pa.string()), store.cases).to_pylist(), strict=True))
    draw = draw_of(list(patients.values()), config.evaluate.resamples, 0) if patients else pd.DataFrame()
    scores = {row.name: _scores(row, config.target.kind, patients, draw) for row in rows}
    first = table.rows[0].name
    specs = {row.name: row for row in table.rows}
    entries = []
    for row in rows:
        spec = specs.get(row.name)
        entries.append(
            {
                "name": row.name,
                "group": row.group,
                "note": "" if spec is None else spec.note,
                "paper": {} if spec is None else dict(spec.paper),
                "baseline": row.group == BASELINES and spec is None,
                "runs": len(row.tables),
                "metrics": pooled_intervals(scores[row.name]),
                "difference_to_first": {} if row.name == first else pooled_difference(scores[row.name], scores[first]),
                "seconds": float(np.mean(row.seconds)) if row.seconds else None,
                "seconds_total": float(np.sum(row.seconds)) if row.seconds else None,
            }
        )
    return {
        "title": table.title,
        "note": table.note,
        "kind": config.target.kind,
        "shown": list(SHOWN[config.target.kind]),
        "part": config.evaluate.part,
        "scheme": config.split.scheme,
        "folds": sorted({cell.fold for cell in cells}),
        "seeds": sorted({cell.seed for cell in cells}),
        "resamples": config.evaluate.resamples,
        "n_cases": len(cases),
        "n_patients": len(set(patients.values())),
        "transductive": sorted({cell.row.name for cell in cells if cell.step.config.split.transductive}),
        "missing": [
            {"row": cell.row.name, "fold": cell.fold, "seed": cell.seed, "why": missing[cell.step.uri]}
            for cell in cells
            if cell.step.uri in missing
        ],
        "rows": entries,
    }


def _rows(table: TableSpec, done: Sequence[Cell], part: str) -> list[_Row]:
    """The table's rows, each followed by its predictions without a modality, then the baselines."""
    rows = {row.name: {"": _Row(row.name, row.group)} for row in table.rows}
    baselines: dict[str, _Row] = {}
    for cell in done:
        which, run, own = (cell.fold, cell.seed), RunFolder(cell.step.uri), rows[cell.row.name]
        own[""].tables[which] = _reported(_predictions(run, "predictions.parquet"), part)
        own[""].seconds.append(seconds_of(cell.step))
        if not (run.evaluation / "reference_predictions.parquet").exists():
            continue
        beside = _predictions(run, "reference_predictions.parquet")
        for method in dict.fromkeys(beside["method"].to_pylist()):
            chosen = _reported(beside.filter(pc.equal(beside["method"], method)), part)
            without = missing_modality(method)
            if without is None:
                row = baselines.setdefault(method, _Row(method, BASELINES))
            else:
                row = own.setdefault(without, _Row(f"{cell.row.name}, {without} missing", cell.row.group))
            if chosen.num_rows:
                row.tables.setdefault(which, chosen)
    return [*(one for own in rows.values() for one in own.values()), *baselines.values()]


def _predictions(run: RunFolder, name: str) -> pa.Table:
    file = run.evaluation / name
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            "the table cannot be read", file=run.place_of(file), found=str(error), fix="evaluate the run again"
        ) from error


def _reported(table: pa.Table, part: str) -> pa.Table:
    return table.filter(pc.equal(table["part"], part)).sort_by("case_id")


def _scores(row: _Row, kind: str, patients: Mapping[str, str], draw: pd.DataFrame) -> list[RunScores]:
    found = []
    for (fold, seed), table in sorted(row.tables.items()):
        cases = table["case_id"].to_pylist()
        weights_RN = draw.loc[[patients[case] for case in cases]].to_numpy().T
        found.append(RunScores(fold, seed, tuple(cases), *score(kind, table, weights_RN)))
    return found


def draw_of(patients: Sequence[str], resamples: int, seed: int) -> pd.DataFrame:
    """(patients, R) how often each patient was drawn in each resample; names may repeat, their order does not matter.

    With the patients of one run this is the draw of `gimp_ray.evaluation`.
    """
    names = sorted(set(patients))
    return pd.DataFrame(draw_patients(names, len(names), resamples, seed).T, index=names)


def score(kind: str, table: pa.Table, weights_RN: Floats) -> tuple[dict[str, float], dict[str, Floats]]:
    """The metrics of a run's predictions: over the cases as they are, and under every weighting.

    Args:
        kind: `class`, `labels` or `survival`.
        table: rows of `predictions.parquet`.
        weights_RN: (R, N) how often every row counts.

    Returns:
        {metric: value} and {metric: (R,)}, NaN where a metric is not defined. Of labels, `auroc` and
        `average_precision` are means, and `auroc <label>` and `average_precision <label>` are each label's.

    Raises:
        InputError: predictions that cannot be used, or a kind that is not known.
    """
    metrics = {"class": _of_class, "labels": _of_labels, "survival": _of_survival}.get(kind)
    if metrics is None:
        raise InputError("the runs predict something that tables do not know", found=kind)
    with warnings.catch_warnings():
        # a resample of all folds may have no patient of a small one: its metrics are then not defined, and NaN says so
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        drawn = metrics(table, weights_RN)
    return {name: float(value[0]) for name, value in metrics(table, once(table.num_rows)).items()}, drawn


def _of_class(table: pa.Table, weights_RN: Floats) -> dict[str, Floats]:
    classes, p_NC = _probabilities(table)
    truth = Truth("class", classes, {"label": encode_labels(table["label"].to_pylist(), classes)})
    found = truth.weighted(truth.checked(p_NC), weights_RN)
    return {name: found[name] for name in METRICS["class"]}


def _of_labels(table: pa.Table, weights_RN: Floats) -> dict[str, Floats]:
    labels, p_NP = _probabilities(table)
    truths = [table[f"true_{name}"] for name in labels]
    known_NP = np.stack([truth.is_valid().to_numpy() for truth in truths], axis=1)
    truth_NP = np.stack([truth.fill_null(False).to_numpy() for truth in truths], axis=1)
    found = Truth("labels", labels, {"truth": truth_NP, "known": known_NP}).weighted(p_NP, weights_RN)
    # means are over the labels that these cases define, whatever is drawn
    both = (truth_NP & known_NP).any(axis=0) & (~truth_NP & known_NP).any(axis=0)
    kept = both & ~np.isnan(p_NP).all(axis=0)
    nothing = np.full(len(weights_RN), np.nan)
    means = {name: found[name][:, kept].mean(axis=1) if kept.any() else nothing for name in found}
    return means | {f"{name} {label}": found[name][:, at] for name in found for at, label in enumerate(labels)}


def _of_survival(table: pa.Table, weights_RN: Floats) -> dict[str, Floats]:
    truth = Truth("survival", (), {name: table[name].to_numpy() for name in ("time", "event")})
    return truth.weighted(table["risk"].to_numpy()[:, None], weights_RN)


def _probabilities(table: pa.Table) -> tuple[list[str], Floats]:
    """Names of classes or labels, and the probability of each, (N, C)."""
    names = [name.removeprefix("prob_") for name in table.column_names if name.startswith("prob_")]
    return names, np.stack([table[f"prob_{name}"].to_numpy().astype(np.float64) for name in names], axis=1)


def pooled_intervals(runs: Sequence[RunScores]) -> dict[str, dict[str, Any]]:
    """Every metric of a row: {metric: {"value", "low", "high", "sd"}}.

    `value` is the mean over runs, `sd` the standard deviation over runs (None for one run). All are None, with a
    "reason", where a run does not define the metric.
    """
    return {name: _interval(runs, name) for name in runs[0].value} if runs else {}


def pooled_difference(runs: Sequence[RunScores], first: Sequence[RunScores]) -> dict[str, dict[str, Any]]:
    """A row minus the first row, over the folds and seeds that both have; as `pooled_intervals`.

    An interval without zero: other test patients would show a difference too. Empty where no fold and seed is common.

    Raises:
        InputError: the rows were not scored on the same cases.
    """
    other = {(run.fold, run.seed): run for run in first}
    minus = []
    for one in runs:
        two = other.get((one.fold, one.seed))
        if two is None:
            continue
        if one.cases != two.cases:
            raise InputError(
                "two rows of a table were not scored on the same cases",
                case=min(set(one.cases) ^ set(two.cases)),
                expected=f"the {len(two.cases)} cases of the first row",
                found=f"{len(one.cases)} cases, fold {one.fold}, seed {one.seed}",
                fix="give all rows the same store, split and target",
            )
        common = [name for name in one.value if name in two.value]
        value = {name: one.value[name] - two.value[name] for name in common}
        drawn = {name: one.drawn[name] - two.drawn[name] for name in common}
        minus.append(RunScores(one.fold, one.seed, one.cases, value, drawn))
    return pooled_intervals(minus)


def _interval(runs: Sequence[RunScores], name: str) -> dict[str, Any]:
    values = np.array([run.value[name] for run in runs])
    undefined = [run for run, value in zip(runs, values, strict=True) if not np.isfinite(value)]
    if undefined:
        more = f", nor in {len(undefined) - 1} more runs" if len(undefined) > 1 else ""
        reason = f"not defined in fold {undefined[0].fold}, seed {undefined[0].seed}{more}"
        return {"value": None, "low": None, "high": None, "sd": None, "reason": reason}
    # a resample that leaves a fold without a class says nothing about that fold, and all the same about the others
    means_R = pd.DataFrame([run.drawn[name] for run in runs]).mean(skipna=True).dropna()
    low, high = np.percentile(means_R, [2.5, 97.5]).tolist() if len(means_R) else (None, None)
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"value": float(values.mean()), "low": low, "high": high, "sd": sd}
