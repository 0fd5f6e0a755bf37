"""Harrell's C against answers worked out by hand and a plain loop over all pairs."""

from itertools import permutations

import numpy as np
import pytest

from gimp_ray.errors import InputError
from gimp_ray.evaluation import concordance_index


def by_hand(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float | None:
    won = pairs = 0.0
    for i, j in permutations(range(len(time)), 2):
        earlier = time[i] < time[j] or (time[i] == time[j] and not event[j])
        if not (event[i] and earlier):
            continue
        pairs += 1
        won += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return won / pairs if pairs else None


def test_order_of_risks_alone_counts() -> None:
    time, event = [1.0, 2.0, 3.0, 4.0], [True] * 4
    assert concordance_index(time, event, [9.0, 5.0, 3.0, -1.0])["c_index"] == 1.0
    assert concordance_index(time, event, [1.0, 2.0, 3.0, 4.0])["c_index"] == 0.0
    assert concordance_index(time, event, [0.5] * 4)["c_index"] == 0.5
    result = concordance_index(time, event, [4.0, 3.0, 1.0, 2.0])
    assert result["c_index"] == pytest.approx(5 / 6) and result["concordant"] == 5 and result["discordant"] == 1


def test_a_censored_case_is_compared_with_earlier_events_only() -> None:
    # censored at 2: known to outlive the event at 1, nothing is known of it and the event at 3
    result = concordance_index([1.0, 2.0, 3.0], [True, False, True], [3.0, 1.0, 2.0])
    assert (result["concordant"], result["discordant"], result["n_events"]) == (2, 0, 2)


def test_ties() -> None:
    # two events of one time are no pair, whatever their risks
    assert concordance_index([2.0, 2.0], [True, True], [1.0, 2.0])["c_index"] is None
    # a case censored at the time of an event outlived it
    assert concordance_index([2.0, 2.0], [True, False], [2.0, 1.0])["c_index"] == 1.0
    assert concordance_index([2.0, 2.0], [True, False], [1.0, 2.0])["c_index"] == 0.0
    # equal risks count a half
    result = concordance_index([1.0, 2.0, 3.0], [True, True, False], [1.0, 1.0, 0.0])
    assert result["c_index"] == pytest.approx(2.5 / 3) and result["tied_risk"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_against_all_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 25))
    time, event = draw.integers(0, 8, n).astype(float), draw.random(n) < 0.6
    risk = draw.integers(0, 6, n).astype(float)
    found, expected = concordance_index(time, event, risk)["c_index"], by_hand(time, event, risk)
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-15)


def test_missing_follow_up_is_left_out_and_counted() -> None:
    known = [True, False, True, True]
    result = concordance_index([1.0, np.nan, 2.0, 3.0], [True, True, True, False], [3.0, np.nan, 1.0, 2.0], known)
    assert result["n_missing"] == 1 and result["n_cases"] == 3
    assert result["c_index"] == pytest.approx(2 / 3)


def test_where_there_is_no_pair_it_says_why() -> None:
    assert concordance_index([1.0, 2.0], [False, False], [1.0, 2.0])["reason"] == "no event was seen"
    last = concordance_index([1.0, 2.0], [False, True], [1.0, 2.0])
    assert last["c_index"] is None and "beyond" in last["reason"]
    assert concordance_index([], [], [])["c_index"] is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="fit together"):
        concordance_index([1.0, 2.0], [True], [1.0, 2.0])
    with pytest.raises(InputError, match="true or false"):
        concordance_index([1.0, 2.0], [1, 0], [1.0, 2.0])
    with pytest.raises(InputError, match="time is not finite"):
        concordance_index([1.0, np.nan], [True, False], [1.0, 2.0])
    with pytest.raises(InputError, match="risk is not finite"):
        concordance_index([1.0, 2.0], [True, False], [np.inf, 2.0])
