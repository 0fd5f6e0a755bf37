"""The compared methods on genes alone: a linear map (logistic regression), an MLP, an SNN, and GroupMSA.

All of them see z-scores fitted on the training cases (`gimp_ray.learn.gene_values`). GroupMSA takes its numbers from
`genes.*` and `model.dim`, as in GiMP, and `genes.mixup` mixes its mini-batches as in its own pre-training. Left out:
label smoothing; choosing a penalty on validation, which the baselines of an evaluation do.

Shape suffixes: B batch, G genes, D width, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from gimp_ray.config import Config
from gimp_ray.learn.gene_layout import SetPlaces
from gimp_ray.learn.methods.base import Method, Options
from gimp_ray.nn.aggregator import MLPHead
from gimp_ray.nn.genes import SNN, GroupMSA, fit_fragments

_SIZES = ("num_genes", "outputs")


def linear(num_genes: int, outputs: int) -> nn.Module:
    """(B, G) -> (B, O) by one linear map that begins at zero, where its (convex) loss has no preference."""
    net = nn.Linear(num_genes, outputs)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return net


def mlp(num_genes: int, outputs: int, hidden: Sequence[int] = (256,), dropout: float = 0.25) -> nn.Module:
    """(B, G) -> (B, O) by the project's `MLPHead`."""
    return MLPHead(num_genes, outputs, hidden, dropout)


def snn(num_genes: int, outputs: int, widths: Sequence[int] = (256, 256, 256, 256), dropout: float = 0.25) -> nn.Module:
    """(B, G) -> (B, O): blocks of `widths`, PORPOISE's "small", then a linear head."""
    encoder = SNN.of_widths(num_genes, widths, dropout)
    return nn.Sequential(encoder, nn.Linear(encoder.dim, outputs))


def group_msa(
    num_genes: int,
    sets: SetPlaces | None,
    outputs: int,
    dim: int = 512,
    fragments: int = 1008,
    groups: int = 24,
    heads: int = 8,
    ff_mult: float = 2.0,
    dropout: float = 0.1,
    gene_dropout: float = 0.3,
) -> nn.Module:
    """(B, G) -> (B, O): CLS_ge of GroupMSA (GiMP, section 2.1) under a linear head. With gene sets these are its
    groups, and `fragments` and `groups` follow from them.
    """
    if sets is not None:
        fragments, groups = sets.fragments, len(sets.names)
    fragments, groups = fit_fragments(num_genes, fragments, groups)
    heads = next(most for most in range(min(heads, dim), 0, -1) if dim % most == 0)
    encoder = GroupMSA(
        num_genes,
        dim,
        fragments,
        groups,
        heads=heads,
        ff_mult=ff_mult,
        dropout=dropout,
        gene_dropout=gene_dropout,
    )
    return nn.Sequential(encoder, nn.Linear(dim, outputs))


def _of_gimp(config: Config) -> Options:
    """What the config says about GiMP's gene encoder."""
    keys = ("fragments", "groups", "heads", "ff_mult", "dropout", "gene_dropout")
    return {"dim": config.model.dim} | {key: getattr(config.genes, key) for key in keys}


def _fragments(config: Config) -> int:
    return config.genes.fragments


GENE_METHODS: Mapping[str, Method] = {
    "logistic": Method(linear, _SIZES),
    "mlp": Method(mlp, _SIZES),
    "snn": Method(snn, _SIZES),
    "group_msa": Method(
        group_msa, ("num_genes", "sets", "outputs"), defaults=_of_gimp, fragments=_fragments, mixup=True
    ),
}
