"""A linear map of the genes; with `target.kind: class` logistic regression, with L2 as decay.

It begins at zero, where its (convex) loss has no preference. The baseline of an evaluation is another one, whose
penalty is chosen on validation.
"""

from torch import nn

from gimp_ray.methods.base import GENES, recipe, settings_of, supervised


def linear(num_genes: int, outputs: int) -> nn.Module:
    """(B, G) -> (B, O)."""
    net = nn.Linear(num_genes, outputs)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return net


METHOD = supervised(
    title="Linear on genes",
    needs=GENES,
    settings=settings_of(linear, batch_size=32, train=recipe(epochs=100, lr=1e-3, weight_decay=1e-3)),
    network=lambda config, sizes: linear(sizes.num_genes, sizes.outputs),
)
