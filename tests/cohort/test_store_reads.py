"""Windows, bags, coordinates and genes by id: every boundary, threads, pickles, refusals, and how much is read."""

from __future__ import annotations

import contextlib
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cohort_files import Sources, make_sources

from gimp_ray.errors import InputError
from gimp_ray.store import CohortStore
from gimp_ray.store.check import check_store
from gimp_ray.store.manifest import checksum
from gimp_ray.store.parts import PartReader

SIZES = {"A0-DX1": 1, "A1-DX1": 511, "A2-DX1": 512, "B0-DX1": 513, "B1-DX1": 1024, "B2-DX1": 1537}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    sources = make_sources(tmp_path_factory.mktemp("reads"), sizes=SIZES)
    sources.ingest()
    return sources


@pytest.fixture
def store(cohort: Sources) -> CohortStore:
    return CohortStore.open(cohort.out)


@pytest.mark.parametrize("slide_id", SIZES)
def test_windows_equal_slices_at_every_boundary(cohort: Sources, store: CohortStore, slide_id: str) -> None:
    n, bag = SIZES[slide_id], cohort.bags[slide_id].astype(np.float16)
    edges = sorted({e for e in (0, 1, 510, 511, 512, 513, 1023, 1024, 1025, n - 1, n) if 0 <= e <= n})
    pairs = [(start, stop) for start in edges for stop in edges if start < stop]
    assert pairs
    for start, stop in pairs:
        window = store.read_window(slide_id, start, stop - start)
        assert window.dtype == np.float16
        np.testing.assert_array_equal(window, bag[start:stop])
        np.testing.assert_array_equal(
            store.read_coords(slide_id, start, stop - start), cohort.coords[slide_id][start:stop]
        )


def test_random_windows_equal_slices(cohort: Sources, store: CohortStore) -> None:
    generator = np.random.default_rng(3)
    for _ in range(60):
        slide_id = str(generator.choice(list(SIZES)))
        start = int(generator.integers(SIZES[slide_id]))
        length = int(generator.integers(1, SIZES[slide_id] - start + 1))
        expected = cohort.bags[slide_id][start : start + length].astype(np.float16)
        np.testing.assert_array_equal(store.read_window(slide_id, start, length), expected)


def test_bags_and_trailing_coordinates(cohort: Sources, store: CohortStore) -> None:
    for slide_id, bag in cohort.bags.items():
        np.testing.assert_array_equal(store.read_bag(slide_id), bag.astype(np.float16))
    np.testing.assert_array_equal(store.read_coords("B2-DX1", 1530), cohort.coords["B2-DX1"][1530:])


def test_a_window_fills_the_callers_array(cohort: Sources, store: CohortStore) -> None:
    batch = np.full((3, 600, 8), 7, dtype=np.float16)
    returned = store.read_window("B2-DX1", 400, 600, out=batch[1])
    assert returned.base is batch
    np.testing.assert_array_equal(batch[1], cohort.bags["B2-DX1"][400:1000].astype(np.float16))
    assert (batch[[0, 2]] == 7).all()
    for wrong in (np.empty((600, 8), np.float32), np.empty((599, 8), np.float16), np.empty(4800, np.float16)):
        with pytest.raises(InputError, match="does not fit") as caught:
            store.read_window("B2-DX1", 400, 600, out=wrong)
        assert caught.value.expected == "(600, 8) float16"


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (0, 514), (513, 1), (512, 2), (5, -1)])
def test_windows_beyond_the_slide_are_refused(store: CohortStore, start: int, length: int) -> None:
    for read in (store.read_window, store.read_coords):
        with pytest.raises(InputError, match="not within the slide") as caught:
            read("B0-DX1", start, length)
        assert caught.value.case == "B0-DX1"
        assert caught.value.expected is not None and "513" in caught.value.expected
        assert caught.value.found == f"start {start}, length {length}"


def test_unknown_ids_are_refused_by_name(store: CohortStore) -> None:
    for slide_id in ("A0", "A0-DX1.svs", "", "Z"):
        with pytest.raises(InputError, match="no such slide") as caught:
            store.read_bag(slide_id)
        assert caught.value.case == slide_id
    with pytest.raises(InputError, match="no such case") as caught:
        store.read_genes(["A0", "C9"])
    assert caught.value.case == "C9"


def test_genes_come_in_the_order_asked(cohort: Sources, store: CohortStore) -> None:
    asked = ["B2", "A0", "B2", "A1"]
    values = store.read_genes(asked)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.stack([cohort.expression[c] for c in asked]).astype(np.float32))
    assert store.gene_ids == cohort.gene_ids
    assert store.num_genes == 5
    assert store.read_genes([]).shape == (0, 5)


