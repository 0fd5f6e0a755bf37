"""Files that prove themselves: a model's safetensors weights with the card beside them, and JSON with a checksum.

A card holds what rebuilds the model, what it was made from (`inputs`), and the SHA-256 of the weights. No pickle is
ever read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.io.files import read_json, whole_file, write_json

Inputs = dict[str, Any]
AGAIN = "copy the weights and the card again from where they are whole, or run the stage that makes them"


def sha256_of(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(tree: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_checksum(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the digest of its own content, which `read_checked` compares."""
    return tree | {"checksum": digest_of(tree)}


def read_checked(file: Path) -> dict[str, Any]:
    """A JSON file that was written with its checksum.

    Raises:
        InputError: it is no JSON, has no checksum, or was changed since it was written.
    """
    tree = read_json(file)
    if not isinstance(tree, dict) or "checksum" not in tree:
        raise InputError(
            "the file has no checksum", file=file, found="a file of a version before this, or another kind of file"
        )
    found, expected = digest_of({key: value for key, value in tree.items() if key != "checksum"}), tree["checksum"]
    if found != expected:
        raise InputError("the file was changed since it was written", file=file, expected=str(expected), found=found)
    return tree


def save_weights(file: Path, weights: dict[str, Tensor]) -> str:
    """Write weights whole; their SHA-256."""
    with whole_file(file) as aside:
        _write(aside, weights)
        return sha256_of(aside)


def save_model(file: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write a model, the card first, so that weights mean done."""
    with whole_file(file) as aside:
        _write(aside, weights)
        write_json(file.with_suffix(".json"), with_checksum(card | {"weights_sha256": sha256_of(aside)}))


def load_weights(file: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file.

    Args:
        file: the file.
        sha256: what it must have where that is known.

    Raises:
        InputError: the file is missing, damaged or no safetensors file.
    """
    try:
        found = None if sha256 is None else sha256_of(file)
        if found != sha256:
            raise InputError(
                "the weights are damaged, or of another model than the card beside them",
                file=file,
                expected=f"SHA-256 {sha256}",
                found=f"SHA-256 {found}",
                fix=AGAIN,
            )
        return load_file(file)
    except FileNotFoundError:
        raise _missing(file) from None
    except (OSError, SafetensorError) as error:
        raise InputError(
            "the model file cannot be read", file=file, expected="a .safetensors file", found=str(error)
        ) from None


def read_model(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model's weights and its card, each found to be what was written.

    Raises:
        InputError: a file is missing or damaged, or one is of another model.
    """
    card = read_card(file)
    return load_weights(file, card["weights_sha256"]), card


def read_card(file: Path) -> dict[str, Any]:
    """The card of a model file; the weights are not read.

    Raises:
        InputError: a file is missing, or the card was changed since it was written.
    """
    card = file.with_suffix(".json")
    if not file.exists():
        raise _missing(file)
    if not card.exists():
        raise InputError("the model has no card beside it", file=file, expected=str(card), fix="copy both files")
    try:
        return read_checked(card)
    except InputError as error:
        raise InputError(
            f"the model's card cannot be used: {error.what}",
            file=card,
            expected=error.expected,
            found=error.found,
            fix=AGAIN,
        ) from None


def trained_on(card: Mapping[str, Any]) -> set[str]:
    """Case ids that anything in the model was fitted on."""
    return set(card.get("trained_on", ())) | set((card.get("genes") or {}).get("fitted_on", ()))


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under `prefix.`, without it."""
    return {name.removeprefix(prefix + "."): value for name, value in weights.items() if name.startswith(prefix + ".")}


def changed_inputs(was: Inputs, now: Inputs) -> dict[str, tuple[Any, Any]]:
    """What differs between the inputs of a stage as it was made and as it is asked for now: key -> both values.

    A file that is not there now (`None`), not yet or no more, cannot differ.
    """
    before, after = (
        {
            "stage": tree["stage"],
            **tree["settings"],
            "seed": tree["seed"],
            "store": tree["store"],
            **{f"split.{part}": tree["split"][part] for part in tree["split"]},
            **tree["files"],
        }
        for tree in (was, now)
    )
    gone = {role for role, sha256 in now["files"].items() if sha256 is None}
    return {
        key: (before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key) and key not in gone
    }


def refuse_changed(was: Inputs, now: Inputs, where: str, files: Mapping[str, str] | None = None) -> None:
    """Refuse to continue, skip or reuse a stage that was made from something else than is asked for now.

    Args:
        was: its inputs when it was begun.
        now: what is asked for.
        where: the run folder, for the message.
        files: path of each of the files it starts from.

    Raises:
        ConfigError: another setting, seed or split; names every key that differs.
        InputError: another store, or other content of a file that it starts from.
    """
    changed = changed_inputs(was, now)
    if not changed:
        return
    key, (before, after) = next(iter(changed.items()))
    stage, others = now["stage"], [other for other in changed if other != key]
    more = f" (and {len(others)} more: {', '.join(others)})" if others else ""
    if key == "store":
        raise InputError(
            "the store is not the one this run was made with",
            file=where,
            expected=f"fingerprint {before}",
            found=f"fingerprint {after}",
            fix="use the run's own store, or a new run folder",
        )
    if key in was["files"] or key in now["files"]:
        path = (files or {}).get(key)
        raise InputError(
            f"stage '{stage}' of the run was made from another file than '{key}' means now{more}",
            file=path or where,
            expected="no such file" if before is None else f"SHA-256 {before}",
            found="no such file" if after is None else f"SHA-256 {after}",
            fix="give the file it was made from, under any path, or use a new run folder",
        )
    raise ConfigError(
        f"stage '{stage}' of the run was made with another '{key}'{more}",
        file=where,
        expected=str(before),
        found=str(after),
        fix="use the run's own settings, or a new run folder; train.stop_after stops early and lets a run go on",
    )


def _write(file: Path, weights: dict[str, Tensor]) -> None:
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, file)


def _missing(file: Path) -> InputError:
    return InputError(
        "the model file does not exist", file=file, fix="run the stage that makes it, or correct the path"
    )
