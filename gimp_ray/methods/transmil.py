"""TransMIL: two Nystrom attention layers around a convolutional position encoding on a square of patches.

Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image Classification",
NeurIPS 2021. For a bag of n patches, s = ceil(sqrt(n)):

    h = ReLU(W x + b), filled up to s * s tokens by its own first ones; a learned CLS in front
    h = h + Nystrom(LN(h));   h = PPEG(h);   h = h + Nystrom(LN(h));   logits = W_c LN(CLS) + b_c
    PPEG: the tokens but CLS as an s x s image, identity + depthwise 7x7 + 5x5 + 3x3 convolutions

Nystrom: 8 heads of 64, 256 landmarks, 6 iterations, value convolution of 33, dropout 0.1; no feed-forward. Training in
the authors' code: RAdam inside Lookahead, lr 2e-4, weight decay 1e-5, cross-entropy, one bag a step, gradients of 2
steps added, up to 200 epochs, stop after 10 without gain.

Adapted:

- Attention is this project's `NystromAttention`, not the package `nystrom-attention` of the authors. The package's mask
  cannot make a padded bag equal to the bag alone: it silences padding as key and value, but cuts its landmark segments
  over the padded length, so that they hold other patches; and with a mask or without, it scales its pseudo-inverse by a
  maximum over batch and heads. It also pads in front with zeros that it attends to when no mask is given. Here segments
  follow each bag's own tokens and every matrix has its own scale, so results differ a little from the package's even
  for one bag.
- Batches of bags with a mask. Each bag has its own s; its square lies in the corner of a larger one of zeros, which is
  what a convolution sees beyond a border anyway.
- `fill="wrap"` repeats the first patches, as published: they count twice, and the first and last patches become
  neighbours. `fill="zero"` leaves the rest of the square empty and masks it.
- The second layer computes CLS alone, which is all that is read of it.

The order of the patches matters: it should be the order in which the slide was scanned. Attention over patches is never
formed, so there is none to return.

Shape suffixes: B batch, N patches, E patch embedding width, D hidden width, S side of the largest square, T = S * S.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gimp_ray.methods.base import IMAGE, numbers_of, recipe, settings_of, supervised
from gimp_ray.nn.attention import NystromAttention
from gimp_ray.nn.pooling import BagOutput, read_bag

Fill = Literal["wrap", "zero"]


class PPEG(nn.Module):
    """Pyramid position encoding: identity and depthwise convolutions of 7, 5 and 3, on an image of tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim) for k in (7, 5, 3))

    def forward(self, x_BDSS: Tensor) -> Tensor:
        """(B, D, S, S) -> (B, D, S, S)."""
        out = x_BDSS
        for convolution in self.convolutions:
            out = out + convolution(x_BDSS)
        return out


