"""MGCA: patients, parts of them and clusters of them are aligned between image and genes.

Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning", NeurIPS
2022 (chest X-rays and reports). What the losses need of a forward pass is made here:

    v = h_v(image), t = h_t(report), v_s = g_v(region s), t_w = g_t(word w); each head Linear to 2048, norm, ReLU,
    Linear to 128, norm; attention of each side's CLS to its own regions or words; 500 prototypes of unit length

Training there: AdamW, lr 2e-5, weight decay 0.05, batch 72 to 144, warm-up over 40 % of the steps, cosine, 50 epochs,
prototypes held still in the first.

Adapted:

- Report -> gene profile: words are the R gene groups of GroupMSA, the report is CLS_ge. No weights from elsewhere, so a
  learning rate of 1e-4 in place of 2e-5.
- Image -> window of patches: one trunk for all compared objectives, GiMP's aggregator; the image is CLS_img, regions
  are means of contiguous runs of patches, 256 at most.
- Words are weighted by CLS_ge's attention, as published. Nystrom attention never forms CLS_img's attention to patches,
  so regions are weighted by softmax(cos(CLS_img, region) / 0.1), without gradient.
- LayerNorm in place of batch normalisation in the heads. The local heads are the global ones again, with weights of
  their own.
- 64 prototypes in place of 500, since cohorts have some hundred patients.

Shape suffixes: B batch, L patches, E patch embedding width, D width of both sides, P width of the heads, S regions,
R gene groups, K prototypes, G genes.

MGCA's three alignments: of patients, of their parts, and of clusters of patients (Wang et al., NeurIPS 2022).

With image v, genes t, regions v_s, gene groups t_w and prototypes c_k, all of unit length:

    ITA   symmetric InfoNCE of v and t, temperature 0.07
    CTA   o_w = sum_s softmax_s(t_w . v_s / 0.1) v_s, of unit length; within one patient InfoNCE of t_w and o_w, both
          directions, temperature 0.1, each word weighted by its attention; the same with regions asking groups
    CPA   codes q = Sinkhorn of v . c_k (3 iterations, eps 0.05), p = softmax(v . c_k / 0.2), of t alike;
          -1/2 mean(sum_k q^v_k log p^t_k + q^t_k log p^v_k)
    L     1.0 ITA + 0.7 CTA + 0.5 CPA

Attention is clipped to its 10 % to 90 % quantiles and sums to 1 over a patient.

Adapted:

- ITA and CPA are over the cases of all workers, codes too. The released code compares those of one worker in ITA.
- Each of the three is the mean of its two directions. The released code adds up the directions of ITA and of CTA, which
  doubles both against CPA.
- The weights are the defaults of the published class; its command line has 1 for each.

Shape suffixes: B batch of one worker, N rows of all workers, P width of the heads, S regions, R gene groups, X and Y
tokens of either side, K prototypes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from gimp_ray.methods.base import Loss, Sizes, Tensors, Window
from gimp_ray.methods.contrastive import contrastive
from gimp_ray.methods.gimp import aggregator_of
from gimp_ray.methods.sections import MethodSection
from gimp_ray.nn.aggregator import PatchAggregator, two_layer_head
from gimp_ray.nn.attention import REGIONS, region_means
from gimp_ray.nn.genes import GeneEncoder, across_groups, group_tokens, grouped_net
from gimp_ray.nn.losses import gather_rows, infonce, unit
from gimp_ray.nn.pooling import masked_softmax


class MGCAOutput(NamedTuple):
    """What `mgca_loss` takes, under its names."""

    image: Tensor  # (B, P)
    genes: Tensor  # (B, P)
    regions: Tensor  # (B, S, P)
    tokens: Tensor  # (B, R, P)
    region_attention: Tensor  # (B, S), no gradient, 0 where there is no region
    token_attention: Tensor  # (B, R), no gradient
    prototypes: Tensor  # (K, P)
    real: Tensor  # (B, S) bool, True where there is a region


class MGCA(nn.Module):
    """Trunk and gene encoder with heads for vectors and for tokens, and the prototypes.

    Args:
        aggregator: image side; its `dim` is D.
        gene_encoder: raw expression -> CLS_ge, with a `GroupMSA` as its net.
        hidden, out_dim: of the heads; `out_dim` is P.
        prototypes: K.
        regions: the largest S.

    Raises:
        ValueError: an encoder without groups, a number below 1.
    """

    def __init__(
        self,
        aggregator: PatchAggregator,
        gene_encoder: GeneEncoder,
        hidden: int = 2048,
        out_dim: int = 128,
        prototypes: int = 64,
        regions: int = REGIONS,
    ) -> None:
        super().__init__()
        if min(prototypes, regions) < 1:
            raise ValueError(f"prototypes and regions must be >= 1: found {prototypes} and {regions}")
        gene_dim = grouped_net(gene_encoder).dim
        self.aggregator, self.gene_encoder, self.num_regions = aggregator, gene_encoder, regions
        self.image_head = two_layer_head(aggregator.dim, hidden, out_dim)
        self.gene_head = two_layer_head(gene_dim, hidden, out_dim)
        self.region_head = two_layer_head(aggregator.dim, hidden, out_dim)
        self.token_head = two_layer_head(gene_dim, hidden, out_dim)
        self.prototypes_KP = nn.Parameter(torch.randn(prototypes, out_dim))

    def forward(
        self, patches_BLE: Tensor, genes_BG: Tensor, *, valid: Tensor | None = None, still: bool = False
    ) -> MGCAOutput:
        """Both sides, whole and in parts.

        Args:
            patches_BLE: (B, L, E).
            genes_BG: (B, G) expression as stored.
            valid: (B, L) bool, True = real patch; None = all.
            still: the prototypes get a gradient of zeros (the first epoch of the paper), not none, which a distributed
                backward pass would wait for.

        Raises:
            ValueError: other widths than the model was built for.
        """
        net = grouped_net(self.gene_encoder)
        side = across_groups(net, group_tokens(net, self.gene_encoder.input(genes_BG)))
        cls_BD, x_BLD = self.aggregator(patches_BLE, valid)
        region_BSD, real_BS = region_means(x_BLD, valid, self.num_regions)
        prototypes_KP: Tensor = self.prototypes_KP
        if still:
            prototypes_KP = prototypes_KP.detach() + 0.0 * prototypes_KP
        return MGCAOutput(
            image=self.image_head(cls_BD),
            genes=self.gene_head(side.cls),
            regions=self.region_head(region_BSD),
            tokens=self.token_head(side.tokens),
            region_attention=likeness(cls_BD.detach(), region_BSD.detach(), real_BS),
            token_attention=side.attention.detach(),
            prototypes=prototypes_KP,
            real=real_BS,
        )


def likeness(cls_BD: Tensor, x_BSD: Tensor, real_BS: Tensor, temperature: float = 0.1) -> Tensor:
    """softmax over real tokens of their cosine with CLS over a temperature, (B, S); 0 at the others."""
    cosine_BS = F.cosine_similarity(cls_BD[:, None].float(), x_BSD.float(), dim=-1)
    return masked_softmax((cosine_BS / temperature)[:, None], real_BS)[:, 0]


class MGCALoss(NamedTuple):
    """Scalars: what is minimised, its three terms before weighting, and ITA's accuracy."""

    loss: Tensor
    ita: Tensor
    cta: Tensor
    cpa: Tensor
    accuracy: Tensor


