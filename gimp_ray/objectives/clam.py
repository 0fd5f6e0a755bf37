"""CLAM's loss: cross-entropy of the bag and the clustering of its most and least attended patches (Lu et al. 2021).

For the label's class the patches of highest attention are "evidence" (1) and those of lowest attention are not (0).
Where classes exclude each other ("subtyping"), the patches of highest attention are not evidence for any other class
(0), and the sum over classes is divided by their number.

The instance loss is the smooth top-1 SVM (Berrada, Zisserman & Kumar, ICLR 2018) at margin 1 and temperature 1, or
cross-entropy. Over two classes, with scores s and label y:

    l(s, y) = tau * log( sum_j exp( (margin * [j != y] + s_j - s_y) / tau ) )

It is written here from that equation, without the package `smooth-topk`, which switches to a hard loss where scores are
far apart: a log-sum-exp needs no such guard.

Shape suffixes: B batch, C classes, P picked patches.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

InstanceLoss = Literal["svm", "ce"]


class CLAMLoss(NamedTuple):
    """Scalars: what is minimised, and its two terms before weighting."""

    loss: Tensor
    bag: Tensor
    instance: Tensor


def clam_loss(
    logits_BC: Tensor,
    top_BCP2: Tensor,
    bottom_BCP2: Tensor,
    picked_BP: Tensor,
    labels_B: Tensor,
    bag_weight: float = 0.7,
    subtyping: bool = True,
    kind: InstanceLoss = "svm",
) -> CLAMLoss:
    """bag_weight * cross-entropy + (1 - bag_weight) * instance loss.

    Args:
        logits_BC: (B, C).
        top_BCP2, bottom_BCP2, picked_BP: `top_logits`, `bottom_logits` and `picked` of `CLAMOutput`.
        labels_B: (B,) class index.
        bag_weight: 0.7 as published.
        subtyping, kind: see `clam_instance_loss`.

    Raises:
        ValueError: shapes that do not fit, `bag_weight` outside 0 to 1, unknown kind.
    """
    if not 0 <= bag_weight <= 1:
        raise ValueError(f"bag_weight must be from 0 to 1: found {bag_weight}")
    dtype = torch.promote_types(logits_BC.dtype, torch.float32)
    instance = clam_instance_loss(top_BCP2, bottom_BCP2, picked_BP, labels_B, subtyping, kind)
    bag = F.cross_entropy(logits_BC.to(dtype), labels_B)
    return CLAMLoss(bag_weight * bag + (1 - bag_weight) * instance, bag, instance)


def clam_instance_loss(
    top_BCP2: Tensor,
    bottom_BCP2: Tensor,
    picked_BP: Tensor,
    labels_B: Tensor,
    subtyping: bool = True,
    kind: InstanceLoss = "svm",
) -> Tensor:
    """The clustering of patches, a mean over the bags. In float32, under autocast too.

    Args:
        top_BCP2, bottom_BCP2: (B, C, P, 2) instance logits of highest and lowest attention, by class.
        picked_BP: (B, P) bool, which of the places hold a patch.
        labels_B: (B,) class index.
        subtyping: classes exclude each other: take the other classes' highest patches as 0, divide by C.
        kind: "svm", smooth top-1 SVM, as published; "ce", cross-entropy.

    Returns:
        scalar; a bag without patches counts as 0.

    Raises:
        ValueError: shapes that do not fit, unknown kind.
    """
    if top_BCP2.ndim != 4 or top_BCP2.shape[-1] != 2 or top_BCP2.shape != bottom_BCP2.shape:
        raise ValueError(
            f"top and bottom must be (B, C, P, 2): found {tuple(top_BCP2.shape)} and {tuple(bottom_BCP2.shape)}"
        )
    B, C, P, _ = top_BCP2.shape
    if picked_BP.shape != (B, P) or labels_B.shape != (B,):
        raise ValueError(
            f"picked must be ({B}, {P}), labels ({B},): found {tuple(picked_BP.shape)}, {tuple(labels_B.shape)}"
        )
    if kind not in ("svm", "ce"):
        raise ValueError(f"kind must be 'svm' or 'ce': found {kind!r}")
    top_is_1 = _mean_of_picked(_two_class(top_BCP2, 1, kind), picked_BP)
    top_is_0 = _mean_of_picked(_two_class(top_BCP2, 0, kind), picked_BP)
    bottom_is_0 = _mean_of_picked(_two_class(bottom_BCP2, 0, kind), picked_BP)
    own_BC = F.one_hot(labels_B, C).bool()
    # both ends hold as many patches, so the mean over them all is the mean of the two means
    loss_BC = ((top_is_1 + bottom_is_0) / 2).where(own_BC, top_is_0 if subtyping else torch.zeros_like(top_is_0))
    return loss_BC.sum(dim=1).mean() / (C if subtyping else 1)


def _two_class(logits_BCP2: Tensor, label: int, kind: InstanceLoss) -> Tensor:
    """Loss of every patch when all have one label, (B, C, P).

    Over two classes both kinds are functions of s_other - s_label alone: tau = 1 gives log(1 + exp(margin + that)), and
    cross-entropy is the same without a margin.
    """
    s = logits_BCP2.to(torch.promote_types(logits_BCP2.dtype, torch.float32))
    margin = 1.0 if kind == "svm" else 0.0
    return F.softplus(s[..., 1 - label] - s[..., label] + margin)


def _mean_of_picked(loss_BCP: Tensor, picked_BP: Tensor) -> Tensor:
    """(B, C), 0 where nothing was picked."""
    count_B1 = picked_BP.sum(dim=1, keepdim=True).clamp_min(1)
    return loss_BCP.masked_fill(~picked_BP[:, None], 0.0).sum(dim=2) / count_B1
