"""Figures of a row over folds and seeds: the mean over its runs, with one patient-level interval for all of them.

The figure of a row is the mean of its runs' figures, each run on the test cases of its fold. For the interval patients
are drawn with replacement from all patients of all folds, with all their cases; every run is scored on what was drawn
of its fold, and the mean over runs is taken again: its 2.5 % to 97.5 % percentile. Runs of one fold with other seeds
see the same draw, as do all rows, so a difference between rows is paired by patient, fold and seed. The interval covers
the choice of test patients. It does not cover seeds, which the standard deviation over runs (`sd`) shows, nor other
training cases. Shapes: R resamples, N cases, P patients. Left out: reading files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gimp_ray.errors import InputError
from gimp_ray.evaluation import resampling

Floats = NDArray[np.float64]
Which = tuple[int, int]


@dataclass(frozen=True)
class Draw:
    """A bootstrap draw of patients.

    Attributes:
        column: patient -> its column.
        weights: (R, P) how often each was drawn.
    """

    column: Mapping[str, int]
    weights: Floats

    def of(self, patients: Sequence[str]) -> Floats:
        """(R, N) weights of cases, by the patient of each."""
        return self.weights[:, [self.column[patient] for patient in patients]]


@dataclass(frozen=True)
class RunScores:
    """Figures of one run.

    Attributes:
        fold: of the split.
        seed: of the run.
        cases: ids of the cases it is scored on, sorted.
        value: figure -> value, NaN where it is not defined.
        drawn: figure -> (R,) the same under every resample.
    """

    fold: int
    seed: int
    cases: tuple[str, ...]
    value: Mapping[str, float]
    drawn: Mapping[str, Floats]

    @property
    def which(self) -> Which:
        return self.fold, self.seed


def draw_patients(patients: Sequence[str], resamples: int, seed: int) -> Draw:
    """Draw patients with replacement; names may repeat, and their order does not matter.

    With the patients of one run this is the draw of `gimp_ray.evaluation.bootstrap_intervals`.
    """
    names = sorted(set(patients))
    weights_RP = resampling.draw_patients(names, len(names), resamples, seed)
    return Draw({name: place for place, name in enumerate(names)}, weights_RP)


def pooled_intervals(runs: Sequence[RunScores]) -> dict[str, dict[str, Any]]:
    """Every figure of a row: {figure: {"value", "low", "high", "sd"}}.

    `value` is the mean over runs, `sd` the standard deviation over runs (None for one run). All are None, with a
    "reason", where the figure of a run is not defined.
    """
    return _summed_up([run.which for run in runs], [run.value for run in runs], [run.drawn for run in runs])


def pooled_difference(runs: Sequence[RunScores], first: Sequence[RunScores]) -> dict[str, dict[str, Any]]:
    """A row minus the first row, over the folds and seeds that both have; as `pooled_intervals`.

    An interval without zero: other test patients would show a difference too. Empty where no fold and seed is common.

    Raises:
        InputError: the rows were not scored on the same cases.
    """
    other = {run.which: run for run in first}
    pairs = [(run, other[run.which]) for run in runs if run.which in other]
    for one, two in pairs:
        if one.cases != two.cases:
            differ = sorted(set(one.cases) ^ set(two.cases))
            raise InputError(
                "two rows of a table were not scored on the same cases",
                case=differ[0],
                expected=f"the {len(two.cases)} cases of the first row",
                found=f"{len(one.cases)} cases, fold {one.fold}, seed {one.seed}",
                fix="give all rows the same store, split and target",
            )
    common = [name for name in (pairs[0][0].value if pairs else ()) if name in pairs[0][1].value]
    return _summed_up(
        [one.which for one, _ in pairs],
        [{name: one.value[name] - two.value[name] for name in common} for one, two in pairs],
        [{name: one.drawn[name] - two.drawn[name] for name in common} for one, two in pairs],
    )


def _summed_up(
    which: Sequence[Which], values: Sequence[Mapping[str, float]], drawn: Sequence[Mapping[str, Floats]]
) -> dict[str, dict[str, Any]]:
    if not values:
        return {}
    return {
        name: _interval(which, np.array([run[name] for run in values]), np.stack([run[name] for run in drawn]))
        for name in values[0]
    }


def _interval(which: Sequence[Which], values: Floats, drawn_SR: Floats) -> dict[str, Any]:
    undefined = [place for place, value in enumerate(values) if not np.isfinite(value)]
    if undefined:
        fold, seed = which[undefined[0]]
        reason = f"not defined in fold {fold}, seed {seed}, nor in {len(undefined) - 1} more runs"
        return {
            "value": None,
            "low": None,
            "high": None,
            "sd": None,
            "reason": reason.replace(", nor in 0 more runs", ""),
        }
    # a resample that leaves a fold without a class says nothing about that fold, and all the same about the others
    there_SR = np.isfinite(drawn_SR)
    sums_R, counts_R = np.where(there_SR, drawn_SR, 0).sum(axis=0), there_SR.sum(axis=0)
    kept_R = sums_R[counts_R > 0] / counts_R[counts_R > 0]
    low, high = np.percentile(kept_R, [2.5, 97.5]) if kept_R.size else (None, None)
    return {
        "value": float(values.mean()),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
    }
