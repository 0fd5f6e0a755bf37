"""What each stage promises: frozen parts stay frozen, fitting sees training cases alone, neighbours do not matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.io.files import read_json, read_lines
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.learn.supervise import Supervised
from gimp_ray.methods.gimp import triplets
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights, part
from gimp_ray.store import CohortStore
from tests.conftest import changed

CPU = torch.device("cpu")
EMBEDDED = ("embeddings", "embeddings_pretrain")


@pytest.fixture(scope="module")
def pretrained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    from gimp_ray.config_files import load_config
    from tests.conftest import TINY

    run = tmp_path_factory.mktemp("pretrained") / "run"
    return pipeline.pretrain(load_config(None, {"store": str(store_path), "run": str(run)}, base=TINY))


def with_models_of(config: Config, run: RunFolder) -> Config:
    """The config with its gene encoder and its start of fine-tuning taken from another run."""
    return changed(
        config, genes__checkpoint=str(run.model_file("genes")), finetune__init=str(run.model_file("pretrain"))
    )


def encoder_of(file: Path) -> dict[str, torch.Tensor]:
    """The gene encoder's input and network, of its own model file or of a model that has one."""
    weights = load_weights(file)
    own = {name: value for name, value in weights.items() if name.startswith("input.")}
    own |= {f"net.{name}": value for name, value in part(weights, "net.encoder").items()}
    return part(weights, "net.gene_encoder") or own


def test_the_gene_encoder_does_not_move_in_pre_training_and_fine_tuning(tiny: Config, pretrained: RunFolder) -> None:
    run = pipeline.finetune(changed(with_models_of(tiny, pretrained), genes__dropout=0.5))
    genes = encoder_of(pretrained.model_file("genes"))
    for model in (pretrained.model_file("pretrain"), run.model_file("finetune")):
        kept = encoder_of(model)
        assert kept and all(torch.equal(value, genes[name]) for name, value in kept.items())


def test_the_gene_encoder_moves_where_fine_tuning_may_move_it(tiny: Config, pretrained: RunFolder) -> None:
    run = pipeline.finetune(changed(with_models_of(tiny, pretrained), finetune__freeze_genes=False))
    genes = encoder_of(pretrained.model_file("genes"))
    moved = encoder_of(run.model_file("finetune"))
    assert any(not torch.equal(value, genes[name]) for name, value in moved.items() if name.startswith("net."))


def test_gene_statistics_and_index_come_from_the_training_split_alone(tiny: Config) -> None:
    run = pipeline.pretrain_genes(changed(tiny, genes__train__epochs=1))
    store = CohortStore.open(tiny.store or "")
    train = store.split("kfold", 0).train
    card = read_json(run.model_card("genes"))["genes"]
    assert card["fitted_on"] == sorted(train)
    assert card["gene_ids"] == store.gene_ids and card["log"] is True
    logged = np.log2(store.read_genes(list(train)).astype(np.float64) + 1)
    weights = load_weights(run.model_file("genes"))
    means = logged.mean(axis=0)[weights["input.select"].numpy()]
    np.testing.assert_allclose(weights["input.mean"].numpy(), means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["genes", "pretrain", "finetune"])
def test_no_validation_or_test_case_is_in_a_training_plan(tiny: Config, stage: str) -> None:
    made = pipeline.make_stage(stage, tiny, str(tiny.run))
    seen = {
        str(made.index.case_ids[case])
        for step in range(made.plan.steps(0, made.plan.positions, 2))
        for rank in (0, 1)
        for case in made.plan.row(step, rank, 2).case
    }
    assert seen == set(made.parts["train"])


def test_transductive_pre_training_sees_every_case_but_no_label_beyond_training(
    tiny: Config, pretrained: RunFolder
) -> None:
    config = changed(with_models_of(tiny, pretrained), split__transductive=True)
    task = Pretraining(config.model_dump(), str(tiny.run))
    parts = task.parts
    assert set(task.index.case_ids.tolist()) == set(parts["train"]) | set(parts["val"]) | set(parts["test"])
    labels = dict(zip(task.index.case_ids.tolist(), task.index.labels.tolist(), strict=True))
    hidden = len(task.store.classes)
    assert all((label == hidden) == (case not in parts["train"]) for case, label in labels.items())
    # hidden cases are in no triplet: their embeddings get no gradient from it
    cls_pat = torch.randn(task.index.num_cases, 8, requires_grad=True)
    shown = np.where(task.index.labels == hidden, -1, task.index.labels)
    batch = {"label": torch.from_numpy(shown), "patient": torch.from_numpy(task.patients)}
    triplets(config, cls_pat, batch).loss.backward()
    assert cls_pat.grad is not None
    moved = cls_pat.grad.abs().sum(dim=1) > 0
    assert moved.any() and not moved[batch["label"] < 0].any()


