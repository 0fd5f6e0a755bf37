"""Gene encoders: GroupMSA (GiMP, section 2.1) with its groups as tokens, and the self-normalising network.

GroupMSA attends inside groups of gene fragments, then across the groups, and computes CLS_ge alone of its last block,
since no other output is read. Methods that compare genes with patches piece by piece read the groups too: the same
weights compute the whole block (`across_groups`), R group tokens and how much CLS_ge attended to each.

`GroupTargets` is what is predicted of a group: its mean expression, standardised, or its quantile bin. It is fitted on
training cases alone and kept in buffers, so a checkpoint carries it.

Shape suffixes: B batch, n training cases, G genes, F fragments, S genes a fragment, R groups, T tokens a group,
N = 1 + R tokens, D width, H heads, K width of a head or bins.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gimp_ray.nn.aggregator import KeepsFrozen
from gimp_ray.nn.gene_input import GeneInput


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


class SNN(nn.Module):
    """Blocks of Linear -> ELU -> AlphaDropout through `hidden`, the last one `dim` wide (Klambauer et al. 2017).

    Args:
        num_genes: G.
        dim: width of the output.
        hidden: widths of the blocks before it.
        dropout: of AlphaDropout.
    """

    def __init__(
        self, num_genes: int, dim: int = 512, hidden: Sequence[int] = (256, 256), dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.num_genes, self.dim = num_genes, dim
        widths = [num_genes, *hidden, dim]
        blocks: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.normal_(linear.weight, std=fan_in**-0.5)
            nn.init.zeros_(linear.bias)
            blocks += [linear, nn.ELU(), nn.AlphaDropout(dropout)]
        self.blocks = nn.Sequential(*blocks)

    @classmethod
    def of_widths(cls, num_genes: int, widths: Sequence[int], dropout: float = 0.25) -> Self:
        """Blocks of these widths; the last is `dim`.

        Raises:
            ValueError: no width.
        """
        if not widths:
            raise ValueError("an SNN needs at least one width")
        return cls(num_genes, widths[-1], widths[:-1], dropout)

    def forward(self, x_BG: Tensor) -> Tensor:
        """(B, G) -> (B, dim).

        Raises:
            ValueError: another number of genes than the network was built for.
        """
        if x_BG.shape[-1] != self.num_genes:
            raise ValueError(f"{x_BG.shape[-1]} genes given, the network was built for {self.num_genes}")
        return self.blocks(x_BG)


def gene_network(kind: str, num_genes: int, dim: int, numbers: Any, sets: Any = None) -> nn.Module:
    """GroupMSA, or an SNN of two layers of its width, over scaled expression.

    Args:
        kind: `group_msa` or `snn`.
        num_genes: G.
        dim: width of CLS_ge.
        numbers: has `fragments`, `groups`, `heads`, `ff_mult`, `dropout` and `gene_dropout`. The most heads up to these
            are used that divide `dim`.
        sets: gene sets, which then are the groups; they have `names` and `fragments`.
    """
    if kind == "snn":
        return SNN(num_genes, dim, dropout=numbers.dropout)
    wished = (numbers.fragments, numbers.groups) if sets is None else (sets.fragments, len(sets.names))
    fragments, groups = fit_fragments(num_genes, *wished)
    return GroupMSA(
        num_genes,
        dim,
        fragments,
        groups,
        heads=dividing_heads(dim, numbers.heads),
        ff_mult=numbers.ff_mult,
        dropout=numbers.dropout,
        gene_dropout=numbers.gene_dropout,
    )


def dividing_heads(dim: int, wished: int) -> int:
    """The most heads, up to the wish, that divide the width: a small `model.dim` then needs no second setting."""
    return next(heads for heads in range(min(wished, dim), 0, -1) if dim % heads == 0)


class GeneEncoder(KeepsFrozen):
    """raw expression (B, all genes) -> `GeneInput` -> `net` -> CLS_ge (B, D).

    Args:
        gene_input: fitted selection and scaling.
        net: `GroupMSA`, `SNN`, or any module (B, kept genes) -> (B, D).
    """

    def __init__(self, gene_input: GeneInput, net: nn.Module) -> None:
        super().__init__()
        self.input = gene_input
        self.net = net

    def forward(self, raw_BG: Tensor) -> Tensor:
        """(B, all genes) -> (B, D)."""
        return self.net(self.input(raw_BG))


class GeneTokens(NamedTuple):
    """A patient's genes as one vector and as R."""

    cls: Tensor  # (B, D), CLS_ge
    tokens: Tensor  # (B, R, D), one a group, under the same LayerNorm as CLS_ge
    attention: Tensor  # (B, R), CLS_ge's attention to each group, mean over heads; the rest of 1 is on itself


def grouped_net(encoder: GeneEncoder) -> GroupMSA:
    """The network of an encoder.

    Raises:
        ValueError: it is not a `GroupMSA`, so it has no groups.
    """
    if not isinstance(encoder.net, GroupMSA):
        raise ValueError(f"gene tokens need a GroupMSA: found {type(encoder.net).__name__}")
    return encoder.net


def group_tokens(net: GroupMSA, x_BG: Tensor) -> Tensor:
    """(B, G) scaled expression -> (B, R, D) tokens, each of its own group's genes alone.

    Raises:
        ValueError: another number of genes than the encoder was built for.
    """
    if x_BG.ndim != 2 or x_BG.shape[1] != net.num_genes:
        raise ValueError(f"genes must be (B, {net.num_genes}): found {tuple(x_BG.shape)}")
    return net._inside_groups(net._fragment_tokens(x_BG))


