"""Gene-induced triplet learning: Eq. 4 of GiMP (section 2.3) with three ways of choosing triplets in a mini-batch.

Left out: gathering over workers (`gather`). Triplets are taken inside the batch given, whoever made it.

Shape suffixes: B batch, F width of the embedding; A anchors, P positives, N negatives are each the batch again.
"""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Mining = Literal["batch_all", "batch_hard", "semi_hard"]


class TripletResult(NamedTuple):
    """The loss and what to log with it; all scalars, all but `loss` without gradient."""

    loss: Tensor
    active_share: Tensor  # share of the triplets with a loss above 0; 0 when there are no triplets
    num_triplets: Tensor  # int64
    mean_positive_distance: Tensor  # squared; over all pairs of one class (and two patients); NaN when there are none
    mean_negative_distance: Tensor  # squared; over all pairs of two classes; NaN when there are none


def triplet_loss(
    x_BF: Tensor,
    labels_B: Tensor,
    margin: float = 0.8,
    mining: Mining = "batch_all",
    normalize: bool = True,
    patients_B: Tensor | None = None,
    average: Literal["active", "valid"] = "active",
) -> TripletResult:
    """max(|x - x+|^2 + margin - |x - x-|^2, 0), squared Euclidean distances (Eq. 4). In float32, under autocast too.

    Args:
        x_BF: (B, F) embeddings, CLS_pat.
        labels_B: (B,) integer classes.
        margin: delta.
        mining: "batch_all", every triplet of the batch; "batch_hard", for each anchor its farthest positive and nearest
            negative; "semi_hard", for each anchor and positive the nearest negative that is farther than the positive,
            or the farthest negative where none is.
        normalize: L2-normalise the embeddings first; distances then lie in [0, 4].
        patients_B: (B,) integer patients; two rows of one patient are then never each other's positive.
        average: over the triplets that are "active" (loss above 0), or over all "valid" ones.

    Returns:
        `TripletResult`. Without any triplet the loss is 0 and still has a (zero) gradient, so that a distributed
        backward pass does not hang; `num_triplets` is 0.

    Raises:
        ValueError: unknown mining or average, shapes that do not fit.
    """
    if average not in ("active", "valid"):
        raise ValueError(f"average must be 'active' or 'valid': found {average!r}")
    B = x_BF.shape[0]
    for name, ids in (("labels_B", labels_B), ("patients_B", patients_B)):
        if ids is not None and ids.shape != (B,):
            raise ValueError(f"{name} must be ({B},): found {tuple(ids.shape)}")
    with torch.autocast(x_BF.device.type, enabled=False):
        x_BF = x_BF.to(torch.promote_types(x_BF.dtype, torch.float32))
        if normalize:
            x_BF = F.normalize(x_BF, dim=-1)
        # Differences, not the dot-product expansion: that cancels for near rows.
        distance_BB = torch.cdist(x_BF, x_BF, compute_mode="donot_use_mm_for_euclid_dist").square()
        positive_BB, negative_BB = _pairs(labels_B, patients_B)
        if mining not in get_args(Mining):
            raise ValueError(f"mining must be 'batch_all', 'batch_hard' or 'semi_hard': found {mining!r}")
        if mining == "batch_all" or B == 0:  # of no rows there is no farthest
            terms, valid = _batch_all(distance_BB, positive_BB, negative_BB, margin)
        elif mining == "batch_hard":
            terms, valid = _batch_hard(distance_BB, positive_BB, negative_BB, margin)
        else:
            terms, valid = _semi_hard(distance_BB, positive_BB, negative_BB, margin)
        terms = terms.clamp_min(0).masked_fill(~valid, 0.0)
        active = terms.detach() > 0
        num_valid, num_active = valid.sum(), active.sum()
        loss = terms.sum() / (num_active if average == "active" else num_valid).clamp_min(1)
        distance_BB = distance_BB.detach()
        return TripletResult(
            loss=loss,
            active_share=num_active / num_valid.clamp_min(1),
            num_triplets=num_valid,
            mean_positive_distance=distance_BB[positive_BB].mean(),
            mean_negative_distance=distance_BB[negative_BB].mean(),
        )


def _pairs(labels_B: Tensor, patients_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which pairs are positives and which negatives, (B, B) bool each."""
    same_class = labels_B[:, None] == labels_B
    if patients_B is None:
        same_patient = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    else:
        same_patient = patients_B[:, None] == patients_B
    return same_class & ~same_patient, ~same_class


def _batch_all(distance: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Terms and validity of every triplet, (A, P, N)."""
    return distance[:, :, None] - distance[:, None, :] + margin, positive[:, :, None] & negative[:, None, :]


def _batch_hard(distance: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """One triplet an anchor, (A,)."""
    farthest = distance.masked_fill(~positive, 0.0).amax(dim=1)
    nearest = distance.masked_fill(~negative, torch.inf).amin(dim=1)
    valid = positive.any(dim=1) & negative.any(dim=1)
    return farthest - nearest.where(valid, 0.0) + margin, valid


def _semi_hard(distance: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """One triplet an anchor and positive, (A, P)."""
    outside_APN = negative[:, None, :] & (distance[:, None, :] > distance[:, :, None])
    nearest_outside = distance[:, None, :].masked_fill(~outside_APN, torch.inf).amin(dim=2)
    farthest = distance.masked_fill(~negative, 0.0).amax(dim=1)[:, None]
    chosen = nearest_outside.where(outside_APN.any(dim=2), farthest)
    return distance - chosen + margin, positive & negative.any(dim=1)[:, None]
