"""Split schemes: by patient, complete, balanced, deterministic; checks and reads of their tables."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.store import splits
from gimp_ray.store.schemes import kfold_rows, make_scheme
from gimp_ray.store.sites import group_sites, spread_groups
from gimp_ray.store.splits import SplitRow, check_table, join_splits, patient_of, rows_of

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def _parts(table: pa.Table, fold: int) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for row in rows_of(table):
        if row.fold == fold:
            parts[row.part].add(row.case_id)
    return parts


def _cohort(n: int = 60, sites: int = 9) -> tuple[dict[str, str], dict[str, dict[str, object]]]:
    labels = {f"c{i:03d}": "LUAD" if i % 3 else "LUSC" for i in range(n)}
    return labels, {"site": {case: f"S{i * i % sites}" for i, case in enumerate(labels)}}


def _samples() -> dict[str, str]:
    """TCGA samples beside other ids: several samples a patient."""
    return {f"TCGA-{i % 7:02d}-{i // 2:04d}-{i % 3:02d}A" if i % 3 else f"case{i}": "abc"[i % 5 % 3] for i in range(97)}


def test_kfold_never_changes() -> None:
    """The rows decide the fingerprint of every store made so far, and which cases were tested in published results."""
    text = "\n".join(f"{r.scheme} {r.fold} {r.case_id} {r.part}" for r in kfold_rows(_samples(), 5, 3)[0])
    assert hashlib.sha256(text.encode()).hexdigest().startswith("bbdbc73e9c3f538dfe77")


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(3, 60),
    classes=st.integers(1, 4),
    scheme=st.sampled_from(["kfold", "repeated", "fixed", "site", "leave_one_out:site"]),
    seed=st.integers(0, 3),
)
def test_every_scheme_holds_every_case_once_a_fold_and_no_patient_apart(
    n: int, classes: int, scheme: str, seed: int
) -> None:
    ids = [f"TCGA-{i % 5:02d}-{i // 2:04d}-{i % 3:02d}A" for i in range(n)]
    labels = {case: f"class{i % classes}" for i, case in enumerate(ids)}
    columns: dict[str, dict[str, object]] = {"site": {case: case[5:7] for case in ids}}
    table, notes = make_scheme(scheme, labels, columns, folds=4, repeats=3, seed=seed, shares=(0.7, 0.1, 0.2))
    if not table.num_rows:
        assert any("split was written" in note for note in notes)
        return
    assert set(table["scheme"].to_pylist()) == {scheme}
    check_table(table, "splits")
    for fold in set(table["fold"].to_pylist()):
        parts = _parts(table, fold)
        assert sorted(case for part in parts.values() for case in part) == sorted(labels)
        assert all(parts.values()), "train, val and test in every fold"
    shuffled = dict(reversed(labels.items()))
    again, _ = make_scheme(scheme, shuffled, columns, folds=4, repeats=3, seed=seed, shares=(0.7, 0.1, 0.2))
    assert again.equals(table), "the order of the cases does not matter"


def test_repeated_is_kfold_again_and_again() -> None:
    labels, _ = _cohort()
    table, notes = make_scheme("repeated", labels, {}, folds=5, repeats=3, seed=7)
    assert not notes and sorted(set(table["fold"].to_pylist())) == list(range(15))
    kfold, _ = make_scheme("kfold", labels, {}, folds=5, seed=7)
    assert all(_parts(table, fold) == _parts(kfold, fold) for fold in range(5)), "repeat 0 is kfold of that seed"
    tests = [frozenset(_parts(table, fold)["test"]) for fold in range(15)]
    assert len(set(tests)) == 15, "every repeat has a shuffle of its own"
    for repeat in range(3):
        counts = Counter(case for fold in range(5) for case in tests[repeat * 5 + fold])
        assert set(counts.values()) == {1} and len(counts) == len(labels)
    other, _ = make_scheme("repeated", labels, {}, folds=5, repeats=2, seed=8)
    assert frozenset(_parts(other, 0)["test"]) not in tests, "seed 8 is none of the repeats of seed 7"


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    shares=st.sampled_from([(0.7, 0.1, 0.2), (0.6, 0.2, 0.2), (0.8, 0.0, 0.2), (0.9, 0.1, 0.0), (1 / 3, 1 / 3, 1 / 3)]),
)
def test_fixed_has_the_shares_in_every_class(counts: list[int], shares: tuple[float, float, float]) -> None:
    labels = {f"case{label}_{i}": f"class{label}" for label, n in enumerate(counts) for i in range(n)}
    table, notes = make_scheme("fixed", labels, {}, shares=shares)
    if len(labels) < 3:
        assert table.num_rows == 0 and "too few" in notes[0]
        return
    parts = _parts(table, 0)
    for part, share in zip(("train", "val", "test"), shares, strict=True):
        assert abs(len(parts[part]) - share * len(labels)) < 2
        assert bool(parts[part]) == (share > 0)
        for label, n in enumerate(counts):
            assert abs(sum(labels[c] == f"class{label}" for c in parts[part]) - share * n) < 3


def test_fixed_says_which_class_a_part_lacks() -> None:
    labels = {f"c{i}": "common" for i in range(20)} | {"r0": "rare"}
    notes = make_scheme("fixed", labels, {}, shares=(0.7, 0.1, 0.2))[1]
    assert "fixed: 15 train, 2 val, 4 test patients" in notes
    assert sum("has no rare" in note for note in notes) == 2


def test_sites_stay_whole_and_parts_are_even() -> None:
    labels, columns = _cohort(200, 23)
    table, notes = make_scheme("site", labels, columns, folds=5, seed=0)
    for fold in range(5):
        parts = _parts(table, fold)
        sites = [{columns["site"][case] for case in parts[part]} for part in ("train", "val", "test")]
        assert not (sites[0] & sites[1] or sites[0] & sites[2] or sites[1] & sites[2])
        assert parts["val"] == _parts(table, (fold + 1) % 5)["test"]
    assert notes[0].startswith("site: ") and "patients a part" in notes[0]


def test_few_sites_give_few_folds_and_a_lonely_class_is_told() -> None:
    labels, columns = _cohort(40)
    columns["site"] = {case: "ABCD"[i % 4] for i, case in enumerate(labels)}
    table, notes = make_scheme("site", labels, columns, folds=5)
    assert set(table["fold"].to_pylist()) == {0, 1, 2, 3} and "site has 4 folds instead of 5" in notes[0]
    columns["site"] = {case: "AB"[i % 2] for i, case in enumerate(labels)}
    table, notes = make_scheme("site", labels, columns)
    assert not table.num_rows and "2 sites are too few" in notes[0]
    columns["site"] = {
        case: f"{label}{i % 3 if label == 'LUAD' else 0}" for i, (case, label) in enumerate(labels.items())
    }
    notes = make_scheme("site", labels, columns, folds=3)[1]
    assert any("class LUAD, LUSC comes from too few sites" in note for note in notes)


def test_sites_that_share_a_patient_stay_together() -> None:
    groups, names, joined = group_sites(["A", "B", "C", "D", "B", "E"], np.array([0, 1, 1, 2, 3, 3]))
    assert groups.tolist() == [0, 1, 1, 2, 1, 1] and names == ["A", "B", "D"] and joined == [["B", "C", "E"]]


def _spread(counts: np.ndarray, part_of: np.ndarray, k: int) -> float:
    """Largest distance of a part's share of a class from 1 / k."""
    load = np.zeros((k, counts.shape[1]))
    np.add.at(load, part_of, counts)
    return float(np.abs(load / counts.sum(0) - 1 / k).max())


