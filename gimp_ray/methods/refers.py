"""REFERS: three views of a study are fused by gates, contrasted with the report, and made to tell it.

Zhou et al., "Generalized radiograph representation learning via cross-supervision between images and free-text
radiology reports", Nature Machine Intelligence 2022. One image network for all views i:

    x_i = tokens of view i + its CLS,   g_i = sigmoid(W_i [x_1; x_2; x_3])  (one number a position)
    memory = (g_1 x_1, g_2 x_2, g_3 x_3), one after another
    L = cross-entropy of the report's next token, by a one-layer transformer decoder over the memory
      + contrast of [CLS_1; CLS_2; CLS_3] with the report's vector, temperature 0.1, weight 0.75 from image to text

Decoder: 1024 wide, 16 heads, feed-forward 4096, GELU, post-norm, input and output embeddings tied. Training there: SGD
0.9 inside Lookahead, lr 3e-3 (3e-4 for BERT), 10,000 steps of warm-up, cosine, 400,000 steps, gradients clipped at 10.

Adapted:

- Three X-rays of a study -> three disjoint contiguous parts of a window of patches; a sample of fewer than 3 patches
  has empty views. The image network is GiMP's aggregator; tokens are at most 256 / 3 region means a view.
- Report -> the R gene groups of GroupMSA in their fixed order; a group's "word" is the quantile bin, of 16, of its mean
  expression over the training cases. The report's vector is a linear map of CLS_ge to three times the width, in place
  of ClinicalBERT's.
- The decoder is as wide as the trunk and has 4 times that in its feed-forward. Positions are learned.
- In the released code the contrast from text to image is turned into a plain number and gives no gradient. Here both
  directions do, as the equation says.
- AdamW in place of SGD and Lookahead, for a common budget.

Shape suffixes: B batch, L patches, E patch embedding width, V views, N patches a view, S regions a view, D width of
both sides, R gene groups, K bins, G genes.

REFERS' losses: the genes told from the image, and the contrast of both (Zhou et al., Nature Machine Intelligence
2022).

    L = w mean over cases and groups of -log p(bin of group r | image, bins before r)
      + lambda InfoNCE(image -> genes) + (1 - lambda) InfoNCE(genes -> image)

lambda = 0.75, temperature 0.1 (ConVIRT's loss), w = 1.

Shape suffixes: B batch of one worker, N rows of all workers, F width of the contrast, R gene groups, K bins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gimp_ray.methods.base import Loss, Sizes, Tensors
from gimp_ray.methods.contrastive import contrastive
from gimp_ray.methods.gimp import aggregator_of
from gimp_ray.methods.sections import MethodSection
from gimp_ray.nn.aggregator import PatchAggregator
from gimp_ray.nn.attention import REGIONS, contiguous_views, region_means
from gimp_ray.nn.genes import GeneEncoder, GroupTargets, dividing_heads, group_means, grouped_net
from gimp_ray.nn.losses import gather_rows, infonce


class REFERSOutput(NamedTuple):
    """What `refers_loss` takes, under its names."""

    image: Tensor  # (B, V D), CLS_img of all views side by side
    genes: Tensor  # (B, V D)
    logits: Tensor  # (B, R, K), of each group's bin, given the image and the groups before it
    bins: Tensor  # (B, R) int64, what they are


class GroupDecoder(nn.Module):
    """One transformer decoder layer over gene-group bins: (B, R) bins and a memory -> (B, R, K) logits.

    Args:
        dim: D, width of the memory too.
        num_groups: R.
        bins: K.
        heads: must divide `dim`.
        dropout: everywhere.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, dim: int, num_groups: int, bins: int, heads: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must divide dim: found {heads} heads and dim {dim}")
        self.bins = bins
        self.word_KD = nn.Parameter(torch.randn(bins + 1, dim) * 0.02)  # the last one is the start
        self.position_RD = nn.Parameter(torch.randn(num_groups, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)
        self.layer = nn.TransformerDecoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True)
        self.bias_K = nn.Parameter(torch.zeros(bins))

    def forward(self, bins_BR: Tensor, memory_BMD: Tensor, real_BM: Tensor) -> Tensor:
        """Logits of every group's bin under teacher forcing: those of group r see the true bins before r alone.

        Args:
            bins_BR: (B, R) int64, 0 to K - 1.
            memory_BMD: (B, M, D).
            real_BM: (B, M) bool, what of the memory may be looked at; a sample without any looks at all of it.
        """
        R = bins_BR.shape[1]
        before_BR = torch.cat([torch.full_like(bins_BR[:, :1], self.bins), bins_BR[:, :-1]], dim=1)
        x_BRD = self.drop(self.norm(self.word_KD[before_BR] + self.position_RD[:R]))
        later_RR = torch.ones(R, R, dtype=torch.bool, device=bins_BR.device).triu(1)
        hidden_BM = ~(real_BM | ~real_BM.any(dim=1, keepdim=True))
        x_BRD = self.layer(x_BRD, memory_BMD.to(x_BRD.dtype), tgt_mask=later_RR, memory_key_padding_mask=hidden_BM)
        logits_BRK: Tensor = x_BRD @ self.word_KD[: self.bins].T + self.bias_K
        return logits_BRK


