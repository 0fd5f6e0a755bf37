"""Intervals: they hold the value, agree with scikit-learn, have the width theory gives, and resample patients."""

import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score, roc_auc_score

from gimp_ray.errors import InputError
from gimp_ray.evaluation import Truth, classification_metrics, difference_of, intervals_of

CLASSES = ["a", "b"]


def classed(labels: np.ndarray, classes: list[str] = CLASSES) -> Truth:
    return Truth("class", classes, {"label": labels})


def cohort(n: int, classes: int, seed: int = 0, skill: float = 1.0) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    # two decimals make ties
    logits = skill * np.eye(classes)[labels] + rng.normal(size=(n, classes))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return [f"case-{i}" for i in range(n)], labels, p.round(2)


def width(interval: dict[str, float]) -> float:
    return interval["high"] - interval["low"]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_values_are_scikit_learns(classes: int) -> None:
    ids, labels, p = cohort(97, classes)
    names, predicted = [f"class {i}" for i in range(classes)], p.argmax(axis=1)
    areas = [roc_auc_score(labels == c, p[:, c]) for c in ([1] if classes == 2 else range(classes))]
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "auroc": np.mean(areas),
    }
    recalls = dict(zip(names, recall_score(labels, predicted, average=None), strict=True))
    intervals, metrics = intervals_of(classed(labels, names), ids, p), classification_metrics(labels, p, names)
    assert metrics["recall"] == pytest.approx(recalls, abs=1e-12)
    for name, value in expected.items():
        assert intervals[name]["value"] == pytest.approx(value, abs=1e-12)
        assert metrics[name] == pytest.approx(value, abs=1e-12)
        assert intervals[name]["low"] < intervals[name]["value"] < intervals[name]["high"]
    for name in names:
        assert intervals["recall"][name]["value"] == pytest.approx(recalls[name])


def test_width_of_accuracy_is_that_of_the_binomial() -> None:
    ids, labels, _ = cohort(400, 2)
    right = np.arange(400) % 5 != 0  # 80 %
    p = np.eye(2)[np.where(right, labels, 1 - labels)]
    accuracy = intervals_of(classed(labels), ids, p, resamples=4000)["accuracy"]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert accuracy["value"] == pytest.approx(0.8)
    assert accuracy["low"] == pytest.approx(0.8 - half, abs=0.005)
    assert accuracy["high"] == pytest.approx(0.8 + half, abs=0.005)


def test_a_perfect_classifier_has_no_width() -> None:
    ids, labels, _ = cohort(50, 2)
    intervals = intervals_of(classed(labels), ids, np.eye(2)[labels])
    assert all(intervals[name] == {"value": 1.0, "low": 1.0, "high": 1.0} for name in ("accuracy", "auroc", "macro_f1"))


def test_rows_of_one_patient_are_drawn_together() -> None:
    ids, labels, p = cohort(60, 2)
    alone = intervals_of(classed(labels), ids, p)["accuracy"]
    # four copies of each row say nothing new; drawing rows instead of patients would halve the width
    copies = intervals_of(classed(np.tile(labels, 4)), ids * 4, np.tile(p, (4, 1)))["accuracy"]
    assert copies == pytest.approx(alone)
    rows = intervals_of(classed(np.tile(labels, 4)), [str(i) for i in range(240)], np.tile(p, (4, 1)))["accuracy"]
    assert width(rows) < 0.7 * width(alone)


def test_same_seed_same_interval_other_seed_another() -> None:
    ids, labels, p = cohort(80, 2)
    first = intervals_of(classed(labels), ids, p, seed=1)
    assert first == intervals_of(classed(labels), ids, p, seed=1)
    assert first["auroc"] != intervals_of(classed(labels), ids, p, seed=2)["auroc"]


def test_resamples_without_a_rare_class_do_not_spoil_its_interval() -> None:
    ids, labels, p = cohort(30, 2)
    labels = np.r_[1, np.zeros(29, int)]
    intervals = intervals_of(classed(labels), ids, p)
    assert 0 <= intervals["auroc"]["low"] <= intervals["auroc"]["high"] <= 1


def test_an_absent_class_gives_none_with_the_reason() -> None:
    ids, _, p = cohort(20, 2)
    intervals = intervals_of(classed(np.zeros(20, int)), ids, p)
    assert intervals["auroc"] == {"value": None, "low": None, "high": None, "reason": "no case of class b"}
    assert intervals["recall"]["b"]["value"] is None and intervals["accuracy"]["value"] is not None


def test_a_paired_difference_is_narrower_than_the_two_methods_apart() -> None:
    ids, labels, p = cohort(200, 2)
    worse = p.copy()
    worse[:20] = worse[:20, ::-1]  # the same classifier, spoilt on 20 cases
    difference = difference_of(classed(labels), ids, p, worse)["accuracy"]
    apart = [classification_metrics(labels, x, CLASSES)["accuracy"] for x in (p, worse)]
    assert difference["value"] == pytest.approx(apart[0] - apart[1])
    widths = [width(intervals_of(classed(labels), ids, x)["accuracy"]) for x in (p, worse)]
    assert width(difference) < 0.75 * np.hypot(*widths)
    same = difference_of(classed(labels), ids, p, p)
    assert same["auroc"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_thousand_resamples_of_200_cases_are_fast() -> None:
    ids, labels, p = cohort(200, 3)
    started = time.perf_counter()
    intervals_of(classed(labels, ["a", "b", "c"]), ids, p, resamples=1000)
    assert time.perf_counter() - started < 2


def test_ids_that_do_not_fit_are_refused() -> None:
    _, labels, p = cohort(20, 2)
    with pytest.raises(InputError, match="case ids"):
        intervals_of(classed(labels), ["one"], p)
