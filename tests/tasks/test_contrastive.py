"""Pre-training with a compared objective: it learns, it goes on to the bit, and fine-tuning starts from its file."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.config_files import build_config, load_config
from gimp_ray.engine.loop import Saving, autocast, train
from gimp_ray.engine.protocol import World
from gimp_ray.engine.transfer import on_device
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.feed.batches import direct_batches
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.io.files import read_json, read_lines
from gimp_ray.learn.predict import load_model
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.methods import find
from gimp_ray.methods.biovil import draw_groups
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights, part
from tests.conftest import TINY, changed

CPU = torch.device("cpu")
NAMES = ("mgca", "biovil", "refers", "tangle")
TRAINED = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
OPTIONS: dict[str, dict[str, Any]] = {
    "mgca": {"hidden": 32, "out_dim": 16, "prototypes": 6, "still_epochs": 2},
    "biovil": {"out_dim": 16, "temperature": 0.2, "warm_up": 0.1},
    "refers": {"heads": 2, "bins": 4},
    "tangle": {"out_dim": 16, "temperature": 0.1},
}
EPOCHS = 20
WARM_UP = 2  # of biovil


def numbers_of(name: str) -> list[tuple[str, Any]]:
    """The keys of section `method` with their defaults."""
    return [(key, value) for key, value in find(name).config.model_fields["method"].default if key != "name"]


def settings(name: str, store: Path, run: Path) -> Config:
    overrides = {"store": str(store), "run": str(run), "train.epochs": EPOCHS, "train.lr": 3e-3, "model.dropout": 0}
    overrides |= {"genes.dropout": 0, "genes.gene_dropout": 0, "method.name": name}
    return changed(load_config(None, overrides, base=TINY), method__options=OPTIONS[name])


def task_of(config: Config) -> Pretraining:
    return Pretraining(config.model_dump(), str(config.run))


def pretrain(config: Config, rank: int = 0, size: int = 1) -> RunFolder:
    """The stage as the pipeline runs it, in this process."""
    run, task = RunFolder(config.run or ""), task_of(config)
    train(task, World(rank, size), run, Saving(), lambda start: direct_batches(task, start, rank, size, 1))
    return run


@pytest.fixture(scope="module")
def whole(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """An objective, trained in one go."""
    folder = tmp_path_factory.mktemp("contrastive")
    return functools.cache(lambda name: pretrain(settings(name, store_path, folder / name)))


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_falls(whole: Callable[[str], RunFolder], name: str) -> None:
    epochs = [line for line in read_lines(whole(name).metrics_log("pretrain")) if line["kind"] == "epoch"]
    assert len(epochs) == EPOCHS
    first, last = epochs[WARM_UP if name == "biovil" else 0], epochs[-1]
    assert last["loss"] < 0.95 * first["loss"]
    assert last["retrieval"] > first["retrieval"]
    if name == "biovil":
        assert ["loss_rec" in line for line in epochs] == [True] * WARM_UP + [False] * (EPOCHS - WARM_UP)
        assert epochs[1]["loss_rec"] < epochs[0]["loss_rec"] and last["loss_groups"] < epochs[0]["loss_groups"]


@pytest.mark.parametrize("name", TRAINED)
def test_a_stopped_run_goes_on_to_the_bit(
    whole: Callable[[str], RunFolder], store_path: Path, tmp_path: Path, name: str
) -> None:
    config = settings(name, store_path, tmp_path / "run")
    assert not pretrain(changed(config, train__stop_after=2)).stage_done("pretrain")
    run = pretrain(config)
    found, expected = (load_weights(folder.model_file("pretrain")) for folder in (run, whole(name)))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize("name", TRAINED)
def test_fine_tuning_starts_from_its_file(
    whole: Callable[[str], RunFolder], store_path: Path, tmp_path: Path, name: str
) -> None:
    file = whole(name).model_file("pretrain")
    config = changed(
        settings(name, store_path, tmp_path / "run"),
        finetune__init=str(file),
        finetune__train__epochs=1,
        finetune__train__lr=1e-12,
    )
    run = pipeline.finetune(config)
    before, after = load_weights(file), load_weights(run.model_file("finetune"))
    for side in ("aggregator", "gene_encoder"):
        for key, value in part(after, f"net.{side}").items():
            torch.testing.assert_close(value, part(before, f"net.{side}")[key], rtol=0, atol=1e-6)
    # the gene encoder was trained, not only fitted
    fresh = part(task_of(config).build(CPU).state_dict(), "gene_encoder")
    moved = [key for key, value in part(before, "net.gene_encoder").items() if not torch.equal(value, fresh[key])]
    assert moved and all(key.startswith("net.") for key in moved)


@pytest.mark.parametrize("name", TRAINED)
def test_the_card_says_what_it_was_trained_on_and_how(
    whole: Callable[[str], RunFolder], store_path: Path, tmp_path: Path, name: str
) -> None:
    run, task = whole(name), task_of(settings(name, store_path, tmp_path / "run"))
    card = read_json(run.model_card("pretrain"))
    assert card["trained_on"] == sorted(task.parts["train"]) == sorted(card["genes"]["fitted_on"])
    assert card["method"] == name and card["config"]["method"] | OPTIONS[name] == card["config"]["method"]
    saved = load_model(run.model_file("pretrain"), task.store)
    assert saved.side is not None and saved.network.get_submodule("aggregator").dim == saved.side.dim


def step_of(task: Pretraining, step: int, rank: int = 0, size: int = 1) -> Any:
    """A rank's mini-batch as it reaches the loss."""
    row = task.plan.row(step, rank, size)
    return next(iter(on_device([(row, task.read(row))], CPU)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient_in_every_phase(
    store_path: Path, tmp_path: Path, name: str, precision: str
) -> None:
    """A distributed backward pass waits for each of them."""
    task = task_of(settings(name, store_path, tmp_path / "run"))
    model = task.build(CPU).train()
    for step in (0, task.plan.positions - 1):
        model.zero_grad(set_to_none=True)
        with autocast(precision, CPU):
            loss, parts = task.loss(model, step_of(task, step)[1])
        loss.backward()
        assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert loss.dtype == torch.float32 and all(part.isfinite() for part in parts.values())


def test_an_epoch_takes_every_case_once_and_knows_no_label(tiny: Config) -> None:
    config = changed(tiny, method__name="tangle", split__transductive=True)
    task = task_of(config)
    seen = [case for step in range(task.plan.mini_batches) for case in task.plan.row(step, 0, 1).case.tolist()]
    assert sorted(seen) == list(range(task.index.num_cases)) and not task.index.labels.any()
    assert set(task.index.case_ids.tolist()) == {case for part_ in task.parts.values() for case in part_}
    task.build(CPU)
    # what is fitted, is fitted on the training part all the same
    assert sorted(task.side.card["fitted_on"]) == sorted(task.parts["train"])


def test_a_rank_that_has_nothing_left_does_not_count(tiny: Config) -> None:
    task = task_of(changed(tiny, method__name="biovil"))
    steps = -(-task.plan.mini_batches // 2)
    assert task.plan.mini_batches % 2, "so the second rank has nothing in the last step"
    counted = [[step_of(task, step, rank, 2)[1]["counted"].all() for rank in (0, 1)] for step in range(steps)]
    assert counted == [[True, True]] * (steps - 1) + [[True, False]]


def test_masked_groups_are_drawn_from_the_windows_seed_and_halves_from_the_epoch(tiny: Config) -> None:
    tiny = changed(tiny, train__epochs=5, batch__balance="natural")  # the first is warm-up
    task = task_of(changed(tiny, method__name="biovil", batch__cases_per_class=2))
    whole = [step_of(task, step)[1] for step in range(2)]
    halves = task_of(changed(tiny, method__name="biovil", batch__cases_per_class=1))
    apart = [step_of(halves, 0, rank, 2)[1] for rank in (0, 1)]
    for key in ("case", "masked_groups", "half", "masked"):
        assert torch.equal(whole[0][key], torch.cat([batch[key] for batch in apart]))
    assert not torch.equal(whole[0]["masked_groups"], whole[1]["masked_groups"])
    masked, half = whole[0]["masked_groups"], whole[0]["half"]
    assert masked.shape == half.shape == (4, task.groups)
    assert (masked.sum(dim=1) == 1).all() and (half.sum(dim=1) == task.groups // 2).all()
    # the halves are those of the epoch, whose ever the case is
    assert (half == half[0]).all() and torch.equal(half, whole[1]["half"])
    splits = {tuple(draw_groups(np.array([e], np.uint64), task.groups, 2, task.seed)[0]) for e in range(20)}
    assert len(splits) > 3
    seeds = np.arange(400, dtype=np.uint64)
    often = draw_groups(seeds, 5, 2, 1).mean(axis=0)
    assert (abs(often - 0.4) < 0.1).all()
    assert not np.array_equal(draw_groups(seeds, 5, 2, 1), draw_groups(seeds, 5, 2, 2))


@pytest.mark.parametrize("genes", [{"groups": 3, "fragments": 7}, {"top_genes": 2}, {}])
def test_reads_know_the_number_of_groups_before_the_encoder_is_built(tiny: Config, genes: dict[str, int]) -> None:
    task = task_of(changed(tiny, method__name="biovil", **{f"genes__{key}": value for key, value in genes.items()}))
    task.build(CPU)
    assert task.groups == task.side.encoder.net.num_groups


def test_settings_that_cannot_be_are_refused_with_the_ways_out(tiny: Config) -> None:
    def refused(**overrides: Any) -> ConfigError:
        with pytest.raises(ConfigError) as refusal:
            task_of(changed(tiny, **overrides)).preflight()
        return refusal.value

    assert "genes.encoder" in str(refused(method__name="mgca", genes__encoder="snn"))
    assert "genes.encoder" in str(refused(method__name="tangle", genes__encoder="none"))
    assert "genes.checkpoint" in str(refused(method__name="tangle", genes__checkpoint="/x.safetensors"))
    assert "2" in str(refused(method__name="biovil", genes__groups=1))
    unknown = refused(method__name="refers", method__options={"viewss": 3})
    assert "viewss" in str(unknown) and "views" in (unknown.expected or "")
    few = {"batch__classes": 1, "batch__cases_per_class": 1, "batch__balance": "natural"}
    assert "batch.cases_per_class" in str(refused(method__name="tangle", **few))
    task_of(changed(tiny, method__name="tangle", **few, train__workers=2)).preflight()
    assert "regions" in str(refused(method__name="refers", method__options={"regions": 2}))
    assert "method.temperature" in str(refused(method__name="mgca", method__options={"temperature": 0}))
    task_of(changed(tiny, method__name="tangle", genes__encoder="snn")).preflight()


def test_a_store_without_genes_is_refused(tiny: Config, cohort_sources: Path, tmp_path: Path) -> None:
    options = IngestOptions(strict=True, workers=1, progress=False)
    out = tmp_path / "images"
    ingest_cohort(
        patches=cohort_sources / "patches", genes=None, cases=cohort_sources / "cases.csv", out=out, options=options
    )
    with pytest.raises(InputError, match="needs genes"):
        task_of(changed(tiny, store=str(out), method__name="mgca"))


def _rank(rank: int, port: int, configs: list[dict[str, Any]]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for config in configs:
        pretrain(build_config(config), rank, 2)
    dist.destroy_process_group()


@pytest.mark.ray  # the slow tier: two further processes import torch
def test_two_workers_have_the_losses_and_weights_of_one(store_path: Path, tmp_path: Path) -> None:
    """Each with half the cases of a mini-batch, through both phases, and with a rank that has nothing left."""

    def config(name: str, cases: int, run: str) -> Config:
        # regularised as little as can be, so that steps agree to rounding
        made = changed(
            settings(name, store_path, tmp_path / f"{name}-{run}"),
            batch__cases_per_class=cases,
            batch__balance="natural",
        )
        options = OPTIONS[name] | ({"dropout": 0.0} if name == "refers" else {})
        return changed(made, method__options=options, train__epochs=3, train__lr=1e-3)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(
        _rank, (port, [config(name, 1, "two").model_dump() for name in NAMES]), nprocs=2, start_method="spawn"
    )
    for name in NAMES:
        runs = [pretrain(config(name, 2, "one")), RunFolder(tmp_path / f"{name}-two")]
        steps = [[line for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"] for run in runs]
        for figure in ("loss", "retrieval"):
            one, two = ([line[figure] for line in lines] for lines in steps)
            assert two == pytest.approx(one, rel=1e-4), (name, figure)
            assert len(set(one)) > 1
        one, two = (load_weights(run.model_file("pretrain")) for run in runs)
        for key, value in one.items():
            torch.testing.assert_close(value, two[key], rtol=1e-2, atol=1e-4, msg=f"{name} {key}")


def test_the_page_states_every_option_with_its_default() -> None:
    """After a change of a default, correct the table of docs/objectives.md."""
    page = (
        (Path(__file__).parents[2] / "docs" / "objectives.md")
        .read_text(encoding="utf-8")
        .partition("## Their own numbers")[2]
    )
    for name in NAMES:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for option, value in numbers_of(name):
            stated = str([f"{weight:g}" for weight in value]) if isinstance(value, tuple) else f"{value:g}"
            assert f"{option} {stated}".replace("'", "") in row


@pytest.mark.slow
def test_a_whole_run_needs_no_stage_before_it_and_has_embeddings_of_both_models(
    store_path: Path, tmp_path: Path
) -> None:
    config = changed(settings("mgca", store_path, tmp_path / "run"), train__epochs=1, finetune__train__epochs=1)
    run = pipeline.run_all(config)
    assert [stage for stage in ("genes", "pretrain", "finetune") if run.stage_done(stage)] == ["pretrain", "finetune"]
    assert {file.name for file in run.evaluation.glob("embeddings*")} == {
        "embeddings.parquet",
        "embeddings_pretrain.parquet",
    }
    with pytest.raises(ConfigError, match=r"another 'method"):
        pipeline.run_all(changed(config, method__name="gimp"))
