"""CLAM: attention pooling whose most and least attended patches are told apart, with one or several branches.

Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature Biomedical
Engineering 5, 2021. With h_n = dropout(ReLU(W x_n + b)):

    single branch (CLAM-SB):     a = gated attention,           z = sum_n a_n h_n,         logits = W_c z + b_c
    multi branch (CLAM-MB):      a_k = gated attention of k,    z_k = sum_n a_kn h_n,      logit_k = w_k^T z_k + b_k

Each class k has an instance classifier (D -> 2) for the patches with the highest and the lowest attention (of branch k
where there are several). Which of its outputs the loss takes depends on the label: `objectives.clam`. Training in the
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
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gimp_ray.models.attention_pool import AttentionBag, PooledBag, attention_of_predicted


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
