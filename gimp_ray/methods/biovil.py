"""BioViL: contrast of image and report, while a language model of the reports goes on being trained.

Boecking et al., "Making the Most of Text Semantics to Improve Biomedical Vision-Language Processing", ECCV 2022. The
authors published inference code alone; training is from the paper:

    first, text alone:   L = L_rsm + w L_mlm      contrast of two sections of one report; masked words from the others
    then, both:          L = L_con + w L_mlm      symmetric InfoNCE of image and report, temperature 0.5, w = 0.1

    image = mean over regions of W_2 ReLU(norm(W_1 region)),   report = W_4 norm(GELU(W_3 CLS)),   128 wide

Adapted:

- Report -> gene profile: words are the R gene groups of GroupMSA, the report is CLS_ge. A masked word is a group whose
  token is replaced by a mask token and its own group token (which says which group it is); what is predicted is the
  group's mean expression, standardised over the training cases, by squared error, in place of a word by cross-entropy.
- Sections (findings, impression) -> two random disjoint halves of the groups, the same for all patients of an epoch, as
  sections are of one kind for all: with halves of their own, which groups are seen would tell patients apart.
- Image -> window of patches, with GiMP's aggregator as the trunk; regions are means of contiguous runs of patches, 256
  at most. The image is the mean of the projected CLS_img and of the mean of the projected regions, which alone is the
  paper's: fine-tuning reads CLS_img, and it must be trained.
- The paper starts from an image network trained by SimCLR. Here the trunk is warmed up by masked patch modelling while
  the genes are by theirs, in the first epochs of the same stage, so that all methods have one budget.
- LayerNorm in place of batch normalisation in the image head.

Shape suffixes: B batch, L patches, M masked patches, E patch embedding width, D width of both sides, P width of the
heads, R gene groups, G genes.

BioViL's losses: contrast of image and genes, or of two halves of the genes, beside masked gene groups (Boecking et
al., ECCV 2022).

    joint training   L = InfoNCE(image, genes) + w L_groups
    warm-up          L = InfoNCE(half, other half) + w L_groups + L_patches

InfoNCE is symmetric, temperature 0.5; w = 0.1; L_groups is the mean squared error of the masked groups of a case,
L_patches the L1 of the masked patches (GiMP, Eq. 3). Both are means over cases, so each worker's own suffice.

Shape suffixes: B batch of one worker, N rows of all workers, P width of the heads, R gene groups, M masked patches,
E patch embedding width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from gimp_ray.methods.base import Loss, Sizes, Tensors, Window
from gimp_ray.methods.contrastive import contrastive
from gimp_ray.methods.gimp import aggregator_of
from gimp_ray.methods.sections import MethodSection
from gimp_ray.nn.aggregator import PatchAggregator, image_head, text_head
from gimp_ray.nn.attention import REGIONS, region_means
from gimp_ray.nn.genes import GeneEncoder, GroupTargets, across_groups, group_means, group_tokens, grouped_net
from gimp_ray.nn.losses import gather_rows, infonce, masked_patch_loss, patches_at
from gimp_ray.nn.pooling import masked_softmax

GROUPS = 1  # stream of draws from a window's seed, beside the patches'


class BioViLOutput(NamedTuple):
    """What `biovil_loss` takes, under its names: image and genes when both are trained, two halves in the warm-up."""

    first: Tensor  # (B, P), the image; in the warm-up the genes of one half of the groups
    second: Tensor  # (B, P), the genes; in the warm-up those of the other half
    predicted: Tensor  # (B, R), of every group as if it were masked; of the masked ones it is a prediction
    target: Tensor  # (B, R), standardised mean expression, no gradient
    reconstruction: Tensor | None  # (B, M, E), in the warm-up
    idle: Tensor  # scalar 0 that gives zero gradients to what this step does not use; to be added to the loss


class BioViL(nn.Module):
    """Trunk and gene encoder with projection heads, a head for masked groups and a decoder for masked patches.

    Args:
        aggregator: image side; its `dim` is D.
        gene_encoder: raw expression -> CLS_ge, with a `GroupMSA` of at least 2 groups as its net.
        targets: fitted on the training cases' group means.
        out_dim: P.
        regions: the largest number of regions.

    Raises:
        ValueError: an encoder without groups, or with one; targets of another number of groups.
    """

    def __init__(
        self,
        aggregator: PatchAggregator,
        gene_encoder: GeneEncoder,
        targets: GroupTargets,
        out_dim: int = 128,
        regions: int = REGIONS,
    ) -> None:
        super().__init__()
        net = grouped_net(gene_encoder)
        if net.num_groups < 2 or targets.num_groups != net.num_groups:
            raise ValueError(f"there must be 2 groups and a target of each: {net.num_groups=} {targets.num_groups=}")
        dim = aggregator.dim
        self.aggregator, self.gene_encoder, self.targets = aggregator, gene_encoder, targets
        self.num_regions = regions
        self.image_head = image_head(dim, out_dim)
        self.gene_head = text_head(net.dim, out_dim)
        self.masked_group_D = nn.Parameter(torch.randn(net.dim) * 0.02)
        self.group_head = text_head(net.dim, 1, hidden=net.dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.decoder = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, aggregator.in_dim))

    def forward(
        self,
        patches_BLE: Tensor,
        genes_BG: Tensor,
        masked_groups_BR: Tensor,
        *,
        valid: Tensor | None = None,
        half_BR: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> BioViLOutput:
        """Both together, or the warm-up of each alone where `half_BR` and `masked` are given.

        Args:
            patches_BLE: (B, L, E).
            genes_BG: (B, G) expression as stored.
            masked_groups_BR: (B, R) bool, groups to be predicted.
            valid: (B, L) bool, True = real patch; None = all.
            half_BR: (B, R) bool, groups of the first half; the others are the second.
            masked: (B, M) int64, masked patches.

        Raises:
            ValueError: one of `half_BR` and `masked` alone; other widths than the model was built for.
        """
        if (half_BR is None) != (masked is None):
            raise ValueError("the warm-up needs both halves of the groups and masked patches")
        net = grouped_net(self.gene_encoder)
        scaled_BG = self.gene_encoder.input(genes_BG)
        group_BRD = group_tokens(net, scaled_BG)
        in_place_RD = self.masked_group_D + net.group_token_RD
        with_gaps_BRD = torch.where(masked_groups_BR[..., None], in_place_RD.to(group_BRD.dtype), group_BRD)
        predicted_BR = self.group_head(across_groups(net, with_gaps_BRD).tokens)[..., 0]
        target_BR = self.targets.standardised(group_means(net, scaled_BG)).detach()
        if half_BR is None or masked is None:
            first_BP = self._image(patches_BLE, valid)
            second_BP = self.gene_head(across_groups(net, group_BRD).cls)
            idle = _nothing(self.mask_token, *self.decoder.parameters())
            return BioViLOutput(first_BP, second_BP, predicted_BR, target_BR, None, idle)
        first_BP, second_BP = (self.gene_head(across_groups(net, group_BRD, seen).cls) for seen in (half_BR, ~half_BR))
        cls_BD, x_BLD = self.aggregator(patches_BLE, valid, masked, self.mask_token)
        index_BMD = masked[..., None].expand(-1, -1, x_BLD.shape[-1])
        reconstruction_BME = self.decoder(x_BLD.gather(1, index_BMD))
        idle = _nothing(cls_BD, *self.image_head.parameters())
        return BioViLOutput(first_BP, second_BP, predicted_BR, target_BR, reconstruction_BME, idle)

    def _image(self, patches_BLE: Tensor, valid: Tensor | None) -> Tensor:
        """(B, P): half CLS_img, half the mean region, both projected."""
        cls_BD, x_BLD = self.aggregator(patches_BLE, valid)
        region_BSD, real_BS = region_means(x_BLD, valid, self.num_regions)
        share_BS = masked_softmax(torch.zeros_like(region_BSD[..., 0])[:, None], real_BS)[:, 0]
        region_BSP = self.image_head(region_BSD)
        mean_BP = (share_BS[..., None].to(region_BSP.dtype) * region_BSP).sum(dim=1)
        return (self.image_head(cls_BD) + mean_BP) / 2


def _nothing(*tensors: Tensor) -> Tensor:
    """0, with a gradient of zeros to each of the tensors."""
    return 0.0 * torch.stack([tensor.float().sum() for tensor in tensors]).sum()


class BioViLLoss(NamedTuple):
    """Scalars: what is minimised, its terms before weighting, and the contrast's accuracy."""

    loss: Tensor
    contrast: Tensor
    groups: Tensor
    patches: Tensor | None  # in the warm-up
    accuracy: Tensor


