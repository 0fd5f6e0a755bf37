"""Pathomic Fusion: networks of each modality trained first, then joined by a gated Kronecker product.

Chen et al., "Pathomic Fusion: an integrated framework for fusing histopathology and genomic features for cancer
diagnosis and prognosis", IEEE TMI 2020:

    stage 1   image and genes each learn to classify alone
    stage 2   p = W_p bag (32 wide),  g = SNN(genes) (32 wide),  z_j = p^T B_j g,
              logits = W_c BilinearFusion(p, g; gates z), 33 x 33 products -> 64 -> 64

Training there: stage 1 each net alone; stage 2 Adam, lr 1e-4, beta1 0.5, 10 epochs flat and 20 of linear decay, batch
32, L1 3e-4 on the gene net; the trained nets frozen, the gene net free again from epoch 5 on.

Adapted:

- The paper reads regions of interest by VGG19. Here the image net is a gated ABMIL over the patches of a patient, and
  its bag vector stands for the image. W_p belongs to stage 2.
- The graph of cells has no counterpart in patch embeddings: that branch is left out.
- C logits under cross-entropy (the NLL of a log-softmax, as there).
- `stage` says what is trained. A frozen part is in evaluation mode, so its dropout is off.
- Gates on both vectors, no skip: `gates` and `skip` are the authors' options.
- Batches of bags with a mask.

Shape suffixes: B batch, N patches, E patch embedding width, G genes, C classes.
"""

from collections.abc import Sequence
from typing import Literal, Self, get_args

from torch import Tensor, nn

from gimp_ray.methods.base import JOINT, Phase, numbers_of, recipe, settings_of, supervised
from gimp_ray.methods.late_fusion import LateFusion, TwoModelOutput, both_alone, mean_of_both
from gimp_ray.nn.fusion import BilinearFusion

Stage = Literal["unimodal", "fusion", "fusion_genes"]


class PathomicFusion(LateFusion):
    """The two models of `LateFusion`, and `BilinearFusion` of their vectors.

    Args:
        in_dim, num_genes, num_classes, dim, attention_dim: see `LateFusion`.
        gene_widths: of the SNN's blocks; the last is the width of both vectors in the product.
        joint_dim: F, width of both layers after the product.
        gate_image, gate_genes: whether each vector has a gate.
        skip: whether the vectors also go round the first layer after the product.
        dropout: everywhere.

    Raises:
        ValueError: no gene width, a width below 1.
    """

    def __init__(
        self,
        in_dim: int,
        num_genes: int,
        num_classes: int,
        dim: int = 512,
        attention_dim: int = 256,
        gene_widths: Sequence[int] = (64, 48, 32, 32),
        joint_dim: int = 64,
        gate_image: bool = True,
        gate_genes: bool = True,
        skip: bool = False,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, num_genes, num_classes, dim, attention_dim, gene_widths, dropout)
        reduced = self.genes.dim
        self.reduce_image = nn.Linear(dim, reduced)
        self.fusion = BilinearFusion(
            reduced,
            reduced,
            reduced,
            joint_dim,
            "bilinear",
            gate_image,
            gate_genes,
            skip="reduced" if skip else None,
            dropout=dropout,
        )
        self.classify = nn.Linear(joint_dim, num_classes)
        self.stage: Stage = "unimodal"
        self.set_stage("unimodal")

    def set_stage(self, stage: Stage) -> None:
        """Which parts learn: "unimodal" the two nets with their classifiers, "fusion" what joins them,
        "fusion_genes" that and the gene net.

        The stage is no part of the weights: a run that continues sets it again. Gradients that earlier steps left on a
        part now frozen are dropped, so that no optimiser goes on with them.

        Raises:
            ValueError: an unknown stage.
        """
        if stage not in get_args(Stage):
            raise ValueError(f"stage must be one of {', '.join(get_args(Stage))}: found {stage!r}")
        self.stage = stage
        for part in self.children():
            part.requires_grad_(True)
        for part in self._frozen():
            part.requires_grad_(False)
            part.zero_grad(set_to_none=True)
        self.train(self.training)

    def _frozen(self) -> list[nn.Module]:
        joint: list[nn.Module] = [self.reduce_image, self.fusion, self.classify]
        if self.stage == "unimodal":
            return joint
        alone: list[nn.Module] = [self.image, self.classify_genes]
        return [*alone, self.genes] if self.stage == "fusion" else alone

    def train(self, mode: bool = True) -> Self:
        """As ever, but what the stage froze stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None, *, genes_BG: Tensor) -> TwoModelOutput:
        """Classify patients.

        The loss of stage "unimodal" is cross-entropy of `image_logits` plus that of `genes_logits` (the nets share no
        weight, so each learns as if alone), and `logits` mean nothing yet; of the other stages, that of `logits`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.
            genes_BG: (B, G) scaled expression.

        Raises:
            ValueError: see `read_bag`, `SNN`; another number of patients in the genes than in the patches.
        """
        image = self.image(patches_BNE, valid_BN)
        genes_BR = self.genes(genes_BG)
        fused_BF = self.fusion(self.reduce_image(image.bag), genes_BR)
        genes_logits_BC = self.classify_genes(genes_BR)
        return TwoModelOutput(self.classify(fused_BF), fused_BF, image.attention, image.logits, genes_logits_BC)


METHOD = supervised(
    title="Pathomic Fusion",
    paper="Chen et al., IEEE TMI 2020",
    needs=JOINT,
    settings=settings_of(
        PathomicFusion,
        l1=3e-4,
        train=recipe(epochs=60, lr=5e-4, weight_decay=0.0, betas=(0.5, 0.999), schedule="linear", accumulate=32),
    ),
    network=lambda config, sizes: PathomicFusion(
        sizes.patch_dim, sizes.num_genes, sizes.outputs, **numbers_of(config.method)
    ),
    # each modality alone, then what joins them, and 5 of 30 epochs later the gene network with it
    phases=(
        Phase(both_alone, mean_of_both, "unimodal"),
        Phase(name="fusion", begin=1 / 2),
        Phase(name="fusion_genes", begin=1 / 2 + 1 / 12),
    ),
    penalised=("genes",),
)
