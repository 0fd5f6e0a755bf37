"""The two reference rows of several labels: those of a class, once for each label, on the cases in which it is known.

A label that cannot be fitted (its training cases are of one kind) has no prediction, and the row says so. Left out: one
model for all labels. Shapes: N cases, P labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimp_ray.errors import InputError
from gimp_ray.evaluation.reference_rows import ReferenceRow, genes_alone, mean_pool_mlp

Parts = Mapping[str, Sequence[str]]
NO_YES = ("no", "yes")


def genes_alone_labels(
    case_ids: Sequence[str],
    expression: ArrayLike,
    truth: NDArray[np.bool_],
    known: NDArray[np.bool_],
    parts: Parts,
    labels: Sequence[str],
    *,
    linear: bool,
) -> ReferenceRow:
    """`genes_alone` for each label.

    Args:
        case_ids: N cases of `expression`, `truth` and `known`.
        expression: (N, G).
        truth: (N, P).
        known: (N, P); a case is used for the labels known of it.
        parts: case ids of `train`, `val` and `test`.
        labels: P names.
        linear: as `genes_alone`.

    Returns:
        The row; `predictions` is (n, P), NaN where a label is not known of a case or could not be fitted.

    Raises:
        InputError: as `genes_alone`, or where no label could be fitted.
    """

    def fit(names: list[str], of_label: Parts) -> ReferenceRow:
        return genes_alone(case_ids, expression, names, of_label, NO_YES, linear=linear)

    return _each_label(fit, case_ids, truth, known, parts, labels)


def mean_pool_labels(
    case_ids: Sequence[str],
    pooled: ArrayLike,
    truth: NDArray[np.bool_],
    known: NDArray[np.bool_],
    parts: Parts,
    labels: Sequence[str],
    *,
    seed: int = 0,
) -> ReferenceRow:
    """`mean_pool_mlp` for each label; arguments and result as `genes_alone_labels`."""

    def fit(names: list[str], of_label: Parts) -> ReferenceRow:
        return mean_pool_mlp(case_ids, pooled, names, of_label, NO_YES, seed=seed)

    return _each_label(fit, case_ids, truth, known, parts, labels)


def _each_label(
    fit: Callable[[list[str], Parts], ReferenceRow],
    case_ids: Sequence[str],
    truth: NDArray[np.bool_],
    known: NDArray[np.bool_],
    parts: Parts,
    labels: Sequence[str],
) -> ReferenceRow:
    asked = [(case, part) for part in ("val", "test") for case in parts.get(part, ())]
    place = {case: number for number, (case, _) in enumerate(asked)}
    predictions = np.full((len(asked), len(labels)), np.nan)
    rows: dict[str, ReferenceRow] = {}
    notes = []
    for p, label in enumerate(labels):
        has = dict(zip(case_ids, known[:, p].tolist(), strict=True))
        of_label = {part: [case for case in cases if has.get(case, True)] for part, cases in parts.items()}
        try:
            rows[label] = fit([NO_YES[int(value)] for value in truth[:, p]], of_label)
        except InputError as refusal:
            if refusal.case is not None:  # of the cases or features, and so of every label
                raise
            notes.append(f"{label}: {refusal.what}")
            continue
        predictions[[place[case] for case in rows[label].case_ids], p] = rows[label].predictions[:, 1]
    if not rows:
        raise InputError("no label could be fitted", found="; ".join(notes))
    chosen = {f"{knob} of {label}": value for label, row in rows.items() for knob, value in row.chosen.items()}
    method = next(iter(rows.values())).method
    return ReferenceRow(method, [case for case, _ in asked], [part for _, part in asked], predictions, chosen, notes)
