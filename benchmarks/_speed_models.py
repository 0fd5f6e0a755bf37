"""What the speed benchmark compares: this package's networks and the reference trainer's, with the same weights, and
one step of each on a batch in memory.

Left out: timing, reading.

Shape suffixes: B batch, L patches of a window, M masked patches, E patch embedding width, D hidden width.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._reference_model import (
    ReferenceAggregator,
    ReferenceClassifier,
    ReferenceGiMP,
    reference_loss,
)
from gimp_ray.methods.gimp import GiMP, GiMPClassifier
from gimp_ray.nn.aggregator import PatchAggregator
from gimp_ray.nn.losses import masked_patch_loss, patches_at, triplet_loss

Step = Callable[[int], object]


@dataclass(frozen=True)
class Where:
    """What a measurement runs on.

    Attributes:
        device: of models and batches.
        bf16: under autocast, as with `train.precision: bf16`.
    """

    device: torch.device
    bf16: bool = False

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """As the engine has it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def wait(self) -> None:
        """Until all work that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Sizes:
    """Of the image side; the defaults are those of a run."""

    in_dim: int = 1024
    dim: int = 512
    heads: int = 8
    landmarks: int = 256
    kernel: int = 33
    layers: int = 2


@dataclass(frozen=True)
class Batch:
    """A mini-batch of pre-training in memory, as each trainer has it there."""

    stored: Tensor  # (B, L, E) float16, as the store has it
    loaded: Tensor  # (B, L, E) float32, as .pt files have it
    positions: Tensor  # (B, M) int64
    masked: Tensor  # (B, L) bool
    cls_ge: Tensor  # (B, D)
    labels: Tensor  # (B,)


def make_batch(size: int, length: int, sizes: Sizes, where: Where, form: str = "both") -> Batch:
    """Random patches in two classes; `form` keeps one trainer's alone, `stored` or `loaded`."""
    torch.manual_seed(1)
    half = torch.randn(size, length, sizes.in_dim, device=where.device).half()
    loaded = half[:, :0].float() if form == "stored" else half.float()
    masked_BM = torch.stack([torch.randperm(length)[: length // 2] for _ in range(size)]).to(where.device)
    masked_BL = torch.zeros(size, length, dtype=torch.bool, device=where.device).scatter_(1, masked_BM, True)
    cls_ge_BD = torch.randn(size, sizes.dim, device=where.device)
    half = half[:, :0].clone() if form == "loaded" else half
    return Batch(half, loaded, masked_BM, masked_BL, cls_ge_BD, torch.arange(size, device=where.device) % 2)


def aggregators(sizes: Sizes, where: Where) -> tuple[PatchAggregator, ReferenceAggregator]:
    """Ours and the reference's, with the same weights."""
    torch.manual_seed(0)
    head = sizes.dim // sizes.heads
    ours = PatchAggregator(sizes.in_dim, sizes.dim, sizes.heads, head, sizes.landmarks, 6, sizes.kernel, sizes.layers)
    theirs = ReferenceAggregator(
        sizes.in_dim, sizes.dim, sizes.heads, head, sizes.landmarks, sizes.kernel, sizes.layers
    )
    theirs.load_state_dict(ours.state_dict())
    return ours.to(where.device), theirs.to(where.device)


def pretraining(sizes: Sizes, where: Where) -> tuple[GiMP, ReferenceGiMP]:
    """Ours and the reference's, with the same weights."""
    mine, theirs = aggregators(sizes, where)
    ours = GiMP(mine, None, sizes.in_dim).to(where.device)
    reference = ReferenceGiMP(theirs, sizes.dim, sizes.in_dim).to(where.device)
    reference.load_state_dict(ours.state_dict())
    return ours, reference


def our_loss(model: GiMP, batch: Batch, direct: bool = False) -> Tensor:
    """L_pre as the task computes it; `direct` by the aggregator's path for any bag, without what masking saves."""
    if direct:
        cls_BD, tokens_BLD = model.aggregator(batch.stored, None, batch.positions, model.mask_token)
        index_BMD = batch.positions[..., None].expand(-1, -1, tokens_BLD.shape[-1])
        reconstruction_BME = model.decoder(tokens_BLD.gather(1, index_BMD))
        cls_pat_BF = torch.cat([cls_BD, batch.cls_ge.to(cls_BD.dtype)], dim=-1)
    else:
        out = model(batch.stored, cls_ge=batch.cls_ge, masked=batch.positions)
        assert out.reconstruction is not None
        reconstruction_BME, cls_pat_BF = out.reconstruction, out.cls_pat
    target_BME = patches_at(batch.stored, batch.positions)
    return masked_patch_loss(reconstruction_BME, target_BME) + triplet_loss(cls_pat_BF, batch.labels).loss


def their_loss(model: ReferenceGiMP, batch: Batch) -> Tensor:
    """The reference's L_pre."""
    cls_pat_BF, reconstruction_BLE = model(batch.loaded, batch.masked, batch.cls_ge)
    return reference_loss(cls_pat_BF, reconstruction_BLE, batch.loaded, batch.masked, batch.labels)


def stepping(model: nn.Module, loss: Callable[[], Tensor], where: Where) -> Step:
    """A whole optimiser step: forward, backward, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def step(_: int = 0) -> float:
        with where.autocast():
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        where.wait()
        return float(value.detach())

    return step


def classifiers(sizes: Sizes, where: Where) -> tuple[GiMPClassifier, ReferenceClassifier]:
    """The fine-tuning models, images alone, with the same weights."""
    mine, theirs = aggregators(sizes, where)
    ours, reference = GiMPClassifier(mine, None, 2, sizes.dim), ReferenceClassifier(theirs, sizes.dim, 2)
    head = zip(reference.head.state_dict(), ours.head.state_dict().values(), strict=True)
    reference.head.load_state_dict(dict(head))
    return ours.to(where.device), reference.to(where.device)


def our_logits(model: GiMPClassifier, bags: list[Tensor]) -> Tensor:
    """(B, 2) of a padded mini-batch of bags, float16 as stored, as fine-tuning has it."""
    longest = max(len(bag) for bag in bags)
    patches_BNE = bags[0].new_zeros(len(bags), longest, bags[0].shape[-1])
    valid_BN = torch.zeros(len(bags), longest, dtype=torch.bool, device=patches_BNE.device)
    for number, bag in enumerate(bags):
        patches_BNE[number, : len(bag)], valid_BN[number, : len(bag)] = bag, True
    logits_BC: Tensor = model(patches_BNE, valid=None if bool(valid_BN.all()) else valid_BN).logits
    return logits_BC


def our_bags_loss(model: GiMPClassifier, bags: list[Tensor], labels_B: Tensor) -> Tensor:
    """Cross-entropy of a mini-batch of bags."""
    return F.cross_entropy(our_logits(model, bags).float(), labels_B)


def their_bags_loss(model: ReferenceClassifier, bags: list[Tensor], labels_B: Tensor) -> Tensor:
    """Bag by bag, as the package has no way to pad that leaves a bag its own result; gradients add up."""
    total = torch.zeros((), device=labels_B.device)
    for bag, label in zip(bags, labels_B, strict=True):
        loss = F.cross_entropy(model(bag[None]).float(), label[None]) / len(bags)
        if bag is not bags[-1]:
            loss.backward()
            total += loss.detach()
        else:
            total = total + loss
    return total
