"""GroupMSA, the gene encoder: attention inside groups of gene fragments, then across the groups (GiMP, section 2.1).

In here: the encoder and the choice of workable fragment numbers. Left out: gene selection and scaling (`GeneInput`),
and named gene sets, for which `gene_order` is the seam.

Shape suffixes: B batch, G genes, F fragments, S genes a fragment, R groups, T tokens a group, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fit_fragments(num_genes: int, num_fragments: int = 1008, num_groups: int = 24) -> tuple[int, int]:
    """The nearest (num_fragments, num_groups) at or below the wish that suits `num_genes`.

    The fragment size is what the wish implies, ceil(G / F); then no more fragments are kept than those genes fill,
    rounded up to a multiple of the groups. A panel smaller than the wish gets fragments of one gene, and no more groups
    than genes. The paper's 60,480 genes keep 1,008 fragments and 24 groups.

    Raises:
        ValueError: any number below 1.
    """
    if min(num_genes, num_fragments, num_groups) < 1:
        raise ValueError(f"must all be >= 1: {num_genes=} {num_fragments=} {num_groups=}")
    num_groups = min(num_groups, num_fragments, num_genes)
    size = -(-num_genes // num_fragments)
    filled = -(-num_genes // size)
    return -(-filled // num_groups) * num_groups, num_groups


class SelfAttentionBlock(nn.Module):
    """A vanilla pre-norm block, x + MSA(LN(x)), then x + FF(LN(x)), of which only the first token is computed.

    Every token is a key and a value. But the first token's output is all that GroupMSA takes from either of its blocks,
    so queries and feed-forward of the others would be computed for nothing. With one query, keys and values need not be
    made either: q . (W_k x) = (W_k^T q) . x, and sum_t a_t W_v x_t = W_v sum_t a_t x_t. The function is the same; a
    token costs 2 H D multiplications in place of 2 D^2. (A key bias adds the same to every score, so there is none.)
    """

    def __init__(self, dim: int, heads: int, ff_mult: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        hidden = int(dim * ff_mult)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> the block's output for the first token, (B, D)."""
        attended_BD = self._attend(self.attention_norm(x_BTD))
        first_BD = x_BTD[:, 0] + F.dropout(attended_BD, self.dropout, self.training)
        change_BD = self.feed_forward(self.feed_forward_norm(first_BD))
        return first_BD + F.dropout(change_BD, self.dropout, self.training)

    def _attend(self, x_BTD: Tensor) -> Tensor:
        B, _, D = x_BTD.shape
        width = D // self.heads
        q_BHK = self.to_q(x_BTD[:, 0]).view(B, self.heads, width) * width**-0.5
        q_BHD = torch.einsum("bhk,hkd->bhd", q_BHK, self.to_k.weight.view(self.heads, width, D))
        attention_BHT = (q_BHD @ x_BTD.transpose(1, 2)).softmax(dim=-1)
        mean_BHD = attention_BHT.to(x_BTD.dtype) @ x_BTD
        v_BHK = torch.einsum("bhd,hkd->bhk", mean_BHD, self.to_v.weight.view(self.heads, width, D))
        return self.to_out(v_BHK.reshape(B, D) + self.to_v.bias)


