"""A linear Cox model with a ridge: the reference row of survival, from genes or from averaged patches.

    minimise  cox_loss(theta, time, event) + ridge / 2 |w|^2,  theta = x w

Features are standardised on the training cases; the strength of the ridge is chosen by the partial likelihood of the
validation cases. The solution is a sum of training rows, so it is looked for among them (after a singular value
decomposition), which makes 3,000 genes of 200 cases a problem of 200 unknowns. Left out: reading the store, the
C-index. Shapes: N cases, F features, K = min(N, F).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gimp_ray.errors import InputError
from gimp_ray.evaluation.reference_rows import ReferenceRow, Split, held_out, logged, most_varying

GENES_ALONE_COX = "genes alone (Cox, ridge)"
MEAN_POOL_COX = "mean-pooled patches (Cox, ridge)"
RIDGES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def genes_alone_survival(
    case_ids: Sequence[str],
    expression: ArrayLike,
    time: ArrayLike,
    event: ArrayLike,
    parts: Mapping[str, Sequence[str]],
    *,
    linear: bool,
    top_genes: int = 3000,
) -> ReferenceRow:
    """A ridge Cox model on the genes that vary most over the training cases.

    Args:
        case_ids: N cases of `expression`, `time` and `event`.
        expression: (N, G).
        time: (N,) time to the event or to the last follow-up.
        event: (N,) bool, True = the event was seen.
        parts: case ids of `train`, `val` and `test`; `val` may be empty.
        linear: whether values are linear (FPKM, TPM, counts) and log2(x + 1) is to be applied.
        top_genes: how many genes are kept.

    Returns:
        The row; `predictions` is (n, 1), the log-risk.

    Raises:
        InputError: an unknown case, a value that is not finite, or no event in the training part.
    """
    split = Split(case_ids, parts)
    values = {part: logged(split.rows(expression, part), linear) for part in split.parts}
    kept = most_varying(values["train"], top_genes)
    return _row(GENES_ALONE_COX, {part: x[:, kept] for part, x in values.items()}, time, event, split)


def mean_pool_survival(
    case_ids: Sequence[str], pooled: ArrayLike, time: ArrayLike, event: ArrayLike, parts: Mapping[str, Sequence[str]]
) -> ReferenceRow:
    """A ridge Cox model on the mean patch of a case; arguments and errors as `genes_alone_survival`."""
    split = Split(case_ids, parts)
    values = {part: split.rows(pooled, part) for part in split.parts}
    return _row(MEAN_POOL_COX, values, time, event, split)


def fit_cox(x_NF: Floats, time_N: Floats, event_N: Bools, ridge: float) -> Floats:
    """(F,) weights w of the ridge Cox model, by L-BFGS from zero in float64.

    Raises:
        InputError: no event was seen.
    """
    # the rest of the room does without it
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


def _row(name: str, values: dict[str, Floats], time: ArrayLike, event: ArrayLike, split: Split) -> ReferenceRow:
    """Fit every ridge on training cases, keep the one with the best partial likelihood on validation cases."""
    mean_F, std_F = values["train"].mean(axis=0), values["train"].std(axis=0)
    scaled = {part: (x - mean_F) / np.where(std_F > 0, std_F, 1.0) for part, x in values.items()}
    time_of = {part: split.pick(time, part).astype(np.float64) for part in split.parts}
    event_of = {part: split.pick(event, part).astype(np.bool_) for part in split.parts}
    weights = {ridge: fit_cox(scaled["train"], time_of["train"], event_of["train"], ridge) for ridge in RIDGES}
    best = RIDGES[len(RIDGES) // 2]
    if event_of["val"].any():
        best = min(RIDGES, key=lambda r: _partial_loss(scaled["val"] @ weights[r], time_of["val"], event_of["val"]))
    risks = {part: (scaled[part] @ weights[best])[:, None] for part in ("val", "test")}
    return held_out(name, {"ridge": best}, risks, split)


def _partial_loss(theta_N: Floats, time_N: Floats, event_N: Bools) -> float:
    import torch

    from gimp_ray.nn.survival import cox_loss

    return float(cox_loss(torch.from_numpy(theta_N), torch.from_numpy(time_N), torch.from_numpy(event_N)))
