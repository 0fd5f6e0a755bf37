"""Figures show the right numbers and survive few, equal or unlabelled points."""

import numpy as np
import pytest

from gimp_ray.reports.figures import confusion_figure, curves_figure, survival_figure, tsne_figure

CLASSES = ["LUAD", "LUSC"]


def texts(figure: object) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]  # type: ignore[attr-defined]


def test_confusion_counts_and_shares_by_true_class() -> None:
    figure = confusion_figure(["LUAD"] * 4 + ["LUSC"], ["LUAD", "LUAD", "LUAD", "LUSC", "LUSC"], CLASSES, "t")
    assert texts(figure) == ["3\n75%", "1\n25%", "0\n0%", "1\n100%"]
    assert figure.axes[0].get_xlabel() == "predicted class (cases)"


def test_a_class_without_cases_is_a_row_of_zeros() -> None:
    assert texts(confusion_figure(["LUAD"], ["LUAD"], CLASSES, "t"))[2:] == ["0\n0%", "0\n0%"]


def test_survival_curves_are_those_of_the_halves_by_risk() -> None:
    time, event, risk = [1.0, 2.0, 4.0, 6.0, 7.0], [True, True, False, True, False], [5.0, 4.0, 1.0, 2.0, 3.0]
    axes = survival_figure(time, event, risk, "t").axes[0]
    assert [line.get_label() for line in axes.lines[::2]] == [
        "lower risk (3 cases, 1 events)",
        "higher risk (2 cases, 2 events)",
    ]
    lower, censored, higher = (axes.lines[i].get_xydata().tolist() for i in (0, 1, 2))
    assert lower == [[0, 1], [6, 0.5], [7, 0.5]] and censored == [[4, 1], [7, 0.5]]
    assert higher == [[0, 1], [1, 0.5], [2, 0], [2, 0]]


def test_equal_risks_are_one_curve() -> None:
    axes = survival_figure([1.0, 2.0], [True, False], [0.0, 0.0], "t").axes[0]
    assert [line.get_label() for line in axes.lines[::2]] == ["lower risk (2 cases, 1 events)"]


@pytest.mark.parametrize("cases", [0, 1, 4])
def test_too_few_cases_give_words_instead_of_a_map(cases: int) -> None:
    figure = tsne_figure(np.zeros((cases, 3)), CLASSES[:1] * cases, CLASSES, "t")
    assert texts(figure) == [f"{cases} cases: too few for a map"]


@pytest.mark.parametrize("cases", [5, 40])
def test_the_map_has_every_case_once(cases: int) -> None:
    labels = [CLASSES[i % 2] for i in range(cases)]
    figure = tsne_figure(np.random.default_rng(0).normal(size=(cases, 8)), labels, CLASSES, "t", ["test"] * cases)
    drawn = figure.axes[0].collections
    assert sum(len(points.get_offsets()) for points in drawn) == cases
    assert len({tuple(points.get_facecolor()[0]) for points in drawn}) == 2


def test_the_map_keeps_separate_classes_apart() -> None:
    labels = [CLASSES[i // 30] for i in range(60)]
    vectors = np.random.default_rng(0).normal(size=(60, 8)) + 8 * np.repeat([[0.0], [1.0]], 30, axis=0)
    first, second = (points.get_offsets() for points in tsne_figure(vectors, labels, CLASSES, "t").axes[0].collections)
    between = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    assert between > 2 * max(first.std(), second.std())


def test_equal_vectors_do_not_break_the_map() -> None:
    figure = tsne_figure(np.ones((6, 4)), [CLASSES[0]] * 6, CLASSES, "t")
    assert np.isfinite(figure.axes[0].collections[0].get_offsets()).all()


def test_curves_count_epochs_from_one_and_leave_steps_out() -> None:
    lines = [
        {"kind": "step", "epoch": 0, "loss": 9.0},
        {"kind": "epoch", "epoch": 0, "loss": 2.0, "accuracy": 0.5, "seconds": 3.0},
        {"kind": "epoch", "epoch": 1, "loss": 1.0, "accuracy": 0.75, "seconds": 3.0},
        {"kind": "validation", "epoch": 1, "loss": float("nan"), "accuracy": 0.6},
    ]
    figure = curves_figure("finetune", lines)
    assert figure is not None
    curves = {line.get_label(): line.get_xydata().tolist() for axes in figure.axes for line in axes.lines}
    assert curves == {
        "loss, training": [[1, 2.0], [2, 1.0]],
        "accuracy, training": [[1, 0.5], [2, 0.75]],
        "accuracy, validation": [[2, 0.6]],
    }
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}


def test_nothing_logged_no_figure() -> None:
    assert curves_figure("genes", []) is None
    assert curves_figure("genes", [{"kind": "epoch", "epoch": 0, "seconds": 1.0}]) is None
