"""The typed config: the paper's defaults, refusals that name the key, files and overrides, what makes runs differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from gimp_ray.config_files import describe_keys, differences, flatten, load_config, to_yaml, with_absolute_paths
from gimp_ray.errors import ConfigError
from gimp_ray.methods.gimp import GimpConfig


def test_the_defaults_are_the_papers() -> None:
    config = GimpConfig()
    assert (config.window.length, config.mask.ratio, config.triplet.margin) == (6000, 0.5, 0.8)
    assert (config.train.epochs, config.train.lr, config.stage_train("finetune").epochs) == (100, 1e-4, 70)
    assert (config.model.dim, config.model.landmarks, config.model.pinv_iterations) == (512, 256, 6)


@pytest.mark.parametrize("key", ["train.lrr", "windw", "genes.train.workers", "nonsense"])
def test_an_unknown_key_is_refused_by_its_dotted_name_with_the_keys_there_are(key: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, {key: "1"})
    assert f"'{key}'" in refusal.value.what
    assert "one of" in (refusal.value.expected or "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mask.ratio", "1.0"),
        ("mask.ratio", "0"),
        ("mask.ratio", "half"),
        ("train.lr", "-1e-4"),
        ("train.lr", ".inf"),
        ("train.lr", ".nan"),
        ("train.epochs", "0"),
        ("train.epochs", "2.5"),
        ("train.workers", "-1"),
        ("window.length", "0"),
        ("triplet.mining", "hardest"),
        ("train.precision", "fp8"),
        ("feed.read_in", "nowhere"),
        ("batch.classes", "1"),
        ("seed", "-1"),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, {key: value})
    assert key in str(refusal.value)
    assert refusal.value.expected and refusal.value.found


def test_a_mask_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mask\.ratio"):
        load_config(None, {"window.length": "1", "mask.ratio": "0.4"})


def test_later_sources_win_and_scientific_numbers_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {lr: 3e-4, epochs: 7}\nwindow: {length: 100}\n")
    config = load_config(file, {"train.lr": "1e-3"}, base={"train": {"epochs": 9, "clip_norm": 2}})
    assert (config.train.lr, config.train.epochs, config.train.clip_norm, config.window.length) == (1e-3, 7, 2.0, 100)


def test_a_stage_inherits_what_it_does_not_say() -> None:
    config = load_config(None, {"train.weight_decay": "0.2", "train.stop_after": "1", "finetune.train.lr": "5e-5"})
    assert config.stage_train("finetune").lr == 5e-5 and config.stage_train("finetune").weight_decay == 0.2
    assert config.stage_train("finetune").stop_after is None, "stopping pre-training must not stop the other stages"
    assert load_config(None, {"genes.train.epochs": "3"}).stage_train("genes").lr == 3e-4


def test_the_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config(None, {"mask.ratio": "0.3", "genes.log": "true", "finetune.init": "scratch"})
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file) == config


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "train: [1, 2"])
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(file)
    assert refusal.value.file == str(file)


def test_what_differs_leaves_out_where_and_how_fast() -> None:
    old = GimpConfig()
    new = load_config(None, {"train.workers": "4", "feed.read_in": "ray_data", "run": "elsewhere", "mask.ratio": "0.3"})
    assert differences(old, new) == {"mask.ratio": (0.5, 0.3)}
    assert differences(old, new, ["genes"]) == {}


def test_every_key_is_described() -> None:
    rows = {key: meaning for key, _, meaning in describe_keys()}
    assert set(rows) == set(flatten(GimpConfig().model_dump()))
    assert [key for key, meaning in rows.items() if not meaning] == []


def test_paths_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(
        load_config(None, {"store": "s3://bucket/store", "run": "runs/a", "finetune.init": "pretrain"})
    )
    assert (config.store, config.run, config.finetune.init) == (
        "s3://bucket/store",
        str(tmp_path / "runs/a"),
        "pretrain",
    )


def test_paths_and_names_are_taken_as_typed() -> None:
    config = load_config(None, {"store": "/data/a #1/store", "run": "001", "split.scheme": "2024-01-01"})
    assert (config.store, config.run, config.split.scheme) == ("/data/a #1/store", "001", "2024-01-01")
    assert load_config(None, {"genes.checkpoint": "null"}).genes.checkpoint is None


@pytest.mark.parametrize("kernel", ["32", "-1"])
def test_a_residual_kernel_is_odd_or_none(kernel: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.residual_kernel"):
        load_config(None, {"model.residual_kernel": kernel})
    assert load_config(None, {"model.residual_kernel": "0"}).model.residual_kernel == 0


def test_a_base_is_not_changed_by_what_is_laid_over_it() -> None:
    base = {"genes": {"train": {"epochs": 3}}}
    load_config(None, {"genes.train.epochs": 1}, base=base)
    assert base == {"genes": {"train": {"epochs": 3}}}
