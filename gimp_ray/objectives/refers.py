"""REFERS' losses: the genes told from the image, and the contrast of both (Zhou et al., Nature Machine Intelligence
2022). What was adapted is said with the model (`models.refers`).

    L = w mean over cases and groups of -log p(bin of group r | image, bins before r)
      + lambda InfoNCE(image -> genes) + (1 - lambda) InfoNCE(genes -> image)

lambda = 0.75, temperature 0.1 (ConVIRT's loss), w = 1.

Shape suffixes: B batch of one worker, N rows of all workers, F width of the contrast, R gene groups, K bins.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gimp_ray.objectives.infonce import gather_rows, infonce


class REFERSLoss(NamedTuple):
    """Scalars: what is minimised, its terms before weighting, and the contrast's accuracy."""

    loss: Tensor
    caption: Tensor  # in nats a group
    contrast: Tensor
    accuracy: Tensor


def refers_loss(
    image_BF: Tensor,
    genes_BF: Tensor,
    logits_BRK: Tensor,
    bins_BR: Tensor,
    counted: Tensor | None = None,
    temperature: float = 0.1,
    image_weight: float = 0.75,
    caption_weight: float = 1.0,
) -> REFERSLoss:
    """The sum of both. In float32 at least, under autocast too.

    Args:
        image_BF, genes_BF: (B, F).
        logits_BRK: (B, R, K), of every group's bin.
        bins_BR: (B, R) int64, what they are.
        counted: (B,) bool, see `gather_rows`.
        temperature: of the contrast.
        image_weight: lambda.
        caption_weight: w.

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits_BRK.ndim != 3 or logits_BRK.shape[:2] != bins_BR.shape or len(logits_BRK) != len(image_BF):
        found = tuple(logits_BRK.shape), tuple(bins_BR.shape), len(image_BF)
        raise ValueError(f"logits must be (B, R, K), bins (B, R) with B as of the image: found {found}")
    image_NF, genes_NF = gather_rows(counted, image_BF, genes_BF)
    contrast, accuracy = infonce(image_NF, genes_NF, temperature, image_weight)
    dtype = torch.promote_types(logits_BRK.dtype, torch.float32)
    caption = F.cross_entropy(logits_BRK.flatten(0, 1).to(dtype), bins_BR.flatten())
    return REFERSLoss(caption_weight * caption + contrast, caption, contrast, accuracy)