def test_the_loss_of_a_case_does_not_depend_on_its_neighbours(tiny: Config, pretrained: RunFolder) -> None:
    """Whole bags of very different sizes: alone, and padded in a batch."""
    task = Supervised(with_models_of(tiny, pretrained).model_dump(), str(tiny.run))
    model = task.build(CPU).eval()
    row = task.plan.row(0, 0, 1)
    arrays = task.read(row)
    assert not arrays["valid"].all(), "the bags of the mini-batch differ in size"
    batch = {name: torch.from_numpy(value) for name, value in arrays.items()}
    cls_ge = task.encoded[id(task.index)]
    with torch.no_grad():
        together = model(batch["patches"], valid=batch["valid"], cls_ge=cls_ge[batch["case"]]).logits
        for b in range(len(row.case)):
            patches = batch["patches"][b : b + 1, batch["valid"][b]]
            alone = model(patches, cls_ge=cls_ge[batch["case"][b : b + 1]]).logits
            torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-5)


def test_pre_training_reads_windows_that_stand_in_the_store(tiny: Config, pretrained: RunFolder) -> None:
    task = Pretraining(with_models_of(tiny, pretrained).model_dump(), str(tiny.run))
    row = task.plan.row(1, 0, 1)
    arrays = task.read(row)
    length = tiny.window.length
    assert arrays["masked"].shape == (4, round(0.5 * length))
    for b in range(4):
        slide, start = int(row.slide[b]), int(row.start[b])
        bag = task.store.read_bag(str(task.index.slide_ids[slide]))
        assert str(task.index.slide_ids[slide]).startswith(str(task.index.case_ids[row.case[b]]))
        np.testing.assert_array_equal(
            arrays["patches"][b], np.resize(bag[start : start + length], (length, bag.shape[1]))
        )


def test_a_bag_shorter_than_the_window_is_repeated_to_it(tiny: Config, pretrained: RunFolder) -> None:
    task = Pretraining(changed(with_models_of(tiny, pretrained), window__length=200).model_dump(), str(tiny.run))
    row = task.plan.row(0, 0, 1)
    window = task.read(row)["patches"][0]
    bag = task.store.read_bag(str(task.index.slide_ids[row.slide[0]]))
    assert row.start[0] == 0 and len(bag) < 200
    np.testing.assert_array_equal(window, bag[np.arange(200) % len(bag)])


def test_losses_fall_on_a_cohort_that_can_be_learned(tiny: Config) -> None:
    run = pipeline.pretrain(changed(tiny, train__epochs=12, train__lr=3e-3, genes__train__epochs=15, genes__dropout=0))
    for stage, figure in (("genes", "loss"), ("pretrain", "loss_rec")):
        epochs = [line[figure] for line in read_lines(run.metrics_log(stage)) if line["kind"] == "epoch"]
        assert epochs[-1] < 0.9 * epochs[0]


@pytest.mark.parametrize(
    "overrides",
    [
        {"genes__encoder": "snn"},
        {"genes__encoder": "none"},
        {"triplet__mining": "batch_hard"},
        {"train__precision": "bf16"},
        {"train__accumulate": 2},
        {"batch__balance": "natural"},
        {"mask__reduction": "sum"},
        {"triplet__weight": 0},
        {"genes__top_genes": 30},
        {"genes__select_by": "variance", "genes__order": "stored"},
    ],
)
def test_every_choice_trains(tiny: Config, overrides: dict) -> None:
    run = pipeline.pretrain(changed(tiny, train__epochs=1, genes__train__epochs=1, **overrides))
    lines = [line for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "epoch"]
    assert len(lines) == 1 and np.isfinite(lines[0]["loss"])