def biovil_loss(
    first_BP: Tensor,
    second_BP: Tensor,
    predicted_BR: Tensor,
    target_BR: Tensor,
    masked_groups_BR: Tensor,
    reconstruction_BME: Tensor | None = None,
    patches_BME: Tensor | None = None,
    counted: Tensor | None = None,
    temperature: float = 0.5,
    mask_weight: float = 0.1,
) -> BioViLLoss:
    """Either phase: with masked patches it is the warm-up.

    Args:
        first_BP, second_BP: (B, P), what is contrasted.
        predicted_BR, target_BR: (B, R), of all groups; the masked ones count.
        masked_groups_BR: (B, R) bool.
        reconstruction_BME, patches_BME: (B, M, E) each, both or none.
        counted: (B,) bool, see `gather_rows`.
        temperature: of the contrast.
        mask_weight: w.

    Raises:
        ValueError: shapes that do not fit, a reconstruction without the patches.
    """
    if (reconstruction_BME is None) != (patches_BME is None):
        raise ValueError("a reconstruction and the patches it is of must be given together")
    first_NP, second_NP = gather_rows(counted, first_BP, second_BP)
    contrast, accuracy = infonce(first_NP, second_NP, temperature)
    groups = masked_group_loss(predicted_BR, target_BR, masked_groups_BR)
    loss, patches = contrast + mask_weight * groups, None
    if reconstruction_BME is not None and patches_BME is not None:
        patches = masked_patch_loss(reconstruction_BME, patches_BME)
        loss = loss + patches
    return BioViLLoss(loss, contrast, groups, patches, accuracy)


