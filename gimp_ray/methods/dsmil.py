"""DSMIL: dual-stream multiple instance learning.

Li, Li & Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image Classification with
Self-supervised Contrastive Learning", CVPR 2021. For every class k:

    c_nk = w_k^T x_n + b_k,    m_k = argmax_n c_nk                             (instance stream, critical patch)
    A_nk = softmax_n( q(x_n)^T q(x_{m_k}) / sqrt(128) )                        (bag stream)
    B_k = sum_n A_nk v(x_n),   bag logits_j = sum_k w_jk^T B_k + b_j           (convolution over the C x E bag matrix)

q is Linear E -> 128, ReLU, Linear 128 -> 128, Tanh; v is the identity. The loss is `dsmil_loss`. Training in
the authors' code: Adam, lr 1e-4, betas (0.5, 0.9), weight decay 1e-3, cosine to 5e-6, 50 epochs, stop after 10 without
gain; weights start orthogonal, biases at zero.

Adapted:

- Batches of bags with a mask: arg max, softmax and sum go over the real patches of each bag.
- The convolution, whose kernel covers all E values, is written as the linear layer C * E -> C that it is.
- Left out: dropping patches at test time, and thresholds tuned on the part that is evaluated.

Without the loss on `max_logits` the instance classifier has no gradient: arg max passes none.

Shape suffixes: B batch, N patches, E patch embedding width, Q query width, C classes.

DSMIL's loss: half on the bag, half on the highest patch of each class (Li, Li & Eliceiri, CVPR 2021).

Shape suffixes: B batch, C classes.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gimp_ray.methods.base import IMAGE, Loss, Phase, Target, Tensors, recipe, settings_of, supervised
from gimp_ray.nn.pooling import attention_of_predicted, masked_softmax, read_bag, weighted_sum


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


def _loss(target: Target, out: DSMILOutput, batch: Tensors, config: Any) -> Loss:
    """Half on the bag, half on the highest patch of each class or label; the losses of labels are the target's."""
    if target.kind == "class":
        accuracy = (out.logits.argmax(dim=-1) == batch["target"]).float().mean()
        loss = dsmil_loss(out.logits, out.max_logits, batch["target"], config.method.kind)
        return loss, {"accuracy": accuracy}
    bag, parts = target.loss(out.logits, batch)
    return (bag + target.loss(out.max_logits, batch)[0]) / 2, parts


def _predict(target: Target, out: DSMILOutput) -> Tensor:
    """Sigmoids of the bag logits, (B, P). Those of classes are divided by their sum, which keeps the arg max: a table
    has probabilities of classes that exclude each other.
    """
    if target.kind != "class":
        return target.predict(out.logits)
    # the softmax of log sigmoid is the sigmoid over the sum of them
    return target.predict(F.logsigmoid(out.logits.double()))


METHOD = supervised(
    title="DSMIL",
    paper="Li, Li & Eliceiri, CVPR 2021",
    needs=IMAGE,
    settings=settings_of(
        DSMIL,
        dsmil_loss,
        train=recipe(epochs=50, lr=1e-4, weight_decay=1e-3, betas=(0.5, 0.9), schedule="cosine", patience=10),
    ),
    network=lambda config, sizes: DSMIL(
        sizes.patch_dim, sizes.outputs, config.method.query_dim, config.method.value_map, config.method.dropout
    ),
    phases=(Phase(_loss, _predict),),
    kinds=("class", "labels"),
    why_not="its instance stream scores patches for a class each, which time bins and risks are not",
)
