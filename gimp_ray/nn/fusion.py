"""Joining one vector of the patches and one of the genes, and the classifier that PORPOISE and its baseline share.

`ConcatFusion`, the plain one (MCAT, Chen et al., ICCV 2021):   out = ReLU(W_2 ReLU(W_1 [a; b] + b_1) + b_2)

`BilinearFusion`, the Kronecker product of two gated vectors: the joint of Pathomic Fusion (Chen et al., IEEE TMI 2020)
and PORPOISE (Chen et al., Cancer Cell 2022), an option of MCAT. For vectors a and b, each with a gate of its own:

    h_a = ReLU(W_a a),  z_a = G_a(a, b),  o_a = dropout(ReLU(O_a (sigmoid(z_a) * h_a))), and the same for b
    F   = dropout([o_a; 1] (x) [o_b; 1]),  (r + 1)^2 products: of both, of each alone, and 1
    out = ReLU-layer([ReLU-layer(F); skip])

Without its gate o comes from h alone. What differs between the methods is an argument: the gate G is a linear map of
[a; b] (PORPOISE) or a bilinear one, z_j = a^T B_j b (Pathomic Fusion); the skip hands the second layer a and b
themselves (PORPOISE), or [o_a; 1] and [o_b; 1] (Pathomic Fusion).

Shape suffixes: B batch, N patches, E patch embedding width, G genes, P and Q widths of the two vectors, R reduced
width, F width of the result.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gimp_ray.nn.genes import SNN
from gimp_ray.nn.pooling import AttentionBag, BagOutput

GateMap = Literal["linear", "bilinear"]
Skip = Literal["inputs", "reduced"]


class ConcatFusion(nn.Module):
    """Two vectors -> one, by concatenation.

    Args:
        first_dim, second_dim: P and Q.
        dim: F, width of both layers.
    """

    def __init__(self, first_dim: int, second_dim: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(first_dim + second_dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, first_BP: Tensor, second_BQ: Tensor) -> Tensor:
        """(B, P), (B, Q) -> (B, F).

        Raises:
            ValueError: another number of rows in the one than in the other.
        """
        if len(first_BP) != len(second_BQ):
            raise ValueError(f"vectors must have as many rows: found {len(first_BP)} and {len(second_BQ)}")
        fused_BF: Tensor = self.layers(torch.cat([first_BP, second_BQ], dim=1))
        return fused_BF


class _Branch(nn.Module):
    """One vector, reduced, and gated by both: (B, own), (B, P), (B, Q) -> (B, R)."""

    def __init__(self, own: int, first: int, second: int, reduced: int, gate: GateMap | None, dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(own, reduced), nn.ReLU())
        self.linear_gate = nn.Linear(first + second, reduced) if gate == "linear" else None
        self.bilinear_gate = nn.Bilinear(first, second, reduced) if gate == "bilinear" else None
        self.out = nn.Sequential(nn.Linear(reduced, reduced), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, own_BX: Tensor, first_BP: Tensor, second_BQ: Tensor) -> Tensor:
        h_BR = self.reduce(own_BX)
        if self.linear_gate is not None:
            h_BR = self.linear_gate(torch.cat([first_BP, second_BQ], dim=1)).sigmoid() * h_BR
        if self.bilinear_gate is not None:
            # autocast knows no bilinear map: its inputs must have the type of its weights
            like = self.bilinear_gate.weight.dtype
            h_BR = self.bilinear_gate(first_BP.to(like), second_BQ.to(like)).sigmoid().to(h_BR.dtype) * h_BR
        out_BR: Tensor = self.out(h_BR)
        return out_BR


class BilinearFusion(nn.Module):
    """Two vectors -> one, by gates and the outer product.

    Args:
        first_dim, second_dim: P and Q.
        reduced: R, width of each vector in the product.
        dim: F, width of both layers after it.
        gate: the map of the gates.
        gate_first, gate_second: whether each vector has a gate.
        skip: what the second layer sees beside the first's output, or None.
        dropout: after each reduced vector, after the product, and after both layers.

    Raises:
        ValueError: a width below 1, an unknown gate or skip.
    """

    def __init__(
        self,
        first_dim: int,
        second_dim: int,
        reduced: int = 32,
        dim: int = 256,
        gate: GateMap = "linear",
        gate_first: bool = True,
        gate_second: bool = True,
        skip: Skip | None = "inputs",
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if min(first_dim, second_dim, reduced, dim) < 1:
            raise ValueError(f"must all be >= 1: {first_dim=} {second_dim=} {reduced=} {dim=}")
        if gate not in get_args(GateMap) or skip not in (None, *get_args(Skip)):
            raise ValueError(f"gate is 'linear' or 'bilinear', skip 'inputs', 'reduced' or None: {gate=} {skip=}")
        self.first_dim, self.second_dim, self.dim, self.skip = first_dim, second_dim, dim, skip
        widths = (first_dim, second_dim, reduced)
        self.first = _Branch(first_dim, *widths, gate if gate_first else None, dropout)
        self.second = _Branch(second_dim, *widths, gate if gate_second else None, dropout)
        skipped = {None: 0, "inputs": first_dim + second_dim, "reduced": 2 * (reduced + 1)}[skip]
        self.drop = nn.Dropout(dropout)
        self.joint = nn.Sequential(nn.Linear((reduced + 1) ** 2, dim), nn.ReLU(), nn.Dropout(dropout))
        self.out = nn.Sequential(nn.Linear(dim + skipped, dim), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, first_BP: Tensor, second_BQ: Tensor) -> Tensor:
        """(B, P), (B, Q) -> (B, F).

        Raises:
            ValueError: other shapes.
        """
        if first_BP.shape[1:] != (self.first_dim,) or second_BQ.shape != (len(first_BP), self.second_dim):
            raise ValueError(
                f"vectors must be (B, {self.first_dim}) and (B, {self.second_dim}): "
                f"found {tuple(first_BP.shape)} and {tuple(second_BQ.shape)}"
            )
        one_B1 = first_BP.new_ones(len(first_BP), 1)  # keeps each vector alone among the products
        a_BR = torch.cat([self.first(first_BP, first_BP, second_BQ), one_B1], dim=1)
        b_BR = torch.cat([self.second(second_BQ, first_BP, second_BQ), one_B1], dim=1)
        out_BF = self.joint(self.drop((a_BR[:, :, None] * b_BR[:, None, :]).flatten(1)))
        if self.skip == "inputs":
            out_BF = torch.cat([out_BF, first_BP, second_BQ], dim=1)
        elif self.skip == "reduced":
            out_BF = torch.cat([out_BF, a_BR, b_BR], dim=1)
        result_BF: Tensor = self.out(out_BF)
        return result_BF


class AttentionFusion(nn.Module):
    """Attention-pooled patches and an SNN of the genes, each `joint_dim` wide, fused, then one linear layer.

        p = dropout(ReLU(W_p bag)),  bag by gated attention;   g = SNN(genes), 2 blocks;   logits = W_c fusion(p, g)

    Args:
        in_dim: E, width of the patch embeddings.
        num_genes: G.
        num_classes: C.
        fusion: makes the module that joins both vectors, (B, joint_dim) twice -> (B, joint_dim).
        dim: width of the projected patches.
        attention_dim: width of the attention.
        joint_dim: width of both vectors, and of the fused one.
        input_dropout: on the patch embeddings.
        dropout: in both encoders.
    """

    def __init__(
        self,
        in_dim: int,
        num_genes: int,
        num_classes: int,
        fusion: Callable[[], nn.Module],
        dim: int,
        attention_dim: int,
        joint_dim: int,
        input_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.input_dropout = nn.Dropout(input_dropout)
        self.trunk = AttentionBag(in_dim, dim, attention_dim, dropout=dropout)
        self.image = nn.Sequential(nn.Linear(dim, joint_dim), nn.ReLU(), nn.Dropout(dropout))
        self.genes = SNN(num_genes, joint_dim, hidden=(joint_dim,), dropout=dropout)
        self.fusion = fusion()
        self.classify = nn.Linear(joint_dim, num_classes)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None, *, genes_BG: Tensor) -> BagOutput:
        """Classify patients; the loss is cross-entropy of `logits`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.
            genes_BG: (B, G) scaled expression.

        Returns:
            `BagOutput`: logits (B, C), the fused vector (B, joint_dim), attention (B, N).

        Raises:
            ValueError: see `read_bag`, `SNN`; another number of patients in the genes than in the patches.
        """
        pooled = self.trunk(self.input_dropout(patches_BNE), valid_BN)
        fused_BF = self.fusion(self.image(pooled.bag[:, 0]), self.genes(genes_BG))
        return BagOutput(self.classify(fused_BF), fused_BF, pooled.attention[:, 0])
