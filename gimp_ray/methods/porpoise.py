"""PORPOISE (MMF): attention pooling of the patches, an SNN of the genes, gated Kronecker product fusion.

Chen et al., "Pan-cancer integrative histology-genomic analysis via multimodal deep learning", Cancer Cell 2022:

    bag = sum_n a_n h_n,  h_n = dropout(ReLU(W x_n)),  a = gated attention (`attention_pool`)
    p   = dropout(ReLU(W_p bag)),  g = SNN(genes), 2 blocks
    logits = W_c BilinearFusion(p, g)

Training there: Adam, lr 2e-4, weight decay 1e-5, gradients of 32 bags added up, 20 epochs, L1 1e-5 on the weights.

Adapted:

- C logits under cross-entropy replace the survival head (4 time bins); with 4 logits and `discrete_time_nll` it is that
  head again.
- Gates and skip are on. The authors' classes have them on and their command line off, and no published command says
  which was run.
- Batches of bags with a mask in place of one bag a step.

Left out: the L1 penalty, which is `method.l1`.

Shape suffixes: B batch, N patches, E patch embedding width, G genes, D hidden width, C classes.
"""

from torch import Tensor, nn

from gimp_ray.nn.genes import SNN
from gimp_ray.nn.pooling import AttentionBag, BagOutput, BilinearFusion


class Porpoise(nn.Module):
    """Images and genes, each to a vector of `joint_dim`, fused by `BilinearFusion`, classified by one linear layer.

    Args:
        in_dim: E, width of the patch embeddings.
        num_genes: G.
        num_classes: C.
        dim: D of the patches.
        attention_dim: width of the attention.
        joint_dim: width of both vectors, and of the fused one.
        reduced: width of each vector in the outer product.
        gates: whether both vectors are gated.
        skip: whether both vectors also go round the product.
        input_dropout: on the patch embeddings (0.10 is the authors' option).
        dropout: everywhere else.
    """

    def __init__(
        self,
        in_dim: int,
        num_genes: int,
        num_classes: int,
        dim: int = 512,
        attention_dim: int = 256,
        joint_dim: int = 256,
        reduced: int = 32,
        gates: bool = True,
        skip: bool = True,
        input_dropout: float = 0.0,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.input_dropout = nn.Dropout(input_dropout)
        self.trunk = AttentionBag(in_dim, dim, attention_dim, dropout=dropout)
        self.image = nn.Sequential(nn.Linear(dim, joint_dim), nn.ReLU(), nn.Dropout(dropout))
        self.genes = SNN(num_genes, joint_dim, hidden=(joint_dim,), dropout=dropout)
        self.fusion = BilinearFusion(
            joint_dim,
            joint_dim,
            reduced,
            joint_dim,
            gate_first=gates,
            gate_second=gates,
            skip="inputs" if skip else None,
            dropout=dropout,
        )
        self.classify = nn.Linear(joint_dim, num_classes)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None, *, genes_BG: Tensor) -> BagOutput:
        """Classify patients; the loss is cross-entropy of `logits`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.
            genes_BG: (B, G) scaled expression.

        Returns:
            `BagOutput`: logits (B, C), the fused vector (B, joint_dim), attention (B, N).

        Raises:
            ValueError: see `read_bag`, `SNN`; another number of patients in the genes than in the patches.
        """
        pooled = self.trunk(self.input_dropout(patches_BNE), valid_BN)
        fused_BF = self.fusion(self.image(pooled.bag[:, 0]), self.genes(genes_BG))
        return BagOutput(self.classify(fused_BF), fused_BF, pooled.attention[:, 0])
