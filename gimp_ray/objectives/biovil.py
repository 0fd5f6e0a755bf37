"""BioViL's losses: contrast of image and genes, or of two halves of the genes, beside masked gene groups (Boecking et
al., ECCV 2022). What was adapted is said with the model (`models.biovil`).

    joint training   L = InfoNCE(image, genes) + w L_groups
    warm-up          L = InfoNCE(half, other half) + w L_groups + L_patches

InfoNCE is symmetric, temperature 0.5; w = 0.1; L_groups is the mean squared error of the masked groups of a case,
L_patches the L1 of the masked patches (GiMP, Eq. 3). Both are means over cases, so each worker's own suffice.

Shape suffixes: B batch of one worker, N rows of all workers, P width of the heads, R gene groups, M masked patches,
E patch embedding width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gimp_ray.objectives.infonce import gather_rows, infonce
from gimp_ray.objectives.masked_patch import masked_patch_loss


class BioViLLoss(NamedTuple):
    """Scalars: what is minimised, its terms before weighting, and the contrast's accuracy."""

    loss: Tensor
    contrast: Tensor
    groups: Tensor
    patches: Tensor | None  # in the warm-up
    accuracy: Tensor


def biovil_loss(
    first_BP: Tensor,
    second_BP: Tensor,
    predicted_BR: Tensor,
    target_BR: Tensor,
    masked_groups_BR: Tensor,
    reconstruction_BME: Tensor | None = None,
    patches_BME: Tensor | None = None,
    counted: Tensor | None = None,
    temperature: float = 0.5,
    mask_weight: float = 0.1,
) -> BioViLLoss:
    """Either phase: with masked patches it is the warm-up.

    Args:
        first_BP, second_BP: (B, P), what is contrasted.
        predicted_BR, target_BR: (B, R), of all groups; the masked ones count.
        masked_groups_BR: (B, R) bool.
        reconstruction_BME, patches_BME: (B, M, E) each, both or none.
        counted: (B,) bool, see `gather_rows`.
        temperature: of the contrast.
        mask_weight: w.

    Raises:
        ValueError: shapes that do not fit, a reconstruction without the patches.
    """
    if (reconstruction_BME is None) != (patches_BME is None):
        raise ValueError("a reconstruction and the patches it is of must be given together")
    first_NP, second_NP = gather_rows(counted, first_BP, second_BP)
    contrast, accuracy = infonce(first_NP, second_NP, temperature)
    groups = masked_group_loss(predicted_BR, target_BR, masked_groups_BR)
    loss, patches = contrast + mask_weight * groups, None
    if reconstruction_BME is not None and patches_BME is not None:
        patches = masked_patch_loss(reconstruction_BME, patches_BME)
        loss = loss + patches
    return BioViLLoss(loss, contrast, groups, patches, accuracy)


def masked_group_loss(predicted_BR: Tensor, target_BR: Tensor, masked_BR: Tensor) -> Tensor:
    """Mean squared error over each case's masked groups, then over the cases that have any. In float32 at least.

    Raises:
        ValueError: shapes that do not fit, `masked_BR` not bool.
    """
    if predicted_BR.shape != target_BR.shape or masked_BR.shape != target_BR.shape or masked_BR.dtype != torch.bool:
        found = tuple(predicted_BR.shape), tuple(target_BR.shape), tuple(masked_BR.shape), masked_BR.dtype
        raise ValueError(f"predictions, targets and the bool mask must have one shape: found {found}")
    dtype = torch.promote_types(predicted_BR.dtype, torch.float32)
    error_BR = (predicted_BR.to(dtype) - target_BR.to(dtype)).square().masked_fill(~masked_BR, 0.0)
    count_B = masked_BR.sum(dim=1)
    return (error_BR.sum(dim=1) / count_B.clamp_min(1)).sum() / (count_B > 0).sum().clamp_min(1)
