"""What the bag models share: a bag without its padding, masked softmax, and gated attention pooling.

Gated attention (Ilse, Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, Eq. 7-9):

    a_n = softmax_n( w^T (tanh(V h_n) * sigmoid(U h_n)) ),    z = sum_n a_n h_n

and without the gate a_n = softmax_n( w^T tanh(V h_n) ).

Adapted: softmax and sum go over the real patches of each bag of a batch, and several branches w_k may share V and U
(CLAM-MB). The maps V and U have biases, as in the code of the field; w has none, because a softmax takes off what all
its scores have in common. A bag without a real patch has attention of zeros, so nothing in its batch becomes NaN.

Shape suffixes: B batch, N patches, E patch embedding width, D hidden width, A attention width, K branches,
C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class BagOutput(NamedTuple):
    """What a bag classifier without losses of its own returns."""

    logits: Tensor  # (B, C)
    bag: Tensor  # (B, F), what the last linear layer or the head reads
    attention: Tensor | None  # (B, N), sums to 1 over real patches, 0 at padding; None where the method has none


class PooledBag(NamedTuple):
    """A bag after projection and attention pooling."""

    bag: Tensor  # (B, K, D)
    attention: Tensor  # (B, K, N), sums to 1 over real patches, 0 at padding
    scores: Tensor  # (B, K, N), before the softmax; anything at padding
    patches: Tensor  # (B, N, D), the projected patches; anything at padding


def read_bag(patches_BNE: Tensor, valid_BN: Tensor | None, in_dim: int, like: Tensor) -> Tensor:
    """The patches as a model's first layer wants them: zeros at padding, in the type of its weights.

    Args:
        patches_BNE: (B, N, E), any float type; cast to the weights' type, or left to autocast.
        valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.
        in_dim: E the model was built for.
        like: a weight of the first layer.

    Raises:
        ValueError: not (B, N >= 1, E), another width, a mask of another shape or type.
    """
    if patches_BNE.ndim != 3 or patches_BNE.shape[1] == 0:
        raise ValueError(f"patches must be (B, N, {in_dim}) with N >= 1: found {tuple(patches_BNE.shape)}")
    B, N, E = patches_BNE.shape
    if in_dim != E:
        raise ValueError(f"patch embeddings are {E} wide, the model was built for {in_dim}")
    if valid_BN is not None:
        if valid_BN.shape != (B, N) or valid_BN.dtype != torch.bool:
            raise ValueError(f"valid must be ({B}, {N}) bool: found {tuple(valid_BN.shape)} {valid_BN.dtype}")
        # Padding may hold anything; even times zero, a NaN would reach a weight's gradient.
        patches_BNE = patches_BNE.masked_fill(~valid_BN[..., None], 0.0)
    if torch.is_autocast_enabled(patches_BNE.device.type):
        return patches_BNE
    return patches_BNE.to(like.dtype)


def masked_softmax(scores_BKN: Tensor, valid_BN: Tensor | None) -> Tensor:
    """Softmax over the real patches, zeros elsewhere, in at least float32: (B, K, N) -> (B, K, N)."""
    scores_BKN = scores_BKN.to(torch.promote_types(scores_BKN.dtype, torch.float32))
    if valid_BN is None:
        return scores_BKN.softmax(dim=-1)
    padding_B1N = ~valid_BN[:, None]
    lowest = torch.finfo(scores_BKN.dtype).min
    return scores_BKN.masked_fill(padding_B1N, lowest).softmax(dim=-1).masked_fill(padding_B1N, 0.0)


def weighted_sum(attention_BKN: Tensor, x_BND: Tensor) -> Tensor:
    """sum_n a_kn x_n, (B, K, D), in the type of x, or in autocast's."""
    if not torch.is_autocast_enabled(x_BND.device.type):
        attention_BKN = attention_BKN.to(x_BND.dtype)
    return attention_BKN @ x_BND


def attention_of_predicted(logits_BC: Tensor, attention_BCN: Tensor) -> Tensor:
    """The attention of the class with the highest logit, (B, N)."""
    index_B11 = logits_BC.argmax(dim=1)[:, None, None]
    return attention_BCN.gather(1, index_B11.expand(-1, 1, attention_BCN.shape[-1])).squeeze(1)


class AttentionPool(nn.Module):
    """Attention pooling of tokens: (B, N, D) -> K weighted sums (B, K, D) and their weights.

    Args:
        dim: D, width of the tokens.
        hidden: A, width of the attention.
        branches: K.
        gated: tanh times sigmoid (Eq. 9), or tanh alone (Eq. 8).
        dropout: after the tanh and after the sigmoid.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self, dim: int = 512, hidden: int = 256, branches: int = 1, gated: bool = True, dropout: float = 0.25
    ) -> None:
        super().__init__()
        if min(dim, hidden, branches) < 1:
            raise ValueError(f"dim, hidden, branches must be >= 1: {dim=} {hidden=} {branches=}")
        self.content = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Dropout(dropout))
        self.gate: nn.Sequential | None = None
        if gated:
            self.gate = nn.Sequential(nn.Linear(dim, hidden), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(hidden, branches, bias=False)

    def forward(self, x_BND: Tensor, valid_BN: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pool.

        Args:
            x_BND: (B, N, D), finite at padding too (`read_bag` and the layers after it see to that).
            valid_BN: (B, N) bool, True = real; None = all.

        Returns:
            pooled (B, K, D); attention (B, K, N), zeros at padding; scores before the softmax (B, K, N).
        """
        hidden_BNA = self.content(x_BND)
        if self.gate is not None:
            hidden_BNA = hidden_BNA * self.gate(x_BND)
        scores_BKN = self.score(hidden_BNA).transpose(1, 2)
        attention_BKN = masked_softmax(scores_BKN, valid_BN)
        return weighted_sum(attention_BKN, x_BND), attention_BKN, scores_BKN


class AttentionBag(nn.Module):
    """Linear E -> D, ReLU, dropout on every patch, then `AttentionPool`: the trunk of ABMIL and CLAM.

    Args:
        in_dim: E, width of the patch embeddings.
        dim: D.
        attention_dim, branches, gated: see `AttentionPool`.
        dropout: after the projection and inside the attention.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int = 512,
        attention_dim: int = 256,
        branches: int = 1,
        gated: bool = True,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.in_dim, self.dim = in_dim, dim
        self.linear = nn.Linear(in_dim, dim)
        self.after = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        self.pool = AttentionPool(dim, attention_dim, branches, gated, dropout)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None) -> PooledBag:
        """Project and pool.

        Args:
            patches_BNE: (B, N, E).
            valid_BN: (B, N) bool, True = real patch; None = all.

        Raises:
            ValueError: see `read_bag`.
        """
        x_BNE = read_bag(patches_BNE, valid_BN, self.in_dim, self.linear.weight)
        x_BND = self.after(self.linear(x_BNE))
        bag_BKD, attention_BKN, scores_BKN = self.pool(x_BND, valid_BN)
        return PooledBag(bag_BKD, attention_BKN, scores_BKN, x_BND)
