"""Metrics against answers worked out by hand."""

import numpy as np
import pytest

from gimp_ray.errors import InputError
from gimp_ray.evaluation import classification_metrics, encode_labels

CLASSES = ["LUAD", "LUSC"]


def two_class(p_second: list[float]) -> np.ndarray:
    return np.stack([1 - np.array(p_second), np.array(p_second)], axis=1)


def test_two_classes_known_answer() -> None:
    # predictions 0 0 1 1 1 0; truth 0 0 0 1 1 1
    metrics = classification_metrics([0, 0, 0, 1, 1, 1], two_class([0.1, 0.2, 0.7, 0.9, 0.8, 0.3]), CLASSES)
    assert metrics["n_cases"] == 6 and metrics["support"] == {"LUAD": 3, "LUSC": 3}
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["recall"] == pytest.approx({"LUAD": 2 / 3, "LUSC": 2 / 3})
    assert metrics["macro_f1"] == pytest.approx(2 / 3)
    # of nine (positive, negative) pairs one is the wrong way round: 0.3 under 0.7
    assert metrics["auroc"] == pytest.approx(8 / 9) and metrics["auroc_reason"] is None


def test_imbalance_tells_balanced_accuracy_from_accuracy() -> None:
    metrics = classification_metrics([0] * 9 + [1], two_class([0.1] * 10), CLASSES)
    assert metrics["accuracy"] == pytest.approx(0.9)
    assert metrics["balanced_accuracy"] == pytest.approx(0.5)
    assert metrics["recall"] == {"LUAD": 1.0, "LUSC": 0.0}
    assert metrics["macro_f1"] == pytest.approx((2 * 0.9 / 1.9 + 0) / 2)
    assert metrics["auroc"] == pytest.approx(0.5)  # all tied


def test_three_classes_average_one_against_the_rest() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    metrics = classification_metrics([0, 1, 2, 1], p, ["a", "b", "c"])
    # a: 0.8 over three others; b: 0.7 and 0.4 over 0.1 and 0.3; c: 0.4 over three others
    assert metrics["auroc"] == pytest.approx(1.0)
    assert metrics["accuracy"] == pytest.approx(0.75)
    assert metrics["recall"] == pytest.approx({"a": 1.0, "b": 0.5, "c": 1.0})


def test_an_absent_class_has_a_reason_and_no_auroc() -> None:
    metrics = classification_metrics([0, 0, 0], two_class([0.1, 0.2, 0.9]), CLASSES)
    assert metrics["auroc"] is None and "LUSC" in metrics["auroc_reason"]
    assert metrics["recall"] == {"LUAD": pytest.approx(2 / 3), "LUSC": None}
    assert metrics["balanced_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("labels", "p"),
    [
        ([], np.empty((0, 2))),
        ([0, 1], np.ones((3, 2))),
        ([0, 2], np.ones((2, 2))),
        ([0.0, 1.0], np.ones((2, 2))),
        ([0, 1], np.array([[np.nan, 1], [0, 1]])),
    ],
)
def test_what_does_not_fit_is_refused(labels: list[int], p: np.ndarray) -> None:
    with pytest.raises(InputError):
        classification_metrics(labels, p, CLASSES)


def test_labels_become_indices_and_strangers_are_named() -> None:
    assert encode_labels(["LUSC", "LUAD"], CLASSES).tolist() == [1, 0]
    with pytest.raises(InputError) as caught:
        encode_labels(["KIRC"], CLASSES)
    assert caught.value.found == "KIRC"
