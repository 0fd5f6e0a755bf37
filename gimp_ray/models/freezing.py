"""Freezing a part of a network so that no later `.train()` of the whole can wake it.

`requires_grad=False` alone is not enough: dropout would still fire and batch statistics would still drift.
"""

from typing import Self, TypeVar

from torch import nn

_FROZEN = "_gimp_frozen"
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def freeze(module: AnyModule) -> AnyModule:
    """Take `module` out of training for good: no gradients, evaluation mode. Returns the same module."""
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
