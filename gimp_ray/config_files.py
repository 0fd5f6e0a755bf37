"""Configs from and to files: YAML, dotted overrides, refusals that name the key, and how two configs differ."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from gimp_ray.config import Config, Section
from gimp_ray.errors import ConfigError
from gimp_ray.methods import find


def load_config(
    file: str | Path | None = None, overrides: dict[str, Any] | None = None, base: dict[str, Any] | None = None
) -> Config:
    """Build a config from defaults, `base`, a YAML file and dotted overrides, the later winning.

    Args:
        file: a YAML mapping with the config's keys, or None.
        overrides: `{"train.lr": "3e-4"}`; values are read as YAML scalars when they are strings.
        base: a nested mapping below the file, such as a run folder's saved config.

    Where what lies above changes `method.name`, the keys of the method before, which the new one does not have, are
    left out of what lies below.

    Raises:
        ConfigError: an unknown key or impossible value, named by its dotted key.
    """
    dotted, below = dict(overrides or {}), [base or {}, read_yaml(file) if file is not None else {}]
    before = method_of(below[1], method_of(below[0]))
    name = str(dotted.get("method.name") or before)
    tree: dict[str, Any] = {}
    for layer in below:
        merge(tree, _fitting(layer, name, before))
    for key, value in dotted.items():
        merge(tree, nested(key, _value_of(key, value, find(name).config)))
    return build_config(tree, file)


def _fitting(tree: dict[str, Any], name: str, default: str) -> dict[str, Any]:
    """What of a nested mapping, written for its own method or the default one, a method can take."""
    before = method_of(tree, default)
    if before == name:
        return tree
    rest = {key: value for key, value in tree.items() if key != "method" or "name" not in value}
    return without_others_keys(rest, name, [before])


def method_of(tree: dict[str, Any], default: str = "gimp") -> str:
    """The `method.name` of a nested mapping."""
    section = tree.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    return default if name is None else str(name)


def without_others_keys(tree: dict[str, Any], name: str, others: Iterable[str]) -> dict[str, Any]:
    """A nested mapping without the keys that a method does not have and one of some others has."""
    own, theirs = find(name).config, [find(other).config for other in others if other != name]
    kept: dict[str, Any] = {}
    for key, value in flatten(tree).items():
        if _field(own, key) is not None or not any(_field(kind, key) is not None for kind in theirs):
            merge(kept, nested(key, value))
    return kept


def with_absolute_paths(config: Config) -> Config:
    """The config with local paths made absolute, so that workers and later runs mean the same files."""
    return _absolute(config)


def build_config(tree: dict[str, Any], file: str | Path | None = None) -> Config:
    """Check a nested mapping and make it a config of its method."""
    method = find(method_of(tree))
    try:
        return method.config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, file, method.config, of=f" of method {method.title}") from None


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


def is_free(key: str, config: type[Config]) -> bool:
    """Whether a key may change without changing what is computed: where, how fast, how long, or under which path."""
    return any((field.json_schema_extra or {}).get("free") for field in _fields(config, key))  # type: ignore[union-attr]


def describe_keys(method: str = "gimp") -> list[tuple[str, str, str]]:
    """Every key of a method's config with its default and meaning, for `--help` and the docs."""
    return list(_described(find(method).config, ""))


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    """Lay nested `changes` over nested `tree`, in place."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = copy.deepcopy(value)


def _described(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            kind, key = type(field.default), f"{prefix}{name}"
            changed = field.default.model_dump()
            for inner, default, meaning in _described(kind, f"{key}."):
                value = changed.get(inner.rpartition(".")[2])
                unset = "None" if inner.endswith(".stop_after") else "inherited"
                stages = bool(prefix) and name == "train"  # what a stage changes of `train`
                yield inner, (unset if value is None else str(value)) if stages else default, meaning
        else:
            yield f"{prefix}{name}", str(field.default), field.description or ""


def _absolute(section: Any) -> Any:
    """A section whose fields that are marked as paths are absolute, but URIs and the words a field allows."""
    changed: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, marks = getattr(section, name), dict(field.json_schema_extra or {})  # type: ignore[arg-type]
        if isinstance(value, Section):
            changed[name] = _absolute(value)
        elif marks.get("path") and value is not None and "://" not in value and value not in marks.get("words", ()):  # type: ignore[operator]
            changed[name] = str(Path(value).expanduser().resolve())
    return section.model_copy(update=changed)


def _fields(config: type[Section], key: str) -> list[FieldInfo]:
    """The fields along a dotted key, as far as there are such."""
    found: list[FieldInfo] = []
    model: Any = config
    for name in key.split("."):
        field = getattr(model, "model_fields", {}).get(name)
        if field is None:
            break
        found.append(field)
        model = type(field.default) if isinstance(field.default, Section) else None
    return found


def _field(config: type[Section], key: str) -> FieldInfo | None:
    """The field of a dotted key; None where there is none."""
    found = _fields(config, key)
    return found[-1] if len(found) == key.count(".") + 1 else None


def _value_of(key: str, value: Any, config: type[Config]) -> Any:
    """An override's value: a YAML scalar, but a path or a name is what was typed, whatever YAML would see in it."""
    if not isinstance(value, str) or not value:
        return value
    field = _field(config, key)
    if field is not None and field.annotation in (str, str | None):
        return None if value == "null" and field.annotation is not str else value
    return yaml.safe_load(value)


def _under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def nested_keys(flat: dict[str, Any]) -> dict[str, Any]:
    """A mapping whose keys may be dotted as the tree they mean."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        merge(tree, nested(key, value))
    return tree


def nested(key: str, value: Any) -> dict[str, Any]:
    """A dotted key and its value as the tree they mean."""
    head, _, rest = key.partition(".")
    return {head: nested(rest, value) if rest else value}


def explain(
    error: ValidationError, file: str | Path | None, model: Any, kind: str = "config key", of: str = ""
) -> ConfigError:
    """A validation error of pydantic as a refusal that names the key; the first of several, and the others' names.

    Args:
        error: of the validation.
        file: the file the values came from.
        model: the section or dataclass that was validated.
        kind: what its keys are called.
        of: said after the name of an unknown key.
    """
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    # a rule over several keys has no location, and its message begins with the key
    keys = [".".join(str(part) for part in e["loc"]) for e in error.errors()]
    key = keys[0] or message.split()[0]
    also = f"; also wrong: {', '.join(keys[1:])}" if keys[1:] else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        sections = key.rpartition(".")[0]
        there = type(_fields(model, sections)[-1].default) if sections and _fields(model, sections) else model
        names = getattr(there, "model_fields", None) or getattr(there, "__pydantic_fields__", None)
        return ConfigError(
            f"unknown {kind} '{key}'{of}{also}",
            file=file,
            found=key,
            expected="one of " + ", ".join(names) if names else "a known key",
            fix="correct its name",
        )
    return ConfigError(
        f"impossible value for {kind} '{key}'{also}",
        file=file,
        expected=message,
        found=repr(first["input"])[:200],
        fix=f"change {key}",
    )