def masked_group_loss(predicted_BR: Tensor, target_BR: Tensor, masked_BR: Tensor) -> Tensor:
    """Mean squared error over each case's masked groups, then over the cases that have any. In float32 at least.

    Raises:
        ValueError: shapes that do not fit, `masked_BR` not bool.
    """
    if predicted_BR.shape != target_BR.shape or masked_BR.shape != target_BR.shape or masked_BR.dtype != torch.bool:
        found = tuple(predicted_BR.shape), tuple(target_BR.shape), tuple(masked_BR.shape), masked_BR.dtype
        raise ValueError(f"predictions, targets and the bool mask must have one shape: found {found}")
    dtype = torch.promote_types(predicted_BR.dtype, torch.float32)
    error_BR = (predicted_BR.to(dtype) - target_BR.to(dtype)).square().masked_fill(~masked_BR, 0.0)
    count_B = masked_BR.sum(dim=1)
    return (error_BR.sum(dim=1) / count_B.clamp_min(1)).sum() / (count_B > 0).sum().clamp_min(1)


class Settings(MethodSection):
    """Of `BioViL` and `biovil_loss`."""

    out_dim: int = Field(128, ge=1, description="width of the projections")
    regions: int = Field(256, ge=1, description="most regions of a window")
    temperature: float = Field(0.5, gt=0, description="of the contrast")
    mask_weight: float = Field(0.1, ge=0, description="of the masked gene groups")
    mask_ratio: float = Field(0.15, gt=0, lt=1, description="share of the gene groups that is masked")
    warm_up: float = Field(0.2, ge=0, lt=1, description="share of the epochs before both sides are joined")


def draw_groups(seeds: NDArray[np.uint64], groups: int, count: int, stream: int) -> NDArray[np.bool_]:
    """(B, R) bool: exactly `count` of the groups of each sample, from its seed and the stream alone."""
    chosen = np.zeros((len(seeds), groups), dtype=bool)
    for row, seed in zip(chosen, seeds, strict=True):
        draws = np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
        row[draws.permutation(groups)[:count]] = True
    return chosen


def _network(config: Any, sizes: Sizes) -> BioViL:
    own, aggregator = config.method, aggregator_of(config, sizes.patch_dim)
    assert sizes.targets is not None
    return BioViL(aggregator, sizes.encoder, sizes.targets(2), own.out_dim, own.regions)


def _read(config: Any, window: Window) -> dict[str, NDArray[Any]]:
    own = config.method
    masked = max(1, round(own.mask_ratio * window.groups))
    arrays: dict[str, NDArray[Any]] = {"masked_groups": draw_groups(window.seeds, window.groups, masked, GROUPS)}
    if window.epoch < round(own.warm_up * window.epochs):
        # one split for all cases of an epoch: with a split each, which groups are seen would tell more than whose
        seeds = np.full(len(window.case), window.epoch, dtype=np.uint64)
        arrays["half"] = draw_groups(seeds, window.groups, window.groups // 2, window.seed)
        arrays["masked"] = window.masked(config.mask.ratio)
    return arrays


def _loss(config: Any, model: nn.Module, batch: Tensors) -> Loss:
    patches_BLE, masked_BM = batch["patches"], batch.get("masked")
    out: BioViLOutput = model(
        patches_BLE, batch["genes"], batch["masked_groups"], half_BR=batch.get("half"), masked=masked_BM
    )
    result = biovil_loss(
        out.first,
        out.second,
        out.predicted,
        out.target,
        batch["masked_groups"],
        out.reconstruction,
        None if masked_BM is None else patches_at(patches_BLE, masked_BM),
        counted=batch["counted"],
        temperature=config.method.temperature,
        mask_weight=config.method.mask_weight,
    )
    parts = {"loss_contrast": result.contrast, "loss_groups": result.groups, "retrieval": result.accuracy}
    if result.patches is not None:
        parts["loss_rec"] = result.patches
    return result.loss + out.idle, parts


METHOD = contrastive(
    "biovil", "BioViL", "Boecking et al., ECCV 2022", Settings, _network, _loss, _read, fewest_groups=2
)
