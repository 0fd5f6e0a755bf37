"""Every compared method on the tiny store: alone == batched, gradients everywhere, learning, files, refusals."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.engine.checkpoint import checkpoint_folders
from gimp_ray.engine.loop import Saving, train
from gimp_ray.engine.protocol import Tensors, World
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.feed.batches import direct_batches
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.io.files import read_json
from gimp_ray.learn.label_target import LabelTarget
from gimp_ray.learn.predict import CohortWork, load_model
from gimp_ray.learn.supervise import Supervised
from gimp_ray.learn.survival_target import SurvivalTarget
from gimp_ray.learn.whole_cases import whole_cases
from gimp_ray.methods import available, find
from gimp_ray.methods.base import Method, Settings, Supervise, numbers_of
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights, part
from tests.conftest import changed

CPU = torch.device("cpu")
DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
BAG = {"dim": 16, "attention_dim": 8}
SMALL: dict[str, dict[str, Any]] = {
    "abmil": BAG,
    "dsmil": {"query_dim": 8},
    "clam_sb": BAG | {"instances": 4},
    "clam_mb": BAG | {"instances": 4},
    "transmil": {"dim": 16, "heads": 2, "dim_head": 8, "num_landmarks": 8, "residual_kernel": 5},
    "mean_pool": {"hidden": [16]},
    "logistic": {},
    "mlp": {"hidden": [16]},
    "snn": {"widths": [16, 16]},
    "group_msa": {},
    "porpoise": BAG | {"joint_dim": 16, "reduced": 8},
    "pathomic": BAG | {"gene_widths": [16, 16], "joint_dim": 16},
    "mcat": {"dim": 16, "heads": 2, "ff_dim": 16},
    "concat": BAG | {"joint_dim": 16},
    "late_fusion": BAG | {"gene_widths": [16, 16]},
}


def stage_of(name: str) -> Supervise:
    stage = find(name).stage("finetune")
    assert isinstance(stage, Supervise)
    return stage


def settings_of(name: str) -> Settings:
    """The section `method` of a method with its defaults."""
    settings: Settings = find(name).config.model_fields["method"].default
    return settings


# those that are trained in one stage
METHODS: dict[str, Method] = {name: method for name, method in available().items() if len(method.stages) == 1}
DROPS = [name for name in SMALL if "dropout" in numbers_of(settings_of(name))]
every_method = pytest.mark.parametrize("name", list(METHODS))


@pytest.fixture(scope="session")
def gene_sets(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three sets of the store's genes, of uneven sizes."""
    genes = pq.read_table(store_path / "genes.parquet")["gene_id"].to_pylist()
    file = tmp_path_factory.mktemp("sets") / "sets.gmt"
    sets = {"a": genes[:30], "b": genes[25:70], "c": genes[70:75]}
    file.write_text("".join(f"{name}\tna\t" + "\t".join(members) + "\n" for name, members in sets.items()))
    return str(file)


def config_of(tiny: Config, name: str, gene_sets: str, dropout: float | None = None, **more: Any) -> Config:
    options = SMALL[name] | ({"dropout": dropout} if dropout is not None and name in DROPS else {})
    if dropout is not None and name == "group_msa":
        more = {"genes__dropout": dropout, "genes__gene_dropout": dropout} | more
    fixed = {"method__name": name, "method__options": options, "method__train": {"epochs": 2, "lr": 1e-3}}
    sets = {"genes__sets": gene_sets} if stage_of(name).sets else {}
    return changed(tiny, **(fixed | sets | {"method__batch_size": 3} | more))


def task_of(config: Config) -> Supervised:
    return Supervised(config.model_dump(), str(config.run))


def first_batch(task: Supervised) -> Tensors:
    return {name: torch.from_numpy(value) for name, value in task.read(task.plan.row(0, 0, 1)).items()}


def trained(config: Config, **saving: Any) -> RunFolder:
    """A run of the method's one stage in this process."""
    run, task = RunFolder(str(config.run)), task_of(config)
    task.preflight()
    train(task, World(), run, Saving(**saving), lambda start: direct_batches(task, start, 0, 1, 1))
    return run