def test_groups_are_spread_as_well_as_can_be() -> None:
    exact = np.array([[6, 0], [0, 6], [3, 3], [3, 3], [2, 4], [4, 2]])
    assert _spread(exact, spread_groups(exact, 3, 0), 3) == 0, "there is a perfect way, and it is found"
    generator = np.random.default_rng(0)
    counts = generator.geometric(0.08, (60, 3)) - 1
    counts[0] = counts.sum(0) // 8
    part_of = spread_groups(counts, 5, 1)
    assert _spread(counts, part_of, 5) < 0.02
    assert (spread_groups(counts, 5, 1) == part_of).all()
    assert sorted(set(spread_groups(np.array([[9], [1], [1]]), 3, 0))) == [0, 1, 2], "no part is empty"


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared/data) is not on this machine")
def test_real_tissue_source_sites() -> None:
    with (SHARED / "clinical" / "tcga_nsclc_clinical.csv").open() as stream:
        labels = {row["case_id"]: row["oncotree_code"] for row in csv.DictReader(stream)}
    columns: dict[str, dict[str, object]] = {"site": {case: case[5:7] for case in labels}}
    sites = Counter(columns["site"].values())
    assert len(labels) == 903 and len(sites) > 50 and max(sites.values()) > 60
    table, _ = make_scheme("site", labels, columns, folds=5, seed=0)
    of_class = Counter(labels.values())
    for fold in range(5):
        test = _parts(table, fold)["test"]
        assert abs(len(test) - 903 / 5) < 6
        for label, n in of_class.items():
            assert abs(sum(labels[case] == label for case in test) - n / 5) < 6, (fold, label)
        assert not {case[5:7] for case in test} & {case[5:7] for case in set(labels) - test}