def test_genes_over_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gimp_ray.store.tables._VECTOR_GROUP_BYTES", 2 * 4 * 5)
    sources = make_sources(tmp_path)
    store = sources.store()
    assert pq.ParquetFile(sources.out / "expression.parquet").metadata.num_row_groups == 3
    asked = ["B1", "A0", "B2", "A2", "A1", "B0"]
    np.testing.assert_array_equal(
        store.read_genes(asked), np.stack([sources.expression[c] for c in asked]).astype("f4")
    )


@pytest.mark.parametrize(("room", "decoded"), [(10**6, 3), (2 * 4 * 5, 2 * 2 + 1), (0, 2 * 3)])
def test_row_groups_of_genes_are_decoded_once_as_far_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, decoded: int
) -> None:
    monkeypatch.setattr("gimp_ray.store.tables._VECTOR_GROUP_BYTES", 2 * 4 * 5)
    monkeypatch.setattr("gimp_ray.store.vectors.KEPT_BYTES", room)
    sources = make_sources(tmp_path)
    store, read, groups = sources.store(), pq.ParquetFile.read_row_group, []
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **how: (groups.append(group), read(self, group, **how))[1]
    )
    asked = ["B1", "A0", "B2", "A2", "A1", "B0"]
    truth = np.stack([sources.expression[case] for case in asked]).astype("f4")
    for _ in range(2):
        np.testing.assert_array_equal(store.read_genes(asked), truth)
    assert len(groups) == decoded


def test_tables_are_sorted_and_say_what_is_there(store: CohortStore, cohort: Sources) -> None:
    assert store.cases["case_id"].to_pylist() == ["A0", "A1", "A2", "B0", "B1", "B2"]
    assert store.cases["label"].to_pylist() == ["LUAD"] * 3 + ["LUSC"] * 3
    assert store.slides["slide_id"].to_pylist() == sorted(SIZES)
    assert store.slides["n_patches"].to_pylist() == [SIZES[s] for s in sorted(SIZES)]
    assert store.slides["case_id"].to_pylist() == ["A0", "A1", "A2", "B0", "B1", "B2"]
    assert (store.classes, store.dim, store.path) == (("LUAD", "LUSC"), 8, str(cohort.out))
    assert store.manifest.num_patches == sum(SIZES.values())
    assert store.split_schemes == {"kfold": (0, 1, 2, 3, 4)}


def test_a_window_reads_only_the_row_groups_it_touches(tmp_path: Path) -> None:
    """Every other byte of the part file may be garbage."""
    sources = make_sources(tmp_path, sizes={"A1-DX1": 2000})
    row = sources.store().slides.to_pylist()[1]
    path = sources.out / row["file"]
    footer = pq.read_metadata(path)
    groups = [footer.row_group(row["first_row_group"] + i).column(2) for i in (1, 2)]
    keep = (groups[0].data_page_offset, groups[1].data_page_offset + groups[1].total_compressed_size)
    content = bytearray(path.read_bytes())
    data_end = len(content) - footer.serialized_size - 8
    content[4 : keep[0]] = b"\xff" * (keep[0] - 4)
    content[keep[1] : data_end] = b"\xff" * (data_end - keep[1])
    between = footer.row_group(row["first_row_group"] + 2).column(0).data_page_offset, groups[1].data_page_offset
    content[between[0] : between[1]] = b"\xff" * (between[1] - between[0])  # coordinates in between
    path.write_bytes(content)
    store = CohortStore.open(sources.out)
    np.testing.assert_array_equal(
        store.read_window("A1-DX1", 512, 1024), sources.bags["A1-DX1"][512:1536].astype(np.float16)
    )
    assert not check_store(sources.out, deep=True).ok, "only the deep check reads the rest"


def test_threads_share_a_store(cohort: Sources, store: CohortStore) -> None:
    barrier = threading.Barrier(8)

    def work(seed: int) -> int:
        barrier.wait()
        generator, done = np.random.default_rng(seed), 0
        for _ in range(40):
            slide_id = str(generator.choice(list(SIZES)))
            start = int(generator.integers(SIZES[slide_id]))
            length = int(generator.integers(1, SIZES[slide_id] - start + 1))
            same = store.read_window(slide_id, start, length) == cohort.bags[slide_id][start : start + length].astype(
                "f2"
            )
            done += bool(same.all())
        return done

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [40] * 8


