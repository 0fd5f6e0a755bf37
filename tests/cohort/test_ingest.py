"""Ingest as a whole: the same store whatever the workers, whole or not at all, everything accounted for."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from cohort_files import Sources, features, make_sources, write_h5

from gimp_ray.errors import ConfigError, InputError
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.ingest.patches import write
from gimp_ray.ingest.work import Progress
from gimp_ray.store import CohortStore
from gimp_ray.store.check import check_store
from gimp_ray.store.part_writer import PartWriter
from gimp_ray.store.publishing import new_store


def _many(root: Path) -> Sources:
    """Several part files' worth of slides with parts of 40 kB."""
    return make_sources(root, sizes=dict.fromkeys(["A0-DX1", "A1-DX1", "A2-DX1", "B0-DX1", "B1-DX1", "B2-DX1"], 1300))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "SMALLEST_PART_BYTES", 60_000)


def _rewritten(sources: Sources, bag: np.ndarray, coords: np.ndarray) -> None:
    write_h5(sources.patches / "A0-DX1.h5", bag, coords, patch_size=256, patch_level=0)


def _names_beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []


def test_workers_and_part_files_do_not_change_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, three = _many(tmp_path / "one"), _many(tmp_path / "three")
    a = one.store(workers=1)
    assert set(a.slides["file"].to_pylist()) == {"patches/part-00000.parquet"}
    monkeypatch.setattr(write, "SMALLEST_PART_BYTES", 60_000)
    b = three.store(workers=2)
    assert len(set(b.slides["file"].to_pylist())) == 3, "two slides of 31 kB each in a part"
    assert a.fingerprint == b.fingerprint
    places = ["file", "first_row_group"]
    assert a.slides.drop_columns(places).equals(b.slides.drop_columns(places))
    for slide_id, bag in three.bags.items():
        np.testing.assert_array_equal(b.read_bag(slide_id), bag.astype(np.float16))
        np.testing.assert_array_equal(b.read_coords(slide_id), three.coords[slide_id])
    assert check_store(three.out, deep=True).ok


@pytest.mark.usefixtures("small_parts")
def test_a_slide_is_never_in_two_files_and_starts_its_own_row_group(tmp_path: Path) -> None:
    store = _many(tmp_path).store()
    rows = store.slides.to_pylist()
    assert [(row["file"], row["first_row_group"]) for row in rows] == [
        (f"patches/part-{i:05d}.parquet", group) for i in range(3) for group in (0, 3)
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: _rewritten(s, s.bags["A0-DX1"][::-1], s.coords["A0-DX1"]),
        lambda s: _rewritten(s, s.bags["A0-DX1"], s.coords["A0-DX1"] + 1),
        lambda s: (s.expression["A0"].__setitem__(0, 9.0), s.write_genes()),
        lambda s: (s.gene_ids.__setitem__(0, "TP63"), s.write_genes()),
        lambda s: (s.rows[0].__setitem__(2, "LUSC"), s.write_cases()),
    ],
    ids=["order of patches", "coordinates", "a gene value", "a gene name", "a label"],
)  # fmt: skip
def test_the_fingerprint_follows_the_content(tmp_path: Path, change: object) -> None:
    one, other = make_sources(tmp_path / "one"), make_sources(tmp_path / "other")
    change(other)  # type: ignore[operator]
    assert one.store().fingerprint != other.store().fingerprint


