"""MCAT: gene groups ask the patches (gene-guided co-attention), then a transformer and a pooling for each modality.

Chen et al., "Multimodal co-attention transformer for survival prediction in gigapixel whole slide images", ICCV 2021:

    g_t   = SNN_t(genes of group t),  t = 1..T                           (2 blocks each, 256 wide)
    h_n   = dropout(ReLU(W x_n))
    A     = softmax_n(W_q g_t . W_k h_n / sqrt(d)),   v_t = W_o sum_n A_tn W_v h_n     (one head)
    z     = dropout(ReLU(W_z pool(transformer(tokens)))), for (v_1..v_T) and for (g_1..g_T)
    logits = W_c ReLU(W_2 ReLU(W_1 [z_v; z_g])), or of their bilinear fusion

The transformer has 2 post-norm layers, 8 heads, feed-forward 512, ReLU, dropout 0.25; the pooling is gated attention.
Training there: Adam, lr 2e-4, weight decay 1e-5, gradients of 32 bags added up, 20 epochs.

Adapted:

- The paper's groups are 6 families of genes (tumour suppressors, oncogenes, protein kinases, differentiation markers,
  transcription factors, cytokines and growth factors). Here any groups are given as lists of places, each gene in any
  number of them; with MSigDB's 50 Hallmark sets the row is to be named "MCAT-Hallmark".
- One padded linear map over all groups replaces a loop over six inputs; a group's weights start as if it were alone.
- C logits under cross-entropy replace the 4 time bins; with 4 logits and `discrete_time_nll` it is that head again.
- Batches of bags with a mask in place of one bag a step.

Left out: reading gene sets, which is the cohort's.

Shape suffixes: B batch, N patches, E patch embedding width, G genes, T groups, S genes of the largest group, D hidden
width, C classes.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from gimp_ray.methods.base import JOINT, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.fusion import BilinearFusion, ConcatFusion
from gimp_ray.nn.pooling import AttentionPool, masked_softmax, read_bag

Fusion = Literal["concat", "bilinear"]


class MCATOutput(NamedTuple):
    """The answer and which patches which gene group looked at."""

    logits: Tensor  # (B, C)
    bag: Tensor  # (B, D), the fused vector
    attention: Tensor  # (B, N), mean of `coattention` over the groups
    coattention: Tensor  # (B, T, N), each row sums to 1 over real patches, 0 at padding


class GroupedSNN(nn.Module):
    """One SNN of two blocks a gene group, all in one call: (B, G) -> (B, T, D).

    Args:
        num_genes: G.
        groups: for each group the places of its genes, 0 to G - 1, each once in a group.
        dim: D.
        dropout: of AlphaDropout, after each block.

    Raises:
        ValueError: no groups, an empty group, a place out of range or twice in a group.
    """

    places: Tensor
    filled: Tensor

    def __init__(self, num_genes: int, groups: Sequence[Sequence[int]], dim: int = 256, dropout: float = 0.25) -> None:
        super().__init__()
        sizes = [len(group) for group in groups]
        if not sizes or min(sizes) == 0:
            raise ValueError(f"gene groups must be there and hold genes: found groups of {sizes} genes")
        for number, group in enumerate(groups):
            if len(set(group)) != len(group) or min(group) < 0 or max(group) >= num_genes:
                raise ValueError(f"group {number} must hold places 0 to {num_genes - 1}, each once")
        self.num_genes = num_genes
        places_TS = torch.zeros(len(groups), max(sizes), dtype=torch.int64)
        filled_TS = torch.zeros(len(groups), max(sizes), dtype=torch.bool)
        for number, group in enumerate(groups):
            places_TS[number, : len(group)] = torch.tensor(list(group))
            filled_TS[number, : len(group)] = True
        self.register_buffer("places", places_TS)
        self.register_buffer("filled", filled_TS)
        first_TSD = torch.randn(*places_TS.shape, dim) * torch.tensor(sizes)[:, None, None] ** -0.5
        self.first_TSD = nn.Parameter(first_TSD.masked_fill(~filled_TS[..., None], 0.0))
        self.first_bias_TD = nn.Parameter(torch.zeros(len(groups), dim))
        self.second_TDD = nn.Parameter(torch.randn(len(groups), dim, dim) * dim**-0.5)
        self.second_bias_TD = nn.Parameter(torch.zeros(len(groups), dim))
        self.after = nn.Sequential(nn.ELU(), nn.AlphaDropout(dropout))

    def forward(self, x_BG: Tensor) -> Tensor:
        """(B, G) scaled expression -> one token a group (B, T, D).

        Raises:
            ValueError: another number of genes than the network was built for.
        """
        if x_BG.ndim != 2 or x_BG.shape[1] != self.num_genes:
            raise ValueError(f"genes must be (B, {self.num_genes}): found {tuple(x_BG.shape)}")
        x_BTS = x_BG[:, self.places].masked_fill(~self.filled, 0.0)
        x_BTD = self.after(torch.einsum("bts,tsd->btd", x_BTS, self.first_TSD) + self.first_bias_TD)
        out_BTD: Tensor = self.after(torch.einsum("btd,tde->bte", x_BTD, self.second_TDD) + self.second_bias_TD)
        return out_BTD


class CoAttention(nn.Module):
    """Single-head attention of gene tokens over patches: (B, T, D), (B, N, D) -> (B, T, D) and weights (B, T, N)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim, bias=False)  # a key bias adds the same to every score of a query
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, tokens_BTD: Tensor, x_BND: Tensor, valid_BN: Tensor | None) -> tuple[Tensor, Tensor]:
        q_BTD = self.to_q(tokens_BTD) * x_BND.shape[-1] ** -0.5
        attention_BTN = masked_softmax(q_BTD @ self.to_k(x_BND).transpose(1, 2), valid_BN)
        v_BND = self.to_v(x_BND)
        return self.to_out(attention_BTN.to(v_BND.dtype) @ v_BND), attention_BTN


