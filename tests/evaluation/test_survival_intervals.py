"""Intervals of the C-index against a plain bootstrap, and Kaplan-Meier against numbers worked out by hand."""

import sys

import numpy as np
import pytest

from gimp_ray.errors import InputError
from gimp_ray.evaluation import (
    Truth,
    concordance_index,
    difference_of,
    intervals_of,
    kaplan_meier,
)
from gimp_ray.evaluation.bootstrap import draw_patients


def followed(time, event) -> Truth:
    return Truth("survival", (), {"time": time, "event": event})


def column(risk) -> np.ndarray:
    return np.asarray(risk)[:, None]


def cohort(n: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n).round(1)  # one decimal makes ties
    time = np.ceil(10 * rng.exponential(np.exp(-risk)))
    return [f"p{i}" for i in range(n)], time, rng.random(n) < 0.7, risk


def test_every_resample_is_the_c_index_of_the_cases_drawn() -> None:
    """Weights of pairs give what drawing the rows themselves would give."""
    ids, time, event, risk = cohort(25)
    ids = [ids[i // 2] for i in range(25)]  # patients of two cases
    weights = draw_patients(ids, 25, 60, seed=3).astype(int)
    drawn = []
    for row in weights:
        rows = np.repeat(np.arange(25), row)
        drawn.append(concordance_index(time[rows], event[rows], risk[rows])["c_index"])
    low, high = np.percentile(drawn, [2.5, 97.5])
    found = intervals_of(followed(time, event), ids, column(risk), resamples=60, seed=3)["c_index"]
    assert found["value"] == pytest.approx(concordance_index(time, event, risk)["c_index"])
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


def test_a_perfect_order_has_no_width_and_its_reverse_is_zero() -> None:
    ids, time, event = [f"p{i}" for i in range(20)], np.arange(20.0), np.ones(20, bool)
    assert intervals_of(followed(time, event), ids, column(-time))["c_index"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert intervals_of(followed(time, event), ids, column(time))["c_index"]["value"] == 0.0
    assert intervals_of(followed(time, event), ids, column(time))["n_events"] == 20


def test_a_paired_difference_is_that_of_the_two_values_and_narrower_than_they_are() -> None:
    ids, time, event, risk = cohort(150)
    noisy = risk + 0.3 * np.random.default_rng(1).normal(size=150)
    difference = difference_of(followed(time, event), ids, column(risk), column(noisy))["c_index"]
    both = [intervals_of(followed(time, event), ids, column(x))["c_index"] for x in (risk, noisy)]
    assert difference["value"] == pytest.approx(both[0]["value"] - both[1]["value"])
    assert difference["high"] - difference["low"] < 0.7 * np.hypot(*(x["high"] - x["low"] for x in both))
    assert difference_of(followed(time, event), ids, column(risk), column(risk))["c_index"] == {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
    }


def test_where_no_pair_can_be_compared_there_is_no_figure_and_the_reason() -> None:
    none = intervals_of(followed([1.0, 2.0], [False, False]), ["a", "b"], column([1.0, 2.0]))
    assert none == {
        "c_index": {"value": None, "low": None, "high": None, "reason": "no event was seen"},
        "n_events": 0,
    }
    last = difference_of(followed([1.0, 2.0], [False, True]), ["a", "b"], column([1.0, 2.0]), column([2.0, 1.0]))[
        "c_index"
    ]
    assert last["value"] is None and last["reason"] == "no case was followed beyond an event"


def test_many_events_in_blocks_are_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, time, event, risk = cohort(60)
    whole = intervals_of(followed(time, event), ids, column(risk), resamples=100)
    monkeypatch.setattr(sys.modules[concordance_index.__module__], "_CELLS", 130)
    assert intervals_of(followed(time, event), ids, column(risk), resamples=100)["c_index"] == pytest.approx(
        whole["c_index"]
    )


def test_the_risk_is_the_first_column_of_what_was_predicted() -> None:
    ids, time, event, risk = cohort(40)
    truth = followed(time, event)
    wide = np.stack([risk, np.full(40, np.nan)], axis=1)
    assert intervals_of(truth, ids, wide) == intervals_of(followed(time, event), ids, column(risk))
    assert difference_of(truth, ids, wide, -wide)["c_index"]["value"] > 0
    assert intervals_of(truth.of([3, 1, 2]), ids[:3], wide[[3, 1, 2]])["n_events"] == event[1:4].sum()


def test_risks_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="risk is not finite"):
        intervals_of(followed([1.0, 2.0], [True, True]), ["a", "b"], column([np.nan, 1.0]))
    with pytest.raises(InputError, match="case ids"):
        intervals_of(followed([1.0, 2.0], [True, True]), ["a"], column([2.0, 1.0]))


def test_kaplan_meier_by_hand() -> None:
    # at 2: 1 of 6; at 3: 1 of 5, and one censored there; at 5: 2 of 3; the last is censored at 7
    curve = kaplan_meier([2.0, 3.0, 3.0, 5.0, 5.0, 7.0], [True, True, False, True, True, False])
    assert curve.time.tolist() == [0.0, 2.0, 3.0, 5.0] and curve.at_risk.tolist() == [6, 6, 5, 3]
    np.testing.assert_allclose(curve.share, [1.0, 5 / 6, 5 / 6 * 4 / 5, 5 / 6 * 4 / 5 / 3])
    assert curve.censored.tolist() == [3.0, 7.0]
    np.testing.assert_allclose(curve.censored_share, [2 / 3, 2 / 9])


def test_kaplan_meier_without_censoring_is_the_share_that_is_left() -> None:
    time = np.random.default_rng(0).integers(1, 30, 200).astype(float)
    curve = kaplan_meier(time, np.ones(200, bool))
    np.testing.assert_allclose(curve.share, [(time > t).mean() for t in curve.time])
    alone = kaplan_meier([4.0], [False])
    assert alone.time.tolist() == [0.0] and alone.share.tolist() == [1.0]
    assert kaplan_meier([0.0, 1.0], [True, False]).share.tolist() == [0.5]
