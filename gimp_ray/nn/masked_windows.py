"""A window with masked patches through an aggregator, without the work that masking makes the same (section 2.3).

The function is that of `PatchAggregator.forward`; results agree to rounding. It computes less, because

- every masked patch enters the first layer as the one mask token, and there is no position encoding: in that layer they
  have one query, one key, one value and, but for the value convolution, one output. What a window holds there is CLS,
  the visible patches, and one masked token that counts as many times as it stands in the window;
- masked patches are not projected, since the mask token takes their place;
- only the masked patches are reconstructed: the last layer computes CLS and them, and keys and values of all.

Bags with padding, and those so long that they go through in pieces, take the direct path.

Shape suffixes: B batch, L patches, V visible patches, M masked patches, N tokens (1 + L), C tokens of the compact
window (CLS, visible patches, masked token), D hidden width, H heads, K width of a head, S landmarks, F any width.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gimp_ray.nn.attention import NystromAttention, joined, segment_means, take_rows


class Places(NamedTuple):
    """Where the tokens of a masked window stand. Indices are of rows in tensors flattened over the batch."""

    visible: Tensor  # (B * V,) of the patches (B * L), in the order of the window
    compact: Tensor  # (B * N,) for each token, its place in the compact windows (B * C)
    seen: Tensor  # (B * (V + 1),) of the tokens (B * N): CLS and the visible patches
    masked: Tensor  # (B * M,) of the tokens (B * N), in the order given
    rows: Tensor  # (B * (M + 1),) of the tokens (B * N): CLS, then the masked patches in the order given


def places_of(masked_BM: Tensor, length: int) -> Places:
    """Places from the masked positions, distinct in each window."""
    B, M = masked_BM.shape
    V, N, C = length - M, length + 1, length - M + 2
    device = masked_BM.device
    is_masked_BL = torch.zeros(B, length, dtype=torch.uint8, device=device).scatter_(1, masked_BM, 1)
    visible_BV = torch.argsort(is_masked_BL, dim=1, stable=True)[:, :V]
    window_B1 = torch.arange(B, device=device)[:, None]
    compact_BN = torch.full((B, N), C - 1, device=device)
    compact_BN[:, 0] = 0
    compact_BN.scatter_(1, visible_BV + 1, torch.arange(1, V + 1, device=device).expand(B, V))
    cls_B1 = torch.zeros_like(window_B1)

    def flat(places_Bn: Tensor, of: int) -> Tensor:
        return (places_Bn + window_B1 * of).reshape(-1)

    return Places(
        flat(visible_BV, length),
        flat(compact_BN, C),
        flat(torch.cat([cls_B1, visible_BV + 1], dim=1), N),
        flat(masked_BM + 1, N),
        flat(torch.cat([cls_B1, masked_BM + 1], dim=1), N),
    )


class _Spread(torch.autograd.Function):
    """(B, C, F) -> (B, N, F). Its gradient sums the masked token's rows in a fixed order, on a GPU too."""

    @staticmethod
    def forward(ctx: Any, x_BCF: Tensor, compact: Tensor, seen: Tensor, masked: Tensor) -> Tensor:
        ctx.save_for_backward(seen, masked)
        return take_rows(x_BCF, compact)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNF: Tensor) -> tuple[Tensor | None, ...]:
        seen, masked = ctx.saved_tensors
        at_masked_B1F = take_rows(grad_BNF, masked).sum(dim=1, keepdim=True)
        return torch.cat([take_rows(grad_BNF, seen), at_masked_B1F], dim=1), None, None, None


def spread(x_BCF: Tensor, places: Places) -> Tensor:
    """The whole window (B, N, F) of a compact one (B, C, F)."""
    out: Tensor = _Spread.apply(x_BCF, places.compact, places.seen, places.masked)
    return out


def first_layer(norm: nn.Module, attention: NystromAttention, x_BCD: Tensor, places: Places) -> Tensor:
    """x + attention(norm(x)) of every token of the window (B, N, D), from the compact window before the layer."""
    h_BCD = norm(x_BCD)
    q_BHCK, k_BHCK, v_BHCK = attention.heads_of(attention.to_qkv(h_BCD), parts=3)
    mean_BSD = segment_means(spread(h_BCD, places), attention.num_landmarks)
    q_land_BHSK, k_land_BHSK = attention.landmarks(mean_BSD, attention.to_qkv.weight)
    summary_BHSK = _summary(q_land_BHSK, k_BHCK, v_BHCK, places)
    w_BHSK = attention.invert(q_land_BHSK, k_land_BHSK, summary_BHSK, None)
    out_BHCK = F.scaled_dot_product_attention(q_BHCK, k_land_BHSK, w_BHSK)
    out_BHNK = _whole(out_BHCK, places)
    if attention.res_conv is not None:
        out_BHNK = out_BHNK + attention.res_conv(_whole(v_BHCK, places))
    return spread(x_BCD, places) + attention.to_out(joined(out_BHNK))


def last_layer(norm: nn.Module, attention: NystromAttention, x_BND: Tensor, places: Places) -> Tensor:
    """x + attention(norm(x)) of CLS and the masked patches alone, (B, 1 + M, D)."""
    return take_rows(x_BND, places.rows) + attention(norm(x_BND), rows=places.rows)


def _summary(q_land_BHSK: Tensor, k_BHCK: Tensor, v_BHCK: Tensor, places: Places) -> Tensor:
    """The landmarks' attention over the window's tokens, where the masked one counts as often as it stands there."""
    if q_land_BHSK.dtype not in (torch.float32, torch.float64):
        # the logarithm of a count is coarse in half precision, and without a bias flash kernels are there
        return F.scaled_dot_product_attention(q_land_BHSK, _whole(k_BHCK, places), _whole(v_BHCK, places))
    bias_C = torch.zeros(k_BHCK.shape[2], dtype=q_land_BHSK.dtype, device=q_land_BHSK.device)
    bias_C[-1] = math.log(len(places.masked) // len(k_BHCK))
    return F.scaled_dot_product_attention(q_land_BHSK, k_BHCK, v_BHCK, attn_mask=bias_C[None, None, None])


def _whole(x_BHCK: Tensor, places: Places) -> Tensor:
    """`spread` of what is split into heads: (B, H, C, K) -> (B, H, N, K)."""
    _, H, _, K = x_BHCK.shape
    return spread(joined(x_BHCK), places).unflatten(-1, (H, K)).transpose(1, 2)
