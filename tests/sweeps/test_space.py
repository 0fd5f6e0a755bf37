"""Spaces: what is drawn from them, and what is refused. No Ray."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimp_ray.errors import ConfigError
from gimp_ray.experiments.space import clipped, crossed, dimensions, draw, drawn, identity

SPACE: dict[str, dict[str, Any]] = {
    "mask.ratio": {"uniform": [0.25, 0.75]},
    "train.lr": {"loguniform": ["1e-5", 1e-3]},  # YAML reads 1e-5 as a word
    "triplet.margin": {"quniform": [0.2, 1.6, 0.2]},
    "model.layers": {"randint": [1, 3]},
    "triplet.mining": {"choice": ["batch_all", "batch_hard"]},
}


@given(seed=st.integers(0, 10_000), number=st.integers(0, 10_000))
def test_draws_lie_in_their_ranges(seed: int, number: int) -> None:
    params = draw(dimensions(SPACE), seed, number)
    assert 0.25 <= params["mask.ratio"] <= 0.75
    assert 1e-5 <= params["train.lr"] <= 1e-3
    assert 0.2 <= params["triplet.margin"] <= 1.6
    assert params["triplet.margin"] / 0.2 == pytest.approx(round(params["triplet.margin"] / 0.2))
    assert params["model.layers"] in (1, 2, 3) and isinstance(params["model.layers"], int)
    assert params["triplet.mining"] in ("batch_all", "batch_hard")


def test_every_value_of_a_whole_range_and_a_list_comes_and_logs_are_even() -> None:
    found = [draw(dimensions(SPACE), 0, number) for number in range(400)]
    assert {one["model.layers"] for one in found} == {1, 2, 3}
    assert {one["triplet.mining"] for one in found} == {"batch_all", "batch_hard"}
    assert len({one["triplet.margin"] for one in found}) == 8
    below = sum(one["train.lr"] < 1e-4 for one in found)  # half of the range, in the logarithm
    assert abs(below - 200) < 4 * math.sqrt(100)


def test_a_longer_search_begins_with_the_trials_of_a_shorter_one() -> None:
    space = dimensions(SPACE)
    assert drawn(space, 3, 12)[:5] == drawn(space, 3, 5)
    assert drawn(space, 3, 5) != drawn(space, 4, 5)


def test_a_finite_space_is_drawn_from_without_repeats_until_it_is_empty() -> None:
    space = dimensions({"mask.ratio": {"choice": [0.1, 0.5]}, "model.layers": {"choice": [1, 2, 3]}})
    found = drawn(space, 0, 50)
    assert len(found) == 6 == len({identity(one) for one in found})


def test_a_grid_is_every_combination_once() -> None:
    space = dimensions({"mask.ratio": {"grid": [0.1, 0.5]}, "model.layers": {"choice": [1, 2, 3]}})
    assert crossed(space)[:2] == [{"mask.ratio": 0.1, "model.layers": 1}, {"mask.ratio": 0.1, "model.layers": 2}]
    assert len({identity(one) for one in crossed(space)}) == 6
    with pytest.raises(ConfigError, match=r"'mask\.ratio'"):
        crossed(dimensions(SPACE))


def test_values_that_left_their_range_come_back_to_its_ends() -> None:
    params = {"mask.ratio": 0.9, "train.lr": 1e-6, "triplet.margin": 1.0, "model.layers": 2, "triplet.mining": "x"}
    assert clipped(dimensions(SPACE), params) == params | {"mask.ratio": 0.75, "train.lr": 1e-5}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"normal": [0, 1]},
        {"uniform": [0, 1], "choice": [1]},
        {"uniform": [0.5]},
        {"uniform": [0.5, 0.1]},
        {"uniform": ["low", "high"]},
        {"uniform": [0.0, math.inf]},
        {"loguniform": [0, 1]},
        {"quniform": [0, 1]},
        {"quniform": [0, 1, 0]},
        {"randint": [0, 1.5]},
        {"choice": []},
        {"choice": [1, 1]},
        {"grid": 3},
    ],
    ids=str,
)
def test_a_dimension_that_cannot_be_read_is_refused_by_its_key(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'mask\.ratio'") as refusal:
        dimensions({"mask.ratio": spec})
    assert refusal.value.fix
