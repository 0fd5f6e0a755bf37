"""Losses that several methods share, and what they need to see the cases of all workers.

Symmetric InfoNCE (van den Oord et al. 2018; ConVIRT, Zhang et al. 2020; CLIP, Radford et al. 2021): each row of one
side must be nearest to its own row of the other, among all rows of the batch. With a_i, b_i of unit length and
temperature t:

    l_i = -log( exp(a_i . b_i / t) / sum_j exp(a_i . b_j / t) ),   L = w mean_i l_i + (1 - w) mean_i l'_i

where l' has the sides exchanged. It is not a mean over cases, so the rows of all workers are gathered first, with
gradients (`gather_rows`): the loss and the step are those of one worker with the whole batch.

Masked patches: L1 (GiMP, section 2.3, Eq. 3). Gene-induced triplets: Eq. 4, with three ways of choosing triplets among
the rows given. Mixup of genes (Zhang et al. 2018) is not in the GiMP paper: with hundreds of patients and thousands of
genes it brought GroupMSA to the level of logistic regression (docs/results.md).

Shape suffixes: B batch of one worker, N rows of all workers or negatives, P width of the embedding or positives,
M masked patches, E patch embedding width, F width of the embedding, A anchors, G genes, C classes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def gather_workers(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Rows of all workers, in the order of their ranks; the tensors themselves where there is one worker.

    Every worker must compute a loss from what it gets, all of them the same up to a factor each, and gradients must be
    averaged over workers afterwards, as DistributedDataParallel does. With factors whose mean is 1 the average is the
    gradient of one worker that holds the whole batch.

    Args:
        tensors: (B, ...) each, of any types; B may differ between workers, all else is the same.

    Returns:
        (N, ...) each.

    Raises:
        ValueError: the tensors differ in B.
    """
    if len({len(tensor) for tensor in tensors}) > 1:
        raise ValueError(f"tensors of one batch must have as many rows: found {[len(tensor) for tensor in tensors]}")
    if not tensors or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    rows = _rows_of_all(len(tensors[0]), tensors[0].device)
    return tuple(_Gather.apply(tensor, rows) for tensor in tensors)


def _rows_of_all(rows: int, device: torch.device) -> list[int]:
    mine = torch.tensor([rows], device=device)
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine)
    found: list[int] = torch.cat(sizes).tolist()
    return found


class _Gather(torch.autograd.Function):
    """all_gather along the first axis; shorter ones are padded on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        padded = x.new_zeros((max(rows), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # what all workers' losses send to this worker's rows
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.rows)[dist.get_rank()], None


class InfoNCEResult(NamedTuple):
    """Scalars: the loss, and the share of rows nearest to their own of the other side (mean of both directions)."""

    loss: Tensor
    accuracy: Tensor


def infonce(a_NP: Tensor, b_NP: Tensor, temperature: float = 0.07, weight: float = 0.5) -> InfoNCEResult:
    """The loss over the rows given, whoever made them. In float32 at least, under autocast too.

    Args:
        a_NP, b_NP: (N, P) embeddings, any length; row i of both is one case.
        temperature: t.
        weight: w, of the direction from a to b; 0.5 is symmetric.

    Raises:
        ValueError: shapes that do not fit, no rows, a temperature that is not positive, a weight outside 0 to 1.
    """
    if a_NP.ndim != 2 or a_NP.shape != b_NP.shape or len(a_NP) == 0:
        raise ValueError(f"both sides must be (N >= 1, P): found {tuple(a_NP.shape)} and {tuple(b_NP.shape)}")
    if temperature <= 0 or not 0 <= weight <= 1:
        raise ValueError(f"temperature must be > 0 and weight from 0 to 1: found {temperature} and {weight}")
    with torch.autocast(a_NP.device.type, enabled=False):
        logits_NN = unit(a_NP) @ unit(b_NP).T / temperature
        own_N = torch.arange(len(logits_NN), device=logits_NN.device)
        loss = weight * F.cross_entropy(logits_NN, own_N) + (1 - weight) * F.cross_entropy(logits_NN.T, own_N)
        right = [(side.argmax(dim=1) == own_N).float().mean() for side in (logits_NN.detach(), logits_NN.detach().T)]
    return InfoNCEResult(loss, (right[0] + right[1]) / 2)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in at least float32."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def gather_rows(counted_B: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Rows of all workers (`gather_workers`), without those that do not count.

    Args:
        counted_B: (B,) bool; False for the rows of a worker that has nothing left in an epoch and repeats a case, which
            would be its own false negative. None = all count.
        tensors: (B, ...) each.

    Raises:
        ValueError: `counted_B` is not (B,) bool, or the tensors differ in B.
    """
    if counted_B is None:
        return gather_workers(*tensors)
    if counted_B.dtype != torch.bool or counted_B.ndim != 1:
        raise ValueError(f"counted must be (B,) bool: found {tuple(counted_B.shape)} {counted_B.dtype}")
    # as numbers: not every backend gathers booleans
    counts_N, *rows = gather_workers(counted_B.to(torch.uint8), *tensors)
    return tuple(row[counts_N > 0] for row in rows)