def mgca_loss(
    image: Tensor,
    genes: Tensor,
    regions: Tensor,
    tokens: Tensor,
    region_attention: Tensor,
    token_attention: Tensor,
    prototypes: Tensor,
    real: Tensor | None = None,
    counted: Tensor | None = None,
    temperature: float = 0.07,
    local_temperature: float = 0.1,
    prototype_temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
    weights: tuple[float, float, float] = (1.0, 0.7, 0.5),
) -> MGCALoss:
    """The weighted sum. In float32 at least, under autocast too.

    Args:
        image, genes: (B, P).
        regions: (B, S, P); tokens: (B, R, P).
        region_attention: (B, S); token_attention: (B, R); not negative.
        prototypes: (K, P).
        real: (B, S) bool, True where there is a region; None = everywhere.
        counted: (B,) bool, see `gather_rows`.
        temperature, local_temperature, prototype_temperature: of ITA, CTA and CPA.
        epsilon, iterations: of `sinkhorn`.
        weights: of ITA, CTA and CPA.

    Raises:
        ValueError: shapes that do not fit, temperatures or epsilon not positive.
    """
    with torch.autocast(image.device.type, enabled=False):
        image_NP, genes_NP = gather_rows(counted, image, genes)
        ita, accuracy = infonce(image_NP, genes_NP, temperature)
        from_genes_B = token_alignment(tokens, regions, token_attention, None, real, local_temperature)
        from_image_B = token_alignment(regions, tokens, region_attention, real, None, local_temperature)
        cta = (from_genes_B + from_image_B).mean() / 2
        cpa = prototype_alignment(image_NP, genes_NP, prototypes, prototype_temperature, epsilon, iterations)
        loss = weights[0] * ita + weights[1] * cta + weights[2] * cpa
    return MGCALoss(loss, ita, cta, cpa, accuracy)


