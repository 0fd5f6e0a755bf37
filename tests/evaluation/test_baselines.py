"""Baselines learn what is there, from training cases alone, and are keyed by case."""

import numpy as np
import pytest

from gimp_ray.errors import InputError
from gimp_ray.evaluation import Baseline, Truth, classification_metrics, encode_labels, genes_alone, mean_pool

CLASSES = ["LUAD", "LUSC"]
N = 120


def classed(labels: list[str], classes: list[str] = CLASSES) -> Truth:
    return Truth("class", classes, {"label": encode_labels(labels, classes)})


def cohort(
    shift: float, features: int = 40, seed: int = 0
) -> tuple[list[str], np.ndarray, list[str], dict[str, list[str]]]:
    """Cases whose first five features differ by `shift` standard deviations between the classes."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(N) % 2)
    x = rng.normal(size=(N, features))
    x[:, :5] += shift * codes[:, None]
    ids = [f"case-{i}" for i in range(N)]
    return ids, x, [CLASSES[c] for c in codes], {"train": ids[:70], "val": ids[70:90], "test": ids[90:]}


def accuracy(row: Baseline, ids: list[str], labels: list[str], part: str) -> float:
    wanted = [i for i, p in enumerate(row.parts) if p == part]
    truth = dict(zip(ids, labels, strict=True))
    codes = encode_labels([truth[row.case_ids[i]] for i in wanted], CLASSES)
    return float(classification_metrics(codes, row.predictions[wanted], CLASSES)["accuracy"])


def test_genes_alone_learns_a_signal_and_only_a_signal() -> None:
    ids, x, labels, parts = cohort(shift=1.5)
    row = genes_alone(ids, x, classed(labels), parts, linear=False)
    assert row.case_ids == parts["val"] + parts["test"] and row.parts == ["val"] * 20 + ["test"] * 30
    np.testing.assert_allclose(row.predictions.sum(axis=1), 1)
    assert accuracy(row, ids, labels, "test") > 0.85
    ids, x, labels, parts = cohort(shift=0.0)
    assert accuracy(genes_alone(ids, x, classed(labels), parts, linear=False), ids, labels, "test") < 0.75


def test_mean_pool_mlp_learns_a_signal_and_is_repeatable() -> None:
    ids, x, labels, parts = cohort(shift=1.5)
    row = mean_pool(ids, x, classed(labels), parts, seed=3)
    assert accuracy(row, ids, labels, "test") > 0.85
    again = mean_pool(ids, x, classed(labels), parts, seed=3)
    np.testing.assert_array_equal(row.predictions, again.predictions)


@pytest.mark.parametrize("method", ["genes", "mlp"])
def test_test_cases_change_nothing_but_their_own_prediction(method: str) -> None:
    ids, x, labels, parts = cohort(shift=1.0)
    x = np.abs(x)

    def fit(x: np.ndarray, labels: list[str]) -> Baseline:
        if method == "genes":
            return genes_alone(ids, x, classed(labels), parts, linear=True, top_genes=10)
        return mean_pool(ids, x, classed(labels), parts)

    before = fit(x, labels)
    spoilt = x.copy()
    spoilt[91:] *= 1000  # case 90 is a test case too, and is left as it was
    flipped = labels[:90] + [CLASSES[label == "LUAD"] for label in labels[90:]]
    after = fit(spoilt, flipped)
    assert after.chosen == before.chosen
    np.testing.assert_array_equal(after.predictions[:21], before.predictions[:21])


def test_validation_chooses_the_regularisation() -> None:
    ids, x, labels, parts = cohort(shift=3.0)
    clean = genes_alone(ids, x, classed(labels), parts, linear=False).chosen["C"]
    # validation labels turned round: the less a model believes its training data, the better
    turned = [
        CLASSES[label == "LUAD"] if case in parts["val"] else label for case, label in zip(ids, labels, strict=True)
    ]
    assert genes_alone(ids, x, classed(turned), parts, linear=False).chosen["C"] < clean


def test_linear_expression_is_logged() -> None:
    ids, x, labels, parts = cohort(shift=1.0)
    logged = genes_alone(ids, np.abs(x), classed(labels), parts, linear=False)
    linear = genes_alone(ids, np.exp2(np.abs(x)) - 1, classed(labels), parts, linear=True)
    np.testing.assert_allclose(linear.predictions, logged.predictions, atol=1e-6)
    with pytest.raises(InputError, match="below zero"):
        genes_alone(ids, x, classed(labels), parts, linear=True)


def test_rows_follow_ids_and_not_positions() -> None:
    ids, x, labels, parts = cohort(shift=1.0)
    row = genes_alone(ids, x, classed(labels), parts, linear=False)
    shuffled = np.random.default_rng(1).permutation(N)
    other = genes_alone(
        [ids[i] for i in shuffled], x[shuffled], classed([labels[i] for i in shuffled]), parts, linear=False
    )
    assert other.case_ids == row.case_ids
    np.testing.assert_array_equal(other.predictions, row.predictions)


def test_a_class_without_training_cases_gets_probability_zero() -> None:
    ids, x, labels, parts = cohort(shift=1.0)
    row = genes_alone(ids, x, classed(labels, ["KIRC", *CLASSES]), parts, linear=False)
    assert row.predictions.shape == (50, 3) and (row.predictions[:, 0] == 0).all()


def test_without_validation_cases_the_middle_of_the_grid_is_taken() -> None:
    ids, x, labels, parts = cohort(shift=1.0)
    row = genes_alone(ids, x, classed(labels), parts | {"val": []}, linear=False)
    assert row.chosen == {"C": 1e-2} and set(row.parts) == {"test"}


def test_bad_input_is_refused_by_case() -> None:
    ids, x, labels, parts = cohort(shift=1.0)
    with pytest.raises(InputError) as caught:
        genes_alone(ids, x, classed(labels), parts | {"test": ["stranger"]}, linear=False)
    assert caught.value.case == "stranger"
    with pytest.raises(InputError, match="two parts") as caught:
        mean_pool(ids, x, classed(labels), parts | {"val": [ids[0]]})
    assert caught.value.case == ids[0]
    x[3, 0] = np.nan
    with pytest.raises(InputError, match="not finite") as caught:
        mean_pool(ids, x, classed(labels), parts)
    assert caught.value.case == "case-3"
    one_class = {"train": [i for i, label in zip(ids, labels, strict=True) if label == "LUAD"][:10]}
    with pytest.raises(InputError, match="fewer than two classes"):
        genes_alone(ids, np.nan_to_num(x), classed(labels), one_class, linear=False)
