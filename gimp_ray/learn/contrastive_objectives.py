"""The compared pre-training objectives as stage `pretrain` runs them: options, model and loss of each.

All of them have one image trunk (the aggregator of the config) and one gene side (GroupMSA of the config), so that only
the objective differs. Options are those of `objective.options`, by argument name; the defaults are the published ones,
or what small cohorts want where the model's docstring says so. Left out: plan, reads and files (`contrastive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from gimp_ray.config import Section
from gimp_ray.engine.protocol import Tensors
from gimp_ray.errors import ConfigError
from gimp_ray.feed.plan import Row
from gimp_ray.feed.windows import Arrays, read_masks
from gimp_ray.learn.gene_side import dividing_heads
from gimp_ray.methods.biovil import BioViL, biovil_loss
from gimp_ray.methods.mgca import MGCA, mgca_loss
from gimp_ray.methods.refers import REFERS, refers_loss
from gimp_ray.methods.tangle import TANGLE
from gimp_ray.nn.aggregator import PatchAggregator
from gimp_ray.nn.genes import GeneEncoder, GroupTargets
from gimp_ray.nn.losses import gather_rows, infonce, patches_at

Loss = tuple[Tensor, dict[str, Tensor]]
_GROUPS = 1  # stream of draws from a window's mask seed, beside the patches'


class MGCAOptions(Section):
    """Numbers of `models.mgca` and `objectives.mgca`."""

    hidden: int = Field(2048, ge=1)
    out_dim: int = Field(128, ge=1)
    prototypes: int = Field(64, ge=1)
    regions: int = Field(256, ge=1)
    still_epochs: int = Field(1, ge=0)
    temperature: float = Field(0.07, gt=0)
    local_temperature: float = Field(0.1, gt=0)
    prototype_temperature: float = Field(0.2, gt=0)
    epsilon: float = Field(0.05, gt=0)
    iterations: int = Field(3, ge=1)
    weights: tuple[float, float, float] = (1.0, 0.7, 0.5)


class BioViLOptions(Section):
    """Numbers of `models.biovil` and `objectives.biovil`; `warm_up` is the share of the epochs before both are joined,
    `mask_ratio` the share of the gene groups that is masked.
    """

    out_dim: int = Field(128, ge=1)
    regions: int = Field(256, ge=1)
    temperature: float = Field(0.5, gt=0)
    mask_weight: float = Field(0.1, ge=0)
    mask_ratio: float = Field(0.15, gt=0, lt=1)
    warm_up: float = Field(0.2, ge=0, lt=1)


class REFERSOptions(Section):
    """Numbers of `models.refers` and `objectives.refers`; of `heads` the most are used that divide `model.dim`."""

    views: int = Field(3, ge=1)
    heads: int = Field(16, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    regions: int = Field(256, ge=1)
    bins: int = Field(16, ge=2)
    temperature: float = Field(0.1, gt=0)
    image_weight: float = Field(0.75, ge=0, le=1)
    caption_weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _a_region_a_view(self) -> REFERSOptions:
        if self.regions < self.views:
            raise ValueError("regions must be at least views, since they are shared among them")
        return self


class TANGLEOptions(Section):
    """Numbers of `models.tangle` and of its InfoNCE."""

    out_dim: int = Field(768, ge=1)
    temperature: float = Field(0.01, gt=0)


@dataclass(frozen=True)
class Sides:
    """What every model is built of.

    Attributes:
        aggregator: the image side.
        encoder: the gene side, fitted to the training cases' expression.
        gene_dim: width of CLS_ge.
        targets: fits what is predicted of gene groups, in so many bins.
    """

    aggregator: PatchAggregator
    encoder: GeneEncoder
    gene_dim: int
    targets: Callable[[int], GroupTargets]


@dataclass(frozen=True)
class Reading:
    """What a window's arrays depend on besides its row: seed and epochs of the stage, gene groups, L, and the masked
    share.
    """

    seed: int
    epochs: int
    groups: int
    window: int
    mask_ratio: float


@dataclass(frozen=True)
class Objective:
    """One compared objective.

    Attributes:
        options: its numbers.
        build: options and sides -> the model.
        read: options, row and reading -> arrays besides patches and genes. Keys may be there in some epochs alone.
        loss: options, the model (perhaps wrapped) and a mini-batch -> the loss and its parts for the log.
        groups: whether it needs gene groups.
    """

    options: type[Section]
    build: Callable[[Any, Sides], nn.Module]
    read: Callable[[Any, Row, Reading], Arrays]
    loss: Callable[[Any, nn.Module, Tensors], Loss]
    groups: bool = True


def read_options(name: str, given: dict[str, Any]) -> Any:
    """The options of an objective.

    Raises:
        ConfigError: an unknown option or an impossible value.
    """
    kind = OBJECTIVES[name].options
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        # a rule over several options has no place of its own and names them
        key = ".".join(str(part) for part in first["loc"]) or first["msg"].removeprefix("Value error, ").split()[0]
        unknown = first["type"] == "extra_forbidden"
        raise ConfigError(
            f"{'unknown option' if unknown else 'impossible value for option'} 'objective.options.{key}' of {name}",
            expected=f"one of {', '.join(kind.model_fields)}" if unknown else first["msg"],
            found=key if unknown else repr(first["input"]),
            fix=f"correct objective.options.{key}",
        ) from None


def draw_groups(seeds: NDArray[np.uint64], groups: int, count: int, stream: int) -> NDArray[np.bool_]:
    """(B, R) bool: exactly `count` of the groups of each sample, from its seed and the stream alone."""
    chosen = np.zeros((len(seeds), groups), dtype=bool)
    for row, seed in zip(chosen, seeds, strict=True):
        draws = np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
        row[draws.permutation(groups)[:count]] = True
    return chosen


def _nothing_more(options: Any, row: Row, reading: Reading) -> Arrays:
    return {}


def _build_mgca(options: MGCAOptions, sides: Sides) -> nn.Module:
    return MGCA(sides.aggregator, sides.encoder, options.hidden, options.out_dim, options.prototypes, options.regions)


def _read_mgca(options: MGCAOptions, row: Row, reading: Reading) -> Arrays:
    return {"still": np.ones(len(row.case), dtype=bool)} if row.epoch < options.still_epochs else {}


def _mgca(options: MGCAOptions, model: nn.Module, batch: Tensors) -> Loss:
    out = model(batch["patches"], batch["genes"], still="still" in batch)
    result = mgca_loss(
        **out._asdict(),
        counted=batch["counted"],
        temperature=options.temperature,
        local_temperature=options.local_temperature,
        prototype_temperature=options.prototype_temperature,
        epsilon=options.epsilon,
        iterations=options.iterations,
        weights=options.weights,
    )
    return result.loss, {
        "loss_ita": result.ita,
        "loss_cta": result.cta,
        "loss_cpa": result.cpa,
        "retrieval": result.accuracy,
    }


def _build_biovil(options: BioViLOptions, sides: Sides) -> nn.Module:
    return BioViL(sides.aggregator, sides.encoder, sides.targets(2), options.out_dim, options.regions)


def _read_biovil(options: BioViLOptions, row: Row, reading: Reading) -> Arrays:
    masked = max(1, round(options.mask_ratio * reading.groups))
    arrays: Arrays = {"masked_groups": draw_groups(row.mask_seed, reading.groups, masked, _GROUPS)}
    if row.epoch < round(options.warm_up * reading.epochs):
        # one split for all cases of an epoch: with a split each, which groups are seen would tell more than whose
        seeds = np.full(len(row.case), row.epoch, dtype=np.uint64)
        arrays["half"] = draw_groups(seeds, reading.groups, reading.groups // 2, reading.seed)
        arrays["masked"] = read_masks(row, reading.window, reading.mask_ratio)
    return arrays


def _biovil(options: BioViLOptions, model: nn.Module, batch: Tensors) -> Loss:
    patches_BLE, masked_BM = batch["patches"], batch.get("masked")
    out = model(patches_BLE, batch["genes"], batch["masked_groups"], half_BR=batch.get("half"), masked=masked_BM)
    target_BME = None
    if masked_BM is not None:
        target_BME = patches_at(patches_BLE, masked_BM)
    result = biovil_loss(
        out.first,
        out.second,
        out.predicted,
        out.target,
        batch["masked_groups"],
        out.reconstruction,
        target_BME,
        counted=batch["counted"],
        temperature=options.temperature,
        mask_weight=options.mask_weight,
    )
    parts = {"loss_contrast": result.contrast, "loss_groups": result.groups, "retrieval": result.accuracy}
    if result.patches is not None:
        parts["loss_rec"] = result.patches
    return result.loss + out.idle, parts


def _build_refers(options: REFERSOptions, sides: Sides) -> nn.Module:
    dim = sides.aggregator.dim
    heads = dividing_heads(dim, options.heads)
    return REFERS(
        sides.aggregator,
        sides.encoder,
        sides.targets(options.bins),
        options.views,
        heads,
        options.dropout,
        options.regions,
    )


def _refers(options: REFERSOptions, model: nn.Module, batch: Tensors) -> Loss:
    out = model(batch["patches"], batch["genes"])
    result = refers_loss(
        out.image,
        out.genes,
        out.logits,
        out.bins,
        counted=batch["counted"],
        temperature=options.temperature,
        image_weight=options.image_weight,
        caption_weight=options.caption_weight,
    )
    return result.loss, {
        "loss_caption": result.caption,
        "loss_contrast": result.contrast,
        "retrieval": result.accuracy,
    }


def _build_tangle(options: TANGLEOptions, sides: Sides) -> nn.Module:
    return TANGLE(sides.aggregator, sides.encoder, sides.gene_dim, options.out_dim)


def _tangle(options: TANGLEOptions, model: nn.Module, batch: Tensors) -> Loss:
    out = model(batch["patches"], batch["genes"])
    image_NP, genes_NP = gather_rows(batch["counted"], out.image, out.genes)
    result = infonce(image_NP, genes_NP, options.temperature)
    return result.loss, {"retrieval": result.accuracy}


OBJECTIVES: dict[str, Objective] = {
    "mgca": Objective(MGCAOptions, _build_mgca, _read_mgca, _mgca),
    "biovil": Objective(BioViLOptions, _build_biovil, _read_biovil, _biovil),
    "refers": Objective(REFERSOptions, _build_refers, _nothing_more, _refers),
    "tangle": Objective(TANGLEOptions, _build_tangle, _nothing_more, _tangle, groups=False),
}
