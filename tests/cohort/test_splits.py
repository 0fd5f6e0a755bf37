"""Splits: by patient, stratified, complete, imported and refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from cohort_files import Sources, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from gimp_ray.errors import InputError
from gimp_ray.store import CohortStore
from gimp_ray.store.schemes import kfold_rows
from gimp_ray.store.splits import SplitRow, check_rows, patient_of, split_of, splits_table


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 23), min_size=1, max_size=4),
    folds=st.integers(3, 7),
    seed=st.integers(0, 3),
)
def test_kfold_covers_every_case_and_keeps_the_classes_in_proportion(counts: list[int], folds: int, seed: int) -> None:
    labels = {f"case{label}_{i}": f"class{label}" for label, n in enumerate(counts) for i in range(n)}
    rows, notes = kfold_rows(labels, folds, seed)
    if len(labels) < 3:
        assert rows == [] and "no kfold split" in notes[0]
        return
    k = min(folds, len(labels))
    check_rows(rows, "splits")
    tested: Counter[str] = Counter()
    for fold in range(k):
        parts = {
            part: [r.case_id for r in rows if r.fold == fold and r.part == part] for part in ("train", "val", "test")
        }
        assert sorted(case_id for part in parts.values() for case_id in part) == sorted(labels)
        assert all(parts.values()), "no part is empty"
        tested.update(parts["test"])
        for part, expected in (("test", 1 / k), ("val", 1 / k), ("train", 1 - 2 / k)):
            for label, n in enumerate(counts):
                share = sum(labels[c] == f"class{label}" for c in parts[part])
                assert abs(share - n * expected) < 2, (part, label)
    assert tested == Counter(list(labels)), "every case is tested once"
    assert kfold_rows(dict(reversed(labels.items())), folds, seed)[0] == rows, "the order of the cases does not matter"


def test_val_is_the_next_fold_s_test() -> None:
    rows, _ = kfold_rows({f"c{i}": "xy"[i % 2] for i in range(20)}, 5, 0)
    parts = {(r.fold, r.part): {q.case_id for q in rows if (q.fold, q.part) == (r.fold, r.part)} for r in rows}
    for fold in range(5):
        assert parts[fold, "val"] == parts[(fold + 1) % 5, "test"]
        assert (len(parts[fold, "train"]), len(parts[fold, "val"]), len(parts[fold, "test"])) == (12, 4, 4)


def test_seeds_give_other_splits() -> None:
    labels = {f"c{i}": "xy"[i % 2] for i in range(40)}
    assert kfold_rows(labels, 5, 0)[0] != kfold_rows(labels, 5, 1)[0]


def test_samples_of_a_patient_stay_together() -> None:
    labels = {
        f"TCGA-05-42{i:02d}-{kind}": label for i in range(12) for kind, label in (("01A", "tumour"), ("11A", "normal"))
    }
    rows, _ = kfold_rows(labels, 4, 0)
    for fold in range(4):
        part_of: dict[str, set[str]] = {}
        for row in rows:
            if row.fold == fold:
                part_of.setdefault(patient_of(row.case_id), set()).add(row.part)
        assert len(part_of) == 12 and all(len(parts) == 1 for parts in part_of.values())


@pytest.mark.parametrize(
    ("case_id", "patient"),
    [
        ("TCGA-05-4249-01Z-00-DX1", "TCGA-05-4249"),
        ("TCGA-05-4249", "TCGA-05-4249"),
        ("TCGA-05-42491", "TCGA-05-42491"),
        ("CPTAC-001-2345-67", "CPTAC-001-2345-67"),
    ],
)
def test_patients(case_id: str, patient: str) -> None:
    assert patient_of(case_id) == patient


def test_a_store_gives_its_folds(sources: Sources) -> None:
    store = sources.store(folds=3)
    for fold in range(3):
        split = store.split("kfold", fold)
        assert (len(split.train), len(split.val), len(split.test)) == (2, 2, 2)
        assert sorted(split.train + split.val + split.test) == store.cases["case_id"].to_pylist()
        assert split.train == tuple(sorted(split.train))
    with pytest.raises(InputError, match="no such split") as caught:
        store.split("kfold", 3)
    assert caught.value.found == "kfold: folds 0, 1, 2"
    with pytest.raises(InputError, match="no such split"):
        store.split("kfolds", 0)


def test_two_cases_give_a_store_without_a_split(sources: Sources) -> None:
    sources.rows = [sources.rows[0], sources.rows[5]]
    sources.write_cases()
    report = sources.ingest()
    assert any("too few" in note for note in report.notes)
    store = CohortStore.open(sources.out)
    assert store.split_schemes == {}
    with pytest.raises(InputError, match="no such split") as caught:
        store.split("kfold", 0)
    assert caught.value.found == "no split at all"


def _splits(sources: Sources, rows: list[list[object]], header: tuple[str, ...] = ("case_id", "part")) -> Path:
    return write_csv(sources.root / "splits.csv", header, rows)


def test_imported_splits_stand_beside_kfold(sources: Sources) -> None:
    rows: list[list[object]] = []
    for fold, tested in enumerate(("A0", "A1")):
        rows += [[c, "test" if c == tested else "Train ", fold, "paper"] for c in ("A0", "A1", "B0")]
    path = _splits(sources, rows, ("case_id", "part", "fold", "scheme"))
    store = sources.store(splits=path)
    assert store.split_schemes == {"kfold": (0, 1, 2, 3, 4), "paper": (0, 1)}
    split = store.split("paper", 1)
    assert (split.train, split.val, split.test) == (("A0", "B0"), (), ("A1",))


def test_fold_and_scheme_may_be_left_away(sources: Sources) -> None:
    store = sources.store(splits=_splits(sources, [["A0", "train"], ["B0", "val"], ["A1", "test"]]))
    assert store.split("imported", 0).val == ("B0",)


def test_an_imported_kfold_replaces_the_own(sources: Sources) -> None:
    path = _splits(sources, [["A0", "train", "kfold"], ["B0", "test", "kfold"]], ("case_id", "part", "scheme"))
    assert sources.store(splits=path).split_schemes == {"kfold": (0,)}


@pytest.mark.parametrize(
    ("rows", "header", "message", "case", "found"),
    [
        (
            [["A0", "train"], ["A0", "test"], ["B0", "test"]],
            ("case_id", "part"),
            "shares 1 patient",
            "A0",
            "A0 in train and test",
        ),
        ([["A0", "train"], ["A1", "holdout"]], ("case_id", "part"), "unknown part", "A1", "'holdout'"),
        ([["A0", "train"], ["A1", ""]], ("case_id", "part"), "unknown part", "A1", "None"),
        ([["A0", "train", "one"]], ("case_id", "part", "fold"), "no number", None, "'one'"),
        ([["", "train"]], ("case_id", "part"), "without case_id", None, None),
        ([["A0", "test"]], ("case_id", "part"), "nothing to train on", None, "imported, fold 0"),
        ([["A0", "train"]], ("case", "part"), "no case_id column", None, "case, part"),
        ([["A0", "train"]], ("case_id", "set"), "no part column", None, "case_id, set"),
    ],
)
def test_bad_split_tables_are_refused(
    sources: Sources,
    rows: list[list[object]],
    header: tuple[str, ...],
    message: str,
    case: str | None,
    found: str | None,
) -> None:
    path = _splits(sources, rows, header)
    with pytest.raises(InputError, match=message) as caught:
        sources.ingest(splits=path)
    assert caught.value.file == str(path)
    assert caught.value.case == case
    assert found is None or found in (caught.value.found or "")
    assert not sources.out.exists()


def test_two_samples_of_one_patient_in_two_parts_are_refused(sources: Sources) -> None:
    rows: list[list[object]] = [["TCGA-05-4240-01A", "train"], ["TCGA-05-4240-11A", "test"], ["A0", "val"]]
    with pytest.raises(InputError, match="shares 1 patient") as caught:
        sources.ingest(splits=_splits(sources, rows))
    assert caught.value.case == "TCGA-05-4240"


def test_split_entries_of_unknown_and_left_out_cases(sources: Sources) -> None:
    (sources.patches / "A2-DX1.h5").unlink()
    path = _splits(sources, [["A0", "train"], ["A2", "test"], ["B0", "val"], ["Q1", "test"]])
    report = sources.ingest(splits=path)
    assert ("split entry", "Q1") in {(item.kind, item.id) for item in report.left_out}
    split = CohortStore.open(sources.out).split("imported", 0)
    assert (split.train, split.val, split.test) == (("A0",), ("B0",), ())


def test_a_stored_split_is_checked_when_it_is_read() -> None:
    rows = [SplitRow("s", 0, "A", "train"), SplitRow("s", 0, "B", "test"), SplitRow("s", 1, "A", "train")]
    table = splits_table([*rows, SplitRow("s", 0, "A", "test")])
    with pytest.raises(InputError, match="shares 1 patient") as caught:
        split_of(table, "s", 0, {"A", "B"}, "splits.parquet")
    assert (caught.value.file, caught.value.case) == ("splits.parquet", "A")
    assert split_of(table, "s", 1, {"A", "B"}, "splits.parquet").train == ("A",), "the other fold is sound"
    with pytest.raises(InputError, match="cases the store does not have") as caught:
        split_of(splits_table(rows), "s", 0, {"A"}, "splits.parquet")
    assert caught.value.case == "B"
