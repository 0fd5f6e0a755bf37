"""GroupMSA's gene groups as tokens, for objectives that compare genes with patches piece by piece.

GroupMSA (GiMP, section 2.1) computes CLS_ge alone of its last block, since no other output is read. Objectives written
for reports want the words too. Here the same weights compute the whole block: R group tokens that know of each other,
and how much CLS_ge looked at each. CLS_ge is the one of `GroupMSA`, to rounding.

Left out: what is predicted of a group (`gene_targets`), and heads (`projections`).

Shape suffixes: B batch, G genes, R groups, N = 1 + R tokens, D width, H heads, K width of a head.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gimp_ray.models.gene_encoder import GeneEncoder
from gimp_ray.models.group_msa import GroupMSA


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
