"""SNN on genes: PORPOISE's "small" self-normalising blocks under a linear head (Klambauer et al., NeurIPS 2017)."""

from collections.abc import Sequence

from torch import nn

from gimp_ray.methods.base import GENES, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.genes import SNN


def snn(num_genes: int, outputs: int, widths: Sequence[int] = (256, 256, 256, 256), dropout: float = 0.25) -> nn.Module:
    """(B, G) -> (B, O)."""
    encoder = SNN.of_widths(num_genes, widths, dropout)
    return nn.Sequential(encoder, nn.Linear(encoder.dim, outputs))


METHOD = supervised(
    title="SNN",
    paper="Klambauer et al., NeurIPS 2017, as in PORPOISE",
    needs=GENES,
    settings=settings_of(snn, batch_size=32, train=recipe(epochs=20, lr=2e-4)),
    network=lambda config, sizes: snn(sizes.num_genes, sizes.outputs, **numbers_of(config.method)),
)
