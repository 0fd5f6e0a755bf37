"""CLAM: attention pooling whose most and least attended patches are told apart, with one or several branches.

Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature Biomedical
Engineering 5, 2021. With h_n = dropout(ReLU(W x_n + b)):

    single branch (CLAM-SB):     a = gated attention,           z = sum_n a_n h_n,         logits = W_c z + b_c
    multi branch (CLAM-MB):      a_k = gated attention of k,    z_k = sum_n a_kn h_n,      logit_k = w_k^T z_k + b_k

Each class k has an instance classifier (D -> 2) for the patches with the highest and the lowest attention (of branch k
where there are several). Which of its outputs the loss takes depends on the label: `clam_loss`. Training in the
authors' code: Adam, lr 1e-4 (2e-4 in the README's recipe), weight decay 1e-5, up to 200 epochs, stop after 20 without
gain from epoch 50 on, classes drawn evenly.

Adapted:

- Batches of bags with a mask. The 8 patches of either end are min(8, n) in a bag of n real patches, and below 16 the
  two ends overlap; the authors' code needs 8.
- The instance classifiers run for every class on every bag, so that they do not need the label; the loss then takes
  what the paper takes. It costs 2 * 8 patches a class.
- Patches are ranked by the attention before the softmax: the same order, without ties where a softmax underflows.

The instance classifiers have no gradient but from the instance loss. Which patches are chosen passes none.

Shape suffixes: B batch, N patches, E patch embedding width, D hidden width, C classes, K branches, P picked patches.

CLAM's loss: cross-entropy of the bag and the clustering of its most and least attended patches (Lu et al. 2021).

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

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gimp_ray.methods.base import (
    IMAGE,
    Loss,
    Method,
    Phase,
    Sizes,
    Target,
    Tensors,
    recipe,
    settings_of,
    supervised,
)
from gimp_ray.nn.pooling import AttentionBag, PooledBag, attention_of_predicted


class CLAMOutput(NamedTuple):
    """Bag logits, and the instance logits of the patches at both ends of the attention."""

    logits: Tensor  # (B, C)
    bag: Tensor  # (B, D); (B, C * D) with several branches, class after class
    attention: Tensor  # (B, N), of the predicted class where there are several branches
    class_attention: Tensor  # (B, K, N); K is 1 or C
    top_logits: Tensor  # (B, C, P, 2), highest attention first; class 1 is "evidence for the class"
    bottom_logits: Tensor  # (B, C, P, 2), lowest attention first
    picked: Tensor  # (B, P) bool: a bag of fewer real patches than P fills the first places only


class CLAM(nn.Module):
    """CLAM-SB (`multi_branch=False`) or CLAM-MB.

    Args:
        in_dim: E, width of the patch embeddings.
        num_classes: C.
        multi_branch: one attention branch and one linear classifier a class.
        dim: D.
        attention_dim: width of the attention.
        instances: P, how many patches of either end of the attention are classified.
        dropout: after the projection and inside the attention.

    Raises:
        ValueError: `instances` below 1.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        multi_branch: bool = False,
        dim: int = 512,
        attention_dim: int = 256,
        instances: int = 8,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if instances < 1:
            raise ValueError(f"instances must be >= 1: found {instances}")
        self.num_classes, self.multi_branch, self.instances = num_classes, multi_branch, instances
        branches = num_classes if multi_branch else 1
        self.trunk = AttentionBag(in_dim, dim, attention_dim, branches, dropout=dropout)
        if multi_branch:
            self.classify: nn.Module = nn.ModuleList(nn.Linear(dim, 1) for _ in range(num_classes))
        else:
            self.classify = nn.Linear(dim, num_classes)
        self.instance_classifiers = nn.ModuleList(nn.Linear(dim, 2) for _ in range(num_classes))

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None) -> CLAMOutput:
        """Classify bags and the patches at both ends of the attention; the loss is `clam_loss`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.

        Raises:
            ValueError: not (B, N >= 1, E), another width, a mask of another shape or type.
        """
        pooled = self.trunk(patches_BNE, valid_BN)
        if isinstance(self.classify, nn.ModuleList):
            parts = [linear(pooled.bag[:, k]) for k, linear in enumerate(self.classify)]
            logits_BC = torch.cat(parts, dim=1)
            attention_BN = attention_of_predicted(logits_BC, pooled.attention)
        else:
            logits_BC = self.classify(pooled.bag[:, 0])
            attention_BN = pooled.attention[:, 0]
        top_BCP2, bottom_BCP2, picked_BP = self._instances(pooled, valid_BN)
        return CLAMOutput(
            logits_BC, pooled.bag.flatten(1), attention_BN, pooled.attention, top_BCP2, bottom_BCP2, picked_BP
        )

    def _instances(self, pooled: PooledBag, valid_BN: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Instance logits of the highest and lowest attention, (B, C, P, 2) each, and which are real, (B, P)."""
        scores_BKN = pooled.scores.detach()
        B, _, N = scores_BKN.shape
        P = min(self.instances, N)
        if valid_BN is None:
            valid_BN = scores_BKN.new_ones((B, N), dtype=torch.bool)
        padding_B1N = ~valid_BN[:, None]
        picked_BP = torch.arange(P, device=scores_BKN.device) < valid_BN.sum(dim=1, keepdim=True)
        ends = []
        for largest, beyond in ((True, -torch.inf), (False, torch.inf)):
            index_BKP = scores_BKN.masked_fill(padding_B1N, beyond).topk(P, dim=2, largest=largest).indices
            ends.append(self._classify_patches(pooled.patches, index_BKP))
        return ends[0], ends[1], picked_BP

    def _classify_patches(self, x_BND: Tensor, index_BKP: Tensor) -> Tensor:
        """Every class's instance classifier on the patches chosen by its branch, (B, C, P, 2)."""
        logits = []
        for k, classifier in enumerate(self.instance_classifiers):
            index_BP = index_BKP[:, k if self.multi_branch else 0]
            x_BPD = x_BND.gather(1, index_BP[..., None].expand(-1, -1, x_BND.shape[-1]))
            logits.append(classifier(x_BPD))
        return torch.stack(logits, dim=1)


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


def _loss(target: Target, out: CLAMOutput, batch: Tensors, config: Any) -> Loss:
    """Cross-entropy of the bag and the clustering of its most and least attended patches."""
    own = config.method
    found = clam_loss(
        out.logits,
        out.top_logits,
        out.bottom_logits,
        out.picked,
        batch["target"],
        own.bag_weight,
        own.subtyping,
        own.kind,
    )
    accuracy = (out.logits.argmax(dim=-1) == batch["target"]).float().mean()
    return found.loss, {"loss_bag": found.bag, "loss_instance": found.instance, "accuracy": accuracy}


def _network(config: Any, sizes: Sizes, multi_branch: bool) -> CLAM:
    own = config.method
    return CLAM(sizes.patch_dim, sizes.outputs, multi_branch, own.dim, own.attention_dim, own.instances, own.dropout)


def method(title: str, multi_branch: bool) -> Method:
    """CLAM with one attention branch, or one for each class."""
    return supervised(
        title=title,
        paper="Lu et al., Nature Biomedical Engineering 2021",
        needs=IMAGE,
        settings=settings_of(
            CLAM, clam_loss, leave=("multi_branch",), train=recipe(epochs=200, lr=2e-4, patience=20, min_epochs=50)
        ),
        network=partial(_network, multi_branch=multi_branch),
        phases=(Phase(_loss),),
        kinds=("class",),
        why_not="its clustering of patches needs the one class that a case has",
    )