def test_leave_one_out_tests_each_value_once() -> None:
    labels, _ = _cohort(90)
    types: dict[str, object] = {case: ("BRCA", "LUAD", "KIRC")[i % 3] for i, case in enumerate(labels)}
    name = "leave_one_out:cancer"
    table, notes = make_scheme(name, labels, {"cancer": types}, shares=(0.6, 0.2, 0.2), seed=0)
    assert notes == ["leave_one_out:cancer: the test part of each fold is 0 BRCA, 1 KIRC, 2 LUAD"]
    for fold, value in enumerate(("BRCA", "KIRC", "LUAD")):
        parts = _parts(table, fold)
        assert parts["test"] == {case for case in labels if types[case] == value}
        assert (len(parts["train"]), len(parts["val"])) == (45, 15)


def test_leave_one_out_keeps_patients_whole() -> None:
    labels = {f"TCGA-05-000{i}-{s}": "x" for i in range(6) for s in ("01A", "11A")}
    kinds: dict[str, object] = {c: "two" if c.endswith("11A") and c < "TCGA-05-0002" else "one" for c in labels}
    table, notes = make_scheme("leave_one_out:kind", labels, {"kind": kinds})
    two = _parts(table, 1)["test"]
    assert two == {c for c in labels if c < "TCGA-05-0002"} and len(two) == 4
    assert any("tested with another value" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kfolds", {}, "no such split scheme"),
        ("leave_one_out", {}, "no such split scheme"),
        ("leave_one_out:", {}, "no such split scheme"),
        ("kfold", {"folds": 2}, "out of range"),
        ("repeated", {"repeats": 0}, "out of range"),
        ("fixed", {"shares": (0.7, 0.2, 0.2)}, "shares of a split are impossible"),
        ("fixed", {"shares": (0.0, 0.5, 0.5)}, "shares of a split are impossible"),
        ("fixed", {"shares": (1.0, 0.0, 0.0)}, "shares of a split are impossible"),
        ("fixed", {"shares": (0.5, 0.5)}, "shares of a split are impossible"),
    ],
)
def test_impossible_schemes_are_refused(name: str, options: dict[str, object], message: str) -> None:
    labels, columns = _cohort(20)
    with pytest.raises(ConfigError, match=message):
        make_scheme(name, labels, columns, **options)  # type: ignore[arg-type]


def test_a_column_must_be_there_for_every_case() -> None:
    labels, columns = _cohort(20)
    with pytest.raises(InputError, match="needs the column site") as caught:
        make_scheme("site", labels, {"age": {}})
    assert caught.value.found == "age"
    columns["site"]["c003"] = None
    with pytest.raises(InputError, match="needs site of every case") as caught:
        make_scheme("site", labels, columns)
    assert caught.value.case == "c003"
    ids: dict[str, object] = {f"c{i}": i for i in range(1100)}
    with pytest.raises(InputError, match="too many folds"):
        make_scheme("leave_one_out:id", dict.fromkeys(ids, "x"), {"id": ids})
    table, notes = make_scheme("leave_one_out:site", labels, {"site": dict.fromkeys(labels, "A")})
    assert not table.num_rows and "every case has the value A" in notes[0]


