"""Tile-bank cohorts keep tile groups inside one fold part, and real expression keeps its cases, labels and values."""

import csv
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import pytest

from gimp_ray.errors import InputError
from gimp_ray.synth.cohort import SynthOptions, SynthResult, write_synthetic_cohort

TISSUES = ("LUAD", "normal", "LUSC")
GROUPS, TILES, DIM = 40, 4, 8
SMALL = SynthOptions(cases=6, genes=20, min_patches=60, median_patches=120, max_patches=300, tumour_fraction=0.2)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Every tile's vector spells its tissue, group and number, so that a patch tells where it came from."""
    codes = np.repeat(np.arange(3), GROUPS * TILES)
    groups = np.tile(np.repeat(np.arange(GROUPS), TILES), 3)
    features = np.zeros((len(codes), DIM), np.float16)
    features[:, 0], features[:, 1], features[:, 2] = codes, groups, np.tile(np.arange(TILES), 3 * GROUPS)
    path = tmp_path / "bank.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["tissue"], file["group"] = features, codes.astype(np.int8), groups.astype(np.int32)
        file.attrs["tissue_names"] = np.array(TISSUES, object)
    return path


@pytest.fixture
def expression(tmp_path: Path) -> Path:
    """12 cases; the value of a case at a gene is 100 * case + gene."""
    path = tmp_path / "rna.h5"
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file["expression"] = (100 * np.arange(12)[:, None] + np.arange(7)).astype(np.float16)
        file.create_dataset("case_id", data=[f"TCGA-{i:02d}" for i in range(12)], dtype=text)
        file.create_dataset("label", data=["LUAD"] * 5 + ["LUSC"] * 7, dtype=text)
        file.create_dataset("gene_id", data=[f"ENSG{i}" for i in range(7)], dtype=text)
        file.attrs["unit"] = "log2(FPKM + 1)"
    return path


def read_cases(result: SynthResult) -> list[dict[str, str]]:
    with result.cases.open(newline="") as file:
        return list(csv.DictReader(file))


