"""Projection heads of the contrastive objectives: from a trunk's width to the space where both sides are compared.

Left out: L2 normalisation, which is with the losses.

Adapted: MGCA and BioViL have batch normalisation in their heads. Its statistics are those of one worker's mini-batch,
so a case's result would depend on its neighbours and on the number of workers; LayerNorm stands in its place.
"""

from torch import nn


def two_layer_head(in_dim: int, hidden: int = 2048, out_dim: int = 128) -> nn.Sequential:
    """Linear, LayerNorm, ReLU, Linear, LayerNorm without weights: MGCA's heads, of vectors and of tokens.

    Raises:
        ValueError: a width below 1.
    """
    _check(in_dim, hidden, out_dim)
    return nn.Sequential(
        nn.Linear(in_dim, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out_dim),
        nn.LayerNorm(out_dim, elementwise_affine=False),
    )


def image_head(in_dim: int, out_dim: int = 128) -> nn.Sequential:
    """Linear, LayerNorm, ReLU, Linear: BioViL's image projector (1 x 1 convolutions there, applied to each region).

    Raises:
        ValueError: a width below 1.
    """
    _check(in_dim, out_dim)
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.LayerNorm(out_dim), nn.ReLU(), nn.Linear(out_dim, out_dim))


def text_head(in_dim: int, out_dim: int = 128, hidden: int | None = None) -> nn.Sequential:
    """Linear, GELU, LayerNorm, Linear: BioViL's text projector; with `hidden` = in_dim the head of BERT's masked words.

    Args:
        in_dim: width of the input.
        out_dim: width of the output.
        hidden: between the two; None = `out_dim`.

    Raises:
        ValueError: a width below 1.
    """
    hidden = out_dim if hidden is None else hidden
    _check(in_dim, out_dim, hidden)
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, out_dim))


def _check(*widths: int) -> None:
    if min(widths) < 1:
        raise ValueError(f"widths must be >= 1: found {widths}")
