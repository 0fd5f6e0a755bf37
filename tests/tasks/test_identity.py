"""A stage is what it was given: what may go on, what is refused, and that a refused command leaves the run usable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from gimp_ray import pipeline
from gimp_ray.cli.commands import main
from gimp_ray.config import Config
from gimp_ray.io.files import read_json
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.learn.supervise import Supervised
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import digest_of, read_card, sha256_of
from tests.conftest import TINY, changed

STOPPED = ("--train.stop_after", "1")


def gimp(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    answer = gimp(*arguments)
    assert answer.exit_code == 0, answer.output
    return answer.output


def refused(run: RunFolder, *arguments: str | Path) -> str:
    """The refusal of a command, which must leave the run's config alone."""
    before = run.config_file.read_text()
    answer = gimp(*arguments)
    assert answer.exit_code == 2 and isinstance(answer.exception, SystemExit), answer.output
    assert run.config_file.read_text() == before
    return answer.output


@pytest.fixture(scope="module")
def config_file(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("identity") / "run.yaml"
    file.write_text(yaml.safe_dump(TINY | {"store": str(store_path)}))
    return file


@pytest.fixture(scope="module")
def models(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Two runs up to stage pretrain that differ in their seed, and two of ABMIL."""
    runs = {}
    for seed in ("0", "1"):
        for name, verb, *more in (("gimp", "pretrain"), ("abmil", "finetune", "--method.name", "abmil")):
            runs[name + seed] = RunFolder(tmp_path_factory.mktemp("models") / "run")
            where = ("--config", config_file, "--run", runs[name + seed].path, "--seed", seed)
            done(verb, *where, *more, "--train.epochs", "1")
    return runs


def copy_model(model: Path, to: Path) -> Path:
    to.parent.mkdir(exist_ok=True, parents=True)
    shutil.copyfile(model, to)
    shutil.copyfile(model.with_suffix(".json"), to.with_suffix(".json"))
    return to


SETS = "SET_A\tna\t{}\nSET_B\tna\t{}\n"


@pytest.mark.parametrize("key", ["genes.checkpoint", "finetune.init", "method.init", "genes.sets"])
def test_a_file_changed_in_place_is_refused_and_the_same_at_another_path_accepted(
    key: str, config_file: Path, models: dict[str, RunFolder], store_path: Path, tmp_path: Path
) -> None:
    run, given, kept = RunFolder(tmp_path / "run"), tmp_path / "given.safetensors", tmp_path / "kept.safetensors"
    verb, more = "pretrain", [*STOPPED]
    if key == "genes.sets":
        from gimp_ray.store import CohortStore

        ids = CohortStore.open(store_path).gene_ids
        given, kept = given.with_suffix(".gmt"), kept.with_suffix(".gmt")
        first, other = (SETS.format("\t".join(ids[:n]), "\t".join(ids[n:80])) for n in (40, 50))
        given.write_text(first)
        kept.write_text(first)
        verb, file = "pretrain-genes", given
    else:
        stage = {"genes.checkpoint": "genes", "finetune.init": "pretrain", "method.init": "finetune"}[key]
        name = "abmil" if key == "method.init" else "gimp"
        one, two = (models[f"{name}{seed}"].model_file(stage) for seed in "01")
        file = copy_model(one, given)
        copy_model(one, kept)
        if key != "genes.checkpoint":
            verb = "finetune"
        if key == "method.init":
            more += ["--method.name", "abmil"]
    done(verb, "--config", config_file, "--run", run.path, f"--{key}", file, *more)
    assert not run.stage_done({"pretrain-genes": "genes"}.get(verb, verb))
    was = sha256_of(file)
    if key == "genes.sets":
        file.write_text(other)
    else:
        copy_model(two, file)
    text = refused(run, verb, "--run", run.path)
    assert key in text and str(file) in text and was in text and sha256_of(file) in text
    done(verb, "--run", run.path, f"--{key}", kept)
    assert run.stage_done({"pretrain-genes": "genes"}.get(verb, verb))


def test_a_refused_command_leaves_the_run_usable(config_file: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    done("pretrain", "--config", config_file, "--run", run.path)
    done("finetune", "--run", run.path, *STOPPED)
    text = refused(run, "finetune", "--run", run.path, "--objective.genes", "false")
    assert "objective.genes" in text and "expected: True" in text and "found: False" in text
    done("finetune", "--run", run.path)
    assert run.stage_done("finetune")


@pytest.mark.parametrize(
    ("verb", "option", "key"),
    [
        ("pretrain", ("--genes.groups", "5"), "genes.groups"),
        ("pretrain", ("--mask.ratio", "0.25"), "mask.ratio"),
        ("pretrain", ("--seed", "3"), "seed"),
        ("pretrain", ("--split.fold", "1"), "split.train"),
        ("evaluate", ("--finetune.hidden", "4"), "finetune.hidden"),
        ("evaluate", ("--finetune.init", "scratch"), "finetune.init"),
        ("run", ("--target.columns", "[label]"), "target.columns"),
        ("finetune", ("--train.lr", "0.5"), "train.lr"),
    ],
)
def test_a_done_stage_is_not_passed_off_as_one_of_other_settings(
    verb: str, option: tuple[str, str], key: str, finished: RunFolder
) -> None:
    text = refused(finished, verb, "--run", finished.path, *option)
    assert key in text and "expected:" in text and "found:" in text


@pytest.fixture(scope="module")
def finished(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("finished") / "run")
    done("run", "--config", config_file, "--run", run.path, "--evaluate.resamples", "20")
    return run


def test_a_stage_whose_earlier_stage_was_made_anew_is_refused(
    finished: RunFolder, models: dict[str, RunFolder], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    copy_model(models["gimp1"].model_file("genes"), run.model_file("genes"))
    text = refused(run, "run", "--run", run.path)
    assert "stage 'genes'" in text and "'seed'" in text
    copy_model(finished.model_file("genes"), run.model_file("genes"))
    copy_model(models["gimp1"].model_file("pretrain"), run.model_file("pretrain"))
    assert "stage 'pretrain'" in refused(run, "evaluate", "--run", run.path)


def test_the_card_says_what_a_model_was_made_from(finished: RunFolder) -> None:
    genes, pretrain, finetune = (read_card(finished.model_file(stage)) for stage in ("genes", "pretrain", "finetune"))
    assert pretrain["inputs"]["files"] == {"genes.checkpoint": genes["weights_sha256"]}
    assert finetune["inputs"]["files"] == {"finetune.init": pretrain["weights_sha256"]}
    for stage, card in (("genes", genes), ("pretrain", pretrain), ("finetune", finetune)):
        assert card["digest"] == digest_of(card["inputs"]) and card["inputs"]["stage"] == stage
        assert card["weights_sha256"] == sha256_of(finished.model_file(stage))
        (newest, *_) = sorted(finished.checkpoints(stage).glob("step-*"), reverse=True)
        assert read_json(newest / "state.json")["digest"] == card["digest"]


def test_the_digest_is_of_what_the_result_depends_on_and_needs_no_run(tiny: Config) -> None:
    def digest(stage: str, **changes: object) -> str:
        return digest_of(pipeline.stage_inputs(stage, changed(tiny, **changes)))

    for free in (
        {"run": "/elsewhere"},
        {"train__workers": 2},
        {"feed__ahead": 5},
        {"genes__train__stop_after": 1},
        {"mask__ratio": 0.3},
        {"finetune__hidden": 4},
    ):
        assert digest("genes", **free) == digest("genes"), free
    for counted in ({"seed": 1}, {"split__fold": 1}, {"train__clip_norm": 2.0}, {"genes__groups": 5}):
        assert digest("genes", **counted) != digest("genes"), counted
    assert digest("pretrain", mask__ratio=0.3) != digest("pretrain")
    assert not Path(str(tiny.run)).exists()


def test_a_stage_cannot_read_a_setting_that_it_was_not_given(tiny: Config) -> None:
    stage = Supervised(tiny.model_dump(), str(tiny.run), "genes")
    assert (stage.config.model.dim, stage.config.genes.groups) == (16, 4)
    for read in (lambda: stage.config.mask, lambda: stage.config.model.layers, lambda: stage.config.seed):
        with pytest.raises(AttributeError):
            read()
    assert stage.seed != Pretraining(tiny.model_dump(), str(tiny.run)).seed
