"""Baselines of labels and of survival: a known answer, training cases alone, keyed by case."""

import numpy as np
import pytest
import torch

from gimp_ray.errors import InputError
from gimp_ray.evaluation import Truth, concordance_index, genes_alone, mean_pool
from gimp_ray.evaluation.baselines import fit_cox
from gimp_ray.nn.survival import cox_loss

N = 150
IDS = [f"case-{i}" for i in range(N)]
PARTS = {"train": IDS[:90], "val": IDS[90:115], "test": IDS[115:]}


def followed(features: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exponential times whose log-hazard is the difference of the first two features; three tenths are censored."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, features))
    time = rng.exponential(np.exp(-1.5 * (x[:, 0] - x[:, 1])))
    censored = rng.exponential(np.quantile(time, 0.8), N)
    return x, np.minimum(time, censored), time <= censored


def test_cox_finds_the_hazard_it_was_simulated_from() -> None:
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(1000, 3)), np.array([1.0, -0.5, 0.0])
    time = rng.exponential(np.exp(-x @ truth))
    censored = rng.exponential(2.0, 1000)
    weights = fit_cox(x, np.minimum(time, censored), time <= censored, ridge=1e-6)
    np.testing.assert_allclose(weights, truth, atol=0.12)


@pytest.mark.parametrize(("rows", "features"), [(40, 5), (20, 60)])
def test_cox_is_at_its_minimum(rows: int, features: int) -> None:
    """The gradient over all features is zero, though the solution was looked for among the rows."""
    x, time, event = (value[:rows] for value in followed(features))
    w = torch.from_numpy(fit_cox(x, time, event, ridge=0.1)).requires_grad_()
    loss = cox_loss(torch.from_numpy(x) @ w, torch.from_numpy(time), torch.from_numpy(event))
    (loss + 0.05 * w.square().sum()).backward()
    assert w.grad is not None and w.grad.abs().max() < 1e-5


@pytest.mark.parametrize("method", ["genes", "patches"])
def test_survival_rows_learn_a_signal_from_training_cases_alone(method: str) -> None:
    x, time, event = followed()

    def fit(x: np.ndarray, time: np.ndarray):
        if method == "genes":
            return genes_alone(IDS, x, Truth("survival", (), {"time": time, "event": event}), PARTS, linear=False)
        return mean_pool(IDS, x, Truth("survival", (), {"time": time, "event": event}), PARTS)

    row = fit(x, time)
    assert row.case_ids == PARTS["val"] + PARTS["test"] and row.predictions.shape == (60, 1)
    assert concordance_index(time[115:], event[115:], row.predictions[25:, 0])["c_index"] > 0.75
    spoilt, later = x.copy(), time.copy()
    spoilt[116:] *= 50  # case 115 is a test case too, and is left as it was
    later[115:] = 1.0
    after = fit(spoilt, later)
    assert after.chosen == row.chosen
    np.testing.assert_array_equal(after.predictions[:26], row.predictions[:26])
    noise = fit(np.random.default_rng(2).normal(size=x.shape), time).predictions[25:, 0]
    assert concordance_index(time[115:], event[115:], noise)["c_index"] < 0.7


def test_without_events_in_validation_the_middle_of_the_grid_is_taken_and_in_training_it_is_refused() -> None:
    x, time, event = followed()
    event[90:115] = False
    assert mean_pool(IDS, x, Truth("survival", (), {"time": time, "event": event}), PARTS).chosen == {"ridge": 1.0}
    event[:90] = False
    with pytest.raises(InputError, match="no event was seen"):
        mean_pool(IDS, x, Truth("survival", (), {"time": time, "event": event}), PARTS)


def known_of(truth: np.ndarray, known: np.ndarray) -> Truth:
    return Truth("labels", ["a", "b"], {"truth": truth, "known": known})


def labelled() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    truth, known = rng.random((N, 2)) < 0.5, rng.random((N, 2)) < 0.8
    x = rng.normal(size=(N, 10))
    x[:, :2] += 2 * truth
    return np.abs(x), truth, known


def test_a_label_row_is_the_row_of_a_class_on_the_cases_in_which_it_is_known() -> None:
    x, truth, known = labelled()
    row = genes_alone(IDS, x, known_of(truth, known), PARTS, linear=True)
    assert row.case_ids == PARTS["val"] + PARTS["test"]
    assert (np.isfinite(row.predictions) == known[90:]).all()
    parts = {name: [c for c in ids if known[IDS.index(c), 1]] for name, ids in PARTS.items()}
    alone = genes_alone(IDS, x, Truth("class", "ny", {"label": truth[:, 1].astype(int)}), parts, linear=True)
    np.testing.assert_array_equal(row.predictions[known[90:, 1], 1], alone.predictions[:, 1])
    assert row.chosen["C of b"] == alone.chosen["C"]


def test_a_label_that_cannot_be_fitted_is_said_and_the_others_stay() -> None:
    x, truth, known = labelled()
    truth[:90, 0] = True
    row = mean_pool(IDS, x, known_of(truth, known), PARTS)
    assert row.notes == ["a: the training part has fewer than two classes"]
    assert np.isnan(row.predictions[:, 0]).all() and np.isfinite(row.predictions[known[90:, 1], 1]).all()
    truth[:90, 1] = False
    with pytest.raises(InputError, match="no label could be fitted"):
        mean_pool(IDS, x, known_of(truth, known), PARTS)
    x[3, 0] = np.nan
    with pytest.raises(InputError, match="not finite") as refusal:
        mean_pool(IDS, x, known_of(labelled()[1], np.ones_like(known)), PARTS)
    assert refusal.value.case == "case-3"