@pytest.mark.slow
def test_a_cohort_of_images_alone_goes_through_every_stage(tiny: Config, cohort_sources: Path, tmp_path: Path) -> None:
    options = IngestOptions(strict=True, workers=1, progress=False)
    ingest_cohort(
        patches=cohort_sources / "patches",
        genes=None,
        cases=cohort_sources / "cases.csv",
        out=tmp_path / "images",
        options=options,
    )
    run = pipeline.run_all(changed(tiny, store=str(tmp_path / "images"), train__epochs=1, finetune__train__epochs=1))
    rows = [row["method"] for row in read_json(run.evaluation / "metrics.json")["rows"]]
    assert len(rows) == 2 and not any("genes" in row for row in rows)


@pytest.mark.slow
def test_genes_join_in_fine_tuning_where_pre_training_saw_images_alone(tiny: Config, tmp_path: Path) -> None:
    short = {"train__epochs": 1, "genes__train__epochs": 1, "finetune__train__epochs": 1}
    run = pipeline.run_all(changed(tiny, objective__genes=False, **short))
    assert read_json(run.model_card("pretrain"))["genes"] is None
    assert not part(load_weights(run.model_file("pretrain")), "net.gene_encoder")
    genes = encoder_of(run.model_file("genes"))
    joined = encoder_of(run.model_file("finetune"))
    assert joined and all(torch.equal(value, genes[name]) for name, value in joined.items())
    widths = [len(pq.read_table(run.evaluation / f"{name}.parquet")["cls_pat"][0]) for name in EMBEDDED]
    assert widths == [tiny.model.dim * 2, tiny.model.dim]
    # the same from the file of such a model, whose gene encoder must not know the cases that are tested
    given = with_models_of(changed(tiny, run=str(tmp_path / "other"), objective__genes=False, **short), run)
    again = load_weights(pipeline.finetune(given).model_file("finetune"))
    assert all(torch.equal(again[name], value) for name, value in load_weights(run.model_file("finetune")).items())
    with pytest.raises(InputError, match="trained on patients that this run validates or tests on"):
        pipeline.finetune(changed(given, run=str(tmp_path / "leak"), split__fold=1))


def test_a_compared_objective_cannot_leave_genes_out(tiny: Config) -> None:
    with pytest.raises(ConfigError, match=r"unknown config key 'objective' of method MGCA"):
        changed(tiny, method__name="mgca", objective__genes=False)


def test_a_stage_refuses_a_store_without_its_modality(tiny: Config, cohort_sources: Path, tmp_path: Path) -> None:
    options = IngestOptions(strict=True, workers=1, progress=False, gene_unit="FPKM")
    ingest_cohort(
        patches=None,
        genes=cohort_sources / "genes.tsv",
        cases=cohort_sources / "cases.csv",
        out=tmp_path / "genes",
        options=options,
    )
    config = changed(tiny, store=str(tmp_path / "genes"), genes__train__epochs=1)
    assert pipeline.pretrain_genes(config).stage_done("genes")
    with pytest.raises(InputError, match="needs patches"):
        pipeline.pretrain(config)


def test_embeddings_are_keyed_by_case_and_match_the_model(tiny: Config, pretrained: RunFolder, tmp_path: Path) -> None:
    out = pipeline.embed(tiny, pretrained.model_file("pretrain"), tmp_path / "all.parquet")
    table = pq.read_table(out)
    store = CohortStore.open(tiny.store or "")
    assert table["case_id"].to_pylist() == store.cases["case_id"].to_pylist()
    assert len(table["cls_pat"][0].as_py()) == 2 * tiny.model.dim
    slides = [row["slide_id"] for row in store.slides.to_pylist() if row["case_id"] == table["case_id"][0].as_py()]
    bag = np.concatenate([store.read_bag(slide) for slide in slides])
    np.testing.assert_allclose(table["mean_patch"][0].as_py(), bag.mean(axis=0, dtype=np.float32), rtol=1e-3, atol=1e-4)


