"""The classification head: P = softmax(MLP(CLS)) (GiMP, section 2.3, fine-tuning); the softmax is in the loss."""

from collections.abc import Sequence

from torch import Tensor, nn


class MLPHead(nn.Sequential):
    """Linear -> GELU -> dropout for each hidden width, then a linear layer to the classes: (B, in_dim) -> (B, C).

    Args:
        in_dim: width of the input.
        num_classes: C.
        hidden: hidden widths; () is a linear classifier.
        dropout: after each hidden activation.
    """

    def __init__(self, in_dim: int, num_classes: int, hidden: Sequence[int] = (256,), dropout: float = 0.25) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_dim, width), nn.GELU(), nn.Dropout(dropout)]
            in_dim = width
        super().__init__(*layers, nn.Linear(in_dim, num_classes))

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, in_dim) -> logits (B, C)."""
        return super().forward(x_BF)
