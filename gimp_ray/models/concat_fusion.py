"""Two vectors side by side through two layers: the plain fusion of MCAT (Chen et al., ICCV 2021) and its baselines.

    out = ReLU(W_2 ReLU(W_1 [a; b] + b_1) + b_2)

Its gated counterpart is `BilinearFusion`. Shape suffixes: B batch, P and Q widths of the two vectors, F width of the
result.
"""

import torch
from torch import Tensor, nn


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