def predicted(config: Config, run: RunFolder, parts: list[str] | None = None) -> Any:
    out = run.path / "evaluation" / "embeddings.parquet"
    out.parent.mkdir(exist_ok=True)
    work = CohortWork(config.model_dump(), str(run.model_file("finetune")), str(out), parts)
    work.write(work.run(World()))
    return pq.read_table(out)


def test_every_method_is_on_the_page_with_what_it_needs_and_how_it_is_trained() -> None:
    assert set(METHODS) == set(SMALL)
    text = DOCS.read_text(encoding="utf-8")
    which, _, rest = text.partition("## How they are trained")
    about = {
        row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|(.*)\|(.*)\|$", which, flags=re.MULTILINE)
    }
    trained = dict(re.findall(r"^\| `(\w+)` \| ((?:adam|radam).*) \|$", rest, flags=re.MULTILINE))
    for name, method in METHODS.items():
        title, _, paper, kinds = (cell.strip() for cell in about[name])
        assert title == method.title and paper in (method.paper or "-", "the same")
        assert kinds == ", ".join(stage_of(name).kinds)
        optimizer, lr, decay, epochs, schedule, batch, l1 = trained[name].split(" | ")
        settings = settings_of(name)
        recipe = settings.train
        assert optimizer.split(",")[0] == recipe.optimizer and schedule.split(",")[0] == recipe.schedule
        assert ("betas" in optimizer) == (recipe.betas != (0.9, 0.999))
        assert ([int(steps) for steps in re.findall(r"lookahead (\d+)", optimizer)] or [0]) == [recipe.lookahead]
        most, patience, least = re.fullmatch(r"(\d+)(?:, patience (\d+)(?: from (\d+))?)?", epochs).groups("0")
        assert [int(most), int(patience), int(least)] == [recipe.epochs, recipe.patience, recipe.min_epochs]
        assert [float(lr), float(decay), float(l1)] == [recipe.lr, recipe.weight_decay, settings.l1]
        sizes = [int(number) for number in batch.split(" x ")]
        assert sizes == ([settings.batch_size, recipe.accumulate] if recipe.accumulate > 1 else [settings.batch_size])


def test_the_page_lists_the_numbers_of_every_method() -> None:
    table = DOCS.read_text(encoding="utf-8").partition("## Their own numbers")[2]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", table, flags=re.MULTILINE)
    stated = {name: numbers for names, numbers in rows for name in re.findall(r"`(\w+)`", names)}
    for name in METHODS:
        assert stated[name] == (", ".join(numbers_of(settings_of(name))) or "none"), name


def test_group_msa_is_trained_as_gimps_gene_encoder_is() -> None:
    genes, group_msa = find("gimp").config().genes, settings_of("group_msa")
    inherited = Config().train.model_dump() | genes.train.model_dump(exclude_none=True)
    recipe = group_msa.train.model_dump(exclude_unset=True)
    assert recipe == {key: inherited[key] for key in recipe}
    assert group_msa.batch_size == genes.batch_size


def test_a_recipe_lies_between_train_and_method_train(tiny: Config) -> None:
    config = changed(tiny, method__name="dsmil", method__train={"lr": 0.5}, train__log_every=7, train__stop_after=1)
    settings = config.stage_train("finetune")
    assert (settings.lr, settings.epochs, settings.betas, settings.log_every) == (0.5, 50, (0.5, 0.9), 7)
    assert settings.optimizer == "adam" and settings.stop_after is None
    assert changed(tiny).stage_train("finetune").epochs == 3, "and so is GiMP's fine-tuning"


