"""Model weights as safetensors files: written whole, read without ever running a pickle."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gimp_ray.errors import InputError
from gimp_ray.runs.folder import whole_file


def save_weights(file: Path, weights: dict[str, Tensor]) -> None:
    """Write a model's weights whole."""
    with whole_file(file) as aside:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, aside)


def load_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file.

    Raises:
        InputError: the file is missing or is no safetensors file; no pickle is ever tried.
    """
    if not file.exists():
        raise InputError(
            "the model file does not exist", file=file, fix="run the stage that makes it, or correct the path"
        )
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            "the model file cannot be read", file=file, expected="a .safetensors file", found=str(error)
        ) from None


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under `prefix.`, without it."""
    return {name.removeprefix(prefix + "."): value for name, value in weights.items() if name.startswith(prefix + ".")}
