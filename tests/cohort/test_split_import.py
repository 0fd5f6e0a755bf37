"""Splits of other tools: CLAM's folders and files, PORPOISE's, our own table; by slide or by case; leaks refused."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import pytest
from cohort_files import write_csv

from gimp_ray.errors import InputError
from gimp_ray.ingest.splits import read_splits
from gimp_ray.store.splits import rows_of

CASES = [f"P{i}" for i in range(8)]
SLIDES = {f"P{i}-DX{j}.ab{i}": f"P{i}" for i in range(8) for j in range(1, 2 + i % 2)}


def _lists(path: Path, index: bool = True, **parts: list[str]) -> Path:
    """A file as CLAM writes it: columns of ids of several lengths, beside a row counter."""
    path.parent.mkdir(exist_ok=True)
    rows = [list(row) for row in zip_longest(*parts.values(), fillvalue="")]
    header = ["", *parts] if index else list(parts)
    return write_csv(path, header, [[i, *row] if index else row for i, row in enumerate(rows)])


def _flags(path: Path, parts: dict[str, str | None], names: tuple[str, ...] = ("train", "val", "test")) -> Path:
    path.parent.mkdir(exist_ok=True)
    return write_csv(path, ["", *names], [[i, *(str(part == name) for name in names)] for i, part in parts.items()])


def _read(path: Path) -> tuple[dict[tuple[int, str], set[str]], list[tuple[str, str, bool]]]:
    """(fold, part) -> cases, and (kind, id, counts) of what was left out."""
    table, left_out = read_splits(path, CASES, SLIDES)
    found: dict[tuple[int, str], set[str]] = {}
    for row in rows_of(table):
        assert row.scheme == "imported"
        found.setdefault((row.fold, row.part), set()).add(row.case_id)
    return found, [(item.kind, item.id, item.counts) for item in left_out]


def _slides(*cases: str) -> list[str]:
    return [slide for slide, case in SLIDES.items() if case in cases]


def test_a_folder_of_clam_is_one_scheme(tmp_path: Path) -> None:
    folder = tmp_path / "task_1"
    for fold in range(10):
        val, test = f"P{fold % 8}", f"P{(fold + 1) % 8}"
        rest = [case for case in CASES if case not in (val, test)]
        _lists(folder / f"splits_{fold}.csv", train=_slides(*rest), val=_slides(val), test=_slides(test))
        _flags(folder / f"splits_{fold}_bool.csv", dict.fromkeys(_slides("P0"), "train"))
        (folder / f"splits_{fold}_descriptor.csv").write_text(",train,val,test\nLUAD,4,1,1\n")
    (folder / "notes.txt").write_text("x")
    found, left_out = _read(folder)
    assert len(found) == 30 and {fold for fold, _ in found} == set(range(10))
    assert (found[9, "val"], found[9, "test"]) == ({"P1"}, {"P2"}) and len(found[9, "train"]) == 6
    assert left_out == [("split file", "notes.txt", False)]


def test_a_folder_of_bool_files(tmp_path: Path) -> None:
    parts: dict[str, str | None] = dict.fromkeys(_slides("P0", "P1"), "train")
    parts.update(dict.fromkeys(_slides("P2"), "val"))
    parts.update(dict.fromkeys(_slides("P3"), "test"))
    parts.update(dict.fromkeys(_slides("P4")))
    for fold in (0, 3):
        _flags(tmp_path / "s" / f"splits_{fold}_bool.csv", parts)
    found, left_out = _read(tmp_path / "s")
    assert found[3, "train"] == {"P0", "P1"} and (found[0, "val"], found[0, "test"]) == ({"P2"}, {"P3"})
    assert sorted(left_out) == [("split entry", slide, False) for slide in _slides("P4")]


def test_one_file_of_cases_without_test(tmp_path: Path) -> None:
    """PORPOISE, MCAT and SurvPath: train and val, by case."""
    path = _lists(tmp_path / "splits_4.csv", train=["P0", "P1", "P2"], val=["P3"])
    assert _read(path) == ({(0, "train"): {"P0", "P1", "P2"}, (0, "val"): {"P3"}}, [])
    path = _lists(tmp_path / "no_index.csv", index=False, train=["P0", "P1"], val=["P3"])
    assert _read(path)[0] == {(0, "train"): {"P0", "P1"}, (0, "val"): {"P3"}}


def test_slide_ids_may_have_endings_and_unknown_ones_are_told(tmp_path: Path) -> None:
    path = _lists(
        tmp_path / "s.csv", train=["P0-DX1.ab0.svs", "P1-DX2.ab1.h5", "Z-DX1"], val=["P2", "Q9"], test=["P3 "]
    )
    found, left_out = _read(path)
    assert found == {(0, "train"): {"P0", "P1"}, (0, "val"): {"P2"}, (0, "test"): {"P3"}}
    assert left_out == [("split entry", "Z-DX1", True), ("split entry", "Q9", True)]


def test_a_patient_whose_slides_are_apart_is_refused(tmp_path: Path) -> None:
    path = _lists(tmp_path / "s.csv", train=[*_slides("P0"), "P1-DX1.ab1"], val=["P1-DX2.ab1"], test=["P4"])
    with pytest.raises(InputError, match="shares 1 patient") as caught:
        _read(path)
    assert (caught.value.case, caught.value.file) == ("P1", str(path))
    assert caught.value.found == "P1 in train and val"
    twice = write_csv(
        tmp_path / "b.csv", ["", "train", "val", "test"], [["P0", True, False, True], ["P1", True, False, False]]
    )
    with pytest.raises(InputError, match="shares 1 patient"):
        _read(twice)


def test_a_split_that_tears_patients_of_another_cohort_is_refused_too(tmp_path: Path) -> None:
    torn = ["TCGA-05-4244-01Z-00-DX1", "TCGA-05-4244-01Z-00-DX2"]
    with pytest.raises(InputError, match="shares 1 patient") as caught:
        _read(_lists(tmp_path / "s.csv", train=["P0", torn[0]], test=["P1", torn[1]]))
    assert caught.value.case == "TCGA-05-4244"
    found, left_out = _read(_lists(tmp_path / "t.csv", train=["P0", *torn], test=["P1"]))
    assert found == {(0, "train"): {"P0"}, (0, "test"): {"P1"}} and [name for _, name, _ in left_out] == torn


def test_our_own_table_may_name_slides(tmp_path: Path) -> None:
    rows = [[s, "Train" if c == "P0" else "test", 1] for s, c in SLIDES.items() if c in ("P0", "P1")]
    found, left_out = _read(write_csv(tmp_path / "a.csv", ["slide_id", "part", "fold"], rows))
    assert found == {(1, "train"): {"P0"}, (1, "test"): {"P1"}} and not left_out
    rows = [["P0", "train", "paper"], ["P0", "train", "paper"], ["P1", "test", "paper"]]
    path = write_csv(tmp_path / "b.csv", ["case_id", "part", "scheme"], rows)
    table, _ = read_splits(path, CASES, SLIDES)
    assert [(r.scheme, r.case_id, r.part) for r in rows_of(table)] == [
        ("paper", "P0", "train"),
        ("paper", "P1", "test"),
    ]


def test_a_column_of_patients_counts(tmp_path: Path) -> None:
    import pyarrow as pa

    path = _lists(tmp_path / "s.csv", train=["P0"], test=["P1"])
    read_splits(path, CASES, SLIDES)
    with pytest.raises(InputError, match="shares 1 patient"):
        read_splits(path, CASES, SLIDES, pa.table({"case_id": ["P0", "P1"], "patient_id": ["anna", "anna"]}))


def test_files_that_are_no_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no splits") as caught:
        _read(tmp_path / "empty")
    assert caught.value.found == "an empty folder"
    with pytest.raises(InputError, match="no id of the splits is in the case table") as caught:
        _read(_lists(tmp_path / "other.csv", train=["a"], val=["b"]))
    assert "P0" in (caught.value.expected or "") and caught.value.found == "a, b"
    with pytest.raises(InputError, match="unknown columns") as caught:
        _read(write_csv(tmp_path / "cols.csv", ["", "train", "val", "holdout"], [[0, "P0", "P1", "P2"]]))
    with pytest.raises(InputError, match="nothing to train on"):
        _read(_lists(tmp_path / "none.csv", train=["Z"], val=["P1"]))
    for name in ("splits_0.csv", "splits_00.csv"):
        _lists(tmp_path / "twice" / name, train=["P0"], val=["P1"])
    with pytest.raises(InputError, match="a fold has two files"):
        _read(tmp_path / "twice")
    with pytest.raises(InputError, match="no case_id column") as caught:
        _read(write_csv(tmp_path / "odd.csv", ["id", "part"], [["P0", "train"]]))
    with pytest.raises(InputError, match="without an id"):
        _read(write_csv(tmp_path / "c_bool.csv", ["", "train", "val"], [["", True, False]]))
    with pytest.raises(InputError, match="there is no such split table"):
        _read(tmp_path / "missing.csv")