@every_method
def test_a_case_alone_is_as_in_a_padded_batch(tiny: Config, gene_sets: str, name: str) -> None:
    task = task_of(config_of(tiny, name, gene_sets))
    network = task.build(CPU).eval()
    batch = first_batch(task)
    if "patches" in task.needs:
        assert not batch["valid"].all(), "the bags of the mini-batch differ in size"
    stage = stage_of(name)
    predict = stage.phases[-1].predict
    with torch.no_grad():
        together = predict(task.target, stage.answer(network, task._given(batch, task.index)))
        cases = [int(case) for case in batch["case"]]
        for place, case in enumerate(cases):
            # one case at a time, for genes alone as well
            ((_, alone),) = whole_cases(task.store, task.index, [case], task.needs, task.config.feed, CPU)
            found = predict(task.target, stage.answer(network, task._given(alone, task.index)))
            torch.testing.assert_close(found[0], together[place], rtol=1e-4, atol=1e-5)
    assert together.shape == (3, len(task.target.columns)) and together.dtype == torch.float64
    torch.testing.assert_close(together.sum(dim=1), torch.ones(3, dtype=torch.float64))


@every_method
def test_gradients_reach_every_parameter(tiny: Config, gene_sets: str, name: str) -> None:
    """In every phase those that it trains, and no other."""
    task = task_of(config_of(tiny, name, gene_sets, dropout=0.0, method__batch_size=7))
    network, batch = task.build(CPU), first_batch(task)
    resting = {"unimodal": {"reduce_image", "fusion", "classify"}, "fusion": {"image", "classify_genes", "genes"}}
    resting["fusion_genes"] = {"image", "classify_genes"}
    for number, phase in enumerate(task.does.phases):
        network.zero_grad()
        task.loss(network, batch | {"phase": torch.tensor([number])})[0].backward()
        silent = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
        wanted = {n for n, _ in network.named_parameters() if n.split(".")[0] in resting.get(phase.name, set())}
        assert silent == wanted


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("porpoise", ("genes.", "fusion.")),
        ("pathomic", ("genes.",)),
        ("mcat", ("genes.",)),
        ("snn", ("",)),
        ("abmil", ("",)),
    ],
)
def test_l1_adds_the_absolute_weights_of_the_parts_it_is_about(
    tiny: Config, gene_sets: str, name: str, parts: tuple[str, ...]
) -> None:
    plain, penalised = (task_of(config_of(tiny, name, gene_sets, 0.0, method__l1=l1)) for l1 in (0, 0.5))
    network, batch = plain.build(CPU), first_batch(plain)
    penalised.build(CPU)
    before, _ = plain.loss(network, batch)
    after, shown = penalised.loss(network, batch)
    wanted = 0.5 * sum(float(p.detach().abs().sum()) for n, p in network.named_parameters() if n.startswith(parts))
    assert (
        float((after - before).detach())
        == pytest.approx(wanted, rel=1e-4)
        == pytest.approx(float(shown["loss_l1"].detach()), rel=1e-4)
    )
    assert config_of(tiny, name, gene_sets).method.l1 == settings_of(name).l1, "unset, it is the method's own"


def test_l1_leaves_what_is_frozen_alone(tiny: Config, gene_sets: str) -> None:
    task = task_of(config_of(tiny, "pathomic", gene_sets, 0.0, method__l1=0.5))
    network = task.build(CPU)
    _, shown = task.loss(network, first_batch(task) | {"phase": torch.tensor([1])})
    assert float(shown["loss_l1"].detach()) == 0


def test_a_method_whose_parts_are_trained_in_turn_must_not_end_early(tiny: Config, gene_sets: str) -> None:
    config = config_of(tiny, "pathomic", gene_sets, method__train={"patience": 2})
    with pytest.raises(ConfigError, match="one after another"):
        task_of(config).preflight()


