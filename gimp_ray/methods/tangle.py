"""TANGLE: one symmetric InfoNCE between a slide and its gene expression.

Jaume et al., "Transcriptomics-guided slide representation learning in computational pathology", CVPR 2024:

    e = projection of the slide's vector,   g = MLP(genes),   L = symmetric InfoNCE(e, g), temperature 0.01

There: patches through two blocks Linear, LayerNorm, GELU, dropout 0.1, then gated attention pooling (ABMIL), 768 wide;
genes through two blocks Linear, LayerNorm, ReLU, dropout 0.2, as wide as there are genes, then Linear; batch 64, 2,048
patches a slide, AdamW, lr 1e-4 to 1e-8 by a cosine, 5 epochs of warm-up, 100 epochs.

Adapted:

- By default both sides are those of all compared objectives, GiMP's aggregator and GroupMSA, each under a linear
  projection, so that only the objective differs and fine-tuning is the same. `AttentionBag` (ABMIL, with one Linear,
  ReLU, dropout block) and `GeneMLP` can be given in their places.
- Contiguous windows in place of patches drawn at random.

Left out: the variants that reconstruct expression or contrast a slide with itself.

Shape suffixes: B batch, L patches, E patch embedding width, D width of a side, P width of the projection, G genes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from gimp_ray.methods.base import Loss, Sizes, Tensors
from gimp_ray.methods.contrastive import contrastive
from gimp_ray.methods.gimp import aggregator_of
from gimp_ray.methods.sections import MethodSection
from gimp_ray.nn.aggregator import PatchAggregator
from gimp_ray.nn.genes import GeneEncoder
from gimp_ray.nn.losses import gather_rows, infonce
from gimp_ray.nn.pooling import AttentionBag


class TANGLEOutput(NamedTuple):
    """What `infonce` takes."""

    image: Tensor  # (B, P)
    genes: Tensor  # (B, P)


class GeneMLP(nn.Module):
    """Two blocks of Linear, LayerNorm, ReLU, dropout, then Linear: TANGLE's gene encoder, (B, G) -> (B, dim).

    Args:
        num_genes: G.
        dim: width of the output.
        hidden: width of the blocks; None = G, as published.
        dropout: in the blocks.
    """

    def __init__(self, num_genes: int, dim: int = 768, hidden: int | None = None, dropout: float = 0.2) -> None:
        super().__init__()
        hidden = num_genes if hidden is None else hidden
        self.num_genes, self.dim = num_genes, dim
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([num_genes, hidden, hidden]):
            layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.ReLU(), nn.Dropout(dropout)]
        self.blocks = nn.Sequential(*layers, nn.Linear(hidden, dim))

    def forward(self, x_BG: Tensor) -> Tensor:
        """(B, G) scaled expression -> (B, dim).

        Raises:
            ValueError: another number of genes than the network was built for.
        """
        if x_BG.shape[-1] != self.num_genes:
            raise ValueError(f"{x_BG.shape[-1]} genes given, the network was built for {self.num_genes}")
        out_BD: Tensor = self.blocks(x_BG)
        return out_BD


class TANGLE(nn.Module):
    """Two sides and a linear projection of each.

    Args:
        image: the image side, GiMP's aggregator or ABMIL's trunk; it is kept as `aggregator`.
        gene_encoder: raw expression -> (B, gene_dim).
        gene_dim: width of the gene side.
        out_dim: P.
    """

    def __init__(
        self, image: PatchAggregator | AttentionBag, gene_encoder: GeneEncoder, gene_dim: int, out_dim: int = 768
    ) -> None:
        super().__init__()
        self.aggregator, self.gene_encoder = image, gene_encoder
        self.image_projection = nn.Linear(image.dim, out_dim)
        self.gene_projection = nn.Linear(gene_dim, out_dim)

    def forward(self, patches_BLE: Tensor, genes_BG: Tensor, *, valid: Tensor | None = None) -> TANGLEOutput:
        """Project both sides.

        Args:
            patches_BLE: (B, L, E).
            genes_BG: (B, G) expression as stored.
            valid: (B, L) bool, True = real patch; None = all.

        Raises:
            ValueError: other widths than the model was built for.
        """
        if isinstance(self.aggregator, AttentionBag):
            image_BD = self.aggregator(patches_BLE, valid).bag[:, 0]
        else:
            image_BD, _ = self.aggregator(patches_BLE, valid, tokens=False)
        return TANGLEOutput(self.image_projection(image_BD), self.gene_projection(self.gene_encoder(genes_BG)))


class Settings(MethodSection):
    """Of `TANGLE` and its InfoNCE."""

    out_dim: int = Field(768, ge=1, description="width of the projections")
    temperature: float = Field(0.01, gt=0, description="of the InfoNCE")


def _network(config: Any, sizes: Sizes) -> TANGLE:
    return TANGLE(aggregator_of(config, sizes.patch_dim), sizes.encoder, sizes.gene_dim, config.method.out_dim)


def _loss(config: Any, model: nn.Module, batch: Tensors) -> Loss:
    out: TANGLEOutput = model(batch["patches"], batch["genes"])
    image_NP, genes_NP = gather_rows(batch["counted"], out.image, out.genes)
    result = infonce(image_NP, genes_NP, config.method.temperature)
    return result.loss, {"retrieval": result.accuracy}


METHOD = contrastive("tangle", "TANGLE", "Jaume et al., CVPR 2024", Settings, _network, _loss, fewest_groups=0)
