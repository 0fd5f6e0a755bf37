"""The two baselines beside every result: what genes alone, and what averaged patches alone, would have reached.

RNA alone separates LUAD from LUSC almost perfectly (Huang, Chen & Wang 2017: AUC 0.993), so a multimodal result without
them cannot be read. Both are fitted on training cases; validation cases choose the strength of the regularisation, by
log loss or partial likelihood, and nothing else. A class: logistic regression, or a small MLP. Labels: the same for
each label, on the cases in which it is known. Survival: a linear Cox model with a ridge. Shapes: N cases, F features,
C classes, P labels, K = min(N, F).
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
from gimp_ray.evaluation.metrics import Bools, Floats, Truth

GENES_ALONE, GENES_ALONE_COX = "genes alone (logistic regression)", "genes alone (Cox, ridge)"
MEAN_POOL, MEAN_POOL_COX = "mean-pooled patches + MLP", "mean-pooled patches (Cox, ridge)"
LOGISTIC_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C, scikit-learn's inverse strength
MLP_GRID = (1e-2, 1e-1, 1.0, 10.0)  # alpha, weight of the squared norm
RIDGES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
Parts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Baseline:
    """Predictions of one baseline for the validation and test cases."""

    method: str
    case_ids: list[str]
    parts: list[str]
    """val or test, of every case"""
    predictions: Floats
    """(N, P), rows as `case_ids`: a probability a class or label (NaN where it has none), or (N, 1) log-risks"""
    chosen: dict[str, float]
    """the regularisation that validation chose"""
    notes: list[str] = field(default_factory=list)
    """what could not be fitted, and why"""


def genes_alone(
    case_ids: Sequence[str], expression: ArrayLike, truth: Truth, parts: Parts, *, linear: bool, top_genes: int = 3000
) -> Baseline:
    """A linear model of the genes that vary most over the training cases, standardised on these cases.

    Args:
        case_ids: N cases of `expression` and `truth`.
        expression: (N, G).
        truth: of the N cases.
        parts: case ids of `train`, `val` and `test`; `val` may be empty.
        linear: whether values are linear (FPKM, TPM, counts) and log2(x + 1) is to be applied.
        top_genes: how many genes are kept.

    Raises:
        InputError: an unknown case, a value that is not finite or below zero, a training part of one class or without
            an event, or no label that could be fitted.
    """

    def features(split: _Split) -> dict[str, Floats]:
        values = {part: split.features(expression, part) for part in split.parts}
        if linear:
            for x in values.values():
                if x.size and x.min() < 0:
                    raise InputError(
                        "linear expression has values below zero",
                        found=f"{x.min():.3g}",
                        fix="give the unit of the genes",
                    )
            values = {part: np.log2(x + 1) for part, x in values.items()}
        # a stable sort makes ties the same on every machine
        kept = np.sort(np.argsort(-values["train"].var(axis=0), kind="stable")[:top_genes])
        return {part: x[:, kept] for part, x in values.items()}

    if truth.kind == "survival":
        return _cox(GENES_ALONE_COX, features, case_ids, truth, parts)
    models = {C: LogisticRegression(C=C, max_iter=2000) for C in LOGISTIC_GRID}
    return _classifiers(GENES_ALONE, "C", models, features, case_ids, truth, parts)


def mean_pool(case_ids: Sequence[str], pooled: ArrayLike, truth: Truth, parts: Parts, *, seed: int = 0) -> Baseline:
    """A model of the mean patch of a case: a small MLP, of survival a linear one. Errors as `genes_alone`.

    Args:
        case_ids: N cases of `pooled` and `truth`.
        pooled: (N, E) mean embedding of every case.
        truth, parts: as `genes_alone`.
        seed: of the MLP's weights and batches.
    """

    def features(split: _Split) -> dict[str, Floats]:
        return {part: split.features(pooled, part) for part in split.parts}

    if truth.kind == "survival":
        return _cox(MEAN_POOL_COX, features, case_ids, truth, parts)
    models = {
        alpha: MLPClassifier((64,), alpha=alpha, max_iter=200, learning_rate_init=1e-3, random_state=seed)
        for alpha in MLP_GRID
    }
    return _classifiers(MEAN_POOL, "alpha", models, features, case_ids, truth, parts)


def fit_cox(x_NF: Floats, time_N: Floats, event_N: Bools, ridge: float) -> Floats:
    """(F,) weights w that minimise cox_loss(x w, time, event) + ridge / 2 |w|^2, by L-BFGS from zero in float64.

    The solution is a sum of the rows, so it is looked for among them (after a singular value decomposition): 3,000
    genes of 200 cases are a problem of 200 unknowns.

    Raises:
        InputError: no event was seen.
    """
    # the rest of the package does without it
    import torch

    from gimp_ray.nn.survival import cox_loss

    if not event_N.any():
        raise InputError("no event was seen in the training part", found=f"{len(event_N)} censored cases")
    left_NK, size_K, rows_KF = np.linalg.svd(x_NF, full_matrices=False)
    # in these units the curvature is much the same in every direction, and L-BFGS needs few steps
    unit_K = 1 / np.sqrt(size_K**2 / len(x_NF) + ridge)
    z_NK, unit = torch.from_numpy(left_NK * size_K * unit_K), torch.from_numpy(unit_K)
    time, event = torch.from_numpy(time_N), torch.from_numpy(event_N)
    w_K = torch.zeros(len(rows_KF), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w_K], max_iter=300, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = cox_loss(z_NK @ w_K, time, event) + 0.5 * ridge * (unit * w_K).square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights: Floats = rows_KF.T @ (unit_K * w_K.detach().numpy())
    return weights


class _Split:
    """Which rows belong to which part of the split.

    Args:
        case_ids: N cases, one a row.
        parts: case ids of `train`, `val` and `test`; `val` may be empty.

    Raises:
        InputError: a case stands in two rows or two parts, or has no row.
    """

    def __init__(self, case_ids: Sequence[str], parts: Parts) -> None:
        self._row = {case_id: row for row, case_id in enumerate(case_ids)}
        self.parts = {part: list(parts.get(part, ())) for part in ("train", "val", "test")}
        self._n_cases = len(case_ids)
        if len(self._row) != len(case_ids):
            raise InputError("case ids are not one a row", found=f"{len(case_ids)} rows, {len(self._row)} ids")
        seen: set[str] = set()
        for case_id in (case_id for ids in self.parts.values() for case_id in ids):
            if case_id not in self._row:
                raise InputError("a case of the split has no row", case=case_id)
            if case_id in seen:
                raise InputError("a case is in two parts of the split", case=case_id, fix="split by patient")
            seen.add(case_id)

    def pick(self, values: ArrayLike, part: str) -> NDArray[Any]:
        """Values of a part's cases, from one value a row."""
        return np.asarray(values)[[self._row[case_id] for case_id in self.parts[part]]]

    def features(self, values: ArrayLike, part: str) -> Floats:
        """(n, F) features of a part's cases, found finite."""
        x_NF = np.asarray(values)
        if x_NF.ndim != 2 or len(x_NF) != self._n_cases:
            raise InputError(
                "the features are not one row a case", expected=f"({self._n_cases}, F)", found=str(x_NF.shape)
            )
        x = self.pick(x_NF, part).astype(np.float64)
        bad = ~np.isfinite(x).all(axis=1)
        if bad.any():
            raise InputError("a feature is not finite", case=self.parts[part][int(bad.argmax())])
        return x

    def baseline(self, method: str, chosen: dict[str, float], predictions: Mapping[str, Floats]) -> Baseline:
        """From predictions of validation and test cases."""
        cases = [(case_id, part) for part in ("val", "test") for case_id in self.parts[part]]
        both = np.concatenate([predictions["val"], predictions["test"]])
        return Baseline(method, [case for case, _ in cases], [part for _, part in cases], both, chosen)


