"""concat(ABMIL, SNN): the plainest joint of images and genes, side by side before the head.

The concatenation baseline of MCAT (Chen et al., ICCV 2021) and its followers:

    p = dropout(ReLU(W_p bag)),  bag by gated attention;   g = SNN(genes), 2 blocks
    logits = W_c ReLU(W_2 ReLU(W_1 [p; g]))

Training there: Adam, lr 2e-4, weight decay 1e-5, gradients of 32 bags added up, 20 epochs.

Adapted: C logits under cross-entropy replace the survival head; batches of bags with a mask.

Shape suffixes: B batch, N patches, E patch embedding width, G genes, D hidden width, C classes.
"""

from torch import Tensor, nn

from gimp_ray.nn.genes import SNN
from gimp_ray.nn.pooling import AttentionBag, BagOutput, ConcatFusion


class ConcatMIL(nn.Module):
    """An attention-pooled bag and an SNN's vector, each `joint_dim` wide, through a small head.

    Args:
        in_dim: E, width of the patch embeddings.
        num_genes: G.
        num_classes: C.
        dim: D of the patches.
        attention_dim: width of the attention.
        joint_dim: width of both vectors and of the head's layers.
        dropout: in both encoders.
    """

    def __init__(
        self,
        in_dim: int,
        num_genes: int,
        num_classes: int,
        dim: int = 512,
        attention_dim: int = 256,
        joint_dim: int = 256,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.trunk = AttentionBag(in_dim, dim, attention_dim, dropout=dropout)
        self.image = nn.Sequential(nn.Linear(dim, joint_dim), nn.ReLU(), nn.Dropout(dropout))
        self.genes = SNN(num_genes, joint_dim, hidden=(joint_dim,), dropout=dropout)
        self.fusion = ConcatFusion(joint_dim, joint_dim, joint_dim)
        self.classify = nn.Linear(joint_dim, num_classes)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None, *, genes_BG: Tensor) -> BagOutput:
        """Classify patients; the loss is cross-entropy of `logits`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.
            genes_BG: (B, G) scaled expression.

        Returns:
            `BagOutput`: logits (B, C), the joint vector (B, joint_dim), attention (B, N).

        Raises:
            ValueError: see `read_bag`, `SNN`; another number of patients in the genes than in the patches.
        """
        pooled = self.trunk(patches_BNE, valid_BN)
        joint_BF = self.fusion(self.image(pooled.bag[:, 0]), self.genes(genes_BG))
        return BagOutput(self.classify(joint_BF), joint_BF, pooled.attention[:, 0])