def across_groups(net: GroupMSA, group_BRD: Tensor, seen_BR: Tensor | None = None) -> GeneTokens:
    """The block across groups, of which every token is computed.

    Args:
        net: whose block.
        group_BRD: (B, R, D) of `group_tokens`, some perhaps replaced by a mask token.
        seen_BR: (B, R) bool, groups that may be attended to; None = all. CLS_ge always may. The tokens of the others
            are computed, and nothing depends on what stands in them but themselves.
    """
    block = net.inter
    cls_B1D = net.cls_token.to(group_BRD.dtype).expand(len(group_BRD), 1, -1)
    x_BND = torch.cat([cls_B1D, group_BRD], dim=1)
    B, N, D = x_BND.shape
    h_BND = block.attention_norm(x_BND)

    def heads(x: Tensor) -> Tensor:
        return x.view(B, N, block.heads, D // block.heads).transpose(1, 2)

    q_BHNK, k_BHNK, v_BHNK = heads(block.to_q(h_BND)), heads(block.to_k(h_BND)), heads(block.to_v(h_BND))
    scores_BHNN = (q_BHNK * (D // block.heads) ** -0.5) @ k_BHNK.transpose(2, 3)
    if seen_BR is not None:
        hidden_BN = ~torch.cat([seen_BR.new_ones(B, 1), seen_BR], dim=1)
        scores_BHNN = scores_BHNN.masked_fill(hidden_BN[:, None, None], torch.finfo(scores_BHNN.dtype).min)
    attention_BHNN = scores_BHNN.softmax(dim=-1)
    attended_BND = block.to_out((attention_BHNN.to(v_BHNK.dtype) @ v_BHNK).transpose(1, 2).flatten(2))
    x_BND = x_BND + F.dropout(attended_BND, block.dropout, block.training)
    change_BND = block.feed_forward(block.feed_forward_norm(x_BND))
    x_BND = net.norm(x_BND + F.dropout(change_BND, block.dropout, block.training))
    return GeneTokens(x_BND[:, 0], x_BND[:, 1:], attention_BHNN[:, :, 0, 1:].mean(dim=1))


def group_means(net: GroupMSA, x_BG: Tensor) -> Tensor:
    """(B, G) scaled expression -> (B, R) mean over the genes of each group, without its padding; 0 of an empty group.

    Raises:
        ValueError: another number of genes than the encoder was built for.
    """
    if x_BG.ndim != 2 or x_BG.shape[1] != net.num_genes:
        raise ValueError(f"genes must be (B, {net.num_genes}): found {tuple(x_BG.shape)}")
    if net.gene_order is not None:
        x_BG = x_BG[:, net.gene_order]
    a_group = net.num_fragments * net.fragment_size // net.num_groups
    x_BG = F.pad(x_BG, (0, net.num_groups * a_group - net.num_genes))
    first_R = torch.arange(net.num_groups, device=x_BG.device) * a_group
    count_R = (net.num_genes - first_R).clamp(0, a_group)
    return x_BG.view(-1, net.num_groups, a_group).sum(dim=2) / count_R.clamp_min(1)


class GroupTargets(nn.Module):
    """Buffers `mean` and `std` (R,), and `edges` (R, K - 1), the inner edges of K bins. Build it with `fit`.

    Args:
        num_groups: R.
        bins: K.

    Raises:
        ValueError: no groups, or fewer than 2 bins.
    """

    mean: Tensor
    std: Tensor
    edges: Tensor

    def __init__(self, num_groups: int, bins: int = 16) -> None:
        super().__init__()
        if num_groups < 1 or bins < 2:
            raise ValueError(f"there must be a group and 2 bins at least: {num_groups=} {bins=}")
        self.num_groups, self.bins = num_groups, bins
        self.register_buffer("mean", torch.zeros(num_groups))
        self.register_buffer("std", torch.ones(num_groups))
        self.register_buffer("edges", torch.zeros(num_groups, bins - 1))

    @classmethod
    def fit(cls, means_nR: Tensor, bins: int = 16) -> Self:
        """Fit on the group means of training cases: bins of equal counts.

        Raises:
            ValueError: no cases, not (n, R), values that are not finite, fewer than 2 bins.
        """
        if means_nR.ndim != 2 or len(means_nR) == 0 or not bool(torch.isfinite(means_nR).all()):
            raise ValueError(f"group means must be (cases, groups) and finite: found {tuple(means_nR.shape)}")
        values_nR = means_nR.detach().cpu().double()
        fitted = cls(values_nR.shape[1], bins)
        std_R = values_nR.std(dim=0, correction=0)
        fitted.mean.copy_(values_nR.mean(dim=0))
        fitted.std.copy_(std_R.masked_fill(std_R < 1e-9, 1.0))  # a constant group is 0 for all
        inner_K = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
        fitted.edges.copy_(values_nR.quantile(inner_K, dim=0).T)
        return fitted

    def standardised(self, means_BR: Tensor) -> Tensor:
        """(B, R) group means -> (B, R) with mean 0 and deviation 1 over the training cases."""
        return (means_BR - self.mean) / self.std

    def bin(self, means_BR: Tensor) -> Tensor:
        """(B, R) group means -> (B, R) int64 bins, 0 to K - 1. A value on an edge is in the higher bin."""
        return torch.searchsorted(self.edges, means_BR.to(self.edges.dtype).T.contiguous(), right=True).T.contiguous()
