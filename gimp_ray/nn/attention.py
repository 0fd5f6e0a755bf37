"""Nystrom self-attention whose result for one sample does not depend on its neighbours in the batch.

Attention maps are not returned, there is no attention dropout (TransMIL has none; `dropout` is on the output) and no
position encoding but the value convolution. Below it: a slide's patch sequence as regions and as views.

Where this differs from the package `nystrom-attention` (one sample without padding, `pinv_scale="batch"`: it does not):

- The first guess of the pseudo-inverse is scaled by each matrix's own norms, not by a maximum over batch and heads.
- The product is associated as attn1 @ (pinv @ (attn3 @ v)): two scaled-dot-product attentions, no N x M matrix kept.
- Landmarks are means over real tokens alone. The package pads in front with zeros, and counts and attends to them
  unless told otherwise. Its segments are kept (length ceil(n / M), the incomplete one first), but n is each sample's
  own number of real tokens, so the amount of padding never moves a token into another segment.
- A landmark without tokens has zero rows and columns, so the others have the pseudo-inverse they would have without it.

Shape suffixes: B batch, N tokens or patches of the largest view, D width, H heads, K width of a head, M landmarks,
S token slots of a landmark or regions, L patches, E patch embedding width, V views.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PinvScale = Literal["matrix", "batch"]


def pinv_product(x: Tensor, y: Tensor, iterations: int = 6, scale: PinvScale = "matrix") -> Tensor:
    """pinv(x) @ y by the third-order Newton-Schulz iteration (Nystromformer, Xiong et al. 2021, Eq. 11).

    Eq. 11 is z' = z P(x z) / 4, with P(a) = 13 - 15 a + 7 a^2 - a^3, from z = x^T / bound. So all a_k = z_k x are
    polynomials of x^T x and commute: a_k alone need be iterated, with two products of matrices in place of four, and
    z_k @ y is z_0 @ y times every P(a_k) / 4, products with the narrow y. The last a is not made at all.

    Args:
        x: (..., M, M), non-negative rows that sum to at most 1. Rows and columns of zeros stay zeros.
        y: (..., M, K).
        iterations: number of refinements; 6 is the published choice.
        scale: "matrix" bounds the first guess by each matrix's own norms; "batch" by the largest over all matrices
            given, which is what the package does and couples samples: for comparison with it only.

    Returns:
        (..., M, K).
    """
    row_sums, column_sums = x.sum(dim=-1), x.sum(dim=-2)
    if scale == "matrix":
        bound = row_sums.amax(dim=-1) * column_sums.amax(dim=-1)
        bound = bound[..., None, None]
    else:
        bound = row_sums.max() * column_sums.max()
    z = x.transpose(-1, -2) / bound.clamp_min(1e-6)  # only a matrix of zeros reaches the clamp
    a, zy = (z @ other for other in (x, y))
    a, zy = a.reshape(-1, *a.shape[-2:]), zy.reshape(-1, *zy.shape[-2:])
    for left in range(iterations - 1, -1, -1):
        if left == 0:
            inner = torch.baddbmm(7 * zy, a, zy, alpha=-1)
            inner = torch.baddbmm(15 * zy, a, inner, alpha=-1)
            zy = torch.baddbmm(zy, a, inner, beta=3.25, alpha=-0.25)
            break
        aa = a @ a
        aazy = aa @ zy
        zy = torch.baddbmm(zy.add(aazy, alpha=7 / 13), a, aazy.add(zy, alpha=15), beta=3.25, alpha=-0.25)
        a = torch.baddbmm(a.add(aa, alpha=-15 / 13), aa, aa.add(a, alpha=-7), beta=3.25, alpha=-0.25)
    return zy.view_as(y)


def segment_means(x_BND: Tensor, num_landmarks: int) -> Tensor:
    """Means over contiguous segments of ceil(N / M) tokens, the incomplete segment first.

    Returns:
        (B, M', D) with M' <= num_landmarks: only landmarks that have tokens (M' = N when N <= num_landmarks).
    """
    N = x_BND.shape[1]
    length = -(-N // num_landmarks)
    # what lacks for whole segments is whole segments, which are not made at all, and the rest, of the first one
    first = N % length or length
    first_B1D = x_BND[:, :first].mean(dim=1, keepdim=True)
    others_BMD = x_BND[:, first:].unflatten(1, ((N - first) // length, length)).mean(dim=2)
    return torch.cat([first_B1D, others_BMD], dim=1)


def masked_segment_means(x_BND: Tensor, mask_BN: Tensor, num_landmarks: int) -> tuple[Tensor, Tensor]:
    """`segment_means` of each sample's real tokens, for any mask.

    Tokens are gathered by rank among the real ones, so each is read once and the sum is deterministic on a GPU too.

    Returns:
        means (B, M', D) with M' = min(num_landmarks, N), zeros where a landmark has no tokens;
        has_tokens (B, M') bool.
    """
    B, N, D = x_BND.shape
    M = min(num_landmarks, N)  # a sample of n <= M tokens has one landmark a token, whatever M is
    S = -(-N // M)
    count_B = mask_BN.sum(dim=1)
    length_B = (count_B + M - 1) // M
    missing_B = length_B * M - count_B
    slot_S = torch.arange(S, device=x_BND.device)
    landmark_M = torch.arange(M, device=x_BND.device)
    rank_BMS = landmark_M[:, None] * length_B[:, None, None] + slot_S - missing_B[:, None, None]
    real_BMS = (slot_S < length_B[:, None, None]) & (rank_BMS >= 0)
    position_BN = torch.argsort((~mask_BN).to(torch.uint8), dim=1, stable=True)  # real tokens first, in their order
    rank_BT = rank_BMS.clamp(0, N - 1).view(B, M * S)
    token_BT = position_BN.gather(1, rank_BT)
    x_BMSD = x_BND.gather(1, token_BT[..., None].expand(-1, -1, D)).view(B, M, S, D)
    sums_BMD = x_BMSD.masked_fill(~real_BMS[..., None], 0.0).sum(dim=2)
    counts_BM = real_BMS.sum(dim=2)
    return sums_BMD / counts_BM.clamp_min(1)[..., None], counts_BM > 0


def take_rows(x_BnF: Tensor, rows: Tensor) -> Tensor:
    """(B, R, F): rows of a tensor by their places (B * R,) in it flattened over the batch, R of every sample."""
    B, _, width = x_BnF.shape
    return x_BnF.reshape(-1, width).index_select(0, rows).view(B, -1, width)


def joined(x_BHnK: Tensor) -> Tensor:
    """(B, H, n, K) -> (B, n, H * K)."""
    return x_BHnK.transpose(1, 2).flatten(2)


class NystromAttention(nn.Module):
    """Nystrom multi-head self-attention with a depthwise convolution of the values (GiMP, section 2.2, Eq. 1-2).

    Parameter names and shapes are those of `nystrom_attention.NystromAttention`, so state dicts load both ways.

    Args:
        dim: token width D.
        heads, dim_head: number of heads and width of each.
        num_landmarks: M, the landmarks a sequence is summarised by. A shorter sequence has one a token.
        pinv_iterations: refinements of the pseudo-inverse.
        residual_kernel: length of the depthwise value convolution, odd; 0 leaves it out.
        dropout: on the output.
        pinv_scale: see `pinv_product`; leave it.

    Raises:
        ValueError: a size below 1, an even `residual_kernel`, an unknown `pinv_scale`.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 64,
        num_landmarks: int = 256,
        pinv_iterations: int = 6,
        residual_kernel: int = 33,
        dropout: float = 0.0,
        pinv_scale: PinvScale = "matrix",
    ) -> None:
        super().__init__()
        if min(dim, heads, dim_head, num_landmarks) < 1:
            raise ValueError(
                f"dim, heads, dim_head, num_landmarks must be >= 1: {dim=} {heads=} {dim_head=} {num_landmarks=}"
            )
        if residual_kernel and residual_kernel % 2 == 0:
            raise ValueError(f"residual_kernel must be odd, or 0 for none: found {residual_kernel}")
        if pinv_scale not in get_args(PinvScale):
            raise ValueError(f"pinv_scale must be one of {get_args(PinvScale)}: found {pinv_scale!r}")
        self.heads, self.dim_head, self.num_landmarks = heads, dim_head, num_landmarks
        self.pinv_iterations, self.pinv_scale = pinv_iterations, pinv_scale
        inner = heads * dim_head
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))
        self.res_conv: nn.Conv2d | None = None
        if residual_kernel:
            kernel, padding = (residual_kernel, 1), (residual_kernel // 2, 0)
            self.res_conv = nn.Conv2d(heads, heads, kernel, padding=padding, groups=heads, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, first: int | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, N, D), N >= 1.
            mask: (B, N) bool, True = real token; None = all are real (faster). What stands at the others is never read.
            first: compute the output of the first tokens only; None = of all.
            rows: (B * R,) int64, without `mask` and `first`: compute the output of R tokens of each sample only, by
                their places in x flattened over the batch.

        Returns:
            (B, N, D), or (B, first, D), or (B, R, D); zeros where `mask` is False. A sample without any real token
            gives zeros.

        Raises:
            ValueError: no tokens, a mask of another shape or type, or `rows` with one of the others.
        """
        if rows is not None and (mask is not None or first is not None):
            raise ValueError("rows go with neither mask nor first")
        B, N, _ = x.shape
        if N == 0:
            raise ValueError("attention over 0 tokens: x must be (B, N, D) with N >= 1")
        if mask is not None:
            if mask.shape != (B, N) or mask.dtype != torch.bool:
                raise ValueError(f"mask must be ({B}, {N}) bool: found {tuple(mask.shape)} {mask.dtype}")
            # There is no bias before q, k and v: zero tokens have zero queries, keys and values.
            x = x.masked_fill(~mask[..., None], 0.0)
        if first is None and rows is None:
            q_BHNK, k_BHNK, v_BHNK = self.heads_of(self.to_qkv(x), parts=3)
        else:
            inner = self.heads * self.dim_head
            asking = x[:, :first] if rows is None else take_rows(x, rows)
            (q_BHNK,) = self.heads_of(F.linear(asking, self.to_qkv.weight[:inner]), parts=1)
            k_BHNK, v_BHNK = self.heads_of(F.linear(x, self.to_qkv.weight[inner:]), parts=2)
        landmark_BM = None
        if mask is None:
            mean_BMD = segment_means(x, self.num_landmarks)
        else:
            mean_BMD, landmark_BM = masked_segment_means(x, mask, self.num_landmarks)
        q_land_BHMK, k_land_BHMK = self.landmarks(mean_BMD, self.to_qkv.weight)

        # What SDPA may look at. A sample without a real token looks everywhere: its values are zeros, no row is NaN.
        see_token = see_landmark = None
        if mask is not None and landmark_BM is not None:
            empty_B1 = ~mask.any(dim=1, keepdim=True)
            see_token = (mask | empty_B1)[:, None, None, :]
            see_landmark = (landmark_BM | empty_B1)[:, None, None, :]

        summary_BHMK = F.scaled_dot_product_attention(q_land_BHMK, k_BHNK, v_BHNK, attn_mask=see_token)
        w_BHMK = self.invert(q_land_BHMK, k_land_BHMK, summary_BHMK, landmark_BM)
        out_BHNK = F.scaled_dot_product_attention(q_BHNK, k_land_BHMK, w_BHMK, attn_mask=see_landmark)
        if self.res_conv is not None:
            # the convolution of the first tokens sees half a kernel beyond them
            seen = N if first is None else first + self.res_conv.kernel_size[0] // 2
            near_BHNK = self.res_conv(v_BHNK[:, :, :seen])[:, :, :first]
            if rows is not None:
                near_BHNK = (
                    take_rows(joined(near_BHNK), rows).unflatten(-1, (self.heads, self.dim_head)).transpose(1, 2)
                )
            # summed in the order in which heads are joined, which then takes no copy
            out_BHNK = (out_BHNK.transpose(1, 2) + near_BHNK.transpose(1, 2)).transpose(1, 2)
        out_BND = self.to_out(joined(out_BHNK))
        return out_BND if mask is None else out_BND.masked_fill(~mask[:, : out_BND.shape[1], None], 0.0)

    def heads_of(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, N, parts*H*K) -> parts x (B, H, N, K)."""
        B, N, _ = x.shape
        return x.view(B, N, parts, self.heads, self.dim_head).permute(2, 0, 3, 1, 4).unbind(0)

    def landmarks(self, mean_BMD: Tensor, qkv_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Landmark queries and keys (B, H, M, K) from the means of the tokens.

        The projection is linear, so the mean of the queries is the query of the mean token: fewer bytes to average.
        """
        q_BHMK, k_BHMK = self.heads_of(F.linear(mean_BMD, qkv_weight[: 2 * self.heads * self.dim_head]), parts=2)
        return q_BHMK, k_BHMK

    def invert(self, q_BHMK: Tensor, k_BHMK: Tensor, summary_BHMK: Tensor, landmark_BM: Tensor | None) -> Tensor:
        """pinv(softmax(q k^T)) @ summary, in at least float32: the iteration does not survive half precision."""
        dtype = torch.promote_types(q_BHMK.dtype, torch.float32)
        with torch.autocast(q_BHMK.device.type, enabled=False):
            scores = (q_BHMK.to(dtype) * self.dim_head**-0.5) @ k_BHMK.to(dtype).transpose(-1, -2)
            if landmark_BM is None:
                kernel = scores.softmax(dim=-1)
            else:
                dead_column = ~landmark_BM[:, None, None, :]
                scores = scores.masked_fill(dead_column, torch.finfo(dtype).min)
                kernel = scores.softmax(dim=-1).masked_fill(dead_column | ~landmark_BM[:, None, :, None], 0.0)
            w_BHMK = pinv_product(kernel, summary_BHMK.to(dtype), self.pinv_iterations, self.pinv_scale)
            return w_BHMK.to(summary_BHMK.dtype)


REGIONS = 256


def region_means(x_BLD: Tensor, valid_BL: Tensor | None = None, most: int = REGIONS) -> tuple[Tensor, Tensor]:
    """Means of contiguous runs of ceil(n / most) of a sample's n real tokens, the incomplete run first.

    Args:
        x_BLD: (B, L, D).
        valid_BL: (B, L) bool, True = real; None = all.
        most: the largest S; a sample of fewer tokens has a region each.

    Returns:
        regions (B, S, D), zeros where there is none; (B, S) bool, True where there is one. A sample's regions stand at
        its last places, and do not depend on padding.

    Raises:
        ValueError: `most` below 1.
    """
    if most < 1:
        raise ValueError(f"the number of regions must be >= 1: found {most}")
    if valid_BL is not None:
        return masked_segment_means(x_BLD, valid_BL, most)
    means_BSD = segment_means(x_BLD, most)
    return means_BSD, torch.ones(means_BSD.shape[:2], dtype=torch.bool, device=means_BSD.device)


def contiguous_views(x_BLE: Tensor, valid_BL: Tensor | None, views: int = 3) -> tuple[Tensor, Tensor | None]:
    """Cut each sample's n real patches, in their order, into V contiguous views: v has floor(v n / V) and on.

    Returns:
        (B, V, N, E), zeros at padding; (B, V, N) bool, True = real, or None where all are.

    Raises:
        ValueError: `views` below 1.
    """
    if views < 1:
        raise ValueError(f"the number of views must be >= 1: found {views}")
    B, L, E = x_BLE.shape
    if valid_BL is None and L % views == 0:
        return x_BLE.view(B, views, L // views, E), None
    if valid_BL is None:
        valid_BL = torch.ones(B, L, dtype=torch.bool, device=x_BLE.device)
    edge_V = torch.arange(views + 1, device=x_BLE.device)
    edge_BV = edge_V * valid_BL.sum(dim=1)[:, None] // views
    place_N = torch.arange(-(-L // views), device=x_BLE.device)
    rank_BVN = edge_BV[:, :-1, None] + place_N
    real_BVN = rank_BVN < edge_BV[:, 1:, None]
    position_BL = torch.argsort((~valid_BL).to(torch.uint8), dim=1, stable=True)  # real patches first, in their order
    patch_BM = position_BL.gather(1, rank_BVN.clamp_max(L - 1).flatten(1))
    x_BVNE = x_BLE.gather(1, patch_BM[..., None].expand(-1, -1, E)).view(B, views, -1, E)
    return x_BVNE.masked_fill(~real_BVN[..., None], 0.0), real_BVN
