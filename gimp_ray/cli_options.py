"""Options of the command line as plain data: dotted overrides, and dataclasses of options made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from gimp_ray.errors import ConfigError

Options = TypeVar("Options")
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
                raise ConfigError(f"--{key} has no value", expected=f"--{key} VALUE", found="nothing")
        found[key] = value
    return found


def plain_values(overrides: dict[str, str]) -> dict[str, Any]:
    """Overrides of a flat set of options: dashes are underscores, values are YAML scalars."""
    return {key.replace("-", "_"): yaml.safe_load(value) for key, value in overrides.items()}


def options_of(kind: type[Options], tree: dict[str, Any], file: Path | None) -> Options:
    """A dataclass of options from plain data; unknown names and impossible values are refused."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in tree:
        if key not in names:
            raise ConfigError(
                f"unknown option '{key}'", file=file, expected="one of " + ", ".join(names), fix="correct its name"
            )
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"impossible value for option '{key}'", file=file, expected=first["msg"], found=repr(first["input"])
        ) from None
