"""The compared methods on patches and genes, without pre-training: PORPOISE, Pathomic Fusion, MCAT, concat(ABMIL, SNN)
and late fusion.

Pathomic Fusion trains its parts in turn: the networks of either modality alone for the first half of the run, then what
joins them, and from 1/12 of the run later (5 of 30 epochs, as published) the gene network with it. Late fusion trains
two models that know nothing of each other. Left out: the equations, which are with each network in `gimp_ray.methods`.

Shape suffixes: B batch, O outputs, P predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.engine.protocol import Tensors
from gimp_ray.learn.gene_layout import SetPlaces
from gimp_ray.learn.methods.base import Method, Phase
from gimp_ray.learn.targets import Target
from gimp_ray.methods.concat import ConcatMIL
from gimp_ray.methods.late_fusion import LateFusion
from gimp_ray.methods.mcat import MCAT
from gimp_ray.methods.pathomic import PathomicFusion
from gimp_ray.methods.porpoise import Porpoise


def both_alone(target: Target, out: Any, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of both modalities' losses: they share no weight, so each learns as if alone."""
    image, _ = target.loss(out.image_logits, batch)
    genes, _ = target.loss(out.genes_logits, batch)
    return image + genes, {"loss_image": image, "loss_genes": genes}


def mean_of_both(target: Target, out: Any) -> Tensor:
    """The mean of what either modality predicts, (B, P)."""
    return (target.predict(out.image_logits) + target.predict(out.genes_logits)) / 2


def mcat(
    patch_dim: int,
    num_genes: int,
    sets: SetPlaces,
    outputs: int,
    dim: int = 256,
    heads: int = 8,
    ff_dim: int = 512,
    layers: int = 2,
    fusion: str = "concat",
    dropout: float = 0.25,
) -> nn.Module:
    """MCAT whose gene groups are the run's gene sets; arguments as there."""
    return MCAT(patch_dim, num_genes, sets.groups, outputs, dim, heads, ff_dim, layers, fusion, dropout)  # type: ignore[arg-type]


def _one_a_set(config: Config) -> int:
    return 1


_SIZES = ("patch_dim", "num_genes", "outputs")
_IN_TURN = (
    Phase(both_alone, mean_of_both, "unimodal"),
    Phase(name="fusion", begin=1 / 2),
    Phase(name="fusion_genes", begin=1 / 2 + 1 / 12),
)

JOINT_METHODS: Mapping[str, Method] = {
    "porpoise": Method(Porpoise, _SIZES, penalised=("genes", "fusion")),
    "pathomic": Method(PathomicFusion, _SIZES, _IN_TURN, penalised=("genes",)),
    "mcat": Method(mcat, ("patch_dim", "num_genes", "sets", "outputs"), fragments=_one_a_set, penalised=("genes",)),
    "concat": Method(ConcatMIL, _SIZES, penalised=("genes",)),
    "late_fusion": Method(
        LateFusion, _SIZES, (Phase(both_alone, mean_of_both),), penalised=("genes", "classify_genes")
    ),
}