class REFERS(nn.Module):
    """Trunk over the views, gates, decoder, and the map of CLS_ge for the contrast.

    Args:
        aggregator: image side; its `dim` is D.
        gene_encoder: raw expression -> CLS_ge, with a `GroupMSA` as its net.
        targets: fitted on the training cases' group means; they say K.
        views: V.
        heads: of the decoder; must divide D.
        dropout: of the decoder.
        regions: the largest number of regions over all views.

    Raises:
        ValueError: an encoder without groups, targets of another number of groups, fewer regions than views, heads that
            do not divide the width.
    """

    def __init__(
        self,
        aggregator: PatchAggregator,
        gene_encoder: GeneEncoder,
        targets: GroupTargets,
        views: int = 3,
        heads: int = 16,
        dropout: float = 0.1,
        regions: int = REGIONS,
    ) -> None:
        super().__init__()
        net = grouped_net(gene_encoder)
        if targets.num_groups != net.num_groups:
            raise ValueError(f"there must be a target of each group: {net.num_groups=} {targets.num_groups=}")
        if views < 1 or regions < views:
            raise ValueError(f"there must be a view, and a region of each: {views=} {regions=}")
        dim = aggregator.dim
        self.aggregator, self.gene_encoder, self.targets = aggregator, gene_encoder, targets
        self.views, self.num_regions = views, regions // views
        self.gates = nn.Linear(views * dim, views)
        self.gene_map = nn.Linear(net.dim, views * dim)
        self.decoder = GroupDecoder(dim, net.num_groups, targets.bins, heads, dropout)

    def forward(self, patches_BLE: Tensor, genes_BG: Tensor, *, valid: Tensor | None = None) -> REFERSOutput:
        """Views and genes, and the genes told from the views.

        Args:
            patches_BLE: (B, L, E).
            genes_BG: (B, G) expression as stored.
            valid: (B, L) bool, True = real patch; None = all.

        Raises:
            ValueError: other widths than the model was built for.
        """
        net = grouped_net(self.gene_encoder)
        scaled_BG = self.gene_encoder.input(genes_BG)
        bins_BR = self.targets.bin(group_means(net, scaled_BG))
        image_BF, memory_BMD, real_BM = self._views(patches_BLE, valid)
        logits_BRK = self.decoder(bins_BR, memory_BMD, real_BM)
        return REFERSOutput(image_BF, self.gene_map(net(scaled_BG)), logits_BRK, bins_BR)

    def _views(self, patches_BLE: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """CLS_img of the views side by side (B, V D); the gated tokens (B, V S, D), and which of them are real."""
        B, V = len(patches_BLE), self.views
        x_BVNE, real_BVN = contiguous_views(patches_BLE, valid, V)
        flat_valid = None if real_BVN is None else real_BVN.flatten(0, 1)
        cls_XD, x_XND = self.aggregator(x_BVNE.flatten(0, 1), flat_valid)  # X = B V
        region_XSD, real_XS = region_means(x_XND, flat_valid, self.num_regions)
        region_XSD = (region_XSD + cls_XD[:, None]).masked_fill(~real_XS[..., None], 0.0)
        S, D = region_XSD.shape[1:]
        side_by_side_BSF = region_XSD.view(B, V, S, D).transpose(1, 2).reshape(B, S, V * D)
        gate_BVS1 = torch.sigmoid(self.gates(side_by_side_BSF)).transpose(1, 2)[..., None]
        memory_BMD = (gate_BVS1 * region_XSD.view(B, V, S, D)).reshape(B, V * S, D)
        return cls_XD.view(B, V * D), memory_BMD, real_XS.view(B, V * S)


class REFERSLoss(NamedTuple):
    """Scalars: what is minimised, its terms before weighting, and the contrast's accuracy."""

    loss: Tensor
    caption: Tensor  # in nats a group
    contrast: Tensor
    accuracy: Tensor


def refers_loss(
    image_BF: Tensor,
    genes_BF: Tensor,
    logits_BRK: Tensor,
    bins_BR: Tensor,
    counted: Tensor | None = None,
    temperature: float = 0.1,
    image_weight: float = 0.75,
    caption_weight: float = 1.0,
) -> REFERSLoss:
    """The sum of both. In float32 at least, under autocast too.

    Args:
        image_BF, genes_BF: (B, F).
        logits_BRK: (B, R, K), of every group's bin.
        bins_BR: (B, R) int64, what they are.
        counted: (B,) bool, see `gather_rows`.
        temperature: of the contrast.
        image_weight: lambda.
        caption_weight: w.

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits_BRK.ndim != 3 or logits_BRK.shape[:2] != bins_BR.shape or len(logits_BRK) != len(image_BF):
        found = tuple(logits_BRK.shape), tuple(bins_BR.shape), len(image_BF)
        raise ValueError(f"logits must be (B, R, K), bins (B, R) with B as of the image: found {found}")
    image_NF, genes_NF = gather_rows(counted, image_BF, genes_BF)
    contrast, accuracy = infonce(image_NF, genes_NF, temperature, image_weight)
    dtype = torch.promote_types(logits_BRK.dtype, torch.float32)
    caption = F.cross_entropy(logits_BRK.flatten(0, 1).to(dtype), bins_BR.flatten())
    return REFERSLoss(caption_weight * caption + contrast, caption, contrast, accuracy)


class Settings(MethodSection):
    """Of `REFERS` and `refers_loss`."""

    views: int = Field(3, ge=1, description="contiguous parts of a window")
    heads: int = Field(16, ge=1, description="attention heads; the most up to this that divide model.dim are used")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the decoder")
    regions: int = Field(256, ge=1, description="most regions of a window, shared among the views")
    bins: int = Field(16, ge=2, description="quantile bins of a group's mean expression")
    temperature: float = Field(0.1, gt=0, description="of the contrast")
    image_weight: float = Field(0.75, ge=0, le=1, description="of the direction from images to genes")
    caption_weight: float = Field(1.0, ge=0, description="of telling the genes")

    @model_validator(mode="after")
    def _a_region_a_view(self) -> Settings:
        if self.regions < self.views:
            raise ValueError("regions must be at least views, since they are shared among them")
        return self


def _network(config: Any, sizes: Sizes) -> REFERS:
    own, aggregator = config.method, aggregator_of(config, sizes.patch_dim)
    assert sizes.targets is not None
    heads = dividing_heads(aggregator.dim, own.heads)
    return REFERS(aggregator, sizes.encoder, sizes.targets(own.bins), own.views, heads, own.dropout, own.regions)


def _loss(config: Any, model: nn.Module, batch: Tensors) -> Loss:
    out: REFERSOutput = model(batch["patches"], batch["genes"])
    own = config.method
    result = refers_loss(
        out.image,
        out.genes,
        out.logits,
        out.bins,
        counted=batch["counted"],
        temperature=own.temperature,
        image_weight=own.image_weight,
        caption_weight=own.caption_weight,
    )
    parts = {"loss_caption": result.caption, "loss_contrast": result.contrast, "retrieval": result.accuracy}
    return result.loss, parts


METHOD = contrastive("refers", "REFERS", "Zhou et al., Nature Machine Intelligence 2022", Settings, _network, _loss)
