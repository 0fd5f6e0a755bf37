"""Stores of very many slides: a tenth of a million here; `python -m benchmarks.manifest` measures the million."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.manifest import CLASSES, write_store
from gimp_ray.errors import InputError
from gimp_ray.feed.plan import Batching, CohortIndex, Ids, epoch_plan, index_cases
from gimp_ray.store import CohortStore
from gimp_ray.store.info import store_info
from gimp_ray.store.manifest import content_sha256

SLIDES, CASES = 100_000, 90_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("large") / "STORE"
    place.mkdir()
    write_store(place, SLIDES, CASES)
    return place


@pytest.fixture(scope="module")
def store(large: Path) -> CohortStore:
    return CohortStore.open(large)


def test_opening_keeps_columns_and_no_python_objects(large: Path) -> None:
    CohortStore.open(large)
    tracemalloc.start()
    try:
        before = pa.total_allocated_bytes()
        store = CohortStore.open(large)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # a Python string is 60 bytes at least: ids as a list would be 10 MB
    assert kept < 2e6 and peak < 4e6
    assert pa.total_allocated_bytes() - before < 200 * SLIDES
    assert store.slide_sizes.num_rows == SLIDES and len(pickle.dumps(store)) < 1000


def test_a_slide_is_found_without_a_list_of_slides(store: CohortStore) -> None:
    ids = store.slides["slide_id"]
    tracemalloc.start()
    try:
        for row in (0, 1, SLIDES // 3, SLIDES - 1):
            assert store._slide_row(ids[row].as_py()) == row
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e5
    for strange in ("", "TCGA", "zzz", ids[5].as_py() + "x"):
        with pytest.raises(InputError, match="no such slide"):
            store.read_window(strange, 0, 1)


def test_splits_index_and_plan(store: CohortStore) -> None:
    split = store.split("kfold", 3)
    everyone = store.cases["case_id"].to_pylist()
    assert sorted([*split.train, *split.val, *split.test]) == everyone
    shuffled = list(split.train)
    np.random.default_rng(0).shuffle(shuffled)
    index = index_cases(store, shuffled)
    assert index.case_ids.tolist() == sorted(split.train)
    label = dict(zip(everyone, store.cases["label"].to_pylist(), strict=True))
    rng = np.random.default_rng(1)
    for case in rng.integers(0, index.num_cases, 50).tolist():
        assert CLASSES[index.labels[case]] == label[index.case_ids[case]]
        slides = range(int(index.first_slide[case]), int(index.first_slide[case + 1]))
        assert len(slides) >= 1 and [index.slide_ids[i] for i in slides] == sorted(index.slide_ids[i] for i in slides)
        assert all(index.slide_ids[i].startswith(index.case_ids[case]) for i in slides)
    sizes = dict(zip(*(store.slide_sizes[name].to_pylist() for name in ("slide_id", "n_patches")), strict=True))
    assert index.slide_patches.tolist() == [sizes[slide] for slide in index.slide_ids]
    assert len(pickle.dumps(index)) < 130 * len(index.slide_ids)
    plan = epoch_plan(0, 0, index, Batching(window=6000))
    copy = epoch_plan(0, 0, pickle.loads(pickle.dumps(index)), Batching(window=6000))
    assert np.array_equal(plan.slide, copy.slide) and np.array_equal(plan.start, copy.start)
    with pytest.raises(InputError, match="no such split") as caught:
        store.split("kfold", 5)
    assert "folds 0, 1, 2, 3, 4" in str(caught.value.found)


def test_cases_the_store_lacks_are_named(store: CohortStore) -> None:
    known = store.cases["case_id"][7].as_py()
    with pytest.raises(InputError, match="not in the store") as caught:
        index_cases(store, ["zz", known, "TCGA-none"])
    assert caught.value.case == "TCGA-none"


def test_info_counts_all_of_them(large: Path) -> None:
    found = store_info(large)
    assert sum(found.class_counts.values()) == CASES
    assert sum(n * cases for n, cases in found.slides_per_case.items()) == SLIDES
    assert sum(one.slides for one in found.histogram) == SLIDES
    assert all(f.train + f.val + f.test == CASES for f in found.splits["kfold"]) and len(found.splits["kfold"]) == 5
    assert found.parts is not None and found.parts.missing == found.parts.files > SLIDES // 14


texts = st.lists(st.one_of(st.none(), st.text(max_size=8)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(values=texts, cut=st.integers(0, 12))
def test_a_content_hash_does_not_see_chunks(values: list[str | None], cut: int) -> None:
    table = pa.table(
        {"a": pa.array(values, pa.string()), "n": pa.array([None if v is None else len(v) for v in values], pa.int64())}
    )
    cut = min(cut, len(values))
    parts = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert content_sha256(table) == content_sha256(parts) == content_sha256(parts.combine_chunks())
    if len(values) > 1 and table.slice(0, 1) != table.slice(len(values) - 1):
        turned = table.take(pa.array([len(values) - 1, *range(1, len(values) - 1), 0]))
        assert content_sha256(turned) != content_sha256(table)


def test_a_content_hash_tells_nulls_types_names_and_borders_apart(tmp_path: Path) -> None:
    tables = [
        pa.table({"a": pa.array(["x", ""], pa.string())}),
        pa.table({"a": pa.array(["x", None], pa.string())}),
        pa.table({"a": pa.array(["", "x"], pa.string())}),
        pa.table({"a": pa.array(["x"], pa.string())}),
        pa.table({"b": pa.array(["x", ""], pa.string())}),
        pa.table({"a": pa.array(["x", ""], pa.large_string())}),
        pa.table({"a": pa.array([b"x", b""], pa.binary())}),
        pa.table({"a": pa.array([0, 1], pa.int64())}),
        pa.table({"a": pa.array([0, 1], pa.int32())}),
        pa.table({"a": pa.array([None, 1], pa.int64())}),
        pa.table({"a": pa.array([0.0, 1.0], pa.float64())}),
        pa.table({"a": pa.array([False, True])}),
        pa.table({"a": pa.array([0, 1], pa.timestamp("s"))}),
        pa.table({"a": pa.array([0, 86_400_000], pa.date64())}),
        pa.table({"a": pa.array([[0], [1]])}),
        pa.table({"a": pa.nulls(2, pa.string())}),
        pa.table({"a": pa.array([0, 1], pa.int64()), "b": pa.array([0, 1], pa.int64())}),
    ]
    hashes = [content_sha256(table) for table in tables]
    assert len(set(hashes)) == len(tables)
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=1, compression="zstd")
        assert content_sha256(pq.read_table(tmp_path / "t.parquet")) == hashes[i], table.schema
    places = pa.table({"a": ["x", ""], "file": ["p", "q"], "first_row_group": [1, 2]})
    assert content_sha256(places) == hashes[0]


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6), min_size=1, max_size=9),
    data=st.data(),
)
def test_ids_are_used_like_an_array(values: list[str], data: st.DataObject) -> None:
    ids, array = Ids(values), np.array(values, dtype=np.str_)
    at = data.draw(st.integers(-len(values), len(values) - 1))
    assert ids[at] == ids[np.int64(at)] == values[at] and isinstance(ids[at], str)
    piece = data.draw(st.slices(len(values)))
    assert ids[piece].tolist() == array[piece].tolist()
    rows = np.array(data.draw(st.lists(st.integers(-len(values), len(values) - 1), max_size=5)), dtype=np.int64)
    assert ids[rows].tolist() == array[rows].tolist()
    mask = np.array([len(value) % 2 == 0 for value in values])
    assert ids[mask].tolist() == array[mask].tolist()
    assert np.isin(ids, array[:2]).tolist() == np.isin(array, array[:2]).tolist()
    assert list(ids) == ids.tolist() == np.asarray(ids).tolist() == values and len(ids) == len(values)


def test_a_plan_does_not_depend_on_how_ids_are_kept(store: CohortStore) -> None:
    index = index_cases(store, store.split("kfold", 0).val)
    arrays = CohortIndex(
        np.asarray(index.case_ids), index.labels, np.asarray(index.slide_ids), index.first_slide, index.slide_patches
    )
    for balance in ("classes", "natural"):
        batching = Batching(window=512, balance=balance)
        one, other = epoch_plan(1, 2, index, batching), epoch_plan(1, 2, arrays, batching)
        assert all(np.array_equal(getattr(one, n), getattr(other, n)) for n in ("case", "slide", "start", "mask_seed"))