@pytest.mark.slow
@every_method
def test_a_tiny_set_is_learned_by_heart(tiny: Config, gene_sets: str, name: str) -> None:
    train = {"epochs": 40, "lr": 5e-3, "accumulate": 1, "schedule": "constant", "patience": 0}
    more = {"method__train": train, "method__l1": 0, **({"genes__mixup": 0} if name == "group_msa" else {})}
    config = config_of(tiny, name, gene_sets, dropout=0.0, **more)
    run, task = trained(config, every_epochs=40), task_of(config)
    last = checkpoint_folders(run.checkpoints("finetune"))[-1] / "state.safetensors"
    network = task.build(CPU)
    network.load_state_dict(part(load_weights(last), "model"))
    task.phase_number = len(task.does.phases) - 1
    task.__dict__["validation"] = task.index
    with torch.no_grad():
        records = task.validate(network.eval(), World())
    assert records is not None
    assert task.score(records)[0]["accuracy"] == 1.0 and task.score(records)[0]["loss"] < 0.4


@pytest.mark.parametrize("name", ["abmil", "snn", "late_fusion"])
def test_a_run_writes_its_model_and_the_table_of_its_predictions(tiny: Config, gene_sets: str, name: str) -> None:
    config = config_of(tiny, name, gene_sets)
    run = trained(config)
    card = read_json(run.model_card("finetune"))
    task = task_of(config)
    assert card["method"] == name and card["trained_on"] == sorted(task.parts["train"])
    assert card["config"]["method"] | SMALL[name] == card["config"]["method"] and card["best_epoch"] in (0, 1)
    if "genes" in task.needs:
        assert card["genes"]["fitted_on"] == sorted(task.parts["train"])
    table = predicted(config, run, ["train", "val", "test"])
    columns = ["case_id", "part", "label", "mean_patch", *task.target.columns]
    assert table.column_names == columns and table.num_rows == 20
    assert set(table["part"].to_pylist()) == {"train", "val", "test"}
    bag = task.store.read_bag(task.store.table("slides")["slide_id"][0].as_py())
    case = task.store.table("slides")["case_id"][0].as_py()
    if task.store.table("slides")["case_id"].to_pylist().count(case) == 1:
        row = table["mean_patch"][table["case_id"].to_pylist().index(case)].as_py()
        np.testing.assert_allclose(row, bag.astype(np.float32).mean(axis=0), rtol=1e-4, atol=1e-5)
    # what was validated in training is what the file predicts
    network, saved = task.build(CPU).eval(), load_model(run.model_file("finetune"), task.store)
    network.load_state_dict(saved.network.state_dict())
    task.phase_number = len(task.does.phases) - 1
    with torch.no_grad():
        records = task.validate(network, World())
    assert records is not None and len(records) == len(task.parts["val"])
    rows = {row["case_id"]: row for row in table.to_pylist()}
    for record in records:
        written = [rows[record["case_id"]][column] for column in task.target.columns]
        np.testing.assert_allclose(record["predictions"], written, rtol=1e-6)


def test_a_model_reads_a_store_with_its_genes_in_another_order(
    tiny: Config, gene_sets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny, "mcat", gene_sets)
    run = trained(config)
    before = predicted(config, run)
    from gimp_ray.store import CohortStore

    ids, read = CohortStore.gene_ids, CohortStore.read_genes
    order = np.random.default_rng(0).permutation(100)
    turned = property(lambda store: [ids.fget(store)[place] for place in order])
    monkeypatch.setattr(CohortStore, "gene_ids", turned)
    monkeypatch.setattr(CohortStore, "read_genes", lambda store, cases: read(store, cases)[:, order])
    after = predicted(config, run)
    assert before.equals(after)


def same_weights(a: Path, b: Path) -> bool:
    one, two = load_weights(a), load_weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@every_method
def test_a_run_that_died_in_mid_epoch_goes_on_to_the_same_bits(tiny: Config, gene_sets: str, name: str) -> None:
    config = config_of(tiny, name, gene_sets, method__train={"epochs": 3, "lr": 1e-3, "accumulate": 2})
    run = trained(config, every_steps=1, keep=99)
    whole = run.path / "whole.safetensors"
    shutil.copy(run.model_file("finetune"), whole)
    folders = checkpoint_folders(run.checkpoints("finetune"))
    per_epoch = read_json(folders[0] / "state.json")["mini_batches"]
    middle = next(n for n, f in enumerate(folders) if read_json(f / "state.json")["position"] % per_epoch and n > 1)
    for folder in folders[middle + 1 :]:
        shutil.rmtree(folder)
    run.model_file("finetune").unlink()
    again = trained(config, every_steps=1, keep=99)
    assert same_weights(again.model_file("finetune"), whole)


