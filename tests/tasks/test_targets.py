"""Targets: truth from the case table, losses against a plain calculation, and which figure picks the epoch."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gimp_ray.config import Config
from gimp_ray.config_files import build_config
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.learn.target_columns import case_rows
from gimp_ray.learn.targets import Target, batch_arrays, check_target, known_parts, left_out, make_target, saved_target
from gimp_ray.nn.survival import cox_loss, discrete_time_nll

IDS = [f"case-{number:02d}" for number in range(12)]
TIMES = [3.0, 8.0, 1.0, 20.0, 5.0, 11.0, 30.0, 7.0, 14.0, 2.0, None, 9.0]
EVENTS = [1, 0, 1, 1, 1, 0, 1, 1, None, 1, 1, 0]
COLUMNS: dict[str, Any] = {
    "label": ["LUAD", "LUSC"] * 6,
    "grade": ["G1", "G2", "", "G3", " G1", "G2", None, "G1", "G2", "G3", "G1", "G2"],
    "survival_months": TIMES,
    "event": EVENTS,
    "TP53": [True, False, None, True, True, False, False, None, True, False, True, False],
    "KRAS": ["yes", "NO", "1", "0", "true", "", None, "no", "yes", "no", "no", "no"],
    "age": [61.5, 70.0] * 6,
    "stage": [1.0, 2.0, float("nan"), 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0],
    "one": ["same"] * 12,
}
PARTS = {"train": IDS[:8], "val": IDS[8:10], "test": IDS[10:]}


def store_of(**changes: Any) -> Any:
    """As much of a store as targets read."""
    columns = {"case_id": IDS, **COLUMNS, **changes}
    table = pa.table({name: value for name, value in columns.items() if value is not None})
    return SimpleNamespace(path="store", classes=("LUAD", "LUSC"), cases=table)


def target_of(store: Any = None, train: list[str] | None = None, **target: Any) -> Target:
    config: Config = build_config({"target": target})
    return make_target(config, store or store_of(), train or PARTS["train"])


def batch_of(target: Target, ids: list[str]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in target.arrays(ids).items()}


def logits(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# --- a class


def test_without_a_word_the_target_is_the_stored_label() -> None:
    target = target_of()
    assert (target.kind, target.outputs, target.columns) == ("class", ("LUAD", "LUSC"), ("prob_LUAD", "prob_LUSC"))
    batch, out = batch_of(target, IDS[:4]), logits(4, 2)
    assert batch["target"].tolist() == [0, 1, 0, 1]
    loss, parts = target.loss(out, batch)
    torch.testing.assert_close(loss, F.cross_entropy(out, torch.tensor([0, 1, 0, 1])))
    assert parts["accuracy"] == (out.argmax(1) == torch.tensor([0, 1, 0, 1])).float().mean()
    torch.testing.assert_close(target.predict(out), torch.softmax(out.double(), 1))


def test_a_class_may_be_another_column_and_unknown_values_are_left_out() -> None:
    target = target_of(columns=["grade"])
    assert target.outputs == ("G1", "G2", "G3")
    assert target.known(IDS[:8]) == [case for number, case in enumerate(IDS[:8]) if number not in (2, 6)]
    assert target.truths(IDS[:3])["label"].to_pylist() == ["G1", "G2", None]
    assert target_of(columns=["stage"]).outputs == ("1", "2")
    assert target_of(columns=["TP53"]).outputs == ("false", "true")


@pytest.mark.parametrize(
    ("column", "message", "found"),
    [
        ("nowhere", "no column 'nowhere' for target.columns", "grade (string)"),
        ("age", "column 'age' cannot be used", "61.5"),
        ("one", "fewer than two classes", "same"),
    ],
)
def test_a_column_that_is_no_class_is_refused_with_what_is_there(column: str, message: str, found: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        target_of(columns=[column])
    assert found in (refusal.value.found or "")


def test_many_different_numbers_are_no_classes() -> None:
    ids = [f"case-{number:03d}" for number in range(30)]
    store = SimpleNamespace(path="s", classes=(), cases=pa.table({"case_id": ids, "year": list(range(30))}))
    with pytest.raises(InputError, match="cannot be used") as refusal:
        target_of(store, ids, columns=["year"])
    assert "30 different numbers" in (refusal.value.found or "")


def test_training_cases_of_one_class_are_refused() -> None:
    store = store_of(label=["LUAD"] * 8 + ["LUSC"] * 4)
    with pytest.raises(InputError, match="all of one class"):
        check_target(target_of(store), PARTS, "auto", 4)


# --- labels


def test_the_loss_of_labels_is_the_mean_over_all_entries_of_which_unknown_ones_give_nothing() -> None:
    target = target_of(kind="labels", columns=["TP53", "KRAS"])
    assert target.known(IDS) == IDS  # some label is known of every case
    truth = [[1, 1], [0, 0], [None, 1], [1, 0], [1, 1], [0, None]]
    out = logits(6, 2)
    total = 0.0
    for row, values in zip(out.tolist(), truth, strict=True):
        for value, said in zip(row, values, strict=True):
            if said is not None:
                p = 1 / (1 + math.exp(-value))
                total -= math.log(p if said else 1 - p)
    assert float(target.loss(out, batch_of(target, IDS[:6]))[0]) == pytest.approx(total / 12)


def test_what_is_said_of_an_unknown_label_moves_nothing() -> None:
    target = target_of(kind="labels", columns=["TP53", "KRAS"])
    batch, out = batch_of(target, IDS[:6]), logits(6, 2).requires_grad_()
    target.loss(out, batch)[0].backward()
    assert out.grad is not None
    assert ((out.grad != 0) == batch["target_known"]).all()


def test_two_halves_of_a_mini_batch_give_the_loss_of_the_whole() -> None:
    """What keeps the result independent of the number of workers."""
    out = logits(8, 2)
    for settings in ({"kind": "labels", "columns": ["TP53", "KRAS"]}, {"kind": "survival", "bins": 2}):
        target = target_of(**settings)
        whole = target.loss(out, batch_of(target, IDS[:8]))[0]
        halves = [target.loss(out[rows], batch_of(target, IDS[rows]))[0] for rows in (slice(0, 4), slice(4, 8))]
        torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_labels_are_refused_where_a_value_is_neither_yes_nor_no() -> None:
    with pytest.raises(InputError, match="cannot be used") as refusal:
        target_of(kind="labels", columns=["TP53", "grade"])
    assert (refusal.value.case, refusal.value.found) == ("case-00", "G1")
    with pytest.raises(InputError, match="cannot be used") as refusal:
        target_of(kind="labels", columns=["stage"])
    assert refusal.value.case == "case-01"
    store = store_of(TP53=[True] * 8 + [False] * 4)
    with pytest.raises(InputError, match="one value in all training cases") as refusal:
        check_target(target_of(store, kind="labels", columns=["TP53"]), PARTS, "auto", 4)
    assert "TP53: no case without it" in (refusal.value.found or "")


# --- survival


def test_time_bins_are_fitted_on_training_cases_alone() -> None:
    target = target_of(kind="survival", bins=3)
    other = store_of(survival_months=[*TIMES[:8], 500.0, 600.0, None, 700.0])
    assert target_of(other, kind="survival", bins=3).card()["time_edges"] == target.card()["time_edges"]
    assert target_of(train=IDS[:7], kind="survival", bins=3).card()["time_edges"] != target.card()["time_edges"]
    events = [3.0, 1.0, 20.0, 5.0, 30.0, 7.0]  # of the training cases
    np.testing.assert_allclose(target.card()["time_edges"], np.quantile(events, [1 / 3, 2 / 3]))
    assert target.outputs == ("bin_1", "bin_2", "bin_3")


def test_survival_losses_are_those_of_the_objectives() -> None:
    nll, cox = target_of(kind="survival", bins=3), target_of(kind="survival", loss="cox")
    time = torch.tensor(list(TIMES[:8]), dtype=torch.float64)
    event = torch.tensor([bool(e) for e in EVENTS[:8]])
    out = logits(8, 3)
    edges = np.array(nll.card()["time_edges"])
    bins = torch.from_numpy(np.searchsorted(edges, time.numpy(), side="right"))
    torch.testing.assert_close(nll.loss(out, batch_of(nll, IDS[:8]))[0], discrete_time_nll(out, bins, event))
    one = out[:, :1]
    assert cox.outputs == ("risk",) and cox.columns == ("risk",)
    torch.testing.assert_close(cox.loss(one, batch_of(cox, IDS[:8]))[0], cox_loss(one[:, 0], time, event))


def test_cases_without_follow_up_are_known_as_such() -> None:
    target = target_of(kind="survival", bins=3)
    assert set(IDS) - set(target.known(IDS)) == {"case-08", "case-10"}
    assert left_out(target, PARTS) == {"train": 0, "val": 1, "test": 1}
    assert known_parts(target, PARTS)["val"] == ("case-09",)
    truths = target.truths(["case-08", "case-09", "case-10"])
    assert truths["time"].to_pylist() == [None, 2.0, None] and truths["event"].to_pylist() == [None, True, None]
    assert "left out: 1 of 2 val, 1 of 2 test" in check_target(target, PARTS, "auto", 4)[0]
    notes = check_target(target, PARTS | {"test": ["case-10"]}, "auto", 4)
    assert "no test case has a known follow-up, so there is nothing to compare with" in notes
    with pytest.raises(InputError, match="no training case has a known target"):
        check_target(target, PARTS | {"train": ["case-10"]}, "auto", 4)


def test_a_discrete_model_predicts_a_risk_and_the_probability_to_outlive_each_bin() -> None:
    target = target_of(kind="survival", bins=3)
    assert target.columns == ("risk", "outlives_bin_1", "outlives_bin_2", "outlives_bin_3")
    out = torch.tensor([[0.0, 0.0, 0.0], [math.log(3), -math.log(3), 0.0]])  # hazards 1/2 and 3/4, 1/4, 1/2
    expected = torch.tensor([[-0.875, 0.5, 0.25, 0.125], [-0.53125, 0.25, 0.1875, 0.09375]], dtype=torch.float64)
    torch.testing.assert_close(target.predict(out), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", ["nll", "cox"])
def test_the_validation_loss_is_the_training_loss_of_the_same_cases(loss: str) -> None:
    target = target_of(kind="survival", bins=3, loss=loss)
    out = logits(8, len(target.outputs))
    records = [target.record(case, p) for case, p in zip(IDS[:8], target.predict(out), strict=True)]
    figures = target.figures(records[::-1])
    assert figures["loss"] == pytest.approx(float(target.loss(out, batch_of(target, IDS[:8]))[0]), rel=1e-5)
    assert 0 <= figures["cindex"] <= 1


def test_survival_columns_are_refused_with_what_is_there() -> None:
    with pytest.raises(InputError, match="no column 'os'") as refusal:
        target_of(kind="survival", time="os")
    assert "survival_months (double)" in (refusal.value.found or "")
    with pytest.raises(InputError, match=r"cannot be used for target\.time"):
        target_of(kind="survival", time="grade")
    with pytest.raises(InputError, match=r"cannot be used for target\.event"):
        target_of(kind="survival", event="age")
    with pytest.raises(InputError, match="below zero") as refusal:
        target_of(store_of(survival_months=[3.0, -1.0, *TIMES[2:]]), kind="survival")
    assert refusal.value.case == "case-01"
    with pytest.raises(InputError, match="do not allow the time bins") as refusal:
        target_of(kind="survival", bins=12)
    assert "target.bins" in (refusal.value.fix or "")


def test_cox_on_mini_batches_that_mean_nothing() -> None:
    target = target_of(kind="survival", loss="cox")
    with pytest.raises(ConfigError, match="always zero"):
        check_target(target, PARTS, "auto", 1)
    assert any("compares the 4 cases" in note for note in check_target(target, PARTS, "auto", 4))
    assert not any("compares" in note for note in check_target(target, PARTS, "auto", 16))
    with pytest.raises(InputError, match="no event was seen"):
        check_target(target_of(store_of(event=[False] * 12), kind="survival", loss="cox"), PARTS, "auto", 16)


def test_a_rank_that_repeats_a_case_does_not_count_it() -> None:
    target = target_of(kind="survival", loss="cox")
    assert batch_arrays(target, IDS[:1], share=1.0)["target_known"].all()
    assert not batch_arrays(target, IDS[:1], share=0.0)["target_known"].any()
    arrays = target_of().arrays(IDS[:1])
    assert batch_arrays(target_of(), IDS[:1], share=0.0).keys() == arrays.keys()


# --- which figure picks the epoch


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, "accuracy"),
        ({"kind": "labels", "columns": ["TP53"]}, "auroc"),
        ({"kind": "survival", "bins": 2}, "cindex"),
    ],
)
def test_every_kind_has_its_own_figure(settings: dict[str, Any], own: str) -> None:
    target = target_of(**settings)
    assert target.selected(IDS[:8], "auto") == (own, None)
    assert target.score({own: 0.7, "loss": 2.0}, "auto") == [0.7, -2.0]
    assert target.score({own: 0.7, "loss": 2.0}, "loss") == [-2.0]
    wrong = "auroc" if own == "cindex" else "cindex"
    with pytest.raises(ConfigError, match=f"{wrong} is no figure of"):
        target.selected(IDS[:8], wrong)


def test_a_figure_that_validation_does_not_define_is_replaced_once_for_the_run_with_a_note() -> None:
    of_class = target_of(store_of(label=["LUAD"] * 10 + ["LUSC"] * 2))
    figure, note = of_class.selected(IDS[:3], "auroc")
    assert figure == "accuracy" and "no case of class LUSC" in (note or "")
    labels = target_of(kind="labels", columns=["TP53", "KRAS"])
    figure, note = labels.selected(["case-00", "case-04"], "auto")
    assert figure == "loss" and "no label has cases of both kinds" in (note or "")
    survival = target_of(kind="survival", bins=2)
    figure, note = survival.selected(["case-01", "case-05"], "auto")
    assert figure == "loss" and "no event was seen" in (note or "")
    assert any("cannot pick" in note for note in check_target(survival, PARTS | {"val": ["case-01"]}, "auto", 4))


def test_figures_that_are_there_depend_on_the_cases_and_not_on_the_predictions() -> None:
    """So a run never compares epochs by different figures."""
    for settings in ({}, {"kind": "labels", "columns": ["TP53", "KRAS"]}, {"kind": "survival", "bins": 2}):
        target = target_of(**settings)
        for ids in (IDS[:8], IDS[:1], ["case-01", "case-05"]):
            names = set()
            for seed in range(3):
                out = target.predict(logits(len(ids), len(target.outputs), seed))
                names.add(frozenset(target.figures([target.record(c, p) for c, p in zip(ids, out, strict=True)])))
            assert len(names) == 1
            assert (target.selected(ids, "auto")[0] in next(iter(names))) is True


def test_unknown_labels_are_in_no_validation_figure() -> None:
    target = target_of(kind="labels", columns=["TP53", "KRAS"])
    ids, p = IDS[:8], torch.rand(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = torch.where(torch.from_numpy(target.arrays(ids)["target_known"]), p, 1 - p)
    figures = [target.figures([target.record(c, row) for c, row in zip(ids, x, strict=True)]) for x in (p, other)]
    assert figures[0] == figures[1]


# --- cards and stores


@pytest.mark.parametrize(
    "settings",
    [
        {"columns": ["grade"]},
        {"kind": "labels", "columns": ["TP53", "KRAS"]},
        {"kind": "survival", "bins": 3},
        {"kind": "survival", "loss": "cox"},
    ],
)
def test_a_card_gives_the_target_back(settings: dict[str, Any]) -> None:
    target = target_of(**settings)
    again = saved_target({"target": target.card()}, store_of())
    assert again.card() == target.card() and again.columns == target.columns
    out = logits(8, len(target.outputs))
    torch.testing.assert_close(again.predict(out), target.predict(out))
    for name, value in target.arrays(IDS).items():
        np.testing.assert_array_equal(again.arrays(IDS)[name], value)
    elsewhere = store_of(grade=None, TP53=None, survival_months=None)
    without = saved_target({"target": target.card()}, elsewhere)
    assert without.known(IDS) == [] and without.columns == target.columns
    assert all(value.null_count == len(IDS) for value in without.truths(IDS).values())


def test_a_card_that_says_nothing_is_of_a_classifier_of_the_label() -> None:
    target = saved_target({"classes": ["LUAD", "LUSC"]}, store_of())
    assert target.kind == "class" and target.columns == ("prob_LUAD", "prob_LUSC") and target.known(IDS) == IDS


def test_a_case_that_the_store_does_not_have_is_named() -> None:
    for ids in (["case-00", "stranger"], [*IDS * 100, "stranger"]):
        with pytest.raises(InputError, match="no such case") as refusal:
            case_rows(store_of(), ids)
        assert refusal.value.case == "stranger"
    assert case_rows(store_of(), IDS[::-1] * 100).tolist() == list(range(12))[::-1] * 100


@pytest.mark.parametrize(
    "target",
    [{"kind": "labels"}, {"columns": ["a", "b"]}, {"kind": "survival", "columns": ["a"]}, {"columns": ["a", "a"]}],
)
def test_impossible_targets_are_refused_by_key(target: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="target"):
        build_config({"target": target})
