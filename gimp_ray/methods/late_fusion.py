"""Late fusion: an image model and a gene model that know nothing of each other; their probabilities are averaged.

    P = (softmax(image logits) + softmax(gene logits)) / 2

The image model is a gated ABMIL, the gene model an SNN with a linear head (three blocks of 256 before the last, as
PORPOISE's "small"). They share no weight, so the sum of their two cross-entropies trains each as if alone (but for a
norm over all gradients, and for the choice of one epoch for both). Training: Adam,
lr 2e-4, weight decay 1e-5, 20 epochs.

`logits` are log P, whose softmax is P. They are for evaluation: the loss is that of the two parts, not of the mean. A
patient without one modality has the answer of the other: `image_logits` or `genes_logits`.

Shape suffixes: B batch, N patches, E patch embedding width, G genes, C classes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gimp_ray.methods.abmil import ABMIL
from gimp_ray.methods.base import JOINT, Loss, Phase, Target, Tensors, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.genes import SNN


class TwoModelOutput(NamedTuple):
    """The joint answer, and those of each modality alone."""

    logits: Tensor  # (B, C)
    bag: Tensor  # (B, D), the image model's, or the fused vector
    attention: Tensor  # (B, N), sums to 1 over real patches, 0 at padding
    image_logits: Tensor  # (B, C)
    genes_logits: Tensor  # (B, C)


def mean_probability(*logits_BC: Tensor) -> Tensor:
    """log of the mean of softmax over the given logits, (B, C) each, in at least float32: (B, C).

    Raises:
        ValueError: nothing given, or shapes differ.
    """
    if len({logits.shape for logits in logits_BC}) != 1:
        raise ValueError(f"logits of one shape are needed: found {[tuple(logits.shape) for logits in logits_BC]}")
    kinds = [logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1) for logits in logits_BC]
    return torch.stack(kinds).logsumexp(dim=0) - math.log(len(kinds))


class LateFusion(nn.Module):
    """ABMIL of the patches and an SNN of the genes, side by side.

    Args:
        in_dim: E, width of the patch embeddings.
        num_genes: G.
        num_classes: C.
        dim, attention_dim: see `ABMIL`.
        gene_widths: of the SNN's blocks.
        dropout: in both models.

    Raises:
        ValueError: no gene width.
    """

    def __init__(
        self,
        in_dim: int,
        num_genes: int,
        num_classes: int,
        dim: int = 512,
        attention_dim: int = 256,
        gene_widths: Sequence[int] = (256, 256, 256, 256),
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.image = ABMIL(in_dim, num_classes, dim, attention_dim, dropout=dropout)
        self.genes = SNN.of_widths(num_genes, gene_widths, dropout)
        self.classify_genes = nn.Linear(self.genes.dim, num_classes)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None, *, genes_BG: Tensor) -> TwoModelOutput:
        """Classify patients; the loss is cross-entropy of `image_logits` plus that of `genes_logits`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.
            genes_BG: (B, G) scaled expression.

        Raises:
            ValueError: see `read_bag`, `SNN`; another number of patients in the genes than in the patches.
        """
        image = self.image(patches_BNE, valid_BN)
        genes_logits_BC = self.classify_genes(self.genes(genes_BG))
        logits_BC = mean_probability(image.logits, genes_logits_BC)
        return TwoModelOutput(logits_BC, image.bag, image.attention, image.logits, genes_logits_BC)


def both_alone(target: Target, out: Any, batch: Tensors, config: Any) -> Loss:
    """The sum of both modalities' losses: they share no weight, so each learns as if alone."""
    image, _ = target.loss(out.image_logits, batch)
    genes, _ = target.loss(out.genes_logits, batch)
    return image + genes, {"loss_image": image, "loss_genes": genes}


def mean_of_both(target: Target, out: Any) -> Tensor:
    """The mean of what either modality predicts, (B, P)."""
    return (target.predict(out.image_logits) + target.predict(out.genes_logits)) / 2


METHOD = supervised(
    title="Late fusion (ABMIL, SNN)",
    needs=JOINT,
    settings=settings_of(LateFusion, train=recipe(epochs=20, lr=2e-4)),
    network=lambda config, sizes: LateFusion(
        sizes.patch_dim, sizes.num_genes, sizes.outputs, **numbers_of(config.method)
    ),
    phases=(Phase(both_alone, mean_of_both),),
    penalised=("genes", "classify_genes"),
)
