"""The patch aggregator, from the patch embeddings of a window or a bag to CLS_img, with freezing and heads.

Projection, CLS token, pre-norm residual Nystrom layers; no TransMIL PPEG position encoding and no feed-forward blocks
(GiMP, section 2.2 has neither). The decoder of masked patches is with `GiMP`.

The projection heads are those of the contrastive methods, with LayerNorm in place of their batch normalisation, whose
statistics would make a case depend on its neighbours and on the number of workers.

Shape suffixes: B batch, L patches, M masked patches, E patch embedding width, D hidden width, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gimp_ray.nn.attention import NystromAttention, take_rows
from gimp_ray.nn.long_bags import attend_long, project_long
from gimp_ray.nn.masked_windows import first_layer, last_layer, places_of

_FROZEN = "_gimp_frozen"
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def freeze(module: AnyModule) -> AnyModule:
    """Take `module` out of training for good, whatever `.train()` is called later: no gradients, evaluation mode.

    `requires_grad=False` alone is not enough: dropout would still fire, batch statistics would still drift.
    """
    module.requires_grad_(False)
    module.eval()
    setattr(module, _FROZEN, True)
    return module


def is_frozen(module: nn.Module) -> bool:
    """Whether `freeze` was called on this very module."""
    return bool(getattr(module, _FROZEN, False))


class KeepsFrozen(nn.Module):
    """A module whose `train()` leaves every frozen part of it, itself included, in evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if is_frozen(module):
                for part in module.modules():
                    part.training = False
        return self