class GroupMSA(nn.Module):
    """Genes -> fragments -> groups -> CLS_ge (GiMP, section 2.1).

    1. The genes, in `gene_order`, are cut into F fragments of ceil(G / F) genes; zeros pad the tail. A panel of fewer
       genes than that fills leaves fragments of padding only; `fit_fragments` gives numbers that leave few.
    2. One linear projection, shared by all fragments, gives D-wide tokens; each fragment has a learned position.
    3. Each of the R groups of F / R fragments is joined by a learned group token: F / R + 1 tokens; one self-attention
       block runs inside every group, all groups in one batched call.
    4. CLS_ge is put in front of the R group tokens; one more block runs across them.
    5. LayerNorm of CLS_ge is the output.

    Args:
        num_genes: G, number of input values.
        dim: D.
        num_fragments: F, a multiple of `num_groups`.
        num_groups: R.
        heads: attention heads; must divide `dim`.
        ff_mult: width of the feed-forward layers over D.
        dropout: after each sub-layer and inside the feed-forward.
        gene_dropout: share of the input values dropped in training (inverted dropout), the strongest regulariser when
            genes are many and patients few.
        position_std: spread of the fragment positions at the start. As wide as the projected genes, not small: the
            projection is shared, so only its position tells the block which genes a token holds, and next to a small
            position LayerNorm would divide the level of expression out of the token.
        gene_order: (G,) int64 permutation: which gene stands at each place; None keeps the order given.

    Raises:
        ValueError: groups that do not divide the fragments, heads that do not divide the width, an order that is no
            permutation, a number below 1.
    """

    gene_order: Tensor | None

    def __init__(
        self,
        num_genes: int,
        dim: int = 512,
        num_fragments: int = 1008,
        num_groups: int = 24,
        heads: int = 8,
        ff_mult: float = 2.0,
        dropout: float = 0.1,
        gene_dropout: float = 0.3,
        position_std: float = 1.0,
        gene_order: Tensor | None = None,
    ) -> None:
        super().__init__()
        if min(num_genes, dim, num_fragments, num_groups, heads) < 1:
            raise ValueError(f"must all be >= 1: {num_genes=} {dim=} {num_fragments=} {num_groups=} {heads=}")
        if num_fragments % num_groups:
            fitted = fit_fragments(num_genes, num_fragments, num_groups)
            raise ValueError(
                f"num_fragments must be a multiple of num_groups: found {num_fragments} and {num_groups}; "
                f"fit_fragments suggests {fitted[0]} and {fitted[1]} for {num_genes} genes"
            )
        if dim % heads:
            raise ValueError(f"heads must divide dim: found {heads} heads and dim {dim}")
        if gene_order is not None and not torch.equal(gene_order.sort().values.cpu(), torch.arange(num_genes)):
            raise ValueError(f"gene_order must be a permutation of 0..{num_genes - 1}")
        self.num_genes, self.dim, self.num_fragments, self.num_groups = num_genes, dim, num_fragments, num_groups
        self.gene_dropout = gene_dropout
        self.fragment_size = -(-num_genes // num_fragments)
        self.tokens_per_group = num_fragments // num_groups + 1
        self.register_buffer("gene_order", gene_order)
        self.project = nn.Linear(self.fragment_size, dim)
        self.position_FD = nn.Parameter(torch.randn(num_fragments, dim) * position_std)
        self.group_token_RD = nn.Parameter(torch.randn(num_groups, dim) * 0.02)
        self.cls_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.intra = SelfAttentionBlock(dim, heads, ff_mult, dropout)
        self.inter = SelfAttentionBlock(dim, heads, ff_mult, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BG: Tensor) -> Tensor:
        """(B, G) scaled expression -> CLS_ge (B, D).

        Raises:
            ValueError: another number of genes than the encoder was built for.
        """
        if x_BG.shape[-1] != self.num_genes:
            raise ValueError(f"{x_BG.shape[-1]} genes given, the encoder was built for {self.num_genes}")
        group_BRD = self._inside_groups(self._fragment_tokens(x_BG))
        cls_B1D = self.cls_token.to(group_BRD.dtype).expand(x_BG.shape[0], 1, -1)
        return self.norm(self.inter(torch.cat([cls_B1D, group_BRD], dim=1)))

    def _fragment_tokens(self, x_BG: Tensor) -> Tensor:
        """(B, G) -> (B, F, D)."""
        if self.gene_order is not None:
            x_BG = x_BG[:, self.gene_order]
        x_BG = F.dropout(x_BG, self.gene_dropout, self.training)
        x_BG = F.pad(x_BG, (0, self.num_fragments * self.fragment_size - self.num_genes))
        return self.project(x_BG.view(-1, self.num_fragments, self.fragment_size)) + self.position_FD

    def _inside_groups(self, x_BFD: Tensor) -> Tensor:
        """(B, F, D) -> group tokens (B, R, D)."""
        B, R, D = x_BFD.shape[0], self.num_groups, self.dim
        group_BR1D = self.group_token_RD.to(x_BFD.dtype)[None, :, None].expand(B, R, 1, D)
        x_BRTD = torch.cat([group_BR1D, x_BFD.view(B, R, -1, D)], dim=2)
        return self.intra(x_BRTD.view(B * R, self.tokens_per_group, D)).view(B, R, D)
