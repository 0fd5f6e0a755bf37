"""An edited or damaged store is refused where it is opened or read, and never gives another result in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cohort_files import Sources, make_sources

from gimp_ray.errors import InputError
from gimp_ray.store import CohortStore
from gimp_ray.store.check import check_store
from gimp_ray.store.manifest import checksum
from gimp_ray.store.merge import merge_stores

OLD = Path(__file__).parents[1] / "fixtures" / "store_layout_2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = make_sources(tmp_path_factory.mktemp("whole"), sizes={"A1-DX1": 1500})
    sources.ingest()
    return sources.out


@pytest.fixture
def stored(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Stores of the layout before, as the version before wrote them: A, B, and both merged."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def _manifest(root: Path, change: Callable[[dict], object], fitting: bool) -> None:
    document = json.loads((root / "manifest.json").read_text())
    change(document)
    if fitting:
        document["checksum"] = checksum(document)
    (root / "manifest.json").write_text(json.dumps(document, indent=2))


EDITS: dict[str, Callable[[dict], object]] = {
    "dtype": lambda d: d["modalities"]["patches"].update(dtype="bfloat16"),
    "unit": lambda d: d["modalities"]["rna"].update(unit="counts"),
    "classes": lambda d: d["classes"].reverse(),
    "num_cases": lambda d: d.update(num_cases=7),
    "hash of a table": lambda d: d["tables"].update({"splits.parquet": "0" * 64}),
    "fingerprint": lambda d: d.update(fingerprint="0" * 64),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_refused(stored: Path, edit: str) -> None:
    _manifest(stored, EDITS[edit], fitting=False)
    with pytest.raises(InputError, match="manifest is damaged") as caught:
        CohortStore.open(stored)
    assert "checksum" in str(caught.value.expected) and caught.value.file == f"{stored}/manifest.json"
    assert not check_store(stored).ok


@pytest.mark.parametrize("table", ["cases", "slides", "genes", "splits", "sources"])
def test_an_edited_table_is_refused_when_opened(stored: Path, table: str) -> None:
    path = stored / f"{table}.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.take(np.r_[np.arange(1, len(rows)), 0]), path)
    with pytest.raises(InputError, match="store is damaged") as caught:
        CohortStore.open(stored)
    assert caught.value.file == str(path) and "SHA-256" in str(caught.value.expected)
    path.unlink()
    with pytest.raises(InputError, match="store is damaged"):
        CohortStore.open(stored)


def _new_value(table: pa.Table, column: str, value: object) -> pa.Table:
    values = [value, *table[column].to_pylist()[1:]]
    field = table.schema.field(column)
    return table.set_column(table.column_names.index(column), field, pa.array(values, field.type))


@pytest.mark.parametrize(("table", "column", "value"), [("cases", "label", "LUSC"), ("splits", "part", "test")])
def test_check_finds_an_edit_whose_hashes_were_made_to_fit(stored: Path, table: str, column: str, value: str) -> None:
    import hashlib

    path = stored / f"{table}.parquet"
    rows = pq.read_table(path)
    value = value if rows[column][0].as_py() != value else "val"
    pq.write_table(_new_value(rows, column, value), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _manifest(stored, lambda d: d["tables"].update({path.name: digest}), fitting=True)
    for deep in (False, True):
        failed = [f.what for f in check_store(stored, deep=deep).findings if f.level == "FAIL"]
        assert any("fingerprint is not that of the contents" in what for what in failed), failed


@pytest.mark.parametrize("edit", ["dtype", "unit", "classes"])
def test_check_finds_an_edited_meaning_whose_checksum_was_made_to_fit(stored: Path, edit: str) -> None:
    change = EDITS[edit] if edit != "classes" else lambda d: d["classes"].append("SCLC")
    _manifest(stored, change, fitting=True)
    report = check_store(stored, deep=True)
    assert not report.ok, str(report)


def test_part_files_of_another_dtype_or_width_are_refused(stored: Path) -> None:
    slide = "A1-DX1"
    _manifest(stored, EDITS["dtype"], fitting=True)
    with pytest.raises(InputError, match="part file of the store cannot be read") as caught:
        CohortStore.open(stored).read_window(slide, 0, 4)
    assert caught.value.expected == "embeddings of 8 x bfloat16, as the manifest states"
    assert str(caught.value.found).startswith("8 x float16")
    _manifest(stored, lambda d: d["modalities"]["patches"].update(dtype="float16", dim=4), fitting=True)
    with pytest.raises(InputError, match="cannot be read") as caught:
        CohortStore.open(stored).read_window(slide, 0, 4)
    assert "4 x float16" in str(caught.value.expected)


def _flip(path: Path, group: int, column: int) -> None:
    chunk = pq.read_metadata(path).row_group(group).column(column)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_flipped_bit_is_refused_with_verify(tmp_path: Path, compression: str) -> None:
    sources = make_sources(tmp_path, sizes={"A1-DX1": 1500})
    sources.ingest(compression=compression)
    part = sources.out / "patches" / "part-00000.parquet"
    store = CohortStore.open(sources.out, verify=True)
    np.testing.assert_array_equal(store.read_bag("A1-DX1"), sources.bags["A1-DX1"].astype(np.float16))
    np.testing.assert_array_equal(store.read_coords("A1-DX1", 500, 900), sources.coords["A1-DX1"][500:1400])
    _flip(part, 2, 2)  # the second row group of slide A1-DX1
    store = CohortStore.open(sources.out, verify=True)
    assert len(store.read_window("A1-DX1", 0, 512)) == 512
    with pytest.raises(InputError, match="part file of the store cannot be read") as caught:
        store.read_window("A1-DX1", 512, 1)
    assert "CRC" in str(caught.value.found) and caught.value.file == str(part)


def test_a_flipped_bit_of_expression_is_always_refused(stored: Path) -> None:
    _flip(stored / "expression.parquet", 0, 1)
    with pytest.raises(InputError, match="store is damaged") as caught:
        CohortStore.open(stored).read_genes(["A0"])
    assert "CRC" in str(caught.value.found)


def test_a_changed_member_is_refused(tmp_path: Path) -> None:
    one, two = make_sources(tmp_path / "one"), make_sources(tmp_path / "two")
    two.rows = [[f"T{case}", f"T{slide}", label] for case, slide, label in two.rows]
    for path in two.patches.glob("*.h5"):
        path.rename(path.with_name(f"T{path.name}"))
    two.write_cases()
    one.ingest(genes=False)
    two.ingest(genes=False)
    merge_stores([one.out, two.out], tmp_path / "all")
    assert CohortStore.open(tmp_path / "all").read_bag("TA0-DX1").shape[1] == 8
    assert CohortStore.open(tmp_path / "all", verify=True).read_bag("TA0-DX1").shape[1] == 8
    _manifest(two.out, lambda d: d.update(fingerprint="0" * 64), fitting=True)
    with pytest.raises(InputError, match="merged from has changed") as caught:
        CohortStore.open(tmp_path / "all")
    assert str(caught.value.file).endswith("two/store") or "two" in str(caught.value.file)
    shutil.rmtree(two.out)
    with pytest.raises(InputError, match="merged from has changed") as caught:
        CohortStore.open(tmp_path / "all")
    assert "no manifest" in str(caught.value.found) and caught.value.fix


@pytest.mark.parametrize("name", ["A", "B", "merged"])
def test_a_store_of_the_layout_before_is_read_and_checked(old: Path, name: str) -> None:
    store = CohortStore.open(old / name)
    assert (store.manifest.version, store.dim, store.num_genes, store.classes) == (2, 8, 24, ("LUAD", "LUSC"))
    assert list(store.manifest.modalities) == ["patches", "rna"] and store.manifest.gene_unit == "FPKM"
    report = check_store(old / name, deep=True)
    assert report.ok, str(report)
    assert any("fingerprint: computed again" in finding.what for finding in report.findings)
    cases = store.complete_cases("patches", "rna", "label")
    assert cases == store.cases["case_id"].to_pylist() and store.read_genes(cases).shape == (len(cases), 24)
    for slide in store.slides["slide_id"].to_pylist():
        assert np.isfinite(store.read_bag(slide)).all()
    split = store.split("kfold", 0)
    assert sorted([*split.train, *split.val, *split.test]) == cases
    with pytest.raises(InputError, match="no checksums to verify") as caught:
        CohortStore.open(old / name, verify=True)
    assert "--deep" in str(caught.value.fix)


def test_a_store_of_the_layout_before_is_merged_and_damage_in_it_is_refused(old: Path, tmp_path: Path) -> None:
    report = merge_stores([old / "A", old / "B"], old / "new")
    assert report.manifest.version == 3 and report.manifest.patches is not None
    assert report.manifest.patches.checksums is None
    assert CohortStore.open(old / "new").read_bag("SYM-00001-01Z-00-DX1").shape[1] == 8
    _manifest(old / "A", lambda d: d.update(dtype="bfloat16"), fitting=False)
    with pytest.raises(InputError, match="part file of the store cannot be read"):
        CohortStore.open(old / "A").read_bag("SYN-00001-01Z-00-DX1")
    failed = [f.what for f in check_store(old / "A").findings if f.level == "FAIL"]
    assert any("fingerprint" in what for what in failed) and any("bfloat16" in what for what in failed)
    shutil.copy(old / "A" / "cases.parquet", old / "B" / "cases.parquet")
    with pytest.raises(InputError, match="store is damaged"):
        CohortStore.open(old / "B")


def _as_layout_2(root: Path) -> None:
    """The manifest as the version before wrote it."""
    new = json.loads((root / "manifest.json").read_text())
    bag, rna = new["modalities"]["patches"], new["modalities"]["rna"]
    old = {name: value for name, value in new.items() if name not in ("modalities", "checksum")}
    old |= {name: value for name, value in bag.items() if name not in ("kind", "checksums", "num_cases")}
    genes = {"num_genes": rna["num_features"], "gene_unit": rna["unit"], "gene_list_sha256": rna["feature_list_sha256"]}
    (root / "manifest.json").write_text(json.dumps({**old, **genes, "version": 2}))


def test_a_store_of_the_layout_before_is_added_to(tmp_path: Path) -> None:
    sources: Sources = make_sources(tmp_path)
    kept = sources.rows.pop()
    sources.write_cases()
    sources.ingest()
    _as_layout_2(sources.out)
    assert CohortStore.open(sources.out).manifest.version == 2
    sources.rows.append(kept)
    sources.write_cases()
    report = sources.ingest()
    assert report.manifest.version == 3 and report.manifest.revision == 2 and report.manifest.num_cases == 6
    assert report.manifest.patches is not None and report.manifest.patches.checksums is None
    store = CohortStore.open(sources.out)
    np.testing.assert_array_equal(store.read_bag("B2-DX1"), sources.bags["B2-DX1"].astype(np.float16))
    assert check_store(sources.out, deep=True).ok
