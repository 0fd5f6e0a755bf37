"""A gene encoder that takes expression as stored: the fitted input and the network, kept together in one state dict."""

from torch import Tensor, nn

from gimp_ray.models.freezing import KeepsFrozen
from gimp_ray.models.gene_input import GeneInput


class GeneEncoder(KeepsFrozen):
    """raw expression (B, all genes) -> `GeneInput` -> `net` -> CLS_ge (B, D).

    Args:
        gene_input: fitted selection and scaling.
        net: `GroupMSA`, `SNN`, or any module (B, kept genes) -> (B, D).
    """

    def __init__(self, gene_input: GeneInput, net: nn.Module) -> None:
        super().__init__()
        self.input = gene_input
        self.net = net

    def forward(self, raw_BG: Tensor) -> Tensor:
        """(B, all genes) -> (B, D)."""
        return self.net(self.input(raw_BG))
