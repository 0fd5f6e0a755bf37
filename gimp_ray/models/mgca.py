"""MGCA: patients, parts of them and clusters of them are aligned between image and genes.

Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning", NeurIPS
2022 (chest X-rays and reports). What the losses (`objectives.mgca`) need of a forward pass is made here:

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
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gimp_ray.models.aggregator import PatchAggregator
from gimp_ray.models.attention_pool import masked_softmax
from gimp_ray.models.gene_encoder import GeneEncoder
from gimp_ray.models.gene_tokens import across_groups, group_tokens, grouped_net
from gimp_ray.models.projections import two_layer_head
from gimp_ray.models.regions import REGIONS, region_means


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