class MLPHead(nn.Sequential):
    """The head of P = softmax(MLP(CLS)) (GiMP, section 2.3): Linear, GELU, dropout for each hidden width, then Linear.

    Args:
        in_dim: width of the input.
        num_classes: C.
        hidden: hidden widths; () is a linear classifier.
        dropout: after each hidden activation.
    """

    def __init__(self, in_dim: int, num_classes: int, hidden: Sequence[int] = (256,), dropout: float = 0.25) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_dim, width), nn.GELU(), nn.Dropout(dropout)]
            in_dim = width
        super().__init__(*layers, nn.Linear(in_dim, num_classes))

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, in_dim) -> logits (B, C)."""
        return super().forward(x_BF)


def two_layer_head(in_dim: int, hidden: int = 2048, out_dim: int = 128) -> nn.Sequential:
    """Linear, LayerNorm, ReLU, Linear, LayerNorm without weights: MGCA's heads, of vectors and of tokens.

    Raises:
        ValueError: a width below 1.
    """
    _check(in_dim, hidden, out_dim)
    return nn.Sequential(
        nn.Linear(in_dim, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out_dim),
        nn.LayerNorm(out_dim, elementwise_affine=False),
    )


def image_head(in_dim: int, out_dim: int = 128) -> nn.Sequential:
    """Linear, LayerNorm, ReLU, Linear: BioViL's image projector (1 x 1 convolutions there, applied to each region).

    Raises:
        ValueError: a width below 1.
    """
    _check(in_dim, out_dim)
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.LayerNorm(out_dim), nn.ReLU(), nn.Linear(out_dim, out_dim))


def text_head(in_dim: int, out_dim: int = 128, hidden: int | None = None) -> nn.Sequential:
    """Linear, GELU, LayerNorm, Linear: BioViL's text projector; with `hidden` = in_dim the head of BERT's masked words.

    Args:
        in_dim: width of the input.
        out_dim: width of the output.
        hidden: between the two; None = `out_dim`.

    Raises:
        ValueError: a width below 1.
    """
    hidden = out_dim if hidden is None else hidden
    _check(in_dim, out_dim, hidden)
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, out_dim))


def _check(*widths: int) -> None:
    if min(widths) < 1:
        raise ValueError(f"widths must be >= 1: found {widths}")


LONG_BAG = 16_384
BUSY_GPU = 4_096  # patches of a bag that keep a GPU busy by themselves
LONG_WINDOWS = 4  # times `long_bag`: in pieces a masked window would lose what it saves
PIECE = 2_048


class PatchAggregator(nn.Module):
    """Linear E -> D, CLS_img in front, `layers` times x + NystromAttention(LayerNorm(x)), LayerNorm of CLS_img.

    GiMP, section 2.2. Any order-preserving window or a whole bag; the result of a sample does not depend on padding.

    Args:
        in_dim: E, width of the patch embeddings.
        dim: D, hidden width.
        heads, dim_head, num_landmarks, pinv_iterations, residual_kernel, dropout: see `NystromAttention`.
        layers: number of attention layers.
        activation_checkpointing: keep only the input of each attention layer for the backward pass, and compute the
            rest again there, under the same random numbers: the same bits, less memory, more time.
        long_bag: from this many patches on a bag goes through `long_bags`, in bounded memory and with the same result
            but for rounding (and other draws of dropout). Then `activation_checkpointing` has nothing left to do.
            Bags of a batch that are taken one by one are long or not each by itself. A masked window goes through it
            from four times as many patches on: until then it is faster whole, and takes memory as its length.
        piece: how many tokens are worked on at a time there.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int = 512,
        heads: int = 8,
        dim_head: int = 64,
        num_landmarks: int = 256,
        pinv_iterations: int = 6,
        residual_kernel: int = 33,
        layers: int = 2,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        long_bag: int = LONG_BAG,
        piece: int = PIECE,
    ) -> None:
        super().__init__()
        self.in_dim, self.dim = in_dim, dim
        self.long_bag, self.piece = long_bag, piece
        self.activation_checkpointing = activation_checkpointing
        self.project = nn.Linear(in_dim, dim)
        self.cls_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(
            NystromAttention(dim, heads, dim_head, num_landmarks, pinv_iterations, residual_kernel, dropout)
            for _ in range(layers)
        )
        self.cls_norm = nn.LayerNorm(dim)

    def forward(
        self,
        x_BLE: Tensor,
        valid: Tensor | None = None,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        tokens: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Aggregate. Bags of uneven length are taken one by one, without their padding, where that is less work.

        Args:
            x_BLE: (B, L, E), any float type; half-precision storage is cast to the weights' type, or left to autocast.
            valid: (B, L) bool, True = real patch; None = all.
            masked: (B, M) int64, positions whose projected token is replaced by `mask_token` (MPM, section 2.3).
            mask_token: (D,), needed with `masked`.
            tokens: whether the patch tokens are wanted. Without them the last layer computes CLS_img alone.

        Returns:
            CLS_img (B, D), and the patch tokens (B, L, D) after the last layer, before any final norm, or None.

        Raises:
            ValueError: wrong width, or `masked` without `mask_token`.
        """
        self._check_width(x_BLE)
        if masked is not None and mask_token is None:
            raise ValueError("masked positions were given without a mask_token")
        lengths = None if valid is None or masked is not None else _lengths_alone(x_BLE, valid)
        if lengths is not None:
            return self._one_by_one(x_BLE, lengths, tokens)
        long = x_BLE.shape[1] >= self.long_bag
        if long:
            if valid is not None and bool(valid.all()):
                valid = None
            x_BND = project_long(x_BLE, valid, self.cls_token, self.project, self.piece)
        else:
            x_BND = self._project(x_BLE, valid)
        if masked is not None and mask_token is not None:
            index_BMD = masked[..., None].expand(-1, -1, self.dim) + 1  # after CLS
            x_BND = x_BND.scatter(1, index_BMD, mask_token.to(x_BND.dtype).expand_as(index_BMD))

        mask_BN = None if valid is None else torch.cat([valid.new_ones(len(valid), 1), valid], dim=1)
        for number, (norm, attention) in enumerate(zip(self.norms, self.attentions, strict=True), start=1):
            first = None if tokens or number < len(self.norms) else 1
            if long:
                assert isinstance(norm, nn.LayerNorm) and isinstance(attention, NystromAttention)
                x_BND = attend_long(x_BND, mask_BN, norm, attention, self.piece, first)
            else:
                x_BND = x_BND[:, :first] + self._again(_attended, norm, attention, x_BND, mask_BN, first)
        return self.cls_norm(x_BND[:, 0]), x_BND[:, 1:] if tokens else None

    def masked_tokens(
        self, x_BLE: Tensor, masked_BM: Tensor, mask_token: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What masked patch modelling needs of `forward`, in fewer operations where there is no padding.

        Args:
            x_BLE, valid, mask_token: as in `forward`.
            masked_BM: (B, M) int64 masked positions, distinct in each sample.

        Returns:
            CLS_img (B, D), and the tokens (B, M, D) of the masked patches alone.

        Raises:
            ValueError: wrong width, or nothing masked.
        """
        if masked_BM.shape[1] == 0:
            raise ValueError("no masked patches: there is nothing to reconstruct")
        if valid is not None or x_BLE.shape[1] >= LONG_WINDOWS * self.long_bag:
            cls_BD, tokens_BLD = self(x_BLE, valid, masked_BM, mask_token)
            assert tokens_BLD is not None
            return cls_BD, tokens_BLD.gather(1, masked_BM[..., None].expand(-1, -1, self.dim))
        self._check_width(x_BLE)
        places = places_of(masked_BM, x_BLE.shape[1])
        compact_BCD = self._project(take_rows(x_BLE, places.visible), None)
        masked_B1D = mask_token.to(compact_BCD.dtype).expand(len(x_BLE), 1, -1)
        x_BND = torch.cat([compact_BCD, masked_B1D], dim=1)
        last = len(self.norms) - 1
        for number, (norm, attention) in enumerate(zip(self.norms, self.attentions, strict=True)):
            if number == 0:
                x_BND = self._again(first_layer, norm, attention, x_BND, places)
            elif number == last:
                return self._ends(self._again(last_layer, norm, attention, x_BND, places))
            else:
                x_BND = x_BND + self._again(_attended, norm, attention, x_BND, None, None)
        return self._ends(take_rows(x_BND, places.rows))

    def _one_by_one(self, x_BLE: Tensor, lengths: list[int], tokens: bool) -> tuple[Tensor, Tensor | None]:
        """`forward` of bags that are padded at their ends, each without its padding; zeros for tokens there."""
        found = [self(x_BLE[i : i + 1, :length], tokens=tokens) for i, length in enumerate(lengths)]
        cls_BD = torch.cat([cls_1D for cls_1D, _ in found])
        if not tokens:
            return cls_BD, None
        return cls_BD, torch.cat([F.pad(x_1ND, (0, 0, 0, x_BLE.shape[1] - x_1ND.shape[1])) for _, x_1ND in found])

    def _ends(self, x_BRD: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_norm(x_BRD[:, 0]), x_BRD[:, 1:]

    def _check_width(self, x_BLE: Tensor) -> None:
        if x_BLE.shape[-1] != self.in_dim:
            raise ValueError(f"patch embeddings are {x_BLE.shape[-1]} wide, the aggregator was built for {self.in_dim}")

    def _project(self, x_BLE: Tensor, valid: Tensor | None) -> Tensor:
        """CLS and the projected patches, (B, 1 + L, D)."""
        if valid is not None:
            # Padding may hold anything; even times zero, a NaN would reach the projection's gradient.
            x_BLE = x_BLE.masked_fill(~valid[..., None], 0.0)
        if not torch.is_autocast_enabled(x_BLE.device.type):
            x_BLE = x_BLE.to(self.project.weight.dtype)
        x_BLD = self.project(x_BLE)
        return torch.cat([self.cls_token.to(x_BLD.dtype).expand(len(x_BLD), 1, -1), x_BLD], dim=1)

    def _again(self, layer: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """A layer whose activations are kept, or with `activation_checkpointing` made again in the backward pass."""
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            return layer(*arguments)
        # the state of the random numbers is kept and put back for the second pass (preserve_rng_state)
        out: Tensor = checkpoint(layer, *arguments, use_reentrant=False)
        return out


def _lengths_alone(x_BLE: Tensor, valid: Tensor) -> list[int] | None:
    """Real patches of each bag, where bags are to be taken one by one: padded at their ends alone, none of them empty,
    each long enough to keep a GPU busy.
    """
    lengths_B = valid.sum(dim=1)
    at_ends = valid == (torch.arange(valid.shape[1], device=valid.device) < lengths_B[:, None])
    fewest = 1 if x_BLE.device.type == "cpu" else BUSY_GPU
    if not bool(at_ends.all() & (lengths_B >= fewest).all()):
        return None
    lengths: list[int] = lengths_B.tolist()
    return lengths


def _attended(
    norm: nn.Module, attention: nn.Module, x_BND: Tensor, mask_BN: Tensor | None, first: int | None
) -> Tensor:
    """One layer without its residual."""
    out_BND: Tensor = attention(norm(x_BND), mask_BN, first)
    return out_BND