def test_parts_trained_in_turn_rest_until_it_is_their_turn(tiny: Config, gene_sets: str) -> None:
    """A part that rests has the same bits before and after every step; the epoch that is kept is a late one."""
    config = config_of(tiny, "pathomic", gene_sets, method__train={"epochs": 6, "lr": 1e-3, "accumulate": 1})
    run = trained(config, every_steps=1, keep=999)
    states = [load_weights(f / "state.safetensors") for f in checkpoint_folders(run.checkpoints("finetune"))]
    moved = []
    for before, after in pairwise(states):
        names = {n.removeprefix("model.") for n in after if n.startswith("model.")}
        moved.append({n.split(".")[0] for n in names if not torch.equal(before[f"model.{n}"], after[f"model.{n}"])})
    image, joint = {"image", "genes", "classify_genes"}, {"reduce_image", "fusion", "classify"}
    order = [parts for number, parts in enumerate(moved) if number == 0 or parts != moved[number - 1]]
    assert order == [image, joint, joint | {"genes"}]
    assert read_json(run.model_card("finetune"))["best_epoch"] >= 3


def labels_of(task: Supervised) -> LabelTarget:
    """Two labels of the store's cases, one of them half unknown."""
    rows = task.store.cases.num_rows
    truth = np.stack([np.arange(rows) % 2 == 0, np.arange(rows) % 3 == 0], axis=1)
    known = np.stack([np.ones(rows, bool), np.arange(rows) % 2 == 0], axis=1)
    return LabelTarget(task.store, ("even", "third"), truth, known)


@pytest.mark.parametrize("name", [name for name in METHODS if "labels" in stage_of(name).kinds])
def test_labels_are_learned_by_methods_that_can(tiny: Config, gene_sets: str, name: str) -> None:
    task = task_of(config_of(tiny, name, gene_sets))
    task.__dict__["target"] = labels_of(task)
    task.preflight()
    network, batch = task.build(CPU), first_batch(task)
    loss, _ = task.loss(network, batch)
    loss.backward()
    with torch.no_grad():
        records = task.validate(network.eval(), World())
    assert torch.isfinite(loss) and records is not None
    assert all(len(record["predictions"]) == 2 for record in records)
    assert np.isfinite(task.score(records)[1]).all()


def survival_of(task: Supervised, edges: tuple[float, ...] | None) -> SurvivalTarget:
    """Follow-up of the store's cases: time bins, or Cox; of every fifth case it is not known."""
    number = np.arange(task.store.cases.num_rows)
    return SurvivalTarget(task.store, "months", "event", edges, 1.0 + number, number % 3 > 0, number % 5 > 0)


@pytest.mark.parametrize("name", [name for name in METHODS if "survival" in stage_of(name).kinds])
def test_survival_is_learned_by_methods_that_can(tiny: Config, gene_sets: str, name: str) -> None:
    for edges in ((5.0, 10.0, 15.0), None):
        task = task_of(config_of(tiny, name, gene_sets, method__batch_size=6))
        task.__dict__["target"] = survival_of(task, edges)
        task.preflight()
        network, batch = task.build(CPU), first_batch(task)
        loss, _ = task.loss(network, batch)
        loss.backward()
        with torch.no_grad():
            records = task.validate(network.eval(), World())
        assert torch.isfinite(loss) and loss > 0 and records is not None
        unknown = set(task.parts["val"]) - set(task.target.known(task.parts["val"]))
        assert len(records) == len(task.parts["val"]) - len(unknown)
        assert all(len(record["predictions"]) == len(task.target.columns) for record in records)
        assert np.isfinite(task.score(records)[1]).all()


def refused(config: Config, error: type[Exception], match: str) -> str:
    with pytest.raises(error, match=match) as refusal:
        task_of(config).preflight()
    return str(refusal.value)