def test_the_report_accounts_for_everything(sources: Sources) -> None:
    write_h5(sources.patches / "Z9.h5", features(4))
    (sources.patches / "B2-DX1.h5").unlink()
    report = sources.ingest()
    written = json.loads((sources.out / "ingest_report.json").read_text(encoding="utf-8"))
    assert written["fingerprint"] == CohortStore.open(sources.out).fingerprint == report.manifest.fingerprint
    assert [c["case_id"] for c in written["kept"]["cases"]] == ["A0", "A1", "A2", "B0", "B1"]
    assert written["kept"]["slides"][0] == {
        "slide_id": "A0-DX1", "case_id": "A0", "file": str(sources.patches / "A0-DX1.h5"),
    }  # fmt: skip
    left_out = {(item["kind"], item["id"]) for item in written["left_out"]}
    assert left_out == {("slide", "B2-DX1"), ("case", "B2"), ("patch file", "Z9")}
    assert written["options"]["folds"] == 5
    text = str(report)
    assert "cases     5 (LUAD 3, LUSC 2)" in text
    assert "1 slide, the slide has no patch file: B2-DX1" in text
    assert "genes     5, unit unknown" in text


def test_a_report_with_nothing_left_out_says_so(sources: Sources) -> None:
    assert "Left out: nothing" in str(sources.ingest(strict=True))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    sources, seen = _many(tmp_path), []
    sources.out.parent.mkdir()

    def interrupt(self: Progress, done: int) -> None:
        if done and list(sources.out.parent.glob(".STORE.ingest-*/patches/*.parquet")):
            seen.extend(name for name in _names_beside(sources.out) if not name.endswith(".lock"))
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sources.ingest(workers=workers)
    assert len(seen) == 1 and seen[0].startswith(".STORE.ingest-"), "it was interrupted while it wrote"
    assert _names_beside(sources.out) == []


def test_a_full_disk_leaves_nothing(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PartWriter, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartWriter, "add_slide", full)
    with pytest.raises(InputError, match="cannot be written") as caught:
        sources.ingest()
    assert caught.value.file == str(sources.out)
    assert "No space left" in (caught.value.found or "") and caught.value.fix
    assert _names_beside(sources.out) == []


def test_a_part_file_that_reads_back_wrong_is_not_published(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    write = PartWriter._table

    def forgetful(self: PartWriter, embeddings: np.ndarray, coords: np.ndarray) -> object:
        return write(self, embeddings * np.float16(1.001), coords)

    monkeypatch.setattr(PartWriter, "_table", forgetful)
    with pytest.raises(InputError, match="does not hold what was written") as caught:
        sources.ingest()
    assert caught.value.case == "A0-DX1"
    assert _names_beside(sources.out) == []


def test_a_store_that_appears_meanwhile_wins(tmp_path: Path) -> None:
    out = tmp_path / "out" / "STORE"
    out.parent.mkdir()
    with pytest.raises(InputError, match="exists already"), new_store(str(out)) as folder:
        Path(folder, "x").write_text("late")
        out.mkdir()
    assert _names_beside(out) == ["STORE"]
    assert list(out.iterdir()) == []


def test_an_unwritable_place_is_a_clear_error(sources: Sources) -> None:
    (sources.root / "out").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written") as caught:
        sources.ingest()
    assert caught.value.file == str(sources.out)


def test_the_sources_are_not_changed(sources: Sources) -> None:
    before = {p: p.read_bytes() for p in sources.root.rglob("*") if p.is_file()}
    sources.ingest()
    assert {p: p.read_bytes() for p in before} == before


def test_the_store_is_readable_by_others(sources: Sources) -> None:
    """Unlike a folder of tempfile's; group and others get what the umask leaves them."""
    probe = sources.root / "probe"
    probe.mkdir()
    sources.ingest()
    assert sources.out.stat().st_mode == probe.stat().st_mode


def test_out_may_be_text_and_relative(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sources.root)
    report = ingest_cohort(
        patches="patches",  # type: ignore[arg-type]
        genes="genes.tsv",  # type: ignore[arg-type]
        cases="cases.csv",  # type: ignore[arg-type]
        out="STORE2",  # type: ignore[arg-type]
        options=IngestOptions(workers=1, progress=True),
    )
    assert report.store == str(sources.root / "STORE2")
    assert CohortStore.open("STORE2").manifest.num_cases == 6


@pytest.mark.parametrize("options", [{"workers": -1}, {"folds": 2}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="impossible value for option"):
        IngestOptions(**options)  # type: ignore[arg-type]
