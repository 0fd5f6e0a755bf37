"""The space of a sweep: which config keys vary, and how; draws from it and crossings of it, as plain data.

A draw is a pure function of the seed and the trial's number, so a sweep that goes on, or is made longer, has the trials
it had. Optuna, which learns from results, is in `tune.py`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gimp_ray.errors import ConfigError

Params = dict[str, Any]
# kind -> what its list must hold
KINDS = {
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "quniform": "[low, high, step]",
    "randint": "[low, high], both whole and both included",
    "choice": "the values",
    "grid": "the values",
}
LISTS = ("choice", "grid")
TRIES = 1000  # draws for a trial that is not there yet


@dataclass(frozen=True)
class Dimension:
    """One config key that varies.

    Attributes:
        key: dotted.
        kind: of `KINDS`.
        values: the list given to the kind, numbers as numbers.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def finite(self) -> bool:
        """Whether it has a list of values."""
        return self.kind in LISTS

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that show whether the config takes the dimension: all of a list, else both ends."""
        return self.values if self.finite else self.values[:2]


def dimensions(space: Mapping[str, Mapping[str, Any]]) -> list[Dimension]:
    """The dimensions of a space as it stands in a file.

    Raises:
        ConfigError: names the key that cannot be read.
    """
    return [_dimension(key, spec) for key, spec in space.items()]


def draw(space: list[Dimension], seed: int, number: int, attempt: int = 0) -> Params:
    """The values of trial `number` of a random search."""
    rng = np.random.default_rng((seed, number, attempt))
    return {one.key: _value(one, rng) for one in space}


def drawn(space: list[Dimension], seed: int, trials: int) -> list[Params]:
    """`trials` different draws; fewer where a finite space has no more."""
    found: dict[str, Params] = {}
    limit = math.prod(len(one.values) for one in space) if all(one.finite for one in space) else math.inf
    for number in range(trials):
        for attempt in range(TRIES):
            params = draw(space, seed, number, attempt)
            if identity(params) not in found:
                found[identity(params)] = params
                break
        if len(found) >= limit:
            break
    return list(found.values())


def crossed(space: list[Dimension]) -> list[Params]:
    """Every combination of the values, the last key varying fastest.

    Raises:
        ConfigError: a dimension has no list of values.
    """
    for one in space:
        if not one.finite:
            raise ConfigError(
                f"a grid search needs a list of values for '{one.key}'",
                expected="grid: [values] or choice: [values]",
                found=one.kind,
                fix="list its values, or use search: random",
            )
    return [
        dict(zip([one.key for one in space], values, strict=True))
        for values in itertools.product(*(one.values for one in space))
    ]


def clipped(space: Iterable[Dimension], params: Params) -> Params:
    """Values that left their dimension (by a factor of population based training) put on its end."""
    clipped = dict(params)
    for one in space:
        if not one.finite:
            low, high = one.values[:2]
            clipped[one.key] = min(max(params[one.key], low), high)
    return clipped


def identity(params: Params) -> str:
    """Equal for equal parameters, whatever the order of their keys."""
    return json.dumps(params, sort_keys=True)


def _dimension(key: str, spec: Mapping[str, Any]) -> Dimension:
    if not isinstance(spec, Mapping) or len(spec) != 1 or next(iter(spec)) not in KINDS:
        found = ", ".join(map(str, spec)) if isinstance(spec, Mapping) else repr(spec)
        raise _refusal(key, f"one of {', '.join(KINDS)}", found)
    ((kind, values),) = spec.items()
    if not isinstance(values, list | tuple) or not values:
        raise _refusal(key, f"{kind}: {KINDS[kind]}", repr(values))
    if kind in LISTS:
        if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
            raise _refusal(key, "every value once", repr(list(values)))
        return Dimension(key, kind, tuple(values))
    try:
        # YAML reads 1e-5 as a word
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise _refusal(key, f"{kind}: {KINDS[kind]}, numbers", repr(values)) from None
    wanted = 3 if kind == "quniform" else 2
    right = len(numbers) == wanted and all(map(math.isfinite, numbers)) and numbers[0] < numbers[1]
    if kind == "loguniform":
        right = right and numbers[0] > 0
    if kind == "quniform":
        right = right and numbers[2] > 0
    if kind == "randint":
        right = right and all(number.is_integer() for number in numbers)
        numbers = tuple(int(number) if number.is_integer() else number for number in numbers)
    if not right:
        raise _refusal(key, f"{kind}: {KINDS[kind]}, low below high", repr(list(values)))
    return Dimension(key, kind, numbers)


def _refusal(key: str, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"the search space of '{key}' cannot be read",
        expected=expected,
        found=found,
        fix=f"write, for example, {key}: {{uniform: [0.1, 0.9]}} or {key}: {{choice: [1, 2]}}",
    )


def _value(one: Dimension, rng: np.random.Generator) -> Any:
    if one.finite:
        return one.values[int(rng.integers(len(one.values)))]
    low, high = one.values[:2]
    if one.kind == "randint":
        return int(rng.integers(low, high, endpoint=True))
    if one.kind == "loguniform":
        return _short(math.exp(rng.uniform(math.log(low), math.log(high))))
    if one.kind == "quniform":
        step = one.values[2]
        return _short(low + step * int(rng.integers(0, round((high - low) / step), endpoint=True)))
    return _short(float(rng.uniform(low, high)))


def _short(value: float) -> float:
    """A value that can be read and typed: six digits."""
    return float(f"{value:.6g}")