Features = Callable[[_Split], dict[str, Floats]]


def _classifiers(
    method: str,
    knob: str,
    models: Mapping[float, Any],
    features: Features,
    case_ids: Sequence[str],
    truth: Truth,
    parts: Parts,
) -> Baseline:
    """One classifier, or one a label. A label whose training cases are of one kind gets a note and no prediction."""
    if truth.kind == "class":
        codes_N = truth.values["label"]
        return _classifier(method, knob, models, features, _Split(case_ids, parts), codes_N, len(truth.names))
    wanted = [(case, part) for part in ("val", "test") for case in parts.get(part, ())]
    row_of = {case: number for number, (case, _) in enumerate(wanted)}
    predictions = np.full((len(wanted), len(truth.names)), np.nan)
    chosen: dict[str, float] = {}
    notes = []
    for p, label in enumerate(truth.names):
        known = dict(zip(case_ids, truth.values["known"][:, p].tolist(), strict=True))
        of_label = {part: [case for case in cases if known.get(case, True)] for part, cases in parts.items()}
        codes_N = truth.values["truth"][:, p].astype(np.int64)
        try:
            found = _classifier(method, knob, models, features, _Split(case_ids, of_label), codes_N, 2)
        except InputError as refusal:
            if refusal.case is not None:  # of the cases or features, and so of every label
                raise
            notes.append(f"{label}: {refusal.what}")
            continue
        predictions[[row_of[case] for case in found.case_ids], p] = found.predictions[:, 1]
        chosen |= {f"{name} of {label}": value for name, value in found.chosen.items()}
    if len(notes) == len(truth.names):
        raise InputError("no label could be fitted", found="; ".join(notes))
    return Baseline(method, [case for case, _ in wanted], [part for _, part in wanted], predictions, chosen, notes)