def token_alignment(
    x_BXP: Tensor,
    y_BYP: Tensor,
    attention_BX: Tensor,
    real_BX: Tensor | None = None,
    real_BY: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """CTA in one direction: tokens x ask the tokens y. (B,), each of its own patient alone.

    Args:
        x_BXP, y_BYP: (B, X, P) and (B, Y, P), any length.
        attention_BX: (B, X) weights before clipping; not negative.
        real_BX, real_BY: (B, X) and (B, Y) bool, True where there is a token; None = everywhere.
        temperature: of the attention and of the InfoNCE.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive.
    """
    if x_BXP.shape[::2] != y_BYP.shape[::2] or attention_BX.shape != x_BXP.shape[:2]:
        found = tuple(x_BXP.shape), tuple(y_BYP.shape), tuple(attention_BX.shape)
        raise ValueError(f"tokens must be (B, X, P) and (B, Y, P), attention (B, X): found {found}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0: found {temperature}")
    x_BXP, y_BYP = unit(x_BXP), unit(y_BYP)
    lowest = torch.finfo(x_BXP.dtype).min
    scores_BXY = x_BXP @ y_BYP.transpose(1, 2) / temperature
    if real_BY is not None:
        scores_BXY = scores_BXY.masked_fill(~real_BY[:, None], lowest)
    answer_BXP = unit(scores_BXY.softmax(dim=-1) @ y_BYP)
    likeness_BXX = x_BXP @ answer_BXP.transpose(1, 2) / temperature
    if real_BX is not None:
        likeness_BXX = likeness_BXX.masked_fill(~(real_BX[:, None] & real_BX[..., None]), lowest)
    own_BX = torch.diagonal(likeness_BXX, dim1=1, dim2=2)
    each_BX = (likeness_BXX.logsumexp(dim=2) + likeness_BXX.logsumexp(dim=1)) / 2 - own_BX
    weight_BX = clipped_weights(attention_BX, real_BX)
    return (weight_BX * each_BX.masked_fill(weight_BX == 0, 0.0)).sum(dim=1)


@torch.no_grad()
def clipped_weights(attention_BX: Tensor, real_BX: Tensor | None = None, clip: float = 0.1) -> Tensor:
    """Attention within its `clip` and 1 - `clip` quantiles over the real tokens, summing to 1 over them; 0 elsewhere.

    A patient whose real tokens have no attention at all weighs them alike; one without real tokens has zeros.
    """
    attention_BX = attention_BX.detach().to(torch.promote_types(attention_BX.dtype, torch.float32))
    real_BX = torch.ones_like(attention_BX, dtype=torch.bool) if real_BX is None else real_BX
    among_BX = attention_BX.masked_fill(~real_BX, torch.nan)
    low_B1, high_B1 = (among_BX.nanquantile(q, dim=1, keepdim=True) for q in (clip, 1 - clip))
    clipped_BX = torch.minimum(torch.maximum(among_BX, low_B1), high_B1).masked_fill(~real_BX, 0.0)
    total_B1 = clipped_BX.sum(dim=1, keepdim=True)
    alike_BX = real_BX / real_BX.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(total_B1 > 0, clipped_BX / total_B1.clamp_min(1e-30), alike_BX.to(clipped_BX.dtype))


def prototype_alignment(
    image_NP: Tensor,
    genes_NP: Tensor,
    prototypes_KP: Tensor,
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Tensor:
    """CPA over the rows given: each side's codes are what the other side must predict.

    Raises:
        ValueError: shapes that do not fit, a temperature or epsilon that is not positive.
    """
    if image_NP.shape != genes_NP.shape or prototypes_KP.shape[1:] != image_NP.shape[1:]:
        found = tuple(image_NP.shape), tuple(genes_NP.shape), tuple(prototypes_KP.shape)
        raise ValueError(f"both sides must be (N, P), prototypes (K, P): found {found}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0: found {temperature}")
    prototypes_KP = unit(prototypes_KP)
    scores = [unit(side) @ prototypes_KP.T for side in (image_NP, genes_NP)]
    codes = [sinkhorn(score_NK.detach(), epsilon, iterations) for score_NK in scores]
    log_p = [F.log_softmax(score_NK / temperature, dim=1) for score_NK in scores]
    return -((codes[0] * log_p[1]).sum(dim=1).mean() + (codes[1] * log_p[0]).sum(dim=1).mean()) / 2


@torch.no_grad()
def sinkhorn(scores_NK: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes of rows over prototypes, spread over all of them (Cuturi 2013; SwAV, Caron et al. 2020).

    exp(scores / epsilon) is scaled in turns, so that every prototype gets a K-th of all, then every row sums to 1. The
    rows are exact, being last; the prototypes' shares come near with the iterations. In logarithms: nothing overflows.

    Returns:
        (N, K).

    Raises:
        ValueError: epsilon that is not positive.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon must be > 0: found {epsilon}")
    log_NK = scores_NK / epsilon
    for _ in range(iterations):
        log_NK = log_NK - log_NK.logsumexp(dim=0, keepdim=True)
        log_NK = log_NK - log_NK.logsumexp(dim=1, keepdim=True)
    return log_NK.softmax(dim=1)


class Settings(MethodSection):
    """Of `MGCA` and `mgca_loss`."""

    hidden: int = Field(2048, ge=1, description="width of the heads' hidden layer")
    out_dim: int = Field(128, ge=1, description="width of the projections")
    prototypes: int = Field(64, ge=1, description="clusters of patients")
    regions: int = Field(256, ge=1, description="most regions of a window")
    still_epochs: int = Field(1, ge=0, description="first epochs in which the prototypes rest")
    temperature: float = Field(0.07, gt=0, description="of the contrast of patients")
    local_temperature: float = Field(0.1, gt=0, description="of the contrast of tokens")
    prototype_temperature: float = Field(0.2, gt=0, description="of the prototypes")
    epsilon: float = Field(0.05, gt=0, description="of Sinkhorn")
    iterations: int = Field(3, ge=1, description="of Sinkhorn")
    weights: tuple[float, float, float] = Field((1.0, 0.7, 0.5), description="of patients, tokens and prototypes")


def _network(config: Any, sizes: Sizes) -> MGCA:
    own = config.method
    aggregator = aggregator_of(config, sizes.patch_dim)
    return MGCA(aggregator, sizes.encoder, own.hidden, own.out_dim, own.prototypes, own.regions)


def _read(config: Any, window: Window) -> dict[str, NDArray[Any]]:
    return {"still": np.ones(len(window.case), dtype=bool)} if window.epoch < config.method.still_epochs else {}


def _loss(config: Any, model: nn.Module, batch: Tensors) -> Loss:
    out: MGCAOutput = model(batch["patches"], batch["genes"], still="still" in batch)
    own = config.method
    result = mgca_loss(
        **out._asdict(),
        counted=batch["counted"],
        temperature=own.temperature,
        local_temperature=own.local_temperature,
        prototype_temperature=own.prototype_temperature,
        epsilon=own.epsilon,
        iterations=own.iterations,
        weights=own.weights,
    )
    parts = {"loss_ita": result.ita, "loss_cta": result.cta, "loss_cpa": result.cpa, "retrieval": result.accuracy}
    return result.loss, parts


METHOD = contrastive("mgca", "MGCA", "Wang et al., NeurIPS 2022", Settings, _network, _loss, _read)
