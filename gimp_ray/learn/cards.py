"""The card beside a model file: what rebuilds the model, and which cases it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gimp_ray.errors import InputError
from gimp_ray.runs.folder import read_json


def read_card(file: Path) -> dict[str, Any]:
    """The card of a model file.

    Raises:
        InputError: there is no card beside the file.
    """
    card = file.with_suffix(".json")
    if not file.exists():
        raise InputError(
            "the model file does not exist", file=file, fix="run the stage that makes it, or correct the path"
        )
    if not card.exists():
        raise InputError("the model has no card beside it", file=file, expected=str(card), fix="copy both files")
    return read_json(card)


def trained_on(card: dict[str, Any]) -> Iterable[str]:
    """Case ids that anything in the model was fitted on."""
    genes = card.get("genes") or {}
    return set(card.get("trained_on", ())) | set(genes.get("fitted_on", ()))
