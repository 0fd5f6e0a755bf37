"""Projection and attention layers over a bag too long for its activations: the same function, piece by piece.

All that goes over tokens goes over pieces of `step` tokens, and the backward pass makes the activations of a piece
again. What is alive is then the bag as given, the tokens at the start of each layer, one gradient of them, and some
pieces: nothing of length N is kept for q, k, v or a softmax. The direct path in `aggregator` and `attention` is the
reference; results agree to rounding, not in bits.

- Landmarks against all tokens: a softmax over N, summed over pieces with a running maximum. Its backward needs only
  the logarithm of the denominator, and delta = sum(d_summary * summary) (Dao et al. 2022, section 3.1).
- Tokens against landmarks: a softmax over M for each token by itself. The value convolution sees half a kernel beyond
  a piece on both sides.
- Landmark means, pseudo-inverse: small, made again in the backward pass as a graph of their own.

There is no double backward. A compiled model calls these functions as they are; autocast is restored for the backward
pass.

Shape suffixes: B batch, N tokens, C tokens of a piece, D width, E patch embedding width, H heads, K width of a head,
M landmarks, R landmarks that a piece touches.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gimp_ray.nn.attention import NystromAttention

P = ParamSpec("P")
R = TypeVar("R")


def _uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.compiler.disable` where something is compiled; it loads the compiler, which takes seconds."""
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not disabled and "torch._dynamo" in sys.modules:
            disabled.append(torch.compiler.disable(function))
        return (disabled or [function])[0](*args, **kwargs)

    return call


class _Weights(NamedTuple):
    """The parameters of a layer, or stand-ins that collect their gradients."""

    norm_weight: Tensor
    norm_bias: Tensor
    qkv: Tensor
    out: Tensor
    out_bias: Tensor
    conv: Tensor | None


class _Layer(NamedTuple):
    """What a layer is, apart from its weights and its tokens."""

    attention: NystromAttention
    eps: float
    step: int
    first: int | None
    seed: int | None  # of the dropout's masks, a different one for each piece; None = no dropout
    mask: Tensor | None  # (B, N), as given
    landmark: Tensor  # (B, N), to which landmark a token belongs
    counts: Tensor  # (B, M), tokens of a landmark

    @property
    def has_tokens(self) -> Tensor | None:
        return None if self.mask is None else self.counts > 0

    @property
    def see_landmark(self) -> Tensor | None:
        """What a token may look at; a sample without a real token looks everywhere."""
        if self.mask is None:
            return None
        return ((self.counts > 0) | ~self.mask.any(dim=1, keepdim=True))[:, None, None, :]

    @property
    def rows(self) -> int:
        """How many tokens have an output."""
        return self.landmark.shape[1] if self.first is None else self.first


@_uncompiled
def project_long(x_BLE: Tensor, valid: Tensor | None, cls_token: Tensor, project: nn.Linear, tokens: int) -> Tensor:
    """CLS and the projected patches, (B, 1 + L, D), from a bag in any float type; what is not `valid` counts as zeros.

    Args:
        tokens: how many patches, over all samples, are projected at a time.
    """
    arguments = (x_BLE, valid, cls_token, project.weight, project.bias, _step(tokens, len(x_BLE)))
    if torch.is_grad_enabled():
        out: Tensor = _Projection.apply(*arguments)
        return out
    return _project(*arguments)


@_uncompiled
def attend_long(
    x_BND: Tensor,
    mask_BN: Tensor | None,
    norm: nn.LayerNorm,
    attention: NystromAttention,
    tokens: int,
    first: int | None = None,
) -> Tensor:
    """x + attention(norm(x), mask) of all tokens, or of the first ones.

    Without gradients `x_BND` is overwritten and returned, unless `first` is given.

    Args:
        tokens: how many tokens, over all samples, are worked on at a time.
    """
    landmark_BN, count_BM = _landmark_of(x_BND, mask_BN, attention.num_landmarks)
    seed = None
    if attention.training and _dropout_of(attention):
        seed = int(torch.randint(2**62, ()))
    layer = _Layer(attention, norm.eps, _step(tokens, len(x_BND)), first, seed, mask_BN, landmark_BN, count_BM)
    conv = None if attention.res_conv is None else attention.res_conv.weight
    to_out = attention.to_out[0]
    assert isinstance(to_out, nn.Linear)
    weights = _Weights(norm.weight, norm.bias, attention.to_qkv.weight, to_out.weight, to_out.bias, conv)
    if torch.is_grad_enabled():
        out: Tensor = _LongLayer.apply(layer, x_BND, *weights)
        return out
    mean_BMD = _means(x_BND, layer, weights)
    summary_BHMK, _ = _summarise(x_BND, mean_BMD, layer, weights)
    out_BND = x_BND if first is None else torch.empty_like(x_BND[:, :first])
    return _write_rows(out_BND, x_BND, mean_BMD, summary_BHMK, layer, weights)


