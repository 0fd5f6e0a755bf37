"""A compared method that starts from another run's weights (`method.init`): what is kept, what is fresh, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.engine.loop import Saving, train
from gimp_ray.engine.protocol import World
from gimp_ray.errors import ConfigError, InputError
from gimp_ray.feed.batches import direct_batches
from gimp_ray.io.files import read_json
from gimp_ray.learn.stage import patients_of
from gimp_ray.learn.start import made_for_outputs, start_from
from gimp_ray.learn.supervise import Supervised
from gimp_ray.methods import find
from gimp_ray.methods.base import Sizes
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import load_weights, part, save_model
from tests.conftest import change_card, changed

CPU = torch.device("cpu")
BAG = {"dim": 16, "attention_dim": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "abmil": BAG,
    "dsmil": {"query_dim": 8},
    "clam_sb": BAG | {"instances": 4},
    "clam_mb": BAG | {"instances": 4},
    "transmil": {"dim": 16, "heads": 2, "dim_head": 8, "num_landmarks": 8, "residual_kernel": 5},
    "mean_pool": {"hidden": [16]},
}


def network_of(name: str, outputs: int) -> nn.Module:
    config = load_config(None, {"method.name": name, "method.options": OPTIONS[name]})
    return find(name).stages[0].network(config, Sizes(patch_dim=24, outputs=outputs))


def for_outputs_of(name: str, outputs: int) -> Callable[[str], bool]:
    return made_for_outputs(lambda sizes: network_of(name, sizes.outputs), Sizes(patch_dim=24, outputs=outputs))


def config_of(tiny: Config, name: str = "abmil", **more: Any) -> Config:
    return changed(tiny, method__name=name, method__options=OPTIONS[name], **more)


def task_of(config: Config) -> Supervised:
    return Supervised(config.model_dump(), str(config.run))


@pytest.fixture
def trained(tiny: Config, tmp_path: Path) -> Path:
    """ABMIL's weights after an epoch of survival."""
    more = {"target__kind": "survival", "method__train": {"epochs": 1, "lr": 1e-2}, "run": str(tmp_path / "first")}
    config = config_of(tiny, **more)
    run, task = RunFolder(str(config.run)), task_of(config)
    train(task, World(), run, Saving(), lambda start: direct_batches(task, start, 0, 1, 1))
    return run.model_file("finetune")


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_made_for_the_outputs_is_the_last_layer_and_what_belongs_to_a_class(name: str) -> None:
    names, for_outputs = list(network_of(name, 3).state_dict()), for_outputs_of(name, 3)
    found = {tensor for tensor in names if for_outputs(tensor)}
    assert found and set(names) - found, "something is made for the outputs, and something is not"
    of_a_class = {tensor for tensor in names if tensor.startswith(("classify", "instance"))}
    if name in ("abmil", "dsmil", "clam_sb", "transmil"):
        assert found == of_a_class
    if name == "clam_mb":
        assert found - of_a_class and all("attention" in tensor or "score" in tensor for tensor in found - of_a_class)


