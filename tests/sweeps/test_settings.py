"""Sweeps as files: what a YAML means, which settings go together, and when a sweep may go on. No Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gimp_ray.config_files import load_config
from gimp_ray.errors import ConfigError
from gimp_ray.experiments.sweep import (
    PRESETS,
    SweepConfig,
    build_sweep,
    check_same,
    check_sweep,
    own_settings,
    planned,
    read_sweep,
    rungs_of,
    space_of,
    to_file,
)
from gimp_ray.methods.gimp import GimpConfig

FILE = """
store: s3://bucket/store
base:
  train.epochs: 20
  window: {length: 512}
space:
  train.lr: {loguniform: [1e-5, 1e-3]}
search: optuna
scheduler: asha
trials: 5
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return file


def test_one_file_has_base_space_and_settings(tmp_path: Path) -> None:
    base, sweep = read_sweep(written(tmp_path, FILE), {"train.epochs": "9", "run": "sweeps/a"}, {"trials": 7})
    assert (base.store, base.run, base.train.epochs, base.window.length) == ("s3://bucket/store", "sweeps/a", 9, 512)
    assert (sweep.search, sweep.scheduler, sweep.trials) == ("optuna", "asha", 7)
    assert [(one.key, one.values) for one in space_of(sweep)] == [("train.lr", (1e-5, 1e-3))]


def test_the_base_may_be_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {epochs: 4}\nseed: 3\n")
    base, sweep = read_sweep(written(tmp_path, "base: run.yaml\npreset: lr\n"))
    assert (base.train.epochs, base.seed, sweep.seed) == (4, 3, 0)
    assert [one.key for one in space_of(sweep)] == ["train.lr"]


def test_a_runs_config_is_the_base_and_the_papers_four_are_searched(tmp_path: Path) -> None:
    # `objective` is a section of the config, and a sweep's setting
    base, sweep = read_sweep(written(tmp_path, "seed: 7\ntrain: {epochs: 4}\nobjective: {genes: false}\n"))
    assert (base.seed, base.train.epochs) == (7, 4)
    assert [one.key for one in space_of(sweep)] == ["mask.ratio", "window.length", "triplet.margin", "train.lr"]


def test_what_was_typed_is_the_sweeps_or_the_configs() -> None:
    typed = {"grace": "5", "max-failures": "0", "seed": "3", "train.lr": "1e-4", "rungs": "[1, 2]"}
    assert own_settings(typed) == (
        {"grace": "5", "max_failures": "0", "rungs": "[1, 2]"},
        {"seed": "3", "train.lr": "1e-4"},
    )


@pytest.mark.parametrize(
    "text, word",
    [
        ("trials: 3\ntrain: {epochs: 4}\n", "train"),
        ("trials: none\n", "trials"),
        ("trials: 3\nsearch: bayes\n", "search"),
        ("trials: 3\nbase: [1]\n", "base"),
        ("space: {train.lr: {normal: [0, 1]}}\n", r"train\.lr"),
        ("base: {train.lrr: 3}\n", r"train\.lrr"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_its_key(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_sweep(written(tmp_path, text))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_values_the_config_takes(name: str) -> None:
    assert check_sweep(GimpConfig(), build_sweep({"preset": name}))


@pytest.mark.parametrize(
    "settings, base, word",
    [
        ({"space": {"train.lrr": {"choice": [1]}}}, {}, r"train\.lrr"),
        ({"space": {"mask.ratio": {"uniform": [0.5, 1.5]}}}, {}, r"mask\.ratio"),
        ({"space": {"run": {"choice": ["a"]}}}, {}, "run"),
        ({"space": {"train.epochs": {"choice": [3, 9]}}, "scheduler": "asha"}, {}, r"train\.epochs"),
        (
            {"space": {"method.name": {"choice": ["gimp", "abmil"]}}, "objective": "finetune", "scheduler": "asha"},
            {},
            "method",
        ),
        ({}, {"target.kind": "survival"}, r"target\.kind: survival"),
        ({"objective": "finetune"}, {"target.kind": "survival"}, "c_index"),
        ({"objective": "finetune", "metric": "c_index"}, {}, "accuracy"),
        ({}, {"target.columns": "[sex]"}, "finetune"),
        ({"search": "grid"}, {}, "grid"),
        ({"scheduler": "pbt", "preset": "window"}, {}, r"window\.length"),
        ({"scheduler": "pbt", "preset": "lr", "search": "optuna"}, {}, "search: random"),
        ({"scheduler": "pbt", "preset": "lr", "objective": "finetune"}, {}, "objective: probe"),
        ({"scheduler": "pbt", "preset": "lr", "trials": 1}, {}, "population"),
        ({"gpus_per_trial": 0.25}, {"train.workers": 2}, "gpus_per_trial"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    settings: dict[str, Any], base: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        check_sweep(load_config(None, base), build_sweep(settings))


def test_optuna_is_asked_for_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = build_sweep({"preset": "lr", "search": "optuna"})
    check_sweep(GimpConfig(), sweep)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="optuna") as refusal:
        check_sweep(GimpConfig(), sweep)
    assert refusal.value.fix and "gimp-ray[sweep]" in refusal.value.fix


def test_rungs_grow_for_asha_are_even_for_the_others_and_end_with_the_last_epoch() -> None:
    assert rungs_of(SweepConfig(scheduler="asha"), 20) == [1, 3, 9, 20]
    assert rungs_of(SweepConfig(scheduler="asha", grace=2, reduction=2), 16) == [2, 4, 8, 16]
    assert rungs_of(SweepConfig(scheduler="asha", grace=50), 20) == [20]
    assert rungs_of(SweepConfig(scheduler="median"), 20) == list(range(2, 21, 2))
    assert rungs_of(SweepConfig(scheduler="pbt", interval=8), 20) == [8, 16, 20]
    assert rungs_of(SweepConfig(), 20) == [20]
    assert rungs_of(SweepConfig(rungs=[9, 4, 30]), 20) == [4, 9, 20]


def test_a_sweep_goes_on_under_its_own_settings_alone() -> None:
    base, sweep = GimpConfig(run="/old/place"), build_sweep({"preset": "lr", "trials": 3, "scheduler": "asha"})
    saved = yaml.safe_load(to_file(base, sweep))
    assert saved.pop("base")["run"] is None  # a copy goes on where it is
    check_same("sweep.yaml", saved, sweep.model_copy(update={"trials": 30, "concurrent": 4}))
    # a preset by name, or written out
    check_same("sweep.yaml", saved, build_sweep({"space": PRESETS["lr"], "scheduler": "asha"}))
    for other in ({"scheduler": "median"}, {"preset": "margin"}):
        with pytest.raises(ConfigError, match="was begun with another"):
            check_same("sweep.yaml", saved, sweep.model_copy(update=other))
    with pytest.raises(ConfigError, match="share_genes"):  # of an earlier version
        check_same("sweep.yaml", saved | {"share_genes": True}, sweep)


def test_the_written_file_is_a_sweeps_own(tmp_path: Path) -> None:
    sweep = build_sweep({"preset": "paper", "trials": 3, "seed": 5})
    base = load_config(None, {"train.epochs": 7, "store": "store"})
    again_base, again = read_sweep(written(tmp_path, to_file(base, sweep)))
    assert again_base == base
    assert space_of(again) == space_of(sweep) and planned(again, space_of(again)) == planned(sweep, space_of(sweep))