def test_a_pickled_store_opens_its_files_when_used(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    store = sources.store()
    store.read_bag("A0-DX1")
    text = pickle.dumps(store)
    assert len(text) < 2000
    moved = sources.out.rename(tmp_path / "away")
    copy = pickle.loads(text)  # nothing is opened yet
    moved.rename(sources.out)
    np.testing.assert_array_equal(copy.read_bag("A0-DX1"), store.read_bag("A0-DX1"))
    assert copy.fingerprint == store.fingerprint


def test_a_pickle_refuses_another_store_in_its_place(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    copy = pickle.loads(pickle.dumps(sources.store()))
    sources.out.rename(tmp_path / "away")
    sources.rows[0][2] = "LUSC"
    sources.write_cases()
    sources.ingest()
    with pytest.raises(InputError, match="replaced while it was in use"):
        copy.read_bag("A0-DX1")


def test_few_files_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gimp_ray.ingest.patches.write.SMALLEST_PART_BYTES", 1)
    sources = make_sources(tmp_path)
    store = sources.store()
    assert len(set(store.slides["file"].to_pylist())) == 6, "one part file a slide"
    store._parts = PartReader(store._filesystem, store._root, keep=2)
    for slide_id in [*sources.bags, *sources.bags]:
        np.testing.assert_array_equal(store.read_bag(slide_id), sources.bags[slide_id].astype(np.float16))
        assert len(store._parts._parts) <= 2


def test_stores_of_one_modality(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "genes")
    genes = sources.store(patches=False)
    assert (genes.dim, genes.num_genes, genes.slides.num_rows) == (None, 5, 0)
    assert genes.manifest.patches is None and list(genes.manifest.modalities) == ["rna"]
    assert not (sources.out / "patches").exists()
    with pytest.raises(InputError, match="no such slide"):
        genes.read_bag("A0-DX1")
    sources = make_sources(tmp_path / "patches")
    patches = sources.store(genes=False)
    assert (patches.dim, patches.num_genes, patches.gene_ids) == (8, 0, [])
    assert patches.manifest.gene_unit is None
    with pytest.raises(InputError, match="no gene expression"):
        patches.read_genes(["A0"])


def test_opening_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a cohort store") as caught:
        CohortStore.open(tmp_path / "nothing")
    assert caught.value.found == "nothing at this path"
    with pytest.raises(InputError, match="not a cohort store") as caught:
        CohortStore.open(tmp_path)
    assert caught.value.found == "a folder without manifest.json"
    assert caught.value.fix is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"version": 3', '"version": 4', 1), "another version"),
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: text.replace('"num_features": 5', '"num_features": "five"'), "damaged"),
        (lambda text: text.replace('"dtype": "float16"', '"dtype": null'), "damaged"),
        (lambda text: text.replace("gimp-ray cohort store", "zoo"), "damaged"),
        (lambda text: text.replace('"classes"', '"klasses"'), "damaged"),
    ],
)
def test_manifests_of_another_kind_are_refused(sources: Sources, change: object, message: str) -> None:
    sources.ingest()
    path = sources.out / "manifest.json"
    text = path.read_text(encoding="utf-8")
    changed = change(text)  # type: ignore[operator]
    assert changed != text
    with contextlib.suppress(json.JSONDecodeError):  # an edit that makes the checksum fit is refused for what it says
        changed = json.dumps({**json.loads(changed), "checksum": checksum(json.loads(changed))})
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        CohortStore.open(sources.out)
    assert caught.value.file == str(path)
    assert caught.value.fix is not None


def test_tables_of_another_store_are_refused(tmp_path: Path) -> None:
    one, other = make_sources(tmp_path / "one"), make_sources(tmp_path / "other")
    other.rows.pop()
    other.write_cases()
    one.ingest()
    other.ingest()
    (one.out / "cases.parquet").write_bytes((other.out / "cases.parquet").read_bytes())
    with pytest.raises(InputError, match="store is damaged") as caught:
        CohortStore.open(one.out)
    assert caught.value.file == f"{one.out}/cases.parquet"
    assert "as the manifest states" in str(caught.value.expected) and str(caught.value.found).startswith("SHA-256")


def test_a_path_may_be_a_uri(sources: Sources) -> None:
    sources.ingest()
    store = CohortStore.open(f"file://{sources.out}")
    np.testing.assert_array_equal(store.read_bag("A0-DX1"), sources.bags["A0-DX1"].astype(np.float16))