def _step(tokens: int, samples: int) -> int:
    return max(1, tokens // samples)


def _pieces(length: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, step):
        yield start, min(start + step, length)


class _Ambient:
    """Autocast as it is now, to be put back in the backward pass."""

    def __init__(self, device: torch.device) -> None:
        self.arguments: dict[str, Any] = {
            "device_type": device.type,
            "dtype": torch.get_autocast_dtype(device.type),
            "enabled": torch.is_autocast_enabled(device.type),
        }

    def __call__(self) -> torch.autocast:
        return torch.autocast(**self.arguments)


# Projection


def _project_piece(x_BCE: Tensor, valid_BC: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    if valid_BC is not None:
        x_BCE = x_BCE.masked_fill(~valid_BC[..., None], 0.0)
    if not torch.is_autocast_enabled(x_BCE.device.type):
        x_BCE = x_BCE.to(weight.dtype)
    return F.linear(x_BCE, weight, bias)


def _project(x_BLE: Tensor, valid: Tensor | None, cls_token: Tensor, weight: Tensor, bias: Tensor, step: int) -> Tensor:
    B, L, _ = x_BLE.shape
    out: Tensor | None = None
    for start, stop in _pieces(L, step):
        piece = _project_piece(x_BLE[:, start:stop], None if valid is None else valid[:, start:stop], weight, bias)
        if out is None:
            out = piece.new_empty(B, L + 1, piece.shape[-1])  # of the type that autocast gives
            out[:, 0] = cls_token
        out[:, start + 1 : stop + 1] = piece
    assert out is not None, "a bag has patches"
    return out


class _Projection(torch.autograd.Function):
    """Keeps the bag as given, half precision as it is, and makes its pieces in full precision again."""

    @staticmethod
    def forward(
        ctx: Any, x_BLE: Tensor, valid: Tensor | None, cls_token: Tensor, weight: Tensor, bias: Tensor, step: int
    ) -> Tensor:
        ctx.save_for_backward(x_BLE, valid, weight, bias)
        ctx.step, ctx.ambient, ctx.cls_dtype = step, _Ambient(x_BLE.device), cls_token.dtype
        return _project(x_BLE, valid, cls_token, weight, bias, step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor | None, ...]:
        x_BLE, valid, *parameters = ctx.saved_tensors
        grad_x = torch.empty_like(x_BLE) if ctx.needs_input_grad[0] else None
        wanted = ctx.needs_input_grad[3:5]
        weight, bias = (p.detach().requires_grad_(want) for p, want in zip(parameters, wanted, strict=True))
        with torch.enable_grad(), ctx.ambient():
            for start, stop in _pieces(x_BLE.shape[1], ctx.step):
                x_BCE = x_BLE[:, start:stop].detach().requires_grad_(grad_x is not None)
                out = _project_piece(x_BCE, None if valid is None else valid[:, start:stop], weight, bias)
                _backward([out], [grad_BND[:, start + 1 : stop + 1]], [x_BCE, weight, bias])
                if grad_x is not None:
                    grad_x[:, start:stop] = x_BCE.grad
        grad_cls = grad_BND[:, 0].sum(dim=0).to(ctx.cls_dtype)
        return grad_x, None, grad_cls, weight.grad, bias.grad, None


# Attention


def _landmark_of(x_BND: Tensor, mask_BN: Tensor | None, num_landmarks: int) -> tuple[Tensor, Tensor]:
    """To which landmark each token belongs (B, N), and how many tokens each has (B, M'), as `segment_means` has it."""
    B, N, _ = x_BND.shape
    M = min(num_landmarks, N)
    if mask_BN is None:
        mask_BN = torch.ones(1, 1, dtype=torch.bool, device=x_BND.device).expand(B, N)
        length = -(-N // num_landmarks)
        M = -(-N // length)  # landmarks without tokens are not made at all
    rank_BN = mask_BN.cumsum(dim=1) - 1
    count_B1 = rank_BN[:, -1:] + 1
    length_B1 = ((count_B1 + num_landmarks - 1) // num_landmarks).clamp_min(1)
    landmark_BN = ((rank_BN + length_B1 * M - count_B1) // length_B1).clamp(0, M - 1)
    count_BM = torch.zeros(B, M, dtype=torch.int64, device=x_BND.device)
    return landmark_BN, count_BM.scatter_add_(1, landmark_BN, mask_BN.to(torch.int64))


def _normed(x_BCD: Tensor, mask_BC: Tensor | None, layer: _Layer, weights: _Weights) -> Tensor:
    h_BCD = F.layer_norm(x_BCD, x_BCD.shape[-1:], weights.norm_weight, weights.norm_bias, layer.eps)
    return h_BCD if mask_BC is None else h_BCD.masked_fill(~mask_BC[..., None], 0.0)


def _mask(layer: _Layer, start: int, stop: int) -> Tensor | None:
    return None if layer.mask is None else layer.mask[:, start:stop]


def _means(x_BND: Tensor, layer: _Layer, weights: _Weights) -> Tensor:
    """Mean normed token of every landmark (B, M, D).

    Sums are products with the matrix that says which token is of which landmark: in a fixed order on a GPU too.
    """
    B, N, D = x_BND.shape
    dtype = torch.promote_types(x_BND.dtype, torch.float32)
    sums_BMD = torch.zeros(B, layer.counts.shape[1], D, dtype=dtype, device=x_BND.device)
    for start, stop in _pieces(N, layer.step):
        h_BCD = _normed(x_BND[:, start:stop], _mask(layer, start, stop), layer, weights)
        landmark_BC = layer.landmark[:, start:stop]
        low, high = int(landmark_BC.min()), int(landmark_BC.max()) + 1  # tokens are in the order of their landmarks
        of_BRC = landmark_BC[:, None] == torch.arange(low, high, device=x_BND.device)[:, None]
        with torch.autocast(x_BND.device.type, enabled=False):
            sums_BMD[:, low:high] += of_BRC.to(dtype) @ h_BCD.to(dtype)
    return (sums_BMD / layer.counts.clamp_min(1)[..., None]).to(weights.norm_weight.dtype)


def _keys(
    x_BCD: Tensor, q_land_BHMK: Tensor, layer: _Layer, weights: _Weights, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """Scores of the landmarks' queries (B, H, M, C) in at least float32, and values (B, H, C, K), of a piece."""
    attention, mask_BC = layer.attention, _mask(layer, start, stop)
    h_BCD = _normed(x_BCD, mask_BC, layer, weights)
    inner = attention.heads * attention.dim_head
    k_BHCK, v_BHCK = attention.heads_of(F.linear(h_BCD, weights.qkv[inner:]), parts=2)
    scores = (q_land_BHMK * attention.dim_head**-0.5) @ k_BHCK.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask_BC is not None:
        # finite: a piece without a real token weighs 1 until the first real one takes its weight to 0
        scores = scores.masked_fill(~mask_BC[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores, v_BHCK


def _summarise(x_BND: Tensor, mean_BMD: Tensor, layer: _Layer, weights: _Weights) -> tuple[Tensor, Tensor]:
    """softmax(landmark queries . keys) @ values (B, H, M, K), and the logarithm of its denominators (B, H, M, 1)."""
    q_land_BHMK, _ = layer.attention.landmarks(mean_BMD, weights.qkv)
    dtype = torch.promote_types(q_land_BHMK.dtype, torch.float32)
    top = torch.full_like(q_land_BHMK[..., :1], torch.finfo(dtype).min, dtype=dtype)
    total, summary = torch.zeros_like(top), torch.zeros_like(q_land_BHMK, dtype=dtype)
    for start, stop in _pieces(x_BND.shape[1], layer.step):
        scores, v_BHCK = _keys(x_BND[:, start:stop], q_land_BHMK, layer, weights, start, stop)
        highest = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
        p, shrink = scores.sub_(highest).exp_(), (top - highest).exp_()
        total = total * shrink + p.sum(dim=-1, keepdim=True)
        summary = summary * shrink + p.to(v_BHCK.dtype) @ v_BHCK
        top = highest
    return (summary / total).to(q_land_BHMK.dtype), top + total.log()


def _rows(
    x_BCD: Tensor,
    span: tuple[int, int],
    rows: tuple[int, int],
    k_land: Tensor,
    w: Tensor,
    layer: _Layer,
    weights: _Weights,
) -> Tensor:
    """The attention's output (B, rows, D) for some rows of the tokens `span`, which reach half a kernel further."""
    attention = layer.attention
    at, end = rows[0] - span[0], rows[1] - span[0]
    h_BCD = _normed(x_BCD, _mask(layer, *span), layer, weights)
    inner = attention.heads * attention.dim_head
    (q_BHCK,) = attention.heads_of(F.linear(h_BCD[:, at:end], weights.qkv[:inner]), parts=1)
    out_BHCK = F.scaled_dot_product_attention(q_BHCK, k_land, w, attn_mask=layer.see_landmark)
    if weights.conv is not None:
        (v_BHCK,) = attention.heads_of(F.linear(h_BCD, weights.qkv[2 * inner :]), parts=1)
        padding = (weights.conv.shape[2] // 2, 0)
        out_BHCK = out_BHCK + F.conv2d(v_BHCK, weights.conv, padding=padding, groups=attention.heads)[:, :, at:end]
    out_BCD = F.linear(out_BHCK.transpose(1, 2).flatten(2), weights.out, weights.out_bias)
    if layer.seed is not None:
        out_BCD = _dropped(out_BCD, _dropout_of(attention), layer.seed + rows[0])
    mask_BC = _mask(layer, *rows)
    return out_BCD if mask_BC is None else out_BCD.masked_fill(~mask_BC[..., None], 0.0)


def _spans(layer: _Layer, weights: _Weights) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Rows with an output, piece by piece, each after the tokens it needs."""
    reach = 0 if weights.conv is None else weights.conv.shape[2] // 2
    for start, stop in _pieces(layer.rows, layer.step):
        yield (max(0, start - reach), min(stop + reach, layer.landmark.shape[1])), (start, stop)


def _write_rows(
    out_BND: Tensor, x_BND: Tensor, mean_BMD: Tensor, summary_BHMK: Tensor, layer: _Layer, weights: _Weights
) -> Tensor:
    """x + attention of the rows asked for, into `out_BND`, which may be `x_BND` itself."""
    q_land, k_land = layer.attention.landmarks(mean_BMD, weights.qkv)
    w = layer.attention.invert(q_land, k_land, summary_BHMK, layer.has_tokens)
    before = None
    for span, rows in _spans(layer, weights):
        x_BCD = x_BND[:, span[0] : span[1]]
        if before is not None:  # what the piece before has written over
            x_BCD = torch.cat([before, x_BND[:, rows[0] : span[1]]], dim=1)
        if out_BND is x_BND:
            following = max(0, rows[1] - (weights.conv.shape[2] // 2 if weights.conv is not None else 0))
            before = x_BCD[:, following - span[0] : rows[1] - span[0]].clone()
        change = _rows(x_BCD, span, rows, k_land, w, layer, weights)
        out_BND[:, rows[0] : rows[1]] = x_BCD[:, rows[0] - span[0] : rows[1] - span[0]] + change
    return out_BND


class _LongLayer(torch.autograd.Function):
    """x + attention(norm(x)), keeping x, the landmarks' means, summaries and denominators."""

    @staticmethod
    def forward(ctx: Any, layer: _Layer, x_BND: Tensor, *parameters: Tensor | None) -> Tensor:
        weights = _Weights(*parameters)  # type: ignore[arg-type]
        mean_BMD = _means(x_BND, layer, weights)
        summary_BHMK, log_total = _summarise(x_BND, mean_BMD, layer, weights)
        ctx.save_for_backward(x_BND, mean_BMD, summary_BHMK, log_total, *parameters)
        ctx.layer, ctx.ambient = layer, _Ambient(x_BND.device)
        out_BND = torch.empty_like(x_BND[:, : layer.rows])
        return _write_rows(out_BND, x_BND, mean_BMD, summary_BHMK, layer, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor | None, ...]:
        x_BND, mean_BMD, summary_BHMK, log_total, *parameters = ctx.saved_tensors
        layer: _Layer = ctx.layer
        leaves = _leaves(parameters, ctx.needs_input_grad[2:])
        weights = _Weights(*leaves)  # type: ignore[arg-type]
        grad_x = torch.zeros_like(x_BND) if layer.first is not None else grad_BND.clone()
        if layer.first is not None:
            grad_x[:, : layer.first] = grad_BND
        with torch.enable_grad(), ctx.ambient():
            mean_BMD = mean_BMD.detach().requires_grad_()
            landmarks = layer.attention.landmarks(mean_BMD, weights.qkv)
            q_land, k_land, summary = (t.detach().requires_grad_() for t in (*landmarks, summary_BHMK))
            made = layer.attention.invert(q_land, k_land, summary, layer.has_tokens)
            w = made.detach().requires_grad_()
            for span, rows in _spans(layer, weights):
                x_BCD = x_BND[:, span[0] : span[1]].detach().requires_grad_()
                out_BCD = _rows(x_BCD, span, rows, k_land, w, layer, weights)
                _backward([out_BCD], [grad_BND[:, rows[0] : rows[1]]], [x_BCD, k_land, w, *leaves])
                _add(grad_x, x_BCD, *span)
            _backward([made], [w.grad], [q_land, k_land, summary])
            _back_through_keys(x_BND, q_land, summary, log_total, grad_x, layer, weights)
            _backward(landmarks, [q_land.grad, k_land.grad], [mean_BMD, *leaves])
            _back_through_means(x_BND, mean_BMD.grad, grad_x, layer, weights)
        return None, grad_x, *(None if leaf is None else leaf.grad for leaf in leaves)


def _back_through_keys(
    x_BND: Tensor,
    q_land: Tensor,
    summary: Tensor,
    log_total: Tensor,
    grad_x: Tensor,
    layer: _Layer,
    weights: _Weights,
) -> None:
    """From the gradient of the summaries to those of tokens, landmark queries and weights."""
    grad_BHMK = summary.grad
    assert grad_BHMK is not None
    delta = (grad_BHMK * summary.detach()).sum(dim=-1, keepdim=True)
    for start, stop in _pieces(x_BND.shape[1], layer.step):
        x_BCD = x_BND[:, start:stop].detach().requires_grad_()
        scores, v_BHCK = _keys(x_BCD, q_land, layer, weights, start, stop)
        with torch.no_grad():
            p = scores.detach().sub_(log_total).exp_()  # in place: no backward pass needs the scores themselves
            grad_v = p.to(grad_BHMK.dtype).transpose(-1, -2) @ grad_BHMK
            grad_scores = (grad_BHMK @ v_BHCK.transpose(-1, -2)).to(p.dtype).sub_(delta).mul_(p)
        _backward([scores, v_BHCK], [grad_scores, grad_v.to(v_BHCK.dtype)], [x_BCD, q_land, *weights])
        _add(grad_x, x_BCD, start, stop)


def _back_through_means(
    x_BND: Tensor, grad_BMD: Tensor | None, grad_x: Tensor, layer: _Layer, weights: _Weights
) -> None:
    """From the gradient of the landmarks' mean tokens to those of tokens and norm."""
    assert grad_BMD is not None
    grad_BMD = grad_BMD / layer.counts.clamp_min(1)[..., None]
    for start, stop in _pieces(x_BND.shape[1], layer.step):
        x_BCD = x_BND[:, start:stop].detach().requires_grad_()
        h_BCD = _normed(x_BCD, _mask(layer, start, stop), layer, weights)
        index_BCD = layer.landmark[:, start:stop, None].expand_as(h_BCD)
        _backward([h_BCD], [grad_BMD.gather(1, index_BCD).to(h_BCD.dtype)], [x_BCD, *weights])
        _add(grad_x, x_BCD, start, stop)


def _leaves(parameters: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Stand-ins for parameters; those wanted collect gradients."""
    return [
        None if parameter is None else parameter.detach().requires_grad_(want)
        for parameter, want in zip(parameters, wanted, strict=True)
    ]


def _backward(outputs: Sequence[Tensor], grads: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> None:
    """Add to the `grad` of those inputs that collect one."""
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if wanted:
        torch.autograd.backward(outputs, grads, inputs=wanted)


def _add(grad_x: Tensor, x_BCD: Tensor, start: int, stop: int) -> None:
    assert x_BCD.grad is not None
    grad_x[:, start:stop] += x_BCD.grad


def _dropout_of(attention: NystromAttention) -> float:
    dropout = attention.to_out[1]
    assert isinstance(dropout, nn.Dropout)
    return dropout.p


def _dropped(x: Tensor, p: float, seed: int) -> Tensor:
    """Inverted dropout, the same mask for the same seed."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return x * torch.empty_like(x).bernoulli_(1 - p, generator=generator) / (1 - p)
