"""The self-normalising network: the usual gene encoder of image-omic models, and the row GroupMSA is compared with.

In here: Linear -> ELU -> AlphaDropout blocks, as PORPOISE and MCAT use them. Left out: their L1 penalty, which is
`method.l1`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

from torch import Tensor, nn


class SNN(nn.Module):
    """Blocks of Linear -> ELU -> AlphaDropout through `hidden`, the last one `dim` wide (Klambauer et al. 2017).

    Args:
        num_genes: G.
        dim: width of the output.
        hidden: widths of the blocks before it.
        dropout: of AlphaDropout.
    """

    def __init__(
        self, num_genes: int, dim: int = 512, hidden: Sequence[int] = (256, 256), dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.num_genes, self.dim = num_genes, dim
        widths = [num_genes, *hidden, dim]
        blocks: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.normal_(linear.weight, std=fan_in**-0.5)
            nn.init.zeros_(linear.bias)
            blocks += [linear, nn.ELU(), nn.AlphaDropout(dropout)]
        self.blocks = nn.Sequential(*blocks)

    @classmethod
    def of_widths(cls, num_genes: int, widths: Sequence[int], dropout: float = 0.25) -> Self:
        """Blocks of these widths; the last is `dim`.

        Raises:
            ValueError: no width.
        """
        if not widths:
            raise ValueError("an SNN needs at least one width")
        return cls(num_genes, widths[-1], widths[:-1], dropout)

    def forward(self, x_BG: Tensor) -> Tensor:
        """(B, G) -> (B, dim).

        Raises:
            ValueError: another number of genes than the network was built for.
        """
        if x_BG.shape[-1] != self.num_genes:
            raise ValueError(f"{x_BG.shape[-1]} genes given, the network was built for {self.num_genes}")
        return self.blocks(x_BG)
