"""Runs of every kind of target, from the store's case table to the metrics; without Ray."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.feature_selection import f_classif

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.engine.checkpoint import checkpoint_folders
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.evaluation import concordance_index
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.io.files import read_json, read_lines
from gimp_ray.learn.predict import without
from gimp_ray.learn.supervise import Supervised
from gimp_ray.nn.aggregator import MLPHead
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights, part
from gimp_ray.store import CohortStore
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights

UNKNOWN = (3, 10, 17)  # cases without follow-up
FAST = {"finetune__init": "scratch", "genes__encoder": "none", "finetune__train__epochs": 2, "evaluate__resamples": 50}


@pytest.fixture(scope="module")
def clinical(cohort_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort with mutations, a grade, patients of their own, and some follow-up missing."""
    folder = tmp_path_factory.mktemp("clinical")
    with (cohort_sources / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    number = {case: place for place, case in enumerate(sorted({row["case_id"] for row in rows}))}
    for row in rows:
        place = number[row["case_id"]]
        row["TP53"] = str(int(row["label"] == "LUAD"))
        row["SMOKER"] = str(int(place % 2 == 0))
        row["KRAS"] = "" if place % 4 == 0 else ("yes" if place % 3 else "no")
        row["grade"] = "" if place == 5 else f"G{1 + place % 2}"
        row["survival_months"] = "" if place in UNKNOWN else row["survival_months"]
        row["censorship"] = str(int(place % 4 == 1))
        row["patient_id"] = f"P{place // 2}"
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    ingest_cohort(
        patches=cohort_sources / "patches",
        genes=cohort_sources / "genes.tsv",
        cases=folder / "cases.csv",
        out=folder / "store",
        options=IngestOptions(strict=True, gene_unit="FPKM", workers=1, progress=False),
    )
    return folder / "store"


@pytest.fixture
def config(clinical: Path, tmp_path: Path) -> Config:
    return load_config(None, {"store": str(clinical), "run": str(tmp_path / "run")}, base=TINY)


def tables(run: RunFolder, name: str) -> dict[str, list[Any]]:
    return pq.read_table(run.evaluation / f"{name}.parquet").to_pydict()


def validation(run: RunFolder) -> list[dict[str, Any]]:
    return [line for line in read_lines(run.metrics_log("finetune")) if line["kind"] == "validation"]


@pytest.fixture(scope="module")
def survived(clinical: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A survival run with genes, and both modalities missing in turn."""
    run = tmp_path_factory.mktemp("survived") / "run"
    config = load_config(None, {"store": str(clinical), "run": str(run)}, base=TINY)
    wanted = FAST | {"genes__encoder": "snn", "genes__train__epochs": 1, "evaluate__missing": ["images", "genes"]}
    return pipeline.run_all(changed(config, target__kind="survival", target__bins=2, **wanted))


def test_a_survival_run_reports_the_c_index_of_the_cases_with_follow_up(survived: RunFolder, clinical: Path) -> None:
    scores, table = read_json(survived.evaluation / "metrics.json"), tables(survived, "predictions")
    store = CohortStore.open(clinical)
    months = dict(zip(*(store.cases[name].to_pylist() for name in ("case_id", "survival_months")), strict=True))
    unknown = {case for case, value in months.items() if value is None}
    assert len(unknown) == len(UNKNOWN) and not unknown & set(table["case_id"])
    split = store.split("kfold", 0)
    assert scores["left_out"] == {p: len(unknown & set(getattr(split, p))) for p in ("train", "val", "test")}
    assert table["time"] == [months[case] for case in table["case_id"]]
    test = np.array([where == "test" for where in table["part"]])
    time, event, risk = (np.array(table[name])[test] for name in ("time", "event", "risk"))
    row = scores["rows"][0]
    assert row["c_index"]["value"] is not None and row["n_events"] == event.sum()
    assert scores["kind"] == "survival" and scores["n_cases"] == int(test.sum())
    assert row["c_index"]["value"] == concordance_index(time, event, risk)["c_index"]
    assert [r["method"] for r in scores["rows"]] == [
        "GiMP",
        "GiMP, images missing",
        "GiMP, genes missing",
        "genes alone (Cox, ridge)",
        "mean-pooled patches (Cox, ridge)",
    ]
    assert all("c_index" in r["difference_of_first"] for r in scores["rows"][1:])
    assert (survived.figures / "survival_curves.png").exists()
    assert "C-index" in (survived.path / "summary.md").read_text()
    outlives = np.array([table["outlives_bin_1"], table["outlives_bin_2"]])
    np.testing.assert_allclose(-outlives.sum(axis=0), table["risk"])


def test_the_epoch_of_a_survival_run_is_picked_by_the_c_index(survived: RunFolder) -> None:
    lines = validation(survived)
    scores = [(line["cindex"], -line["loss"]) for line in lines]
    assert read_json(survived.model_card("finetune"))["best_epoch"] == max(range(len(scores)), key=scores.__getitem__)


def test_the_card_keeps_the_time_edges_of_the_training_cases(survived: RunFolder, clinical: Path) -> None:
    card = read_json(survived.model_card("finetune"))
    cases = CohortStore.open(clinical).cases.to_pylist()
    events = [c["survival_months"] for c in cases if c["case_id"] in card["trained_on"] and c["event"]]
    assert all(c["survival_months"] is not None for c in cases if c["case_id"] in card["trained_on"])
    assert card["target"]["time_edges"] == [pytest.approx(np.median(events))]


def test_intervals_are_over_the_patients_that_the_case_table_names(survived: RunFolder, clinical: Path) -> None:
    scores, table = read_json(survived.evaluation / "metrics.json"), tables(survived, "predictions")
    patient = {case["case_id"]: case["patient_id"] for case in CohortStore.open(clinical).cases.to_pylist()}
    tested = [c for c, where in zip(table["case_id"], table["part"], strict=True) if where == "test"]
    assert scores["n_patients"] == len({patient[case] for case in tested}) < len(tested)


def test_a_missing_modality_is_the_mean_of_the_training_cases_through_the_saved_head(survived: RunFolder) -> None:
    embedded, beside = tables(survived, "embeddings"), tables(survived, "reference_predictions")
    vectors = np.array(embedded["cls_pat"], np.float32)
    train = np.array([where == "train" for where in embedded["part"]])
    dim = vectors.shape[1] // 2
    weights, card = load_weights(survived.model_file("finetune")), read_json(survived.model_card("finetune"))
    head = MLPHead(2 * dim, 2, (card["config"]["finetune"]["hidden"],)).eval()
    head.load_state_dict(part(weights, "net.head"))

    def risk(x: np.ndarray) -> np.ndarray:
        hazards = torch.sigmoid(head(torch.from_numpy(x)).double())
        return -torch.cumprod(1 - hazards, dim=1).sum(dim=1).detach().numpy()

    np.testing.assert_allclose(risk(vectors), embedded["risk"], rtol=1e-5)
    for method, side in (("images", slice(0, dim)), ("genes", slice(dim, None))):
        replaced = vectors.copy()
        replaced[:, side] = vectors[train][:, side].mean(axis=0)
        expected = dict(zip(embedded["case_id"], risk(replaced), strict=True))
        found = {
            case: value
            for name, case, value in zip(*(beside[n] for n in ("method", "case_id", "risk")), strict=True)
            if name == f"GiMP, {method} missing"
        }
        assert set(found) == {c for c, t in zip(embedded["case_id"], train, strict=True) if not t}
        assert found == {case: pytest.approx(expected[case], rel=1e-4) for case in found}


def test_what_is_missing_cannot_be_seen() -> None:
    rng = np.random.default_rng(0)
    vectors, train = rng.normal(size=(10, 6)).astype(np.float32), np.arange(10) < 6
    spoilt = vectors.copy()
    spoilt[6:, 2:] = 99
    np.testing.assert_array_equal(without("genes", vectors, train, 2), without("genes", spoilt, train, 2))
    np.testing.assert_array_equal(without("genes", vectors, train, 2)[:, :2], vectors[:, :2])
    assert (without("images", spoilt, train, 2)[6:, 2:] == 99).all()
    with pytest.raises(InputError, match="both sides"):
        without("genes", vectors, train, 6)


@pytest.mark.slow
def test_a_labels_run_masks_what_is_not_known(config: Config, clinical: Path) -> None:
    wanted = changed(config, target__kind="labels", target__columns=["TP53", "KRAS"], evaluate__missing=["genes"])
    run = pipeline.run_all(changed(wanted, **FAST))
    scores, table = read_json(run.evaluation / "metrics.json"), tables(run, "predictions")
    assert scores["left_out"] == {"train": 0, "val": 0, "test": 0} and scores["kind"] == "labels"
    row = scores["rows"][0]
    kras = CohortStore.open(clinical).cases.select(["case_id", "KRAS"]).to_pylist()
    said = {case["case_id"]: None if case["KRAS"] is None else case["KRAS"] == "yes" for case in kras}
    assert table["true_KRAS"] == [said[case] for case in table["case_id"]] and None in table["true_KRAS"]
    tested = [value for value, where in zip(table["true_KRAS"], table["part"], strict=True) if where == "test"]
    known = [value for value in tested if value is not None]
    assert (row["labels"]["KRAS"]["n_known"], row["labels"]["KRAS"]["n_positive"]) == (len(known), sum(known))
    assert {"auroc", "average_precision"} <= row.keys() and set(row["labels"]) == {"TP53", "KRAS"}
    assert scores["notes"] == ["evaluate.missing is for GiMP with images and genes: this model has no two sides"]
    methods = [r["method"] for r in scores["rows"][1:]]
    assert methods == ["genes alone (logistic regression)", "mean-pooled patches + MLP"]
    genes = scores["rows"][1]["labels"]["TP53"]  # the label itself, which the genes tell
    assert genes["auroc"]["value"] == 1.0


@pytest.mark.slow
def test_a_class_run_on_another_column(config: Config, clinical: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pipeline.run_all(changed(config, target__columns=["grade"], **FAST))
    assert "cases without a known class are left out: 1 of" in capsys.readouterr().out
    scores, table = read_json(run.evaluation / "metrics.json"), tables(run, "predictions")
    assert scores["classes"] == ["G1", "G2"] and sum(scores["left_out"].values()) == 1
    assert set(table["label"]) == {"G1", "G2"} and {"prob_G1", "prob_G2"} <= table.keys()
    everyone = pq.read_table(pipeline.embed(config, run.model_file("finetune"), run.path / "all.parquet"))
    assert everyone["label"].null_count == 1 and everyone.num_rows == 20


def test_a_compared_method_scores_genes_by_the_classes_of_its_own_target(config: Config) -> None:
    wanted = {"method__name": "logistic", "genes__top_genes": 6, "genes__log": True}

    def kept(**more: Any) -> tuple[set[int], Supervised]:
        task = Supervised(changed(config, **wanted, **more).model_dump(), str(config.run))
        task.build(torch.device("cpu"))
        return set(task.gene_input.select.tolist()), task

    grade, task = kept(target__columns=["grade"])
    ids = task.index.case_ids.tolist()
    values, truth = np.log2(task.store.read_genes(ids).astype(np.float64) + 1), task.target.arrays(ids)["target"]
    with np.errstate(all="ignore"):
        best = np.argsort(-np.nan_to_num(f_classif(values, truth)[0]), kind="stable")[:6]
    assert grade == set(best.tolist())
    assert grade != kept()[0], "the label's"
    labelled, task = kept(target__kind="labels", target__columns=["TP53", "SMOKER"])
    together = task.store.cases.to_pandas().set_index("case_id").loc[task.index.case_ids.tolist()]
    groups = together["TP53"].astype(int) * 2 + together["SMOKER"].astype(int)
    values = np.log2(task.store.read_genes(task.index.case_ids.tolist()).astype(np.float64) + 1)
    with np.errstate(all="ignore"):
        best = np.argsort(-np.nan_to_num(f_classif(values, groups.to_numpy())[0]), kind="stable")[:6]
    assert labelled == set(best.tolist())
    followed, task = kept(target__kind="survival")
    values = np.log2(task.store.read_genes(task.index.case_ids.tolist()).astype(np.float64) + 1)
    assert followed == set(np.argsort(-values.var(axis=0), kind="stable")[:6].tolist())


def test_it_is_said_where_a_target_has_no_classes_to_score_genes_by(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, said in (("survival", True), ("class", False)):
        wanted = changed(config, method__name="snn", target__kind=kind)
        Supervised(wanted.model_dump(), str(config.run)).preflight()
        assert ("genes are scored by variance" in capsys.readouterr().out) is said


@pytest.mark.slow
def test_a_cox_run(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = pipeline.run_all(changed(config, target__kind="survival", target__loss="cox", **FAST))
    assert "Cox's loss compares the 3 cases of a step" in capsys.readouterr().out
    assert tables(run, "predictions").keys() == {"case_id", "part", "label", "time", "event", "risk"}


def test_a_target_that_is_not_there_is_refused_before_anything_is_trained(config: Config) -> None:
    wanted = changed(config, target__kind="survival", target__time="os_months", **FAST)
    with pytest.raises(InputError, match="no column 'os_months'") as refusal:
        pipeline.run_all(wanted)
    assert "survival_months" in (refusal.value.found or "")
    assert not RunFolder(wanted.run or "").checkpoints("finetune").exists()


@pytest.mark.slow
def test_a_survival_run_that_died_in_an_epoch_goes_on_to_the_same_bits(config: Config, tmp_path: Path) -> None:
    wanted = changed(config, target__kind="survival", target__bins=2, checkpoint__every_steps=1, checkpoint__keep=99)
    wanted = changed(wanted, **FAST)
    whole = pipeline.finetune(changed(wanted, run=str(tmp_path / "whole")))
    died = pipeline.finetune(wanted)
    folders = checkpoint_folders(died.checkpoints("finetune"))
    for folder in folders[2:]:  # of four steps an epoch
        shutil.rmtree(folder)
    died.model_file("finetune").unlink()
    with pytest.raises(ConfigError, match="another 'target"):
        pipeline.finetune(changed(wanted, target__bins=3))
    pipeline.finetune(wanted)
    assert metrics(died, "finetune") == metrics(whole, "finetune")
    assert same_weights(died.model_file("finetune"), whole.model_file("finetune"))
    assert read_json(died.model_card("finetune")) == read_json(whole.model_card("finetune"))


def test_no_case_without_a_target_is_trained_or_validated_on(config: Config) -> None:
    task = Supervised(changed(config, target__kind="survival", target__bins=2, **FAST).model_dump(), str(config.run))
    assert task.validation is not None
    unknown = {f"SYN-{1 + place:05d}" for place in UNKNOWN}
    assert set(task.index.case_ids.tolist()) == set(task.parts["train"]) - unknown
    assert set(task.validation.case_ids.tolist()) == set(task.parts["val"]) - unknown


def test_two_cases_of_a_patient_in_two_runs_are_a_leak(config: Config, tmp_path: Path) -> None:
    """The column patient_id says so, the ids do not."""
    task = Supervised(changed(config, **FAST).model_dump(), str(config.run))
    patient = dict(zip(*(task.store.cases[n].to_pylist() for n in ("case_id", "patient_id")), strict=True))
    tested = task.parts["test"][0]
    twin = next(case for case, name in patient.items() if name == patient[tested] and case != tested)
    with pytest.raises(InputError, match="trained on patients"):
        task.refuse_leak({"trained_on": [twin]}, "model")
    task.refuse_leak({"trained_on": list(task.parts["train"])}, "model")
