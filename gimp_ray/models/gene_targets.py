"""What is predicted of a gene group: its mean expression, standardised, or the quantile bin it falls in.

Everything fitted is a buffer and comes from the training cases alone, so a checkpoint carries it. Left out: who those
cases are, which is the caller's to get right, and the means themselves (`gene_tokens.group_means`).

Shape suffixes: B batch, n training cases, R groups, K bins.
"""

from typing import Self

import torch
from torch import Tensor, nn


class GroupTargets(nn.Module):
    """Buffers `mean` and `std` (R,), and `edges` (R, K - 1), the inner edges of K bins. Build it with `fit`.

    Args:
        num_groups: R.
        bins: K.

    Raises:
        ValueError: no groups, or fewer than 2 bins.
    """

    mean: Tensor
    std: Tensor
    edges: Tensor

    def __init__(self, num_groups: int, bins: int = 16) -> None:
        super().__init__()
        if num_groups < 1 or bins < 2:
            raise ValueError(f"there must be a group and 2 bins at least: {num_groups=} {bins=}")
        self.num_groups, self.bins = num_groups, bins
        self.register_buffer("mean", torch.zeros(num_groups))
        self.register_buffer("std", torch.ones(num_groups))
        self.register_buffer("edges", torch.zeros(num_groups, bins - 1))

    @classmethod
    def fit(cls, means_nR: Tensor, bins: int = 16) -> Self:
        """Fit on the group means of training cases: bins of equal counts.

        Raises:
            ValueError: no cases, not (n, R), values that are not finite, fewer than 2 bins.
        """
        if means_nR.ndim != 2 or len(means_nR) == 0 or not bool(torch.isfinite(means_nR).all()):
            raise ValueError(f"group means must be (cases, groups) and finite: found {tuple(means_nR.shape)}")
        values_nR = means_nR.detach().cpu().double()
        fitted = cls(values_nR.shape[1], bins)
        std_R = values_nR.std(dim=0, correction=0)
        fitted.mean.copy_(values_nR.mean(dim=0))
        fitted.std.copy_(std_R.masked_fill(std_R < 1e-9, 1.0))  # a constant group is 0 for all
        inner_K = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
        fitted.edges.copy_(values_nR.quantile(inner_K, dim=0).T)
        return fitted

    def standardised(self, means_BR: Tensor) -> Tensor:
        """(B, R) group means -> (B, R) with mean 0 and deviation 1 over the training cases."""
        return (means_BR - self.mean) / self.std

    def bin(self, means_BR: Tensor) -> Tensor:
        """(B, R) group means -> (B, R) int64 bins, 0 to K - 1. A value on an edge is in the higher bin."""
        return torch.searchsorted(self.edges, means_BR.to(self.edges.dtype).T.contiguous(), right=True).T.contiguous()
