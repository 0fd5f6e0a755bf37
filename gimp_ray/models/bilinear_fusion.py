"""Kronecker product fusion of two vectors with gates: the joint of Pathomic Fusion and PORPOISE, an option of MCAT.

Chen et al., "Pathomic Fusion", IEEE TMI 2020, and "Pan-cancer integrative histology-genomic analysis via
multimodal deep learning" (PORPOISE), Cancer Cell 2022. For vectors a and b, each with a gate of its own:

    h_a = ReLU(W_a a),  z_a = G_a(a, b),  o_a = dropout(ReLU(O_a (sigmoid(z_a) * h_a))), and the same for b
    F   = dropout([o_a; 1] (x) [o_b; 1]),  (r + 1)^2 products: of both, of each alone, and 1
    out = ReLU-layer([ReLU-layer(F); skip])

Without its gate o comes from h alone. What differs between the methods is an argument: the gate G is a linear map of
[a; b] (PORPOISE) or a bilinear one, z_j = a^T B_j b (Pathomic Fusion); the skip hands the second layer a and b
themselves (PORPOISE), or [o_a; 1] and [o_b; 1] (Pathomic Fusion).

Shape suffixes: B batch, P and Q widths of the two vectors, R reduced width, F width of the result.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

GateMap = Literal["linear", "bilinear"]
Skip = Literal["inputs", "reduced"]


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
        a_BR = _with_one(self.first(first_BP, first_BP, second_BQ))
        b_BR = _with_one(self.second(second_BQ, first_BP, second_BQ))
        out_BF = self.joint(self.drop((a_BR[:, :, None] * b_BR[:, None, :]).flatten(1)))
        if self.skip == "inputs":
            out_BF = torch.cat([out_BF, first_BP, second_BQ], dim=1)
        elif self.skip == "reduced":
            out_BF = torch.cat([out_BF, a_BR, b_BR], dim=1)
        result_BF: Tensor = self.out(out_BF)
        return result_BF


def _with_one(x_BR: Tensor) -> Tensor:
    """(B, R) -> (B, R + 1): the appended 1 keeps each vector alone among the products."""
    return torch.cat([x_BR, x_BR.new_ones(len(x_BR), 1)], dim=1)
