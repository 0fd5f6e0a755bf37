"""Options of the command line as plain data: dotted overrides, and dataclasses of options made of them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from gimp_ray.config_files import explain
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
                fix = "give the option a value"
                raise ConfigError(f"--{key} has no value", expected=f"--{key} VALUE", found="nothing", fix=fix)
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
            what, expected = f"unknown option '{key}'", "one of " + ", ".join(names)
            raise ConfigError(what, file=file, expected=expected, found=key, fix="correct its name")
    try:
        return _adapter(kind).validate_python(tree)  # type: ignore[arg-type,no-any-return]
    except ValidationError as error:
        raise explain(error, file, kind, "option") from None


@functools.cache  # making one takes longer than an ingest of a few slides
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
