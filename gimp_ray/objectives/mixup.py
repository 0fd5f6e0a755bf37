"""Mixup for gene training: convex combinations of two cases and of their labels (Zhang et al. 2018).

Not in the GiMP paper. With hundreds of patients and thousands of genes it is what brought GroupMSA to the level of
logistic regression (docs/results.md). Shape suffixes: B batch, G genes, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
