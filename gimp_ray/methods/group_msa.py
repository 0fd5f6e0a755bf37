"""GroupMSA on genes alone: GiMP's gene encoder under a linear head, trained as its own stage is (MICCAI 2023).

Its numbers are those of `genes` and `model.dim`, and `genes.mixup` mixes its mini-batches, but for survival. With gene
sets these are its groups. Left out: label smoothing.
"""

from typing import Any

from pydantic import Field
from torch import nn

from gimp_ray.config_training import Section
from gimp_ray.methods.base import GENES, MethodConfig, Sizes, recipe, settings_of, supervised
from gimp_ray.methods.sections import GroupMSAConfig
from gimp_ray.nn.genes import gene_network


class Width(Section):
    """The width of the encoder."""

    dim: int = Field(512, ge=8, description="d, width of CLS_ge")


class Sections(MethodConfig):
    """GiMP's keys of the gene encoder."""

    genes: GroupMSAConfig = GroupMSAConfig()
    model: Width = Width()


def network(config: Any, sizes: Sizes) -> nn.Module:
    """(B, G) -> (B, O)."""
    encoder = gene_network("group_msa", sizes.num_genes, config.model.dim, config.genes, sizes.sets)
    return nn.Sequential(encoder, nn.Linear(config.model.dim, sizes.outputs))


METHOD = supervised(
    title="GroupMSA",
    paper="Jin et al., MICCAI 2023",
    needs=GENES,
    config=Sections,
    reads=("method", "target", "finetune.select", "genes", "model"),
    settings=settings_of(
        batch_size=32,
        train=recipe(
            epochs=20, lr=3e-4, weight_decay=1e-2, optimizer="adamw", schedule="cosine", warmup=0.05, clip_norm=1.0
        ),
    ),
    network=network,
    fragments=lambda config: config.genes.fragments,
    mixup=lambda config: config.genes.mixup,
)