def test_a_column_of_patients_rules() -> None:
    labels = {f"block{i}": "xy"[i // 2 % 2] for i in range(24)}
    patients: dict[str, object] = {case: f"p{i // 2}" for i, case in enumerate(labels)}
    table, _ = make_scheme("kfold", labels, {"patient_id": patients}, folds=4)
    parts = {(row.fold, row.case_id): row.part for row in rows_of(table)}
    assert all(parts[fold, f"block{i}"] == parts[fold, f"block{i + 1}"] for fold in range(4) for i in range(0, 24, 2))
    cases = pa.table({"case_id": list(labels), "patient_id": list(patients.values())})
    check_table(table, "splits", cases)
    apart, _ = make_scheme("kfold", labels, {}, folds=4)
    check_table(apart, "splits")
    with pytest.raises(InputError, match="patient\\(s\\) between parts"):
        check_table(apart, "splits", cases)
    with pytest.raises(InputError, match="between parts"):
        splits.split_of(apart, "kfold", 0, cases, "splits")


@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"\A(TCGA|tcga|CPTAC)-[0-9A-Za-z]{1,3}-[0-9A-Z]{3,5}([-_.]?[0-9A]{0,3})\Z"))
def test_patients_of_a_column_are_those_of_each_id(case_id: str) -> None:
    assert splits.patient_column(pa.array([case_id, "ß"])).to_pylist() == [patient_of(case_id), "ß"]


def test_checks_find_leaks_wherever_they_are() -> None:
    rows = [SplitRow("s", fold, f"c{i}", "train" if (i + fold) % 3 else "test") for fold in range(4) for i in range(9)]
    check_table(join_splits([splits.splits_table(rows)]), "f")
    leak = splits.splits_table([*rows, SplitRow("s", 2, "c4", "val"), SplitRow("s", 2, "c4", "test")])
    with pytest.raises(InputError, match="shares 1 patient") as caught:
        check_table(leak, "f")
    assert caught.value.found is not None and caught.value.found.startswith("c4 in ")
    order = np.random.default_rng(0).permutation(leak.num_rows)
    with pytest.raises(InputError, match="scheme s, fold 2"):
        check_table(leak.take(pa.array(order)), "rows in any order")
    with pytest.raises(InputError, match="unknown part") as caught:
        check_table(splits.splits_table([SplitRow("s", 0, "a", "train"), SplitRow("s", 0, "b", "holdout")]), "f")
    assert caught.value.found == "'holdout' in scheme s, fold 0"


def test_tables_are_sorted_and_read_fold_by_fold() -> None:
    rows = [SplitRow(s, f, c, "train") for s in ("b", "a") for f in (10, 2) for c in ("z", "é", "Z", "a")]
    table = splits.splits_table(rows)
    assert splits.is_sorted(table, splits.KEYS) and not splits.is_sorted(table.slice(0, 2).take([1, 0]), splits.KEYS)
    assert not splits.is_sorted(table.take([0, 0]), splits.KEYS), "a row twice"
    assert rows_of(table) == sorted(rows, key=lambda r: (r.scheme, r.fold, r.case_id))
    assert splits.schemes_of(table) == {"a": (2, 10), "b": (2, 10)}
    assert splits.split_of(table, "b", 10, {"a", "z", "é", "Z"}, "f").train == ("Z", "a", "z", "é")
    assert splits.unknown_cases(table, ["a", "z"]) == ["Z", "é"]
    kept = splits.keep_cases(table, {"a", "Z"})
    assert kept.num_rows == 8 and splits.schemes_of(kept) == splits.schemes_of(table)
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3, 9), table.slice(12)])
    assert splits.schemes_of(chunked) == splits.schemes_of(table)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    assert splits.schemes_of(shuffled) == splits.schemes_of(table)
    assert splits.split_of(shuffled, "a", 2, {"a", "z", "é", "Z"}, "f").train == ("Z", "a", "z", "é")


def test_no_rows() -> None:
    empty = join_splits([])
    assert splits.schemes_of(empty) == {} and splits.is_sorted(empty, splits.KEYS)
    check_table(empty, "f")
    by_scheme = defaultdict(int)
    for scheme in ("kfold", "repeated", "fixed"):
        by_scheme[scheme] += make_scheme(scheme, {"a": "x", "b": "x"}, {})[0].num_rows
    assert set(by_scheme.values()) == {0}