def _classifier(
    method: str,
    knob: str,
    models: Mapping[float, Any],
    features: Features,
    split: _Split,
    codes_N: NDArray[np.int64],
    classes: int,
) -> Baseline:
    """Fit every model of the grid on training cases, keep the one with the lowest log loss on validation cases."""
    training = split.pick(codes_N, "train")
    if len(set(training.tolist())) < 2:
        raise InputError("the training part has fewer than two classes", found=f"{len(training)} cases")
    values = features(split)
    scaler = StandardScaler().fit(values["train"])
    scaled = {part: scaler.transform(x) if len(x) else x for part, x in values.items()}

    def predict(strength: float, part: str) -> Floats:
        # a class without a training case gets no column from scikit-learn
        probabilities = np.zeros((len(scaled[part]), classes))
        if len(scaled[part]):
            probabilities[:, models[strength].classes_] = models[strength].predict_proba(scaled[part])
        return probabilities

    with warnings.catch_warnings():
        # a model stopped at its last iteration is judged on validation like any other
        warnings.simplefilter("ignore", ConvergenceWarning)
        for model in models.values():
            model.fit(scaled["train"], training)
    best = list(models)[len(models) // 2]
    if split.parts["val"]:
        codes = split.pick(codes_N, "val")
        best = min(models, key=lambda strength: log_loss(codes, predict(strength, "val"), labels=range(classes)))
    return split.baseline(method, {knob: best}, {part: predict(best, part) for part in ("val", "test")})


def _cox(method: str, features: Features, case_ids: Sequence[str], truth: Truth, parts: Parts) -> Baseline:
    """Fit every ridge on training cases, keep the one with the best partial likelihood on validation cases."""
    import torch

    from gimp_ray.nn.survival import cox_loss

    split = _Split(case_ids, parts)
    values = features(split)
    mean_F, std_F = values["train"].mean(axis=0), values["train"].std(axis=0)
    scaled = {part: (x - mean_F) / np.where(std_F > 0, std_F, 1.0) for part, x in values.items()}
    time = {part: split.pick(truth.values["time"], part).astype(np.float64) for part in split.parts}
    event = {part: split.pick(truth.values["event"], part).astype(np.bool_) for part in split.parts}
    weights = {ridge: fit_cox(scaled["train"], time["train"], event["train"], ridge) for ridge in RIDGES}
    best = RIDGES[len(RIDGES) // 2]
    if event["val"].any():
        t, e = torch.from_numpy(time["val"]), torch.from_numpy(event["val"])
        best = min(RIDGES, key=lambda r: float(cox_loss(torch.from_numpy(scaled["val"] @ weights[r]), t, e)))
    return split.baseline(method, {"ridge": best}, {p: (scaled[p] @ weights[best])[:, None] for p in ("val", "test")})
