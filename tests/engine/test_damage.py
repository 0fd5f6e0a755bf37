"""Checkpoints and models that were damaged or changed are found out: never another result in silence, no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from gimp_ray import pipeline
from gimp_ray.cli.commands import main
from gimp_ray.engine.checkpoint import adopt_checkpoint, best_file, checkpoint_folders, read_state
from gimp_ray.io.files import read_json, write_json
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights
from tests.conftest import TINY

Damage = Callable[[Path], None]


def gimp(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def flipped(file: str, share: float) -> Damage:
    """Flips one bit of a file, at a share of its length."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[min(len(data) - 1, int(share * len(data)))] ^= 1 << 4
        (folder / file).write_bytes(data)

    return damage


def zeroed(file: str) -> Damage:
    """Zeroes the second half of a file, as a disk that lost its pages does."""

    def damage(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))

    return damage


def cut(file: str) -> Damage:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:50])


def without_moments(folder: Path) -> None:
    tensors = load_file(folder / "state.safetensors")
    save_file({name: value for name, value in tensors.items() if "exp_avg" not in name}, folder / "state.safetensors")


def edited(file: str, change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        tree = read_json(folder / file)
        change(tree)
        write_json(folder / file, tree)

    return damage


def another_step(folder: Path) -> None:
    folder.rename(folder.with_name("step-00000099"))


@pytest.fixture(scope="module")
def trained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """`whole`: a run's every stage; `half`: the same stopped in stage genes; `other`: one of another seed, too."""
    folder = tmp_path_factory.mktemp("damage")
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(TINY | {"store": str(store_path)}))
    runs = {name: RunFolder(folder / name) for name in ("whole", "half", "other")}
    for verb, name, *more in (
        ("run", "whole"),
        ("pretrain-genes", "half", "--train.stop_after", "2"),
        ("pretrain-genes", "other", "--train.stop_after", "2", "--seed", "1"),
    ):
        answer = gimp(verb, "--config", file, "--run", runs[name].path, *more)
        assert answer.exit_code == 0, answer.output
    return runs


def copy_of(run: RunFolder, to: Path) -> RunFolder:
    shutil.copytree(run.path, to)
    return RunFolder(to)


def same_weights(a: Path, b: Path) -> bool:
    one, two = load_weights(a), load_weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


CHECKPOINT = {
    "header": flipped("state.safetensors", 0.01),
    "weights": flipped("state.safetensors", 0.3),
    "moments": flipped("state.safetensors", 0.7),
    "last-bit": flipped("state.safetensors", 1.0),
    "zeroed": zeroed("state.safetensors"),
    "no-moments": without_moments,
    "tensors-cut": cut("state.safetensors"),
    "no-tensors": lambda folder: (folder / "state.safetensors").unlink(),
    "position": edited("state.json", lambda tree: tree.update(position=tree["position"] + 1)),
    "seed": edited("state.json", lambda tree: tree["inputs"].update(seed=7)),
    "best": edited("state.json", lambda tree: tree.update(best=[9.0], best_epoch=0)),
    "no-checksum": edited("state.json", lambda tree: tree.pop("checksum")),
    "state-bit": flipped("state.json", 0.5),
    "state-cut": cut("state.json"),
    "no-state": lambda folder: (folder / "state.json").unlink(),
    "another-step": another_step,
}


@pytest.mark.parametrize("damage", CHECKPOINT.values(), ids=CHECKPOINT.keys())
def test_a_damaged_or_changed_checkpoint_is_set_aside_and_the_one_before_used(
    damage: Damage, trained: dict[str, RunFolder], tmp_path: Path
) -> None:
    run = copy_of(trained["half"], tmp_path / "run")
    damage(checkpoint_folders(run.checkpoints("genes"))[-1])
    answer = gimp("pretrain-genes", "--run", run.path)
    assert answer.exit_code == 0, answer.output
    assert "is set aside as damaged-step-" in answer.output
    assert len(list(run.checkpoints("genes").glob("damaged-step-*"))) == 1
    assert same_weights(run.model_file("genes"), trained["whole"].model_file("genes"))


