"""A supervised stage that starts from the weights of a trained model: which are kept, and which models are refused.

Trained on other cases for another label (the cancer type over many cohorts), all but what is made for that label's
outputs is kept, as supervised pan-cancer ABMIL is used (the field knows it as FEATHER).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.methods import available
from gimp_ray.methods.base import IMAGE, Sizes, Supervise
from gimp_ray.runs.model import part, read_card, read_model

Build = Callable[[Sizes], nn.Module]


def can_start(stage: Supervise) -> bool:
    """Whether a method may start from its own trained weights: where it reads genes, they belong to these genes."""
    return stage.needs == IMAGE or bool(stage.takes)


def _starting() -> list[str]:
    """Names of the methods that can be started by `method.init`."""
    alone = {name: method.stages[0] for name, method in available().items() if len(method.stages) == 1}
    return [name for name, stage in alone.items() if stage.needs == IMAGE]


def check_start(method: str, stage: Supervise, key: str, file: Path) -> None:
    """Refuse a model to start from that is none for this stage.

    Raises:
        ConfigError: the method cannot start from trained weights.
        InputError: the model is of another method, or has no such part.
    """
    if not can_start(stage):
        raise ConfigError(
            f"method '{method}' cannot start from trained weights: they belong to the genes they were trained on",
            expected=f"{key} with method.name: {', '.join(_starting())}",
            found=str(file),
            fix=f"unset {key}",
        )
    card = read_card(file)
    if not stage.takes and card.get("method") != method:
        raise InputError(
            "the model to start from is of another method",
            file=file,
            expected=f"a model of a run with method.name: {method}",
            found=f"a model of '{card.get('method')}'",
            fix=f"give the model of such a run, its finetune.safetensors, or unset {key}",
        )
    missing = [section for section in stage.inherited if "layers" not in card.get("config", {}).get(section, {})]
    if missing:
        raise InputError(
            "this is no model of GiMP's image side",
            file=file,
            expected="a pre-trained or fine-tuned model with a patch aggregator",
            found=f"a model of '{card.get('method')}'",
            fix="give the model of a run of GiMP or of a compared pre-training",
        )


def made_for_outputs(build: Build, sizes: Sizes) -> Callable[[str], bool]:
    """Says of a tensor's name whether the tensor is made for the outputs: its shape depends on their number, or it is
    of a list that has a module for each of them.
    """
    with torch.device("meta"):
        one = {name: value.shape for name, value in build(sizes).state_dict().items()}
        more = build(replace(sizes, outputs=sizes.outputs + 1))
        other = {name: value.shape for name, value in more.state_dict().items()}
    reshaped = {name for name in one.keys() & other.keys() if one[name] != other[name]}
    lists = {_in_list(name) for name in one.keys() ^ other.keys()}
    return lambda name: name in reshaped or _in_list(name) in lists


def start_from(network: nn.Module, file: Path, target: Mapping[str, Any], for_outputs: Callable[[str], bool]) -> None:
    """Put the trained weights of a model file into a network, in place.

    Args:
        network: with fresh weights.
        file: the model's weights.
        target: card of what the network is to predict; where the model predicts the same, its outputs are kept too.
        for_outputs: see `made_for_outputs`.

    Raises:
        InputError: the model's network is another one: names the first tensor that does not fit.
    """
    weights, card = read_model(file)
    whole = card.get("target") == target
    trained, fresh = part(weights, "net"), network.state_dict()
    kept, own = (
        {name: value for name, value in weights.items() if whole or not for_outputs(name)}
        for weights in (trained, fresh)
    )
    for name in sorted(own.keys() | kept.keys()):
        have, wanted = _shape(kept.get(name)), _shape(own.get(name))
        if have != wanted:
            raise InputError(
                "the model to start from has another network",
                file=file,
                expected=f"{name} of shape {wanted}" if name in own else f"no {name}",
                found=f"shape {have}" if name in kept else "none",
                fix="give the keys of section method of the run that made it, and a store of the same patch encoder",
            )
    network.load_state_dict(kept, strict=False)


def take_parts(network: nn.Module, file: Path, names: tuple[str, ...]) -> None:
    """Put the trained weights of some parts of a model file into the same parts of a network, in place."""
    weights, _ = read_model(file)
    for name in names:
        network.get_submodule(name).load_state_dict(part(weights, f"net.{name}"))


def check_patch_dim(card: Mapping[str, Any], width: int | None, store: str) -> None:
    """Refuse a store whose patch embeddings are not as wide as a model's card says."""
    if card["patch_dim"] and width != card["patch_dim"]:
        raise InputError(
            "the model was trained on patch embeddings of another width",
            file=store,
            expected=f"width {card['patch_dim']}",
            found=f"width {width}",
            fix="use a store made with the same patch encoder",
        )


def _in_list(name: str) -> str:
    """A tensor's name without the places of modules in lists."""
    return re.sub(r"\.\d+(?=\.)", ".#", name)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
