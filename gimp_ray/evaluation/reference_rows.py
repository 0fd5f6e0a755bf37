"""The two rows beside every result: what genes alone, and what averaged patches alone, would have reached.

RNA alone separates LUAD from LUSC almost perfectly (Huang, Chen & Wang 2017: AUC 0.993), so a multimodal number without
these rows cannot be read. Both are fitted on training cases alone; validation cases choose the strength of the
regularisation, by log loss, and nothing else. Shapes: N cases, F features, C classes. Left out: reading the store,
pooling (who calls hands in one vector a case), the rows of labels (`label_rows.py`) and survival (`cox_ridge.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from gimp_ray.errors import InputError
from gimp_ray.evaluation.metrics import encode_labels

GENES_ALONE = "genes alone (logistic regression)"
MEAN_POOL_MLP = "mean-pooled patches + MLP"
TOP_GENES = 3000
LOGISTIC_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C, scikit-learn's inverse strength
MLP_GRID = (1e-2, 1e-1, 1.0, 10.0)  # alpha, weight of the squared norm
MLP_HIDDEN = 64


@dataclass(frozen=True)
class ReferenceRow:
    """Predictions of one reference method for the validation and test cases."""

    method: str
    case_ids: list[str]
    parts: list[str]
    """part of every case: val or test"""
    predictions: NDArray[np.float64]
    """(N, C), rows as `case_ids`: probabilities, columns as the classes given; or (N, 1) risks"""
    chosen: dict[str, float]
    """the regularisation that validation chose"""
    notes: list[str] = field(default_factory=list)
    """what could not be fitted, and why"""


def genes_alone(
    case_ids: Sequence[str],
    expression: ArrayLike,
    labels: Sequence[str],
    parts: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    *,
    linear: bool,
    top_genes: int = TOP_GENES,
) -> ReferenceRow:
    """Logistic regression on the genes that vary most over the training cases, z-scored on these cases.

    Args:
        case_ids: N cases of `expression` and `labels`.
        expression: (N, G).
        labels: N class names.
        parts: case ids of `train`, `val` and `test`; each a part of `case_ids`, `val` may be empty.
        classes: C names, in the order of the columns wanted.
        linear: whether values are linear (FPKM, TPM, counts) and log2(x + 1) is to be applied.
        top_genes: how many genes are kept.

    Raises:
        InputError: an unknown case or class, a value that is not finite or below zero, a training part of one class.
    """
    split = _ClassSplit(case_ids, labels, parts, classes)
    values = {part: logged(split.rows(expression, part), linear) for part in split.parts}
    kept = most_varying(values["train"], top_genes)
    values = {part: x[:, kept] for part, x in values.items()}
    models = {C: LogisticRegression(C=C, max_iter=2000) for C in LOGISTIC_GRID}
    return _choose(GENES_ALONE, "C", models, values, split)


def mean_pool_mlp(
    case_ids: Sequence[str],
    pooled: ArrayLike,
    labels: Sequence[str],
    parts: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> ReferenceRow:
    """A small MLP on the mean of all patches of a case, standardised on the training cases.

    Args:
        case_ids: N cases of `pooled` and `labels`.
        pooled: (N, D) mean embedding of every case.
        labels: N class names.
        parts: case ids of `train`, `val` and `test`.
        classes: C names, in the order of the columns wanted.
        seed: of the MLP's weights and batches.

    Raises:
        InputError: as `genes_alone`.
    """
    split = _ClassSplit(case_ids, labels, parts, classes)
    values = {part: split.rows(pooled, part) for part in split.parts}
    models = {
        alpha: MLPClassifier((MLP_HIDDEN,), alpha=alpha, max_iter=200, learning_rate_init=1e-3, random_state=seed)
        for alpha in MLP_GRID
    }
    return _choose(MEAN_POOL_MLP, "alpha", models, values, split)


class Split:
    """Which rows are whose part, checked.

    Args:
        case_ids: N cases, one a row of what is handed to `rows` and `pick`.
        parts: case ids of `train`, `val` and `test`; `val` may be empty.

    Raises:
        InputError: a case stands in two rows or two parts, or has no row.
    """

    def __init__(self, case_ids: Sequence[str], parts: Mapping[str, Sequence[str]]) -> None:
        self._row = {case_id: row for row, case_id in enumerate(case_ids)}
        self.parts = {part: list(parts.get(part, ())) for part in ("train", "val", "test")}
        self._n_cases = len(case_ids)
        if len(self._row) != len(case_ids):
            raise InputError("case ids are not one a row", found=f"{len(case_ids)} rows, {len(self._row)} ids")
        listed = [case_id for ids in self.parts.values() for case_id in ids]
        for case_id in listed:
            if case_id not in self._row:
                raise InputError("a case of the split has no row", case=case_id)
        if len(set(listed)) != len(listed):
            twice = next(case_id for case_id in listed if listed.count(case_id) > 1)
            raise InputError("a case is in two parts of the split", case=twice, fix="split by patient")

    def pick(self, values: ArrayLike, part: str) -> NDArray[Any]:
        """Values of a part's cases, from one value a row."""
        return np.asarray(values)[[self._row[case_id] for case_id in self.parts[part]]]

    def rows(self, values: ArrayLike, part: str) -> NDArray[np.float64]:
        """(n, F) features of a part's cases, found finite."""
        x_NF = np.asarray(values)
        if x_NF.ndim != 2 or len(x_NF) != self._n_cases:
            raise InputError(
                "the features are not one row a case", expected=f"({self._n_cases}, F)", found=str(x_NF.shape)
            )
        ids = self.parts[part]
        x = x_NF[[self._row[case_id] for case_id in ids]].astype(np.float64)
        bad = ~np.isfinite(x).all(axis=1)
        if bad.any():
            raise InputError("a feature is not finite", case=ids[int(bad.argmax())])
        return x


