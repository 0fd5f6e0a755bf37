"""`check_store` finds every kind of damage, names the file, and passes what is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cohort_files import Sources, make_sources

from gimp_ray.errors import InputError
from gimp_ray.store.check import check_store
from gimp_ray.store.manifest import checksum
from gimp_ray.store.part_writer import PartWriter
from gimp_ray.store.splits import SplitRow, splits_table


@pytest.fixture
def stored(tmp_path: Path) -> Sources:
    sources = make_sources(tmp_path, sizes={"A1-DX1": 1500})
    sources.ingest()
    return sources


def _rewrite(root: Path, name: str, change: Callable[[pa.Table], pa.Table], forge: bool = True) -> None:
    """Change a table; `forge` makes the manifest's hash fit, so that only the content can give it away."""
    path = root / f"{name}.parquet"
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    if forge:
        manifest = json.loads((root / "manifest.json").read_text())
        manifest["tables"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (root / "manifest.json").write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))


def _set(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def _part(root: Path) -> Path:
    return root / "patches" / "part-00000.parquet"


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x01
    path.write_bytes(content)


def _embedding_byte(root: Path) -> int:
    chunk = pq.read_metadata(_part(root)).row_group(2).column(2)
    return chunk.data_page_offset + chunk.total_compressed_size - 3


def _splits(*entries: tuple[str, str]) -> pa.Table:
    return splits_table([SplitRow("s", 0, case_id, part) for case_id, part in entries])


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_part(root: Path) -> None:
    _part(root).unlink()
    with PartWriter(str(_part(root)), dim=4):
        pass


# damage -> (how, what the failing finding says, file it names)
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no manifest": (lambda r: (r / "manifest.json").unlink(), "not a cohort store", "manifest.json"),
    "half a manifest": (lambda r: _half(r / "manifest.json"), "manifest is damaged", "manifest.json"),
    "no cases": (lambda r: (r / "cases.parquet").unlink(), "is missing", "cases.parquet"),
    "half a table": (lambda r: _half(r / "slides.parquet"), "cannot be read", "slides.parquet"),
    "edited table": (lambda r: _rewrite(r, "cases", lambda t: t, forge=False), "hash", "cases.parquet"),
    "wrong type": (
        lambda r: _rewrite(r, "slides", lambda t: t.set_column(4, "n_patches", t["n_patches"].cast(pa.int32()))),
        "n_patches is int32",
        "slides.parquet",
    ),
    "unsorted": (lambda r: _rewrite(r, "cases", lambda t: t.take([1, 0, 2, 3, 4, 5])), "not sorted", "cases.parquet"),
    "case twice": (lambda r: _rewrite(r, "cases", _set("case_id", 1, "A0")), "stands twice", "cases.parquet"),
    "fewer cases": (lambda r: _rewrite(r, "cases", lambda t: t.slice(1)), "the manifest says 6", "cases.parquet"),
    "label lost": (lambda r: _rewrite(r, "cases", _set("label", 0, "")), "no label", "cases.parquet"),
    "label unknown": (lambda r: _rewrite(r, "cases", _set("label", 0, "SCLC")), "SCLC", "cases.parquet"),
    "gene renamed": (lambda r: _rewrite(r, "genes", _set("gene_id", 0, "X")), "gene list", "genes.parquet"),
    "gene lost": (lambda r: _rewrite(r, "genes", lambda t: t.slice(0, 4)), "4 genes", "genes.parquet"),
    "expression lost": (lambda r: _rewrite(r, "expression", lambda t: t.slice(1)), "5 cases", "genes.parquet"),
    "patches lost": (lambda r: _rewrite(r, "slides", _set("n_patches", 1, 1499)), "1499", "part-00000.parquet"),
    "wrong place": (lambda r: _rewrite(r, "slides", _set("first_row_group", 1, 2)), "from 1 on", "part-00000.parquet"),
    "slide of nobody": (lambda r: _rewrite(r, "slides", _set("case_id", 0, "Q")), "not belong", "slides.parquet"),
    "slide row lost": (lambda r: _rewrite(r, "slides", lambda t: t.slice(0, 5)), "to no slide", "part-00000.parquet"),
    "no part file": (lambda r: _part(r).unlink(), "cannot be read", "part-00000.parquet"),
    "half a part file": (lambda r: _half(_part(r)), "cannot be read", "part-00000.parquet"),
    "another width": (_other_part, "embedding is fixed_size_binary[8]", "part-00000.parquet"),
    "shared patient": (
        lambda r: _rewrite(r, "splits", lambda t: _splits(("A0", "train"), ("A0", "test"))),
        "A0 in train and test",
        "splits.parquet",
    ),
    "split of nobody": (
        lambda r: _rewrite(r, "splits", lambda t: _splits(("Q7", "train"))),
        "Q7",
        "splits.parquet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_store_passes(stored: Sources, deep: bool) -> None:
    report = check_store(stored.out, deep=deep)
    assert report.ok
    assert {finding.level for finding in report.findings} == {"PASS"}
    assert len(report.findings) >= 10
    assert "the store is sound" in str(report)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found(stored: Sources, kind: str) -> None:
    damage, message, file = DAMAGE[kind]
    damage(stored.out)
    report = check_store(stored.out)
    assert not report.ok
    failed = [f for f in report.findings if f.level == "FAIL" and message in f.what]
    assert failed, str(report)
    assert failed[0].file is not None and failed[0].file.endswith(file)
    assert failed[0].fix
    assert "NOT sound" in str(report)
    with pytest.raises(InputError, match="not sound"):
        report.raise_if_bad()


def test_one_flipped_bit_is_found_by_the_deep_check(stored: Sources) -> None:
    _flip(_part(stored.out), _embedding_byte(stored.out))
    assert check_store(stored.out).ok, "the footer is whole"
    report = check_store(stored.out, deep=True)
    assert [f.what for f in report.findings if f.level == "FAIL"] == [
        "patches/part-00000.parquet: slide A1-DX1 is not what was ingested: its hash differs"
    ]


def test_values_that_are_not_finite_are_found_by_the_deep_check(stored: Sources) -> None:
    content = bytearray(_part(stored.out).read_bytes())
    place = _embedding_byte(stored.out) + 1  # the last value's bytes
    content[place : place + 2] = b"\x00\x7e"
    _part(stored.out).write_bytes(content)
    what = [f.what for f in check_store(stored.out, deep=True).findings if f.level == "FAIL"]
    assert "patches/part-00000.parquet: slide A1-DX1 holds NaN or Inf" in what

    values = b"\x00\x00\xc0\x7f" + bytes(16)
    _rewrite(stored.out, "expression", _set("values", 2, values))
    what = [f.what for f in check_store(stored.out, deep=True).findings if f.level == "FAIL"]
    assert "expression holds NaN or Inf in 1 cases: A2" in what


def test_orphans_and_odd_stores_are_warned_of(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    sources.rows = [[*row[:2], "LUAD"] for row in sources.rows[:2]]
    sources.write_cases()
    sources.ingest()
    (sources.out / "patches" / "part-99999.parquet").write_bytes(b"?")
    report = check_store(sources.out)
    assert report.ok
    warned = " ".join(finding.what for finding in report.findings if finding.level == "WARN")
    assert "patches/part-99999.parquet" in warned
    assert "no split is stored" in warned
    assert "one class only (LUAD)" in warned


def test_one_modality_passes(tmp_path: Path) -> None:
    for name, options in (("genes", {"patches": False}), ("patches", {"genes": False})):
        sources = make_sources(tmp_path / name)
        sources.ingest(**options)
        assert check_store(sources.out, deep=True).ok


def test_a_path_without_a_store_is_a_finding(tmp_path: Path) -> None:
    report = check_store(tmp_path / "nothing")
    assert not report.ok
    assert "nothing at this path" in report.findings[0].what