def test_a_gene_encoder_reads_a_store_with_other_gene_order(
    tiny: Config, pretrained: RunFolder, cohort_sources: Path, tmp_path: Path
) -> None:
    lines = (cohort_sources / "genes.tsv").read_text().splitlines()
    (tmp_path / "genes.tsv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    options = IngestOptions(strict=True, workers=1, progress=False, gene_unit="FPKM")
    ingest_cohort(
        patches=cohort_sources / "patches",
        genes=tmp_path / "genes.tsv",
        cases=cohort_sources / "cases.csv",
        out=tmp_path / "store",
        options=options,
    )
    assert CohortStore.open(tmp_path / "store").gene_ids == CohortStore.open(tiny.store or "").gene_ids[::-1]
    there = pq.read_table(pipeline.embed(tiny, pretrained.model_file("pretrain"), tmp_path / "a.parquet"))
    here = pq.read_table(
        pipeline.embed(
            changed(tiny, store=str(tmp_path / "store")), pretrained.model_file("pretrain"), tmp_path / "b.parquet"
        )
    )
    np.testing.assert_array_equal(np.array(there["cls_pat"].to_pylist()), np.array(here["cls_pat"].to_pylist()))


def test_fine_tuning_without_a_pre_trained_model_is_refused_with_the_ways_out(tiny: Config) -> None:
    with pytest.raises(InputError, match="no pre-trained model") as refusal:
        pipeline.finetune(tiny)
    assert "gimp pretrain" in str(refusal.value) and "scratch" in str(refusal.value)


def test_another_store_is_refused_on_a_begun_run(tiny: Config, cohort_sources: Path, tmp_path: Path) -> None:
    pipeline.pretrain_genes(changed(tiny, genes__train__epochs=1))
    options = IngestOptions(workers=1, progress=False, gene_unit="FPKM", split_seed=5)
    ingest_cohort(
        patches=cohort_sources / "patches",
        genes=cohort_sources / "genes.tsv",
        cases=cohort_sources / "cases.csv",
        out=tmp_path / "other",
        options=options,
    )
    with pytest.raises(InputError, match="not the one this run was made with"):
        pipeline.pretrain(changed(tiny, store=str(tmp_path / "other"), genes__train__epochs=1))


def test_a_model_of_another_fold_is_refused_because_it_saw_this_folds_test_cases(
    tiny: Config, pretrained: RunFolder
) -> None:
    config = changed(with_models_of(tiny, pretrained), split__fold=1)
    for stage in (pipeline.pretrain, pipeline.finetune):
        with pytest.raises(InputError, match="trained on patients that this run validates or tests on") as refusal:
            stage(config)
        assert refusal.value.case and "transductive" in (refusal.value.fix or "")
    assert pipeline.finetune(changed(config, split__transductive=True, finetune__train__epochs=1)).stage_done(
        "finetune"
    )


def test_a_gene_encoder_refuses_another_unit(
    tiny: Config, pretrained: RunFolder, cohort_sources: Path, tmp_path: Path
) -> None:
    options = IngestOptions(workers=1, progress=False, gene_unit="TPM")
    sources = {name: cohort_sources / file for name, file in {"genes": "genes.tsv", "cases": "cases.csv"}.items()}
    ingest_cohort(patches=cohort_sources / "patches", out=tmp_path / "tpm", options=options, **sources)
    with pytest.raises(InputError, match="another unit") as refusal:
        pipeline.embed(
            changed(tiny, store=str(tmp_path / "tpm")), pretrained.model_file("pretrain"), tmp_path / "x.parquet"
        )
    assert refusal.value.expected == "FPKM" and "TPM" in (refusal.value.found or "")


def test_an_odd_unit_asks_instead_of_guessing(tiny: Config, cohort_sources: Path, tmp_path: Path) -> None:
    options = IngestOptions(workers=1, progress=False, gene_unit="arbitrary")
    ingest_cohort(
        patches=None,
        genes=cohort_sources / "genes.tsv",
        cases=cohort_sources / "cases.csv",
        out=tmp_path / "odd",
        options=options,
    )
    config = changed(tiny, store=str(tmp_path / "odd"), genes__train__epochs=1)
    with pytest.raises(InputError, match="neither") as refusal:
        pipeline.pretrain_genes(config)
    assert "genes.log" in (refusal.value.fix or "")
    assert pipeline.pretrain_genes(changed(config, genes__log=True)).stage_done("genes")


def test_two_samples_of_a_patient_are_one_patient_in_triplets(tiny: Config, pretrained: RunFolder) -> None:
    task = Pretraining(with_models_of(tiny, pretrained).model_dump(), str(tiny.run))
    ids = np.array(["TCGA-AA-0001-01A", "TCGA-AA-0001-02A", "TCGA-AA-0002-01A"])
    task.__dict__["index"] = dataclasses.replace(task.index, case_ids=ids, labels=np.zeros(3, dtype=np.int64))
    assert task.patients.tolist() == [0, 0, 1]
