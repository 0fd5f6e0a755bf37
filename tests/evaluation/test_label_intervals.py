"""Figures of several labels: scikit-learn's values, unknown entries left out, means over the same labels throughout."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from gimp_ray.errors import InputError
from gimp_ray.evaluation import Truth, difference_of, intervals_of
from gimp_ray.evaluation.bootstrap import draw_patients
from gimp_ray.evaluation.metrics import binary_average_precision, label_metrics

LABELS = ("TP53", "KRAS", "EGFR")


def labelled(truth: np.ndarray, known: np.ndarray, labels: tuple[str, ...] = LABELS) -> Truth:
    return Truth("labels", labels, {"truth": truth, "known": known})


def cohort(n: int = 80, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, known = rng.random((n, 3)) < [0.5, 0.3, 0.1], rng.random((n, 3)) < 0.9
    p = 1 / (1 + np.exp(-(1.5 * truth - 0.7 + rng.normal(size=(n, 3)))))
    return [f"p{i}" for i in range(n)], truth, known, p.round(2)  # two decimals make ties


def test_values_are_scikit_learns_on_the_known_entries() -> None:
    ids, truth, known, p = cohort()
    row = intervals_of(labelled(truth, known), ids, p)
    areas, precisions = [], []
    for number, name in enumerate(LABELS):
        rows = known[:, number]
        areas.append(roc_auc_score(truth[rows, number], p[rows, number]))
        precisions.append(average_precision_score(truth[rows, number], p[rows, number]))
        of_label = row["labels"][name]
        assert of_label["auroc"]["value"] == pytest.approx(areas[-1], abs=1e-12)
        assert of_label["average_precision"]["value"] == pytest.approx(precisions[-1], abs=1e-12)
        assert (of_label["n_known"], of_label["n_positive"]) == (rows.sum(), truth[rows, number].sum())
        assert of_label["auroc"]["low"] < of_label["auroc"]["value"] < of_label["auroc"]["high"]
    assert row["auroc"]["value"] == pytest.approx(np.mean(areas))
    assert row["average_precision"]["value"] == pytest.approx(np.mean(precisions))
    assert label_metrics(labelled(truth, known), p) == {
        name: pytest.approx(row[name]["value"]) for name in ("auroc", "average_precision")
    }


def test_average_precision_of_a_resample_is_that_of_the_rows_drawn() -> None:
    ids, truth, _, p = cohort(30)
    weights = draw_patients(ids, 30, 20, seed=1)
    found = binary_average_precision(weights, truth[:, 0], p[:, 0])
    for row, value in zip(weights.astype(int), found, strict=True):
        rows = np.repeat(np.arange(30), row)
        assert value == pytest.approx(average_precision_score(truth[rows, 0], p[rows, 0]))


def test_what_is_not_known_changes_nothing() -> None:
    ids, truth, known, p = cohort()
    other = intervals_of(labelled(np.where(known, truth, ~truth), known), ids, np.where(known, p, np.nan))
    assert other == intervals_of(labelled(truth, known), ids, p)


def test_a_label_with_one_kind_of_case_has_no_figure_and_is_in_no_mean() -> None:
    ids, truth, known, p = cohort()
    truth[:, 2] = False
    row = intervals_of(labelled(truth, known), ids, p)
    assert row["labels"]["EGFR"]["auroc"] == {"value": None, "low": None, "high": None, "reason": "no case with it"}
    two = [row["labels"][name]["auroc"]["value"] for name in LABELS[:2]]
    assert row["auroc"]["value"] == pytest.approx(np.mean(two))
    nothing = intervals_of(labelled(truth[:, 2:], known[:, 2:], LABELS[2:]), ids, p[:, 2:])
    assert nothing["auroc"]["value"] is None and nothing["auroc"]["reason"] == "EGFR: no case with it"


def test_a_difference_is_over_the_labels_that_both_methods_have() -> None:
    ids, truth, known, p = cohort()
    fewer = p.copy()
    fewer[:, 1] = np.nan  # a method that could not be fitted for this label
    difference = difference_of(labelled(truth, known), ids, p, fewer)
    assert difference["labels"]["KRAS"]["auroc"]["reason"] == "not predicted"
    assert difference["auroc"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    worse = 0.3 * p + 0.7 * np.random.default_rng(5).random(p.shape)
    found = difference_of(labelled(truth, known), ids, p, worse)
    values = [intervals_of(labelled(truth, known), ids, x)["auroc"]["value"] for x in (p, worse)]
    assert found["auroc"]["value"] == pytest.approx(values[0] - values[1])


def test_bad_input_is_refused() -> None:
    ids, truth, known, p = cohort(10)
    with pytest.raises(InputError, match="do not fit together"):
        intervals_of(labelled(truth, known), ids, p[:, :2])
    with pytest.raises(InputError, match="to be bool"):
        intervals_of(labelled(truth.astype(int), known), ids, p)
    p[0, 1], known[0, 1] = np.nan, True
    with pytest.raises(InputError, match="'KRAS' is not finite"):
        intervals_of(labelled(truth, known), ids, p)