@pytest.mark.parametrize("name", ["abmil", "clam_sb", "clam_mb"])
@pytest.mark.parametrize(("before", "after"), [(5, 2), (2, 5), (2, 2)])
def test_classes_of_another_target_are_all_fresh_however_many_there_are(
    name: str, before: int, after: int, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    trained = network_of(name, before).state_dict()
    card = {"target": {"kind": "class", "column": "other"}}
    save_model(file, {f"net.{key}": value for key, value in trained.items()}, card)
    torch.manual_seed(1)
    network = network_of(name, after)
    own = {key: value.clone() for key, value in network.state_dict().items()}
    for_outputs = for_outputs_of(name, after)
    start_from(network, file, {"kind": "class"}, for_outputs)
    for key, value in network.state_dict().items():
        assert torch.equal(value, own[key] if for_outputs(key) else trained[key]), key
        assert for_outputs(key) == key.startswith(("classify", "instance")) or name == "clam_mb"


def test_all_but_the_outputs_is_kept_for_another_target(tiny: Config, trained: Path) -> None:
    weights = part(load_weights(trained), "net")
    task = task_of(config_of(tiny, method__init=str(trained)))
    task.preflight()
    started, fresh = task.build(CPU).state_dict(), task_of(config_of(tiny)).build(CPU).state_dict()
    for name, value in started.items():
        made = fresh if name.startswith("classify") else weights
        assert torch.equal(value, made[name]), name
    kept = next(name for name in started if not name.startswith("classify"))
    assert not torch.equal(weights[kept], fresh[kept])


def test_the_outputs_are_kept_for_the_same_target_and_not_for_another_of_as_many(tiny: Config, trained: Path) -> None:
    weights = part(load_weights(trained), "net")
    same = task_of(config_of(tiny, method__init=str(trained), target__kind="survival")).build(CPU).state_dict()
    assert torch.equal(same["classify.weight"], weights["classify.weight"])
    card = read_json(trained.with_suffix(".json"))
    change_card(trained, target=card["target"] | {"time_edges": [1.0, 2.0, 3.0]})
    other = task_of(config_of(tiny, method__init=str(trained), target__kind="survival")).build(CPU).state_dict()
    assert other["classify.weight"].shape == weights["classify.weight"].shape
    assert not torch.equal(other["classify.weight"], weights["classify.weight"])


def test_it_trains_on_from_there_and_its_card_says_so(tiny: Config, trained: Path) -> None:
    config = config_of(tiny, method__init=str(trained), method__train={"epochs": 1})
    run, task = RunFolder(str(config.run)), task_of(config)
    train(task, World(), run, Saving(), lambda start: direct_batches(task, start, 0, 1, 1))
    card = read_json(run.model_file("finetune").with_suffix(".json"))
    assert card["init"] == str(trained) and card["target"]["kind"] == "class"


def test_another_network_is_refused_by_the_name_of_what_does_not_fit(tiny: Config, trained: Path) -> None:
    wide = changed(config_of(tiny, method__init=str(trained)), method__options=BAG | {"dim": 32})
    with pytest.raises(InputError, match=r"another network(.|\n)*of shape \(.*32") as refused:
        task_of(wide).build(CPU)
    assert "section method" in str(refused.value)


def test_another_method_and_methods_with_genes_are_refused(tiny: Config, trained: Path) -> None:
    with pytest.raises(InputError, match=r"another method(.|\n)*a model of 'abmil'"):
        task_of(config_of(tiny, "transmil", method__init=str(trained))).preflight()
    with pytest.raises(ConfigError, match=r"'snn' cannot start(.|\n)*abmil"):
        task_of(changed(tiny, method__name="snn", method__init=str(trained))).preflight()


def test_a_model_that_saw_held_out_patients_is_refused(tiny: Config, trained: Path) -> None:
    other_fold = config_of(tiny, method__init=str(trained), split__fold=1)
    with pytest.raises(InputError, match="trained on patients that this run validates or tests on"):
        task_of(other_fold).preflight()


def test_what_a_chain_of_models_saw_is_known_by_its_patients(tiny: Config, trained: Path) -> None:
    seen = read_json(trained.with_suffix(".json"))
    assert set(seen["patients"]) and set(seen["trained_on"]) == set(task_of(config_of(tiny)).parts["train"])
    # the first model's store had other ids for the same patients, and one that this store does not hold out
    held_out = task_of(config_of(tiny)).parts["test"][0]
    change_card(trained, trained_on=["elsewhere-1"], patients=["elsewhere"])
    task = task_of(config_of(tiny, method__init=str(trained)))
    task.preflight()
    exported = task.seen_in_training()
    assert {"elsewhere-1", *task.parts["train"]} == set(exported["trained_on"])
    assert "elsewhere" in exported["patients"]
    change_card(trained, patients=patients_of(task.store, [held_out]))
    with pytest.raises(InputError, match="trained on patients that this run validates or tests on"):
        task_of(config_of(tiny, method__init=str(trained))).preflight()