def groups_by_case(result: SynthResult) -> dict[str, set[tuple[int, int]]]:
    """(tissue, group) pairs of a case, read from the vectors themselves and not from the truth file."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for row in read_cases(result):
        with h5py.File(result.patches / f"{row['slide_id']}.h5") as file:
            found[row["case_id"]] |= {(int(code), int(group)) for code, group in file["features"][:, :2]}
    return found


def test_patches_are_tiles_of_the_right_tissue(bank: Path, tmp_path: Path) -> None:
    result = write_synthetic_cohort(tmp_path / "c", SynthOptions(**dict(SMALL) | {"tile_bank": bank}))
    assert result.dim == DIM
    with h5py.File(result.truth) as truth:
        for row in read_cases(result):
            with h5py.File(result.patches / f"{row['slide_id']}.h5") as file:
                x = file["features"][:]
            slide = truth[row["slide_id"]]
            tumour = slide["tumour"][:]
            assert tumour.any()
            assert (x[tumour, 0] == TISSUES.index(row["label"])).all()
            assert (x[~tumour, 0] == TISSUES.index("normal")).all()
            assert np.array_equal(x[:, 1], slide["group"][:]) and np.array_equal(x[:, 0], slide["tissue"][:])


def test_few_cases_have_their_groups_to_themselves(bank: Path, tmp_path: Path) -> None:
    result = write_synthetic_cohort(tmp_path / "c", SynthOptions(**dict(SMALL) | {"cases": 5, "tile_bank": bank}))
    for first, second in combinations(groups_by_case(result).values(), 2):
        assert not first & second


def test_many_cases_share_groups_but_never_across_the_parts_of_a_fold(bank: Path, tmp_path: Path) -> None:
    result = write_synthetic_cohort(tmp_path / "c", SynthOptions(**dict(SMALL) | {"cases": 60, "tile_bank": bank}))
    groups = groups_by_case(result)
    assert any(first & second for first, second in combinations(groups.values(), 2)), "the test needs shared groups"
    assert result.splits is not None
    with result.splits.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["scheme", "fold", "part", "case_id"]
    assert Counter((row["scheme"], row["case_id"]) for row in rows) == {("kfold", case): 5 for case in groups}
    for fold in range(5):
        used: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for row in rows:
            if row["fold"] == str(fold):
                used[row["part"]] |= groups[row["case_id"]]
        assert sorted(used) == ["test", "train", "val"]
        for first, second in combinations(used.values(), 2):
            assert not first & second


def test_folds_are_stratified_and_every_case_is_tested_once(bank: Path, tmp_path: Path) -> None:
    result = write_synthetic_cohort(tmp_path / "c", SynthOptions(**dict(SMALL) | {"cases": 50, "tile_bank": bank}))
    labels = {row["case_id"]: row["label"] for row in read_cases(result)}
    parts = {row["case_id"]: row["split_group"] for row in read_cases(result)}
    assert result.splits is not None
    with result.splits.open(newline="") as file:
        tested = {row["case_id"]: row["fold"] for row in csv.DictReader(file) if row["part"] == "test"}
    assert tested == parts
    assert set(Counter((fold, labels[case]) for case, fold in tested.items()).values()) == {5}


def test_neighbours_come_from_the_same_original(bank: Path, tmp_path: Path) -> None:
    result = write_synthetic_cohort(tmp_path / "c", SynthOptions(**dict(SMALL) | {"tile_bank": bank}))
    same_near, same_far = [], []
    for path in result.patches.glob("*.h5"):
        with h5py.File(path) as file:
            group, cell = file["features"][:, 1], file["coords"][:] // 256
        distance = np.abs(cell[:, None] - cell[None]).sum(axis=-1)
        same = group[:, None] == group[None]
        same_near.append(same[distance == 1].mean())
        same_far.append(same[distance >= 10].mean())
    assert np.mean(same_near) > np.mean(same_far) + 0.3


def test_a_class_that_the_bank_lacks_is_refused(bank: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tissue KIRC") as caught:
        write_synthetic_cohort(
            tmp_path / "c", SynthOptions(**dict(SMALL) | {"classes": ("LUAD", "KIRC"), "tile_bank": bank})
        )
    assert "LUSC" in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_a_file_that_is_no_bank_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.h5"
    wrong.write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="tile bank"):
        write_synthetic_cohort(tmp_path / "c", SynthOptions(**dict(SMALL) | {"tile_bank": wrong}))


def test_real_expression_keeps_its_cases_labels_and_values(expression: Path, tmp_path: Path) -> None:
    result = write_synthetic_cohort(
        tmp_path / "c", SynthOptions(**dict(SMALL) | {"cases": 8, "dim": 4, "genes_file": expression})
    )
    labels = {row["case_id"]: row["label"] for row in read_cases(result)}
    assert Counter(labels.values()) == {"LUAD": 4, "LUSC": 4}
    assert (result.n_genes, result.gene_unit) == (7, "log2(FPKM + 1)")
    with h5py.File(result.genes) as file:
        ids, values = file["case_id"].asstr()[:], file["expression"][:]
        assert file.attrs["unit"] == "log2(FPKM + 1)" and list(file["gene_id"].asstr()[:])[-1] == "ENSG6"
    assert set(ids) == set(labels)
    for case_id, row in zip(ids, values, strict=True):
        number = int(case_id[-2:])
        assert np.array_equal(row, (100 * number + np.arange(7)).astype(np.float16))
        assert labels[case_id] == ("LUAD" if number < 5 else "LUSC")


def test_more_cases_than_the_expression_has_are_refused(expression: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class LUAD") as caught:
        write_synthetic_cohort(
            tmp_path / "c", SynthOptions(**dict(SMALL) | {"cases": 12, "dim": 4, "genes_file": expression})
        )
    assert caught.value.found == "5" and "at most 10" in str(caught.value)
