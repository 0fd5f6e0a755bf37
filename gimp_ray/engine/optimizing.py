"""The optimiser of a stage, and its learning rate as a function of how much of the stage is done.

Nothing here has a state of its own but the optimiser's moments and slow weights, so a stage goes on from a checkpoint
as if it had never stopped. Left out: terms of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gimp_ray.engine.protocol import Settings


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimiser over what is trained.

    `adamw` decays matrices alone, not biases, norms and tokens, apart from the gradient. `adam` and `radam` add the
    decay of every weight to its gradient (L2), as torch does and as the authors of compared methods had it. Each may
    look ahead.

    Raises:
        ValueError: an unknown optimiser.
    """
    optimizer = _plain(model, settings)
    if settings.lookahead:
        look_ahead(optimizer, settings.lookahead)
    return optimizer


def look_ahead(optimizer: torch.optim.Optimizer, every: int, share: float = 0.5) -> None:
    """Let an optimiser's weights go back to slow ones every so many steps (Lookahead; Zhang et al., NeurIPS 2019).

    Slow weights begin as the weights before the first step; at each `every`-th step they go `share` of the way to the
    weights, and the weights become them. They are kept among the optimiser's moments, under `slow`. What is validated
    in between are the fast weights, as in the code of TransMIL's authors.
    """
    begun: dict[Tensor, Tensor] = {}

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for weight in _stepped(optimizer):
            if "slow" not in optimizer.state.get(weight, {}):
                begun[weight] = weight.detach().clone()

    @torch.no_grad()
    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for weight in _stepped(optimizer):
            state = optimizer.state[weight]
            if weight in begun:
                state["slow"] = begun.pop(weight)
            if int(state["step"]) % every == 0:
                state["slow"].lerp_(weight, share)
                weight.copy_(state["slow"])

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _stepped(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The weights that the optimiser's step changes."""
    return (weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None)


def _plain(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": settings.lr, "betas": tuple(settings.betas)}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(_decay_groups(model, settings.weight_decay), **options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "adam":
        return torch.optim.Adam(trained, weight_decay=settings.weight_decay, **options)
    if settings.optimizer == "radam":
        return torch.optim.RAdam(trained, weight_decay=settings.weight_decay, **options)
    raise ValueError(f"train.optimizer must be adamw, adam or radam: found {settings.optimizer!r}")


def learning_rate(settings: Settings, begin: float, end: float) -> float:
    """The rate of an optimiser step that takes the stage from one share of its cases to another: whatever the number of
    workers, a case is learnt from at the same rate.

    A linear warm-up to `lr` over the share `warmup`, then a half cosine to zero (`cosine`), a line to zero (`linear`)
    or `lr` throughout (`constant`).

    Raises:
        ValueError: an unknown schedule.
    """
    if begin < settings.warmup:
        return settings.lr * min(1.0, end / settings.warmup)
    done = (begin - settings.warmup) / (1.0 - settings.warmup)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    if settings.schedule == "linear":
        return settings.lr * (1.0 - done)
    if settings.schedule == "constant":
        return settings.lr
    raise ValueError(f"train.schedule must be cosine, linear or constant: found {settings.schedule!r}")


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with decay, all else without; tokens of shape (1, 1, D) are no matrices."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (matrices if sum(size > 1 for size in parameter.shape) >= 2 else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
