"""Means, intervals and differences over folds and seeds are those of the evaluation where it can say them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gimp_ray.errors import InputError
from gimp_ray.evaluation import Truth, difference_of, intervals_of
from gimp_ray.experiments.results import RunScores, draw_of, pooled_difference, pooled_intervals, score
from tests.tables.made import CLASSES, made_up

NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
CASES = [f"c{number:02d}" for number in range(24)]
# two cases of each of the first patients
PATIENTS = [f"p{number // 2 if number < 8 else number:02d}" for number in range(24)]
LABELS = np.array([0, 1] * 12)


def table(p_NC: np.ndarray, cases: list[str] = CASES, labels: np.ndarray = LABELS) -> pa.Table:
    columns = {f"prob_{name}": p_NC[:, number] for number, name in enumerate(CLASSES)}
    return pa.table({"case_id": cases, "label": [CLASSES[label] for label in labels], **columns})


def weights(draw: pd.DataFrame, patients: list[str]) -> np.ndarray:
    return draw.loc[patients].to_numpy().T


def runs_of(tables: dict[tuple[int, int], pa.Table], patients: dict[str, str], resamples: int = 200) -> list[RunScores]:
    draw = draw_of(list(patients.values()), resamples, 0)
    runs = []
    for (fold, seed), one in tables.items():
        cases = one["case_id"].to_pylist()
        runs.append(
            RunScores(fold, seed, tuple(cases), *score("class", one, weights(draw, [patients[c] for c in cases])))
        )
    return runs


PATIENT_OF = dict(zip(CASES, PATIENTS, strict=True))


def test_one_run_has_the_figures_of_its_own_evaluation() -> None:
    p_NC = made_up(CASES, 1)
    found = pooled_intervals(runs_of({(0, 0): table(p_NC)}, PATIENT_OF))
    expected = intervals_of(Truth("class", CLASSES, {"label": LABELS}), PATIENTS, p_NC, 200, 0)
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name] | {"sd": None})
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_a_difference_of_one_run_is_the_paired_difference_of_the_evaluation() -> None:
    first, second = made_up(CASES, 1), made_up(CASES, 2)
    found = pooled_difference(runs_of({(0, 0): table(second)}, PATIENT_OF), runs_of({(0, 0): table(first)}, PATIENT_OF))
    expected = difference_of(Truth("class", CLASSES, {"label": LABELS}), PATIENTS, second, first, 200, 0)
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name] | {"sd": None})


def test_accuracy_over_seeds_is_that_of_all_their_predictions_under_one_draw() -> None:
    p_SNC = [made_up(CASES, seed) for seed in (1, 2, 3)]
    found = pooled_intervals(runs_of({(0, seed): table(p_NC) for seed, p_NC in enumerate(p_SNC)}, PATIENT_OF))
    truth = Truth("class", CLASSES, {"label": np.tile(LABELS, 3)})
    stacked = intervals_of(truth, PATIENTS * 3, np.concatenate(p_SNC), 200, 0)
    assert found["accuracy"]["value"] == pytest.approx(stacked["accuracy"]["value"])
    assert found["accuracy"]["low"] == pytest.approx(stacked["accuracy"]["low"])
    assert found["accuracy"]["high"] == pytest.approx(stacked["accuracy"]["high"])
    each = [np.mean(p_NC.argmax(axis=1) == LABELS) for p_NC in p_SNC]
    assert found["accuracy"]["sd"] == pytest.approx(np.std(each, ddof=1))


def test_auroc_over_folds_is_their_mean_and_not_that_of_pooled_scores() -> None:
    """Each fold ranks perfectly, on a scale of its own: scores of one fold say nothing about those of another."""
    low, high = np.array([0.1, 0.2, 0.1, 0.2]), np.array([0.8, 0.9, 0.8, 0.9])
    labels = np.array([0, 1, 0, 1])
    tables = {
        (fold, 0): table(np.stack([1 - p, p], axis=1), CASES[fold * 4 : fold * 4 + 4], labels)
        for fold, p in enumerate((low, high))
    }
    found = pooled_intervals(runs_of(tables, {case: case for case in CASES[:8]}))
    assert found["auroc"]["value"] == 1.0 and found["accuracy"]["value"] == 0.5
    # all resamples in which some fold has both classes
    assert (found["auroc"]["low"], found["auroc"]["high"]) == (1.0, 1.0)


def test_a_difference_pairs_folds_and_seeds_that_both_rows_have() -> None:
    same, other = table(made_up(CASES, 1)), table(made_up(CASES, 2))
    first = runs_of({(0, 0): same, (0, 1): other}, PATIENT_OF)
    found = pooled_difference(runs_of({(0, 0): same, (0, 7): other}, PATIENT_OF), first)
    assert found["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0, "sd": None}
    assert pooled_difference(runs_of({(3, 0): same}, PATIENT_OF), first) == {}


def test_rows_that_were_scored_on_other_cases_are_not_compared() -> None:
    whole, part = table(made_up(CASES, 1)), table(made_up(CASES, 2)).slice(1)
    with pytest.raises(InputError, match="same cases") as caught:
        pooled_difference(runs_of({(0, 0): part}, PATIENT_OF), runs_of({(0, 0): whole}, PATIENT_OF))
    assert caught.value.case == "c00"


def test_a_figure_that_one_run_lacks_has_a_reason_instead_of_a_mean_of_the_others() -> None:
    one_class = table(made_up(CASES[:4], 1), CASES[:4], np.zeros(4, int))
    found = pooled_intervals(runs_of({(0, 0): table(made_up(CASES, 1)), (1, 0): one_class}, PATIENT_OF))
    assert found["auroc"]["value"] is None and "fold 1, seed 0" in found["auroc"]["reason"]
    assert found["accuracy"]["value"] is not None


def test_survival_and_labels_have_the_figures_of_their_evaluation() -> None:
    rng = np.random.default_rng(0)
    time, event, risk = rng.uniform(1, 60, 24), rng.uniform(size=24) < 0.6, rng.normal(size=24)
    draw = draw_of(PATIENTS, 200, 0)
    follow_up = pa.table({"time": time, "event": event, "risk": risk})
    found = pooled_intervals([RunScores(0, 0, tuple(CASES), *score("survival", follow_up, weights(draw, PATIENTS)))])
    truth = Truth("survival", (), {"time": time, "event": event})
    expected = intervals_of(truth, PATIENTS, risk[:, None], 200, 0)["c_index"]
    assert found["c_index"] == pytest.approx(expected | {"sd": None})

    truth, known = rng.uniform(size=(24, 2)) < 0.5, rng.uniform(size=(24, 2)) < 0.8
    p_NP = rng.uniform(size=(24, 2))
    columns = {f"prob_{name}": p_NP[:, place] for place, name in enumerate(("TP53", "KRAS"))}
    columns |= {f"true_{name}": pa.array(truth[:, p], mask=~known[:, p]) for p, name in enumerate(("TP53", "KRAS"))}
    found = pooled_intervals(
        [RunScores(0, 0, tuple(CASES), *score("labels", pa.table(columns), weights(draw, PATIENTS)))]
    )
    labels = intervals_of(Truth("labels", ("TP53", "KRAS"), {"truth": truth, "known": known}), PATIENTS, p_NP, 200, 0)
    for name in ("auroc", "average_precision"):
        assert found[name] == pytest.approx(labels[name] | {"sd": None})
        assert found[f"{name} KRAS"] == pytest.approx(labels["labels"]["KRAS"][name] | {"sd": None})


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="do not know"):
        score("dose", pa.table({"case_id": ["a"]}), np.ones((1, 1)))
