"""DSMIL's loss: half on the bag, half on the highest patch of each class (Li, Li & Eliceiri, CVPR 2021).

Shape suffixes: B batch, C classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def dsmil_loss(
    logits_BC: Tensor, max_logits_BC: Tensor, labels_B: Tensor, kind: Literal["bce", "ce"] = "bce"
) -> Tensor:
    """1/2 loss(bag logits) + 1/2 loss(max over patches of the instance logits). In float32, under autocast too.

    Args:
        logits_BC, max_logits_BC: (B, C), of `DSMILOutput`.
        labels_B: (B,) class index.
        kind: "bce", binary cross-entropy against the one-hot label, mean over bags and classes, as published; "ce",
            cross-entropy over classes that exclude each other, a variant that a table must name.

    Returns:
        scalar.

    Raises:
        ValueError: shapes that do not fit, unknown kind.
    """
    if logits_BC.ndim != 2 or logits_BC.shape != max_logits_BC.shape or labels_B.shape != logits_BC.shape[:1]:
        raise ValueError(
            f"logits and max_logits must be (B, C), labels (B,): found {tuple(logits_BC.shape)}, "
            f"{tuple(max_logits_BC.shape)}, {tuple(labels_B.shape)}"
        )
    if kind not in ("bce", "ce"):
        raise ValueError(f"kind must be 'bce' or 'ce': found {kind!r}")
    dtype = torch.promote_types(logits_BC.dtype, torch.float32)
    bag_BC, top_BC = logits_BC.to(dtype), max_logits_BC.to(dtype)
    if kind == "ce":
        return (F.cross_entropy(bag_BC, labels_B) + F.cross_entropy(top_BC, labels_B)) / 2
    one_hot_BC = F.one_hot(labels_B, logits_BC.shape[1]).to(dtype)
    bag, top = (F.binary_cross_entropy_with_logits(x_BC, one_hot_BC) for x_BC in (bag_BC, top_BC))
    return (bag + top) / 2
