"""A compared method that starts from the trained weights of a run of the same method: supervised pre-training.

Trained on other cases for another label (the cancer type over many cohorts), all but what is made for that label's
outputs is kept, as supervised pan-cancer ABMIL is used (the field knows it as FEATHER). Left out: which cases it saw,
which the task checks against its own (`Stage.refuse_leak`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gimp_ray.errors import InputError
from gimp_ray.learn.methods import Method, Sizes
from gimp_ray.recipes import IMAGE, RECIPES
from gimp_ray.runs.model import part, read_model

CAN_START = tuple(name for name, recipe in RECIPES.items() if recipe.needs == IMAGE)


def made_for_outputs(method: Method, sizes: Sizes, options: Mapping[str, Any]) -> Callable[[str], bool]:
    """Says of a tensor's name whether the tensor is made for the outputs: its shape depends on their number, or it is
    of a list that has a module for each of them.
    """
    with torch.device("meta"):
        one = {name: value.shape for name, value in method.build(sizes, options).state_dict().items()}
        more = replace(sizes, outputs=sizes.outputs + 1)
        other = {name: value.shape for name, value in method.build(more, options).state_dict().items()}
    reshaped = {name for name in one.keys() & other.keys() if one[name] != other[name]}
    lists = {_in_list(name) for name in one.keys() ^ other.keys()}
    return lambda name: name in reshaped or _in_list(name) in lists


def start_from(
    network: nn.Module,
    file: Path,
    target: Mapping[str, Any],
    for_outputs: Callable[[str], bool],
) -> None:
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
                fix="give method.options of the run that made it, and a store of the same patch encoder",
            )
    network.load_state_dict(kept, strict=False)


def refuse_other_method(name: str, file: Path, card: Mapping[str, Any]) -> None:
    """Refuse a model that is not of the method to be trained.

    Raises:
        InputError: says which model it is.
    """
    if card.get("method") != name:
        raise InputError(
            "the model to start from is of another method",
            file=file,
            expected=f"a model of a run with method.name: {name}",
            found=f"a model of '{card.get('method', 'gimp')}'",
            fix="give the model of such a run, its finetune.safetensors, or unset method.init",
        )


def _in_list(name: str) -> str:
    """A tensor's name without the places of modules in lists."""
    return re.sub(r"\.\d+(?=\.)", ".#", name)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
