"""ABMIL: attention-based multiple instance learning, gated or plain.

Ilse, Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018:

    h_n = dropout(ReLU(W x_n + b)),   a = softmax of (gated) attention,   z = sum_n a_n h_n,   logits = W_c z + b_c

Attention is in `nn.pooling`. Training in the paper: Adam, lr 5e-4, weight decay 1e-4, 20 epochs, one bag a step;
in pathology usually lr 1e-4 to 2e-4.

Adapted:

- The paper trains its patch encoder too (500 wide, attention 128 wide, one sigmoid). Here patches are embeddings, and
  the widths are those of the field: 512, attention 256, dropout 0.25. C logits under a softmax replace the sigmoid.
- Batches of bags with a mask in place of one bag a step.

Shape suffixes: B batch, N patches, E patch embedding width, D hidden width, C classes.
"""

from torch import Tensor, nn

from gimp_ray.methods.base import IMAGE, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.pooling import AttentionBag, BagOutput


class ABMIL(nn.Module):
    """Project every patch, pool by attention, classify by one linear layer.

    Args:
        in_dim: E, width of the patch embeddings.
        num_classes: C.
        dim: D.
        attention_dim: width of the attention.
        gated: tanh times sigmoid, or tanh alone.
        dropout: after the projection and inside the attention.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        dim: int = 512,
        attention_dim: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.trunk = AttentionBag(in_dim, dim, attention_dim, gated=gated, dropout=dropout)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None) -> BagOutput:
        """Classify bags; the loss is cross-entropy of `logits`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.

        Returns:
            `BagOutput`: logits (B, C), bag (B, D), attention (B, N).

        Raises:
            ValueError: not (B, N >= 1, E), another width, a mask of another shape or type.
        """
        pooled = self.trunk(patches_BNE, valid_BN)
        bag_BD = pooled.bag[:, 0]
        return BagOutput(self.classify(bag_BD), bag_BD, pooled.attention[:, 0])


METHOD = supervised(
    title="ABMIL",
    paper="Ilse, Tomczak & Welling, ICML 2018",
    needs=IMAGE,
    settings=settings_of(ABMIL, train=recipe(epochs=20, lr=1e-4, weight_decay=1e-4)),
    network=lambda config, sizes: ABMIL(sizes.patch_dim, sizes.outputs, **numbers_of(config.method)),
)
