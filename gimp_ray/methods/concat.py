"""concat(ABMIL, SNN): the plainest joint of images and genes, side by side before the head.

The concatenation baseline of MCAT (Chen et al., ICCV 2021) and its followers:

    logits = W_c ReLU(W_2 ReLU(W_1 [p; g])),   p and g as in `AttentionFusion`

Training there: Adam, lr 2e-4, weight decay 1e-5, gradients of 32 bags added up, 20 epochs.

Adapted: C logits under cross-entropy replace the survival head; batches of bags with a mask.
"""

from gimp_ray.methods.base import JOINT, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.fusion import AttentionFusion, ConcatFusion


class ConcatMIL(AttentionFusion):
    """An attention-pooled bag and an SNN's vector, each `joint_dim` wide, through `ConcatFusion`.

    Arguments as of `AttentionFusion`.
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
        def fusion() -> ConcatFusion:
            return ConcatFusion(joint_dim, joint_dim, joint_dim)

        super().__init__(in_dim, num_genes, num_classes, fusion, dim, attention_dim, joint_dim, 0.0, dropout)


METHOD = supervised(
    title="concat(ABMIL, SNN)",
    paper="baseline of Chen et al., ICCV 2021",
    needs=JOINT,
    settings=settings_of(ConcatMIL, train=recipe(epochs=20, lr=2e-4, accumulate=32)),
    network=lambda config, sizes: ConcatMIL(
        sizes.patch_dim, sizes.num_genes, sizes.outputs, **numbers_of(config.method)
    ),
    penalised=("genes",),
)
