"""Adding to a store: what is new goes in, nothing else is written again, and no case changes its part."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cohort_files import Sources, features, grid, make_sources, write_h5

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.ingest import IngestOptions, plan_ingest
from gimp_ray.store import CohortStore
from gimp_ray.store.check import check_store
from gimp_ray.store.part_writer import PartWriter


def _grow(sources: Sources, case_id: str = "A3", label: str = "LUAD", n: int = 700) -> str:
    """One more case with a slide of `n` patches in the sources; returns its slide."""
    slide_id = f"{case_id}-DX1"
    sources.bags[slide_id], sources.coords[slide_id] = features(n, seed=n), grid(n)
    write_h5(
        sources.patches / f"{slide_id}.h5", sources.bags[slide_id], sources.coords[slide_id],
        patch_size=256, patch_level=0,
    )  # fmt: skip
    sources.rows.append([case_id, f"{slide_id}.svs", label])
    sources.expression[case_id] = np.arange(5.0) / 8
    sources.write_cases()
    sources.write_genes()
    return slide_id


def _state(out: Path, pattern: str = "**/*") -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(out)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(out.glob(pattern))
        if p.is_file()
    }


def test_new_slides_and_cases_are_added_and_nothing_else_is_written(sources: Sources) -> None:
    before = sources.store()
    parts = _state(sources.out, "patches/*")
    slide_id = _grow(sources)
    report = sources.ingest()
    after = CohortStore.open(sources.out)
    assert report.added and report.manifest.revision == 2
    assert {k: v for k, v in _state(sources.out, "patches/*").items() if k in parts} == parts
    assert set(after.slides["slide_id"].to_pylist()) == {*before.slides["slide_id"].to_pylist(), slide_id}
    for name, bag in sources.bags.items():
        np.testing.assert_array_equal(after.read_bag(name), bag.astype(np.float16))
        np.testing.assert_array_equal(after.read_coords(name), sources.coords[name])
    cases = after.cases["case_id"].to_pylist()
    np.testing.assert_array_equal(
        after.read_genes(cases), np.stack([sources.expression[c] for c in cases]).astype(np.float32)
    )
    assert check_store(sources.out, deep=True).ok
    assert "1 new" in str(plan_ingest_of(_grown(sources)))


def _grown(sources: Sources) -> Sources:
    _grow(sources, "B3", "LUSC", 20)
    return sources


def plan_ingest_of(sources: Sources) -> object:
    return plan_ingest(
        patches=sources.patches, genes=sources.genes, cases=sources.cases, out=sources.out,
        options=IngestOptions(workers=1, progress=False),
    )  # fmt: skip


def test_a_store_grown_in_two_steps_holds_what_one_ingest_stores(tmp_path: Path) -> None:
    grown, whole = make_sources(tmp_path / "grown"), make_sources(tmp_path / "whole")
    grown.ingest()
    for sources in (grown, whole):
        _grow(sources)
    grown.ingest()
    a, b = CohortStore.open(grown.out), whole.store()
    places = ["file", "first_row_group"]
    assert a.slides.drop_columns(places).equals(b.slides.drop_columns(places))
    assert a.cases.equals(b.cases) and a.gene_ids == b.gene_ids


def test_no_case_changes_its_part_and_new_ones_are_dealt_out(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    before = sources.store()
    for i in range(3, 9):
        _grow(sources, f"A{i}", "LUAD", 10)
        _grow(sources, f"B{i}", "LUSC", 10)
    sources.ingest()
    after = CohortStore.open(sources.out)
    assert before.split_schemes == after.split_schemes == {"kfold": (0, 1, 2, 3, 4)}
    tested: list[str] = []
    for fold in range(5):
        a, b = before.split("kfold", fold), after.split("kfold", fold)
        for part in ("train", "val", "test"):
            assert set(getattr(a, part)) <= set(getattr(b, part)), (fold, part)
        tested += b.test
        sizes = [sum(c.startswith(kind) for c in b.test) for kind in "AB"]
        assert max(sizes) <= 3 and min(sizes) >= 1
    assert sorted(tested) == after.cases["case_id"].to_pylist(), "every case is tested once"


def test_only_the_new_files_need_be_there(sources: Sources, tmp_path: Path) -> None:
    sources.ingest()
    rows, expression = sources.rows, sources.expression
    for path in sources.patches.iterdir():
        path.unlink()
    sources.rows, sources.expression = [], {}
    slide_id = _grow(sources)
    sources.ingest()
    after = CohortStore.open(sources.out)
    assert after.manifest.num_cases == len(rows) + 1
    np.testing.assert_array_equal(after.read_bag(slide_id), sources.bags[slide_id].astype(np.float16))
    np.testing.assert_array_equal(after.read_genes(["B1"])[0], np.float32(expression["B1"]))


def test_a_second_slide_of_a_stored_case(sources: Sources) -> None:
    sources.ingest()
    sources.rows.append(["A0", "A0-DX2.svs", "LUAD"])
    sources.write_cases()
    write_h5(sources.patches / "A0-DX2.h5", features(30), grid(30), patch_size=256, patch_level=0)
    sources.ingest()
    after = CohortStore.open(sources.out)
    assert after.manifest.num_cases == 6 and after.manifest.num_slides == 7


def test_a_changed_file_is_noticed_by_its_contents(sources: Sources) -> None:
    sources.ingest()
    before = _state(sources.out)
    path = sources.patches / "A0-DX1.h5"
    stat = path.stat()
    changed = sources.bags["A0-DX1"].copy()
    changed[3, 3] += 1
    write_h5(path, changed, sources.coords["A0-DX1"], patch_size=256, patch_level=0)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size, "neither size nor date give it away"
    report = sources.ingest()
    item = next(item for item in report.left_out if item.kind == "changed file")
    assert item.id == "A0-DX1" and item.found == "other contents" and item.fix
    with pytest.raises(InputError, match="changed since it was stored"):
        sources.ingest(strict=True)
    assert _state(sources.out) == before


def test_a_file_that_was_only_touched_or_copied_is_the_same(sources: Sources) -> None:
    sources.ingest()
    for path in sources.patches.iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    report = sources.ingest(strict=True)
    assert not report.left_out and "nothing is new: the store is as it was" in report.notes


def test_a_stored_slide_whose_file_is_damaged_now_stays(sources: Sources) -> None:
    sources.ingest()
    (sources.patches / "A0-DX1.h5").write_bytes(b"not an h5 file")
    slide_id = _grow(sources)
    report = sources.ingest()
    assert [i.kind for i in report.left_out if i.id == "A0-DX1"] == ["changed file"]
    after = CohortStore.open(sources.out)
    np.testing.assert_array_equal(after.read_bag("A0-DX1"), sources.bags["A0-DX1"].astype(np.float16))
    assert after.read_bag(slide_id).shape == (700, 8)


def test_changed_expression_is_reported_and_the_stored_one_kept(sources: Sources) -> None:
    sources.ingest()
    old = sources.expression["A1"].copy()
    sources.expression["A1"] = old + 1
    _grow(sources)
    report = sources.ingest()
    assert [i.id for i in report.left_out if "expression changed" in i.reason] == ["A1"]
    np.testing.assert_array_equal(CohortStore.open(sources.out).read_genes(["A1"])[0], np.float32(old))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.rows[0].__setitem__(2, "LUSC"), "two labels"),
        (lambda s: s.gene_ids.__setitem__(0, "TP63"), "genes are not those of the store"),
        (lambda s: s.expression.__setitem__("A3", np.full(5, np.nan)), None),
    ],
    ids=["label", "genes", "new case is bad"],
)
def test_contradictions_leave_the_store_as_it_was(sources: Sources, spoil: object, message: str | None) -> None:
    sources.ingest()
    before = _state(sources.out)
    # the row of A0's second slide contradicts the stored label
    _grow(sources)
    sources.rows.append(["A0", "A0-DX2.svs", "LUAD"])
    write_h5(sources.patches / "A0-DX2.h5", features(30), grid(30), patch_size=256, patch_level=0)
    spoil(sources)  # type: ignore[operator]
    sources.write_cases()
    sources.write_genes()
    with pytest.raises(InputError, match=message or "strict"):
        sources.ingest(strict=True)
    assert _state(sources.out) == before


def test_a_failure_while_writing_leaves_the_store_as_it_was(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.ingest()
    before = _state(sources.out)
    _grow(sources)

    def full(self: PartWriter, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartWriter, "add_slide", full)
    with pytest.raises(InputError, match="cannot be written"):
        sources.ingest()
    assert _state(sources.out) == before
    monkeypatch.undo()
    sources.ingest()
    assert check_store(sources.out, deep=True).ok


def test_what_a_killed_addition_left_is_cleared_by_the_next(sources: Sources) -> None:
    sources.ingest()
    (sources.out / "patches" / "part-r2-00000.parquet").write_bytes(b"half")
    (sources.out / "cases.r2.parquet").write_bytes(b"half")
    (sources.out / "notes.txt").write_text("the user's own")
    _grow(sources)
    sources.ingest()
    assert check_store(sources.out, deep=True).ok
    assert (sources.out / "notes.txt").exists()


def test_tables_of_two_revisions_back_are_removed(sources: Sources) -> None:
    sources.ingest()
    for i in (3, 4, 5):
        _grow(sources, f"A{i}", "LUAD", 10)
        sources.ingest()
    names = {p.name for p in sources.out.glob("*.parquet")}
    assert {"cases.r4.parquet", "cases.r3.parquet"} <= names
    assert not {"cases.parquet", "cases.r2.parquet"} & names
    report = check_store(sources.out)
    assert report.ok and not [f for f in report.findings if f.level == "WARN"]


def test_a_store_in_use_goes_on_reading_while_it_grows(sources: Sources) -> None:
    store = sources.store()
    store.read_genes(["A0"])
    _grow(sources)
    sources.ingest()
    np.testing.assert_array_equal(store.read_bag("B2-DX1"), sources.bags["B2-DX1"].astype(np.float16))
    np.testing.assert_array_equal(store.read_genes(["B2"])[0], np.float32(sources.expression["B2"]))


@pytest.mark.parametrize(("name", "value"), [("dtype", "float32"), ("compression", "zstd")])
def test_another_format_than_the_store_s_is_refused(sources: Sources, name: str, value: str) -> None:
    sources.ingest()
    with pytest.raises(ConfigError, match=f"{name} is another"):
        sources.ingest(**{name: value})


def test_a_store_of_genes_grows(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    sources.ingest(patches=False)
    _grow(sources)
    sources.ingest(patches=False)
    assert CohortStore.open(sources.out).manifest.num_cases == 7


def test_the_report_of_an_addition_has_its_own_file(sources: Sources) -> None:
    sources.ingest()
    first = (sources.out / "ingest_report.json").read_bytes()
    _grow(sources)
    sources.ingest()
    assert (sources.out / "ingest_report.json").read_bytes() == first
    second = json.loads((sources.out / "ingest_report.r2.json").read_text())
    assert second["coverage"]["with_both"] == 7
    assert second["fingerprint"] == CohortStore.open(sources.out).fingerprint
