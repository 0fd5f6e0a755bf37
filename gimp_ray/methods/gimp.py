"""GiMP as pre-trained (image and gene side, mask token, decoder) and as fine-tuned (the same sides under an MLP head).

Left out: the losses (`gimp_ray.nn.losses`) and which patches are masked (the plan's decision).

Shape suffixes: B batch, L patches, M masked patches, E patch embedding width, D hidden width, G genes, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gimp_ray.nn.aggregator import KeepsFrozen, MLPHead, PatchAggregator


class GiMPOutput(NamedTuple):
    """What pre-training needs of a forward pass."""

    cls_img: Tensor  # (B, D)
    cls_ge: Tensor | None  # (B, D_ge), None without a gene side
    cls_pat: Tensor  # (B, D + D_ge): CLS_img and CLS_ge side by side; CLS_img alone without a gene side
    reconstruction: Tensor | None  # (B, M, E) at the masked positions, None when nothing was masked


class GiMPClassifierOutput(NamedTuple):
    """What fine-tuning, evaluation and embedding need of a forward pass."""

    logits: Tensor  # (B, C)
    cls_img: Tensor
    cls_ge: Tensor | None
    cls_pat: Tensor


def _gene_side(gene_encoder: nn.Module | None, genes: Tensor | None, cls_ge: Tensor | None) -> Tensor | None:
    """CLS_ge: as given, or encoded now, or None where there is no gene side."""
    if cls_ge is not None:
        if genes is not None:
            raise ValueError("give genes or a precomputed cls_ge, not both")
        return cls_ge
    if gene_encoder is None:
        if genes is not None:
            raise ValueError("genes were given to a model without a gene encoder")
        return None
    if genes is None:
        raise ValueError("the model has a gene encoder: give genes, or a precomputed cls_ge")
    return gene_encoder(genes)


def _join(cls_img_BD: Tensor, cls_ge_BD: Tensor | None) -> Tensor:
    if cls_ge_BD is None:
        return cls_img_BD
    return torch.cat([cls_img_BD, cls_ge_BD.to(cls_img_BD.dtype)], dim=-1)


class GiMP(KeepsFrozen):
    """The pre-training model: aggregator, (frozen) gene encoder, mask token, decoder LayerNorm + Linear D -> E.

    GiMP, sections 2.2 and 2.3. Freeze the gene encoder with `freeze` first; it then stays in evaluation mode through
    any `train()`. Pre-training without a gene side (image-only ablation) has `gene_encoder=None`.

    Args:
        aggregator: image side; its `dim` is D.
        gene_encoder: raw expression -> CLS_ge, or None.
        patch_dim: E, what is reconstructed.
    """

    def __init__(self, aggregator: PatchAggregator, gene_encoder: nn.Module | None, patch_dim: int) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.gene_encoder = gene_encoder
        self.mask_token = nn.Parameter(torch.randn(aggregator.dim) * 0.02)
        self.decoder = nn.Sequential(nn.LayerNorm(aggregator.dim), nn.Linear(aggregator.dim, patch_dim))

    def forward(
        self,
        patches_BLE: Tensor,
        genes: Tensor | None = None,
        *,
        cls_ge: Tensor | None = None,
        valid: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> GiMPOutput:
        """Encode both sides; reconstruct the masked patches.

        Args:
            patches_BLE: (B, L, E) patch embeddings.
            genes: (B, G) expression as stored.
            cls_ge: (B, D_ge) computed before, in place of `genes`.
            valid: (B, L) bool, True = real patch.
            masked: (B, M) int64 masked positions, distinct in each sample.

        Raises:
            ValueError: a gene encoder without genes, genes without an encoder, or genes and `cls_ge` together.
        """
        cls_ge_BD = _gene_side(self.gene_encoder, genes, cls_ge)
        reconstruction_BME = None
        if masked is None:
            cls_img_BD, _ = self.aggregator(patches_BLE, valid, tokens=False)
        else:
            cls_img_BD, tokens_BMD = self.aggregator.masked_tokens(patches_BLE, masked, self.mask_token, valid)
            reconstruction_BME = self.decoder(tokens_BMD)
        return GiMPOutput(cls_img_BD, cls_ge_BD, _join(cls_img_BD, cls_ge_BD), reconstruction_BME)


class GiMPClassifier(KeepsFrozen):
    """The fine-tuned model: P = softmax(MLP(CLS_pat)) over whole bags. It has no parameter that a step leaves unused.

    Args:
        aggregator: image side, usually from pre-training.
        gene_encoder: gene side, frozen or not; None for images alone or where `cls_ge` is always given.
        num_classes: C.
        dim: width of CLS_img, and of CLS_ge where there is a gene encoder.
        hidden, dropout: of the `MLPHead`.
        gene_dim: width of CLS_ge where it is not `dim`, or where there is no encoder and `cls_ge` is given.
    """

    def __init__(
        self,
        aggregator: PatchAggregator,
        gene_encoder: nn.Module | None,
        num_classes: int,
        dim: int,
        hidden: Sequence[int] = (256,),
        dropout: float = 0.25,
        gene_dim: int | None = None,
    ) -> None:
        super().__init__()
        if gene_dim is None:
            gene_dim = 0 if gene_encoder is None else dim
        self.aggregator = aggregator
        self.gene_encoder = gene_encoder
        self.head = MLPHead(dim + gene_dim, num_classes, hidden, dropout)

    def forward(
        self,
        patches_BLE: Tensor,
        genes: Tensor | None = None,
        *,
        cls_ge: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> GiMPClassifierOutput:
        """Classify. Arguments and errors as in `GiMP.forward`; logits are (B, C)."""
        cls_ge_BD = _gene_side(self.gene_encoder, genes, cls_ge)
        cls_img_BD, _ = self.aggregator(patches_BLE, valid, tokens=False)
        cls_pat_BF = _join(cls_img_BD, cls_ge_BD)
        return GiMPClassifierOutput(self.head(cls_pat_BF), cls_img_BD, cls_ge_BD, cls_pat_BF)