class _SetEncoder(nn.Module):
    """T tokens -> one vector: transformer, gated attention pooling, Linear, ReLU, dropout."""

    def __init__(self, dim: int, heads: int, ff_dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        # layers of their own: nn.TransformerEncoder copies one layer, initial weights included
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(dim, heads, ff_dim, dropout, "relu", batch_first=True) for _ in range(layers))
        )
        self.pool = AttentionPool(dim, dim, dropout=dropout)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x_BTD: Tensor) -> Tensor:
        pooled_BKD, _, _ = self.pool(self.layers(x_BTD))
        out_BD: Tensor = self.out(pooled_BKD[:, 0])
        return out_BD


class MCAT(nn.Module):
    """Gene groups and patches by co-attention, classified by a two-layer head.

    Args:
        in_dim: E, width of the patch embeddings.
        num_genes: G.
        groups: see `GroupedSNN`.
        num_classes: C.
        dim: D.
        heads, ff_dim, layers: of both transformers.
        fusion: "concat", or "bilinear": `BilinearFusion` with gates and skip.
        dropout: everywhere.

    Raises:
        ValueError: groups that cannot be (`GroupedSNN`), heads that do not divide the width, an unknown fusion.
    """

    def __init__(
        self,
        in_dim: int,
        num_genes: int,
        groups: Sequence[Sequence[int]],
        num_classes: int,
        dim: int = 256,
        heads: int = 8,
        ff_dim: int = 512,
        layers: int = 2,
        fusion: Fusion = "concat",
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim: found {heads} heads and dim {dim}")
        if fusion not in get_args(Fusion):
            raise ValueError(f"fusion must be 'concat' or 'bilinear': found {fusion!r}")
        self.in_dim = in_dim
        self.project = nn.Linear(in_dim, dim)
        self.after_project = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        self.genes = GroupedSNN(num_genes, groups, dim, dropout)
        self.coattention = CoAttention(dim)
        self.encode_image = _SetEncoder(dim, heads, ff_dim, layers, dropout)
        self.encode_genes = _SetEncoder(dim, heads, ff_dim, layers, dropout)
        self.fusion: nn.Module = ConcatFusion(dim, dim, dim)
        if fusion == "bilinear":
            self.fusion = BilinearFusion(dim, dim, max(dim // 8, 1), dim, dropout=dropout)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None, *, genes_BG: Tensor) -> MCATOutput:
        """Classify patients; the loss is cross-entropy of `logits`.

        Args:
            patches_BNE: (B, N, E), any float type.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.
            genes_BG: (B, G) scaled expression.

        Raises:
            ValueError: see `read_bag`, `GroupedSNN`; another number of patients in the genes than in the patches.
        """
        x_BNE = read_bag(patches_BNE, valid_BN, self.in_dim, self.project.weight)
        genes_BTD = self.genes(genes_BG)
        if len(genes_BTD) != len(x_BNE):
            raise ValueError(f"{len(x_BNE)} patients in the patches, {len(genes_BTD)} in the genes")
        x_BND = self.after_project(self.project(x_BNE))
        image_BTD, coattention_BTN = self.coattention(genes_BTD, x_BND, valid_BN)
        fused_BD = self.fusion(self.encode_image(image_BTD), self.encode_genes(genes_BTD))
        return MCATOutput(self.classify(fused_BD), fused_BD, coattention_BTN.mean(dim=1), coattention_BTN)


METHOD = supervised(
    title="MCAT",
    paper="Chen et al., ICCV 2021",
    needs=JOINT,
    settings=settings_of(MCAT, train=recipe(epochs=20, lr=2e-4, accumulate=32)),
    network=lambda config, sizes: MCAT(
        sizes.patch_dim, sizes.num_genes, sizes.sets.groups, sizes.outputs, **numbers_of(config.method)
    ),
    sets=True,
    fragments=lambda config: 1,
    penalised=("genes",),
)
