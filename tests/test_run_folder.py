"""Files of a run folder appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gimp_ray.errors import InputError
from gimp_ray.io.files import read_json, whole_file, whole_folder, write_json
from gimp_ray.runs.folder import RunFolder, environment
from gimp_ray.runs.model import load_weights, save_weights


def test_a_file_is_replaced_only_when_its_writing_ends_well(tmp_path: Path) -> None:
    file = tmp_path / "a" / "figures.json"
    write_json(file, {"x": 1})
    with pytest.raises(RuntimeError), whole_file(file) as aside:
        aside.write_text("half")
        raise RuntimeError("the disk is full")
    assert read_json(file) == {"x": 1}
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_replaced_only_when_its_writing_ends_well(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    with whole_folder(folder) as aside:
        (aside / "state.json").write_text("1")
    with pytest.raises(RuntimeError), whole_folder(folder) as aside:
        (aside / "state.json").write_text("2")
        raise RuntimeError("killed")
    assert (folder / "state.json").read_text() == "1" and list(tmp_path.iterdir()) == [folder]


def test_a_stage_is_done_when_its_model_and_its_card_are_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_json(run.model_card("genes"), {})
    assert not run.stage_done("genes")
    save_weights(run.model_file("genes"), {"w": torch.ones(2)})
    assert run.stage_done("genes")


def test_the_record_keeps_what_was_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.update(lambda record: record.update(a=1))
    run.update(lambda record: record.update(b=2))
    assert run.record() == {"a": 1, "b": 2}


def test_a_broken_record_is_refused_by_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.record_file.write_text("{")
    with pytest.raises(InputError) as refusal:
        run.record()
    assert refusal.value.file == str(run.record_file)


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    bomb = tmp_path / "model.safetensors"
    torch.save({"w": torch.ones(1)}, bomb)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(bomb)


def test_the_environment_names_versions_and_machine() -> None:
    found = environment()
    assert found["libraries"]["torch"] == torch.__version__ and found["libraries"]["ray"] and found["cpu_count"] >= 1