def patches_at(patches_BLE: Tensor, positions_BM: Tensor) -> Tensor:
    """(B, M, E): the patches at some positions (B, M) int64 of each window, in the type they are stored in."""
    B, L, E = patches_BLE.shape
    window_B1 = torch.arange(B, device=patches_BLE.device)[:, None]
    rows = (positions_BM + window_B1 * L).reshape(-1)
    return patches_BLE.reshape(-1, E).index_select(0, rows).view(B, -1, E)


def masked_patch_loss(prediction_BME: Tensor, target_BME: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Eq. 3 over the masked positions, which are all that is given to it. Computed in float32, under autocast too.

    Args:
        prediction_BME: (B, M, E) reconstruction.
        target_BME: (B, M, E) the original embeddings at the same positions.
        reduction: "mean" over masked elements (a loss that does not grow with L, ratio and E); "sum" is the literal
            equation, the sum over the masked patches of a window, averaged over the windows so that a batch split over
            workers has the loss of the whole.

    Returns:
        scalar.

    Raises:
        ValueError: shapes differ, nothing is masked, unknown reduction.
    """
    if prediction_BME.shape != target_BME.shape:
        raise ValueError(f"shapes differ: {tuple(prediction_BME.shape)} and {tuple(target_BME.shape)}")
    if target_BME.numel() == 0:
        raise ValueError("no masked patches: the loss of nothing is not defined")
    dtype = torch.promote_types(prediction_BME.dtype, torch.float32)
    prediction_BME, target_BME = prediction_BME.to(dtype), target_BME.to(dtype)
    if reduction == "mean":
        return F.l1_loss(prediction_BME, target_BME)
    if reduction == "sum":
        return F.l1_loss(prediction_BME, target_BME, reduction="sum") / prediction_BME.shape[0]
    raise ValueError(f"reduction must be 'mean' or 'sum': found {reduction!r}")


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


def mixup(x_BG: Tensor, labels_B: Tensor, num_classes: int, alpha: float = 0.4) -> tuple[Tensor, Tensor]:
    """Mix every row with another of the batch, by one weight drawn from Beta(alpha, alpha) by torch's generator.

    Args:
        x_BG: (B, G), scaled expression: mix after the z-score, not before a log.
        labels_B: (B,) class index.
        num_classes: C.
        alpha: of the Beta distribution; 0 mixes nothing.

    Returns:
        mixed rows (B, G), and class probabilities (B, C), which `cross_entropy` takes as its target.

    Raises:
        ValueError: a negative alpha.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be >= 0: found {alpha}")
    target_BC = F.one_hot(labels_B, num_classes).to(x_BG.dtype)
    if alpha == 0:
        return x_BG, target_BC
    weight = torch.distributions.Beta(alpha, alpha).sample().item()
    partner_B = torch.randperm(len(x_BG)).to(x_BG.device)
    return torch.lerp(x_BG[partner_B], x_BG, weight), torch.lerp(target_BC[partner_B], target_BC, weight)
