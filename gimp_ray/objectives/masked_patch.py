"""Masked patch modelling: L1 between the masked patches and their reconstruction (GiMP, section 2.3, Eq. 3).

Shape suffixes: B batch, M masked patches, E patch embedding width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


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
