"""What a compared method is: a network, its loss and what it predicts, as plain data and functions.

A method says which sizes of a cohort its network is built for (`sizes`), and every other argument of the network, with
the network's own default, is an option of the run (`method.options`). A loss of its own may have options as well. A
method that trains its parts in turn has several phases. Left out: reading and training (`gimp_ray.learn.supervised`),
hyper-parameters (`gimp_ray.recipes`).

Shape suffixes: B batch, N patches, E patch embedding width, G genes, O outputs, P predictions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gimp_ray.config import Config
from gimp_ray.engine.protocol import Tensors
from gimp_ray.errors import ConfigError
from gimp_ray.learn.gene_layout import SetPlaces
from gimp_ray.learn.targets import Target

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]  # (target, out, batch, **options) -> loss, its parts
Predict = Callable[[Target, Any], Tensor]  # (target, out) -> (B, P) float64
Options = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What a network is built for.

    Attributes:
        patch_dim: E; 0 where the method reads no patches.
        num_genes: G, values that `GeneInput` hands over; 0 where the method reads no genes.
        outputs: O.
        sets: where the gene sets stand among those values; None without sets.
    """

    patch_dim: int
    num_genes: int
    outputs: int
    sets: SetPlaces | None = None


def target_loss(target: Target, out: Any, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
    """The target's own loss of the one answer a network gives."""
    return target.loss(logits_of(out), batch)


def target_prediction(target: Target, out: Any) -> Tensor:
    """What the target makes of the one answer a network gives."""
    return target.predict(logits_of(out))


def logits_of(out: Any) -> Tensor:
    """(B, O) of a network's output: the output itself, or its `logits`."""
    return out if isinstance(out, Tensor) else out.logits


@dataclass(frozen=True)
class Phase:
    """A part of the training with a loss of its own.

    Attributes:
        loss: see `Loss`; its keyword arguments with a default are options.
        predict: see `Predict`.
        name: for the network's `set_stage`, where a method has several phases.
        begin: share of the training at which it begins.
    """

    loss: Loss = target_loss
    predict: Predict = target_prediction
    name: str = ""
    begin: float = 0.0


@dataclass(frozen=True)
class Method:
    """A compared method.

    Attributes:
        network: makes the network from the `sizes` it names, then options by name.
        sizes: attributes of `Sizes`, in the order of the network's first arguments.
        phases: in order; one, unless its parts are trained in turn.
        defaults: options that come from other keys of the config.
        fragments: how many fragments gene sets are laid out in, from the config; None where sets are not used. One a
            set keeps each set's genes together.
        mixup: whether `genes.mixup` mixes the genes of a mini-batch.
        penalised: parts of the network whose weights `method.l1` is about; all of it where none is named.
    """

    network: Callable[..., nn.Module]
    sizes: tuple[str, ...]
    phases: tuple[Phase, ...] = (Phase(),)
    defaults: Callable[[Config], Options] | None = None
    fragments: Callable[[Config], int] | None = None
    mixup: bool = False
    penalised: tuple[str, ...] = ()

    @property
    def network_options(self) -> tuple[str, ...]:
        """Names of the options of its network."""
        fixed = self.network.keywords if isinstance(self.network, partial) else {}
        return tuple(name for name in _with_default(self.network) if name not in fixed)

    @property
    def loss_options(self) -> tuple[str, ...]:
        """Names of the options of its loss."""
        return tuple(dict.fromkeys(name for phase in self.phases for name in _with_default(phase.loss)))

    def options(self, config: Config) -> Options:
        """All that was said about it: what the config's other keys say, then `method.options`.

        Raises:
            ConfigError: an option that it does not have.
        """
        name, said = config.method.name, config.method.options
        known = (*self.network_options, *self.loss_options)
        for option in said:
            if option not in known:
                raise ConfigError(
                    f"method '{name}' has no option '{option}'",
                    expected="one of " + ", ".join(known),
                    found=option,
                    fix="correct method.options; docs/methods.md says what each method takes",
                )
        return (self.defaults(config) if self.defaults is not None else {}) | said

    def build(self, sizes: Sizes, options: Mapping[str, Any]) -> nn.Module:
        """The network with fresh weights."""
        chosen = {name: options[name] for name in self.network_options if name in options}
        return self.network(*(getattr(sizes, name) for name in self.sizes), **chosen)

    def loss(self, phase: Phase, options: Mapping[str, Any]) -> Loss:
        """The phase's loss under the run's options."""
        return partial(phase.loss, **{name: options[name] for name in _with_default(phase.loss) if name in options})

    def absolute_weights(self, network: nn.Module) -> Tensor:
        """(), the sum of absolute weights that `method.l1` is about, without those that are frozen."""
        parts = [getattr(network, name) for name in self.penalised] or [network]
        return sum(
            (weight.abs().sum() for part in parts for weight in part.parameters() if weight.requires_grad),
            start=torch.zeros((), device=next(network.parameters()).device),
        )

    def phase_at(self, share: float) -> int:
        """Number of the phase that is on when a share of the training is done."""
        return max(number for number, phase in enumerate(self.phases) if phase.begin <= share)


def answer(network: nn.Module, needs: tuple[str, ...], batch: Tensors) -> Any:
    """The network's output for a batch with `patches`, maybe `valid`, and scaled `genes`, as the method needs them."""
    if needs == ("genes",):
        return network(batch["genes"])
    if needs == ("patches",):
        return network(batch["patches"], batch.get("valid"))
    return network(batch["patches"], batch.get("valid"), genes_BG=batch["genes"])


def _with_default(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments that may be left out."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.default is not inspect.Parameter.empty]
