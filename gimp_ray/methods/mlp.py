"""An MLP on genes: the project's head on the scaled expression."""

from collections.abc import Sequence

from torch import nn

from gimp_ray.methods.base import GENES, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.aggregator import MLPHead


def mlp(num_genes: int, outputs: int, hidden: Sequence[int] = (256,), dropout: float = 0.25) -> nn.Module:
    """(B, G) -> (B, O)."""
    return MLPHead(num_genes, outputs, hidden, dropout)


METHOD = supervised(
    title="MLP",
    needs=GENES,
    settings=settings_of(mlp, batch_size=32, train=recipe(epochs=50, lr=2e-4)),
    network=lambda config, sizes: mlp(sizes.num_genes, sizes.outputs, **numbers_of(config.method)),
)