class _ClassSplit(Split):
    """The same with the class of every case."""

    def __init__(
        self, case_ids: Sequence[str], labels: Sequence[str], parts: Mapping[str, Sequence[str]], classes: Sequence[str]
    ) -> None:
        super().__init__(case_ids, parts)
        if len(labels) != len(case_ids):
            raise InputError("labels are not one a row", found=f"{len(case_ids)} rows, {len(labels)} labels")
        self.classes = classes
        self._codes_N = encode_labels(labels, classes)
        if len(set(self.codes("train").tolist())) < 2:
            raise InputError("the training part has fewer than two classes", found=f"{len(self.parts['train'])} cases")

    def codes(self, part: str) -> NDArray[np.int64]:
        return self.pick(self._codes_N, part)


def most_varying(x: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Columns that vary most over the (training) rows, in their own order."""
    # a stable sort makes ties the same on every machine
    return np.sort(np.argsort(-x.var(axis=0), kind="stable")[:count])


def logged(x: NDArray[np.float64], linear: bool) -> NDArray[np.float64]:
    """log2(x + 1) of linear values, others as they are.

    Raises:
        InputError: a linear value is below zero.
    """
    if not linear:
        return x
    if x.size and x.min() < 0:
        raise InputError(
            "linear expression has values below zero", found=f"{x.min():.3g}", fix="give the unit of the genes"
        )
    return np.log2(x + 1)


def _choose(
    method: str, knob: str, models: Mapping[float, Any], values: dict[str, NDArray[np.float64]], split: _ClassSplit
) -> ReferenceRow:
    """Fit every model of the grid on training cases, keep the one with the lowest log loss on validation cases."""
    scaler = StandardScaler().fit(values["train"])
    scaled = {part: scaler.transform(x) if len(x) else x for part, x in values.items()}
    fitted: dict[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {}
    for strength, model in models.items():
        fitted[strength] = _fit(model, scaled["train"], split.codes("train"), len(split.classes))
    best = list(models)[len(models) // 2]
    if split.parts["val"]:
        best = min(models, key=lambda strength: _loss(fitted[strength](scaled["val"]), split.codes("val")))
    empty = np.empty((0, len(split.classes)))
    predictions = {part: fitted[best](scaled[part]) if split.parts[part] else empty for part in ("val", "test")}
    return held_out(method, {knob: best}, predictions, split)


def held_out(
    method: str, chosen: dict[str, float], predictions: Mapping[str, NDArray[np.float64]], split: Split
) -> ReferenceRow:
    """The row of a method from its predictions of validation and test cases."""
    cases = [(case_id, part) for part in ("val", "test") for case_id in split.parts[part]]
    return ReferenceRow(
        method=method,
        case_ids=[case_id for case_id, _ in cases],
        parts=[part for _, part in cases],
        predictions=np.concatenate([predictions["val"], predictions["test"]]),
        chosen=chosen,
    )


def _fit(
    model: Any, x: NDArray[np.float64], codes: NDArray[np.int64], n_classes: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    with warnings.catch_warnings():
        # a model stopped at its last iteration is judged on validation like any other
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, codes)

    def predict(x: NDArray[np.float64]) -> NDArray[np.float64]:
        # a class without a training case gets no column from scikit-learn
        probabilities = np.zeros((len(x), n_classes))
        probabilities[:, model.classes_] = model.predict_proba(x)
        return probabilities

    return predict


def _loss(probabilities: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    return float(log_loss(codes, probabilities, labels=range(probabilities.shape[1])))
