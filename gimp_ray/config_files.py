"""Configs from and to files: YAML, dotted overrides, refusals that name the key, and how two configs differ."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gimp_ray.config import Config, Section
from gimp_ray.errors import ConfigError


def load_config(
    file: str | Path | None = None, overrides: dict[str, Any] | None = None, base: dict[str, Any] | None = None
) -> Config:
    """Build a config from defaults, `base`, a YAML file and dotted overrides, the later winning.

    Args:
        file: a YAML mapping with the config's keys, or None.
        overrides: `{"train.lr": "3e-4"}`; values are read as YAML scalars when they are strings.
        base: a nested mapping below the file, such as a run folder's saved config.

    Raises:
        ConfigError: an unknown key or impossible value, named by its dotted key.
    """
    tree: dict[str, Any] = {}
    merge(tree, base or {})
    merge(tree, read_yaml(file) if file is not None else {})
    for key, value in (overrides or {}).items():
        merge(tree, nested(key, _value_of(key, value)))
    return build_config(tree, file)


def with_absolute_paths(config: Config) -> Config:
    """The config with local paths made absolute, so that workers and later runs mean the same files."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).expanduser().resolve())

    genes = config.genes.model_copy(
        update={"checkpoint": absolute(config.genes.checkpoint), "sets": absolute(config.genes.sets)}
    )
    init = config.finetune.init
    finetune = config.finetune.model_copy(update={"init": init if init in ("pretrain", "scratch") else absolute(init)})
    method = config.method.model_copy(update={"init": absolute(config.method.init)})
    places = {"store": absolute(config.store), "run": absolute(config.run)}
    return config.model_copy(update=places | {"genes": genes, "finetune": finetune, "method": method})


def build_config(tree: dict[str, Any], file: str | Path | None = None) -> Config:
    """Check a nested mapping and make it a config."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, file, Config) from None


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A YAML file's mapping; refuses a missing file, bad YAML and anything that is not a mapping."""
    path = Path(file)
    if not path.is_file():
        raise ConfigError("the config file does not exist", file=path, fix="check the path given to --config")
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError("the config file is not valid YAML", file=path, found=str(error)) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            "the config file is not a mapping of keys", file=path, expected="key: value", found=type(tree).__name__
        )
    return tree


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every key written out; `gimp run --config` takes it back."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1}}` -> `{"train.lr": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(old: Config, new: Config, sections: Iterable[str] | None = None) -> dict[str, tuple[Any, Any]]:
    """Keys that change what a run computes, with the old and the new value; `sections` keeps those alone."""
    before, after = flatten(old.model_dump()), flatten(new.model_dump())
    kept = tuple(sections) if sections is not None else None
    return {
        key: (before.get(key), after.get(key))
        for key in before | after  # options by name may be in one of them alone
        if before.get(key) != after.get(key) and not is_free(key, type(new)) and (kept is None or _under(key, kept))
    }


def is_free(key: str, model: Any = Config) -> bool:
    """Whether a dotted key of a section changes only where, how fast or how long a run computes, not its result."""
    for part in key.split("."):
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return False
        if (field.json_schema_extra or {}).get("free"):
            return True
        model = field.annotation
    return False


def describe_keys() -> list[tuple[str, str, str]]:
    """Every key with its default and meaning, for `--help` and the docs."""
    rows: list[tuple[str, str, str]] = []
    for name, field in Config.model_fields.items():
        default = field.default
        if not isinstance(default, Section):
            rows.append((name, str(default), field.description or ""))
            continue
        rows += _describe_section(name, default)
    return rows


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    """Lay nested `changes` over nested `tree`, in place."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, dict) else value


def _describe_section(name: str, section: Section) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            unset = "recipe" if name == "method" else "inherited"
            rows += [
                (f"{name}.{key}.{k}", _unset(k, unset) if v is None else str(v), f"as train.{k}") for k, v in value
            ]
        else:
            rows.append((f"{name}.{key}", str(value), field.description or ""))
    return rows


def _unset(key: str, otherwise: str) -> str:
    """What an unset key of a stage's training means."""
    return "None" if key == "stop_after" else otherwise


def _value_of(key: str, value: Any) -> Any:
    """An override's value: a YAML scalar, but a path or a name is what was typed, whatever YAML would see in it."""
    if not isinstance(value, str) or not value:
        return value
    model: Any = Config
    for part in key.split(".")[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = None if field is None else field.annotation
    field = getattr(model, "model_fields", {}).get(key.rsplit(".", maxsplit=1)[-1])
    if field is not None and field.annotation in (str, str | None):
        return None if value == "null" and field.annotation is not str else value
    return yaml.safe_load(value)


def _under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def nested(key: str, value: Any) -> dict[str, Any]:
    """A dotted key and its value as the tree they mean."""
    head, _, rest = key.partition(".")
    return {head: nested(rest, value) if rest else value}


def explain(
    error: ValidationError, file: str | Path | None, model: Any, kind: str = "config key", prefix: str = ""
) -> ConfigError:
    """A validation error of pydantic as a refusal that names the key.

    Args:
        error: of the validation.
        file: the file the values came from.
        model: the section or dataclass that was validated.
        kind: what its keys are called.
        prefix: put before the key, such as `objective.options.`.
    """
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    # a rule over several keys has no location, and its message begins with the key
    keys = [".".join(str(part) for part in e["loc"]) for e in error.errors()]
    key = keys[0] or message.split()[0]
    also = f"; also wrong: {', '.join(keys[1:])}" if keys[1:] else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return ConfigError(
            f"unknown {kind} '{prefix}{key}'{also}",
            file=file,
            expected=_siblings(key, model),
            found=key,
            fix="correct its name",
        )
    return ConfigError(
        f"impossible value for {kind} '{prefix}{key}'{also}",
        file=file,
        expected=message,
        found=repr(first["input"])[:200],
        fix=f"change {prefix}{key}",
    )


def _siblings(key: str, model: Any) -> str:
    """The keys that would have been accepted in the place of an unknown one."""
    for part in key.split(".")[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = None if field is None else field.annotation
    fields = getattr(model, "model_fields", None) or getattr(model, "__pydantic_fields__", None)
    return "one of " + ", ".join(fields) if fields else "a known key"
