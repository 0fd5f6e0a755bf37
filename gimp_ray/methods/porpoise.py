"""PORPOISE (MMF): attention pooling of the patches, an SNN of the genes, gated Kronecker product fusion.

Chen et al., "Pan-cancer integrative histology-genomic analysis via multimodal deep learning", Cancer Cell 2022:

    logits = W_c BilinearFusion(p, g),   p and g as in `AttentionFusion`

Training there: Adam, lr 2e-4, weight decay 1e-5, gradients of 32 bags added up, 20 epochs, L1 1e-5 on the weights.

Adapted:

- C logits under cross-entropy replace the survival head (4 time bins); with 4 logits and `discrete_time_nll` it is that
  head again.
- Gates and skip are on. The authors' classes have them on and their command line off, and no published command says
  which was run.
- Batches of bags with a mask in place of one bag a step.

The L1 penalty is `method.l1`.
"""

from gimp_ray.methods.base import JOINT, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.fusion import AttentionFusion, BilinearFusion


class Porpoise(AttentionFusion):
    """Images and genes, each to a vector of `joint_dim`, fused by `BilinearFusion`, classified by one linear layer.

    Args:
        in_dim, num_genes, num_classes, dim, attention_dim, joint_dim: see `AttentionFusion`.
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
        def fusion() -> BilinearFusion:
            widths = (joint_dim, joint_dim, reduced, joint_dim)
            return BilinearFusion(*widths, "linear", gates, gates, "inputs" if skip else None, dropout)

        super().__init__(in_dim, num_genes, num_classes, fusion, dim, attention_dim, joint_dim, input_dropout, dropout)


METHOD = supervised(
    title="PORPOISE",
    paper="Chen et al., Cancer Cell 2022",
    needs=JOINT,
    settings=settings_of(Porpoise, l1=1e-5, train=recipe(epochs=20, lr=2e-4, accumulate=32)),
    network=lambda config, sizes: Porpoise(
        sizes.patch_dim, sizes.num_genes, sizes.outputs, **numbers_of(config.method)
    ),
    penalised=("genes", "fusion"),
)