def test_a_checkpoint_of_another_run_is_set_aside(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    run = copy_of(trained["half"], tmp_path / "run")
    newest = checkpoint_folders(run.checkpoints("genes"))[-1]
    shutil.rmtree(newest)
    shutil.copytree(trained["other"].checkpoints("genes") / newest.name, newest)
    answer = gimp("pretrain-genes", "--run", run.path)
    assert answer.exit_code == 0 and "of another run, or of other settings" in answer.output, answer.output
    assert same_weights(run.model_file("genes"), trained["whole"].model_file("genes"))


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(
    trained: dict[str, RunFolder], tmp_path: Path
) -> None:
    run = copy_of(trained["half"], tmp_path / "run")
    for folder in checkpoint_folders(run.checkpoints("genes")):
        zeroed("state.safetensors")(folder)
    for _ in range(2):
        answer = gimp("pretrain-genes", "--run", run.path)
        assert answer.exit_code == 2 and "no checkpoint of the stage is whole" in answer.output, answer.output
        assert "is damaged" in answer.output and "begin the stage anew" in answer.output


def test_the_best_epochs_weights_are_proved_with_their_checkpoint(
    trained: dict[str, RunFolder], tmp_path: Path
) -> None:
    run = copy_of(trained["half"], tmp_path / "run")
    best = {
        best_file(run.stage("genes"), read_state(folder)["best_epoch"])
        for folder in checkpoint_folders(run.checkpoints("genes"))
    }
    for file in best:
        flipped(file.name, 0.5)(file.parent)
    answer = gimp("pretrain-genes", "--run", run.path)
    assert answer.exit_code == 2 and "best-epoch-" in answer.output and "damaged" in answer.output


MODEL = {
    "bit": flipped("genes.safetensors", 0.6),
    "zeroed": zeroed("genes.safetensors"),
    "cut": cut("genes.safetensors"),
    "card-bit": flipped("genes.json", 0.5),
    "card-cut": cut("genes.json"),
    "no-card": lambda folder: (folder / "genes.json").unlink(),
    "genes-reordered": edited("genes.json", lambda tree: tree["genes"]["gene_ids"].reverse()),
    "seed": edited("genes.json", lambda tree: tree["inputs"].update(seed=7)),
    "trained-on": edited("genes.json", lambda tree: tree["genes"]["fitted_on"].clear()),
}


@pytest.mark.parametrize("damage", MODEL.values(), ids=MODEL.keys())
def test_a_damaged_or_changed_model_is_refused(damage: Damage, trained: dict[str, RunFolder], tmp_path: Path) -> None:
    encoder = copy_of(trained["whole"], tmp_path / "encoder")
    damage(encoder.path)
    answer = gimp(
        *("pretrain", "--config", trained["whole"].config_file, "--run", tmp_path / "run"),
        *("--genes.checkpoint", encoder.model_file("genes")),
    )
    assert answer.exit_code == 2 and answer.output.count("error:") == 1, answer.output
    assert str(encoder.path / "genes") in answer.output
    assert isinstance(answer.exception, SystemExit), "a refusal, not a traceback"


def test_the_weights_of_another_model_are_refused(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    run = copy_of(trained["whole"], tmp_path / "run")
    shutil.copyfile(run.model_file("pretrain"), run.model_file("finetune"))
    answer = gimp("evaluate", "--run", run.path)
    assert answer.exit_code == 2 and "of another model than the card beside them" in answer.output, answer.output


def test_a_model_without_a_checksum_is_refused(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    run = copy_of(trained["whole"], tmp_path / "run")
    card = read_json(run.model_card("finetune"))
    del card["checksum"]
    run.model_card("finetune").write_text(json.dumps(card))
    answer = gimp("embed", "--run", run.path)
    assert answer.exit_code == 2 and "no checksum" in answer.output, answer.output


def test_a_checkpoint_goes_on_under_other_settings_only_where_it_was_adopted(
    trained: dict[str, RunFolder], tmp_path: Path
) -> None:
    run = copy_of(trained["half"], tmp_path / "run")
    config = pipeline.load_run_config(run.path, {"genes.train.lr": 0.01})
    answer = gimp("pretrain-genes", "--run", run.path, "--train.lr", "0.01")
    assert answer.exit_code == 2 and "train.lr" in answer.output
    adopt_checkpoint(run.checkpoints("genes"), pipeline.stage_inputs("genes", config))
    answer = gimp("pretrain-genes", "--run", run.path, "--train.lr", "0.01")
    assert answer.exit_code == 0, answer.output
    assert not same_weights(run.model_file("genes"), trained["whole"].model_file("genes"))