def test_what_a_method_cannot_do_is_refused(tiny: Config, gene_sets: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.name"):
        changed(tiny, method__name="resnet")
    with pytest.raises(ConfigError, match=r"unknown config key 'method\.width' of method ABMIL") as unknown:
        changed(tiny, method__name="abmil", method__options={"width": 3})
    assert "attention_dim" in (unknown.value.expected or "")
    with pytest.raises(ConfigError, match=r"'method\.dim'"):
        changed(tiny, method__name="abmil", method__dim="wide")
    assert "genes.sets" in refused(changed(tiny, method__name="mcat"), ConfigError, "gene sets")
    for options in ({"dim": -1}, {"dropout": 2.0}):
        refused(changed(tiny, method__name="abmil", method__options=options), ConfigError, "impossible options")
    for name in ("clam_sb", "clam_mb"):
        task = task_of(config_of(tiny, name, gene_sets))
        task.__dict__["target"] = labels_of(task)
        with pytest.raises(ConfigError, match="cannot learn a target of kind 'labels'") as refusal:
            task.preflight()
        assert "target.kind: class" in str(refusal.value)


def test_a_missing_modality_is_refused(tiny: Config, gene_sets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gimp_ray.store import CohortStore

    monkeypatch.setattr(CohortStore, "num_genes", property(lambda store: 0))
    with pytest.raises(InputError, match="needs genes"):
        task_of(config_of(tiny, "snn", gene_sets))
    assert task_of(config_of(tiny, "abmil", gene_sets)).needs == ("patches",)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_verbs_run_evaluate_and_embed_a_compared_method(tiny: Config, gene_sets: str) -> None:
    """One stage, no stages before it, predictions and metrics beside the baselines."""
    config = config_of(tiny, "porpoise", gene_sets, evaluate__resamples=20)
    run = pipeline.run_all(config)
    assert run.record()["attempts"][-1]["stages"] == ["finetune"] and not run.stage_done("genes")
    metrics = read_json(run.evaluation / "metrics.json")
    assert metrics["rows"][0]["method"] == "PORPOISE" and len(metrics["rows"]) == 3
    with pytest.raises(ConfigError, match=r"method\.dim"):
        pipeline.finetune(changed(config, method__dim=8))
    other = pipeline.embed(config, run.model_file("finetune"), run.path / "all.parquet")
    assert pq.read_table(other).num_rows == 20
    assert "porpoise" in (run.path / "config.yaml").read_text()


@pytest.mark.slow
def test_a_method_on_genes_needs_no_slides(tiny: Config, cohort_sources: Path, tmp_path: Path) -> None:
    options = IngestOptions(workers=1, progress=False, gene_unit="FPKM")
    sources = {"genes": cohort_sources / "genes.tsv", "cases": cohort_sources / "cases.csv"}
    ingest_cohort(patches=None, out=tmp_path / "genes", options=options, **sources)
    config = changed(tiny, store=str(tmp_path / "genes"), method__name="snn", method__train={"epochs": 1})
    run = pipeline.run_all(changed(config, evaluate__resamples=20))
    rows = read_json(run.evaluation / "metrics.json")["rows"]
    assert rows[0]["method"] == "SNN" and len(rows) == 2
    with pytest.raises(InputError, match="needs patches"):
        pipeline.run_all(changed(config, run=str(tmp_path / "other"), method__name="abmil"))


def test_a_compared_methods_model_is_no_start_for_gimp(tiny: Config, gene_sets: str) -> None:
    config = config_of(tiny, "concat", gene_sets)
    model = str(trained(config).model_file("finetune"))
    other = changed(tiny, run=str(tiny.run) + "-gimp")
    with pytest.raises(InputError, match="no model of GiMP") as refusal:
        pipeline.finetune(changed(other, finetune__init=model, split__transductive=True))
    assert "concat" in str(refusal.value)
    with pytest.raises(InputError, match="no trained gene encoder"):
        pipeline.pretrain(changed(other, genes__checkpoint=model))
