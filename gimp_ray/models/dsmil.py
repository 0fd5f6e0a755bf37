"""DSMIL: dual-stream multiple instance learning.

Li, Li & Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image Classification with
Self-supervised Contrastive Learning", CVPR 2021. For every class k:

    c_nk = w_k^T x_n + b_k,    m_k = argmax_n c_nk                             (instance stream, critical patch)
    A_nk = softmax_n( q(x_n)^T q(x_{m_k}) / sqrt(128) )                        (bag stream)
    B_k = sum_n A_nk v(x_n),   bag logits_j = sum_k w_jk^T B_k + b_j           (convolution over the C x E bag matrix)

q is Linear E -> 128, ReLU, Linear 128 -> 128, Tanh; v is the identity. The loss is in `objectives.dsmil`. Training in
the authors' code: Adam, lr 1e-4, betas (0.5, 0.9), weight decay 1e-3, cosine to 5e-6, 50 epochs, stop after 10 without
gain; weights start orthogonal, biases at zero.

Adapted:

- Batches of bags with a mask: arg max, softmax and sum go over the real patches of each bag.
- The convolution, whose kernel covers all E values, is written as the linear layer C * E -> C that it is.
- Left out: dropping patches at test time, and thresholds tuned on the part that is evaluated.

Without the loss on `max_logits` the instance classifier has no gradient: arg max passes none.

Shape suffixes: B batch, N patches, E patch embedding width, Q query width, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gimp_ray.models.attention_pool import attention_of_predicted, masked_softmax, read_bag, weighted_sum


class DSMILOutput(NamedTuple):
    """Both streams."""

    logits: Tensor  # (B, C), of the bag stream
    max_logits: Tensor  # (B, C), the highest of each class over the patches; 0 in a bag without real patches
    bag: Tensor  # (B, C * E), the bag matrix, class after class
    attention: Tensor  # (B, N), of the class predicted by `logits`
    class_attention: Tensor  # (B, C, N)


class DSMIL(nn.Module):
    """Instance stream and bag stream over raw patch embeddings.

    Args:
        in_dim: E, width of the patch embeddings.
        num_classes: C.
        query_dim: Q.
        value_map: whether v is dropout, Linear E -> E, ReLU in place of the identity.
        dropout: of `value_map`.
    """

    def __init__(
        self, in_dim: int, num_classes: int, query_dim: int = 128, value_map: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.in_dim, self.num_classes, self.query_dim = in_dim, num_classes, query_dim
        self.instances = nn.Linear(in_dim, num_classes)
        self.query = nn.Sequential(nn.Linear(in_dim, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh())
        self.value: nn.Module = nn.Identity()
        if value_map:
            self.value = nn.Sequential(nn.Dropout(dropout), nn.Linear(in_dim, in_dim), nn.ReLU())
        self.classify = nn.Linear(num_classes * in_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None) -> DSMILOutput:
        """Classify bags; the loss is `dsmil_loss(logits, max_logits, labels)`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.

        Raises:
            ValueError: not (B, N >= 1, E), another width, a mask of another shape or type.
        """
        x_BNE = read_bag(patches_BNE, valid_BN, self.in_dim, self.instances.weight)
        max_BC, critical_BC = self._critical(self.instances(x_BNE), valid_BN)
        q_BNQ = self.query(x_BNE)
        q_critical_BCQ = q_BNQ.gather(1, critical_BC[..., None].expand(-1, -1, self.query_dim))
        scores_BCN = q_critical_BCQ @ q_BNQ.transpose(1, 2) * self.query_dim**-0.5
        attention_BCN = masked_softmax(scores_BCN, valid_BN)
        bag_BF = weighted_sum(attention_BCN, self.value(x_BNE)).flatten(1)
        logits_BC = self.classify(bag_BF)
        return DSMILOutput(logits_BC, max_BC, bag_BF, attention_of_predicted(logits_BC, attention_BCN), attention_BCN)

    @staticmethod
    def _critical(instances_BNC: Tensor, valid_BN: Tensor | None) -> tuple[Tensor, Tensor]:
        """The highest logit of each class and where it is, (B, C) each."""
        if valid_BN is not None:
            instances_BNC = instances_BNC.masked_fill(~valid_BN[..., None], -torch.inf)
        max_BC, critical_BC = instances_BNC.max(dim=1)
        if valid_BN is not None:
            max_BC = max_BC.masked_fill(~valid_BN.any(dim=1, keepdim=True), 0.0)
        return max_BC, critical_BC


def dsmil_probabilities(logits_BC: Tensor, max_logits_BC: Tensor, average: bool = False) -> Tensor:
    """What DSMIL predicts, (B, C): sigmoid of the bag logits, or its mean with that of the instance stream.

    The classes are not made to sum to 1. For mutually exclusive classes the arg max is the prediction.
    """
    bag_BC = logits_BC.sigmoid()
    return (bag_BC + max_logits_BC.sigmoid()) / 2 if average else bag_BC
