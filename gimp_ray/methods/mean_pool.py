"""Mean-pooled patches under an MLP: the simplest whole-slide classifier, beside which every bag model must be read.

    z = mean_n x_n,    logits = MLP(z)

SiMLP (arXiv 2502.20823, 2025) reports that this beats attention models on a pan-cancer task when the patch encoder is
strong. Adapted: the hidden width (512) and dropout (0.25) are this project's choice, those of ABMIL, and the MLP is
the project's `MLPHead` (GELU). The row "mean-pooled patches" of the evaluation is another thing: fitted by scikit-learn
without epochs.

Shape suffixes: B batch, N patches, E patch embedding width, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gimp_ray.methods.base import IMAGE, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.aggregator import MLPHead
from gimp_ray.nn.pooling import BagOutput, read_bag


class MeanPoolMLP(nn.Module):
    """Mean over the real patches, then an MLP.

    Args:
        in_dim: E, width of the patch embeddings.
        num_classes: C.
        hidden, dropout: of the `MLPHead`; hidden=() is a linear classifier.
    """

    def __init__(self, in_dim: int, num_classes: int, hidden: Sequence[int] = (512,), dropout: float = 0.25) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.head = MLPHead(in_dim, num_classes, hidden, dropout)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None) -> BagOutput:
        """Classify bags; the loss is cross-entropy of `logits`.

        Args:
            patches_BNE: (B, N, E), any float type. The mean is taken in at least float32.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.

        Returns:
            `BagOutput`: logits (B, C), bag (B, E), the mean, zeros without real patches; no attention.

        Raises:
            ValueError: not (B, N >= 1, E), another width, a mask of another shape or type.
        """
        x_BNE = read_bag(patches_BNE, valid_BN, self.in_dim, next(self.head.parameters()))
        dtype = torch.promote_types(x_BNE.dtype, torch.float32)
        if valid_BN is None:
            bag_BE = x_BNE.mean(dim=1, dtype=dtype)
        else:
            bag_BE = x_BNE.sum(dim=1, dtype=dtype) / valid_BN.sum(dim=1).clamp_min(1)[:, None]
        return BagOutput(self.head(bag_BE), bag_BE, None)


METHOD = supervised(
    title="Mean pool + MLP",
    paper="SiMLP, arXiv 2502.20823",
    needs=IMAGE,
    settings=settings_of(MeanPoolMLP, train=recipe(epochs=50, lr=1e-4)),
    network=lambda config, sizes: MeanPoolMLP(sizes.patch_dim, sizes.outputs, **numbers_of(config.method)),
)
