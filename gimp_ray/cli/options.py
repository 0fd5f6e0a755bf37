"""Options of the command line: dotted overrides, and `Options` made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml

from gimp_ray.errors import ConfigError
from gimp_ray.options import Options

Kind = TypeVar("Kind", bound=Options)
ANY_KEYS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["-h", "--help"]}


def overrides_of(arguments: list[str]) -> dict[str, str]:
    """`["--train.lr", "3e-4", "--a=b"]` -> `{"train.lr": "3e-4", "a": "b"}`."""
    found: dict[str, str] = {}
    rest = iter(arguments)
    for token in rest:
        if not token.startswith("--"):
            raise ConfigError(f"'{token}' is not an option", expected="--key value", fix="see --help")
        key, equals, value = token[2:].partition("=")
        if not equals:
            value = next(rest, "")
            if value == "":
                fix = "give the option a value"
                raise ConfigError(f"--{key} has no value", expected=f"--{key} VALUE", found="nothing", fix=fix)
        found[key] = value
    return found


def plain_values(overrides: dict[str, str]) -> dict[str, Any]:
    """Overrides of a flat set of options: dashes are underscores, values are YAML scalars."""
    return {key.replace("-", "_"): yaml.safe_load(value) for key, value in overrides.items()}


def options_of(kind: type[Kind], tree: dict[str, Any], file: Path | None) -> Kind:
    """Options from plain data; unknown names and impossible values are refused, with the file they may stand in."""
    try:
        return kind(**tree)
    except ConfigError as error:
        error.file = error.file or (None if file is None else str(file))
        raise