class TransMIL(nn.Module):
    """Project, square, attend, encode positions, attend, classify CLS.

    Args:
        in_dim: E, width of the patch embeddings.
        num_classes: C.
        dim: D.
        heads, dim_head, num_landmarks, pinv_iterations, residual_kernel, dropout: see `NystromAttention`.
        fill: what the square is filled up with, "wrap" or "zero".

    Raises:
        ValueError: an unknown `fill`, or what `NystromAttention` refuses.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        dim: int = 512,
        heads: int = 8,
        dim_head: int = 64,
        num_landmarks: int = 256,
        pinv_iterations: int = 6,
        residual_kernel: int = 33,
        dropout: float = 0.1,
        fill: Fill = "wrap",
    ) -> None:
        super().__init__()
        if fill not in get_args(Fill):
            raise ValueError(f"fill must be one of {get_args(Fill)}: found {fill!r}")
        self.in_dim, self.dim, self.fill = in_dim, dim, fill
        self.project = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU())
        self.cls_token = nn.Parameter(torch.randn(dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attentions = nn.ModuleList(
            NystromAttention(dim, heads, dim_head, num_landmarks, pinv_iterations, residual_kernel, dropout)
            for _ in range(2)
        )
        self.ppeg = PPEG(dim)
        self.cls_norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, patches_BNE: Tensor, valid_BN: Tensor | None = None) -> BagOutput:
        """Classify bags; the loss is cross-entropy of `logits`.

        Args:
            patches_BNE: (B, N, E), any float type, in the order of the slide.
            valid_BN: (B, N) bool, True = real patch, in any pattern; None = all.

        Returns:
            `BagOutput`: logits (B, C), bag (B, D), LN(CLS); no attention. A bag without real patches has a result of
            CLS alone.

        Raises:
            ValueError: not (B, N >= 1, E), another width, a mask of another shape or type.
        """
        x_BNE = read_bag(patches_BNE, valid_BN, self.in_dim, self.cls_token)
        x_BND = self.project(x_BNE)
        source_BT, real_BT, side_B = _square(x_BND, valid_BN, self.fill)
        x_BTD = _take(x_BND, source_BT, real_BT)
        all_real = valid_BN is None and (self.fill == "wrap" or x_BTD.shape[1] == x_BND.shape[1])
        mask_B1T = None if all_real else torch.cat([real_BT.new_ones(len(real_BT), 1), real_BT], dim=1)
        cls_B1D = self.cls_token.to(x_BTD.dtype).expand(len(x_BTD), 1, -1)

        x = torch.cat([cls_B1D, x_BTD], dim=1)
        x = x + self.attentions[0](self.norms[0](x), mask_B1T)
        x = torch.cat([x[:, :1], self._positions(x[:, 1:], real_BT, side_B)], dim=1)
        cls_BD = (x[:, :1] + self.attentions[1](self.norms[1](x), mask_B1T, 1))[:, 0]
        bag_BD = self.cls_norm(cls_BD)
        return BagOutput(self.classify(bag_BD), bag_BD, None)

    def _positions(self, x_BTD: Tensor, real_BT: Tensor, side_B: Tensor) -> Tensor:
        """PPEG on every bag's own square; tokens that are not real are zeros already, and are zeros again."""
        B, T, D = x_BTD.shape
        S = math.isqrt(T)
        place_T = torch.arange(T, device=x_BTD.device)
        row_T, column_T = place_T // S, place_T % S
        side_B1 = side_B[:, None]
        token_BT = row_T * side_B1 + column_T  # which token lies at a place of the S x S image
        inside_BT = (row_T < side_B1) & (column_T < side_B1)
        token_BT = token_BT.where(inside_BT, 0)
        image_BDSS = _take(x_BTD, token_BT, inside_BT).transpose(1, 2).reshape(B, D, S, S)
        out_BTD = self.ppeg(image_BDSS).flatten(2).transpose(1, 2)
        place_BT = (place_T // side_B1) * S + place_T % side_B1  # and back
        return _take(out_BTD, place_BT.clamp_max(T - 1), real_BT)


def _square(x_BND: Tensor, valid_BN: Tensor | None, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
    """Which patch is which token of each bag's square.

    Returns:
        source (B, T) int64, position of a token's patch in the bag; real (B, T) bool, False beyond a bag's square and,
        with "zero", where it has no patch; side (B,) int64, at least 1. T = S * S, the square of the padded length, so
        that no number has to come back from the device.
    """
    B, N, _ = x_BND.shape
    S = math.isqrt(N - 1) + 1
    slot_T = torch.arange(S * S, device=x_BND.device)
    if valid_BN is None:
        count_B = torch.full((B,), N, device=x_BND.device)
        position_BN = torch.arange(N, device=x_BND.device).expand(B, N)
    else:
        count_B = valid_BN.sum(dim=1)
        position_BN = torch.argsort((~valid_BN).to(torch.uint8), dim=1, stable=True)  # real patches first, in order
    side_B = count_B.double().sqrt().ceil().long().clamp_min(1)  # exact: a double's root of a square is exact
    count_B1 = count_B[:, None]
    # s * s - n is never more than n, so one turn is enough
    rank_BT = slot_T.where(slot_T < count_B1, slot_T - count_B1) if fill == "wrap" else slot_T.expand(B, -1)
    end_B1 = side_B[:, None] ** 2 if fill == "wrap" else count_B1
    real_BT = (slot_T < end_B1) & (count_B1 > 0)
    return position_BN.gather(1, rank_BT.clamp(0, N - 1)), real_BT, side_B


def _take(x_BND: Tensor, index_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Rows of x by index, zeros where not real: (B, T, D)."""
    taken_BTD = x_BND.gather(1, index_BT[..., None].expand(-1, -1, x_BND.shape[-1]))
    return taken_BTD.masked_fill(~real_BT[..., None], 0.0)


METHOD = supervised(
    title="TransMIL",
    paper="Shao et al., NeurIPS 2021",
    needs=IMAGE,
    settings=settings_of(
        TransMIL, train=recipe(epochs=200, lr=2e-4, optimizer="radam", lookahead=6, accumulate=2, patience=10)
    ),
    network=lambda config, sizes: TransMIL(sizes.patch_dim, sizes.outputs, **numbers_of(config.method)),
)
