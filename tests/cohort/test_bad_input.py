"""Bad patches and tables: faults of one slide or case are left out (strict: refused); contradictions are refused.

After every refusal there is no store, no temporary folder, and the sources are as they were.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cohort_files import Sources, features, grid, write_csv, write_h5

from gimp_ray.errors import InputError
from gimp_ray.store import CohortStore

BAD = "A1-DX1"


@pytest.fixture(autouse=True)
def _nothing_is_left(sources: Sources) -> Iterator[None]:
    """Whatever happened: a whole store or none, and no hidden folder."""
    yield
    folder = sources.out.parent
    left = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    assert left in ([], ["STORE"])
    if left:
        assert CohortStore.open(sources.out).manifest.num_cases > 0


class Bomb:
    """A pickle that makes a file when it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def _spoil(sources: Sources, value: float) -> Path:
    bag = sources.bags[BAD].astype(np.float64)
    bag[7, 3] = value
    return write_h5(sources.patches / f"{BAD}.h5", bag, sources.coords[BAD])


def _missing(sources: Sources) -> None:
    (sources.patches / f"{BAD}.h5").unlink()


def _empty_bag(sources: Sources) -> Path:
    return write_h5(sources.patches / f"{BAD}.h5", np.zeros((0, 8), np.float32), np.zeros((0, 2)))


def _truncated(sources: Sources) -> Path:
    path = write_h5(sources.patches / f"{BAD}.h5", features(4000), grid(4000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _zero_bytes(sources: Sources) -> Path:
    path = sources.patches / f"{BAD}.h5"
    path.write_bytes(b"")
    return path


def _damaged_inside(sources: Sources) -> Path:
    """The header is whole; a compressed block is not."""
    path = sources.patches / f"{BAD}.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "features", data=features(600), chunks=(100, 8), compression="gzip", fletcher32=True
        )
        place = dataset.id.get_chunk_info(3)
    content = bytearray(path.read_bytes())
    middle = place.byte_offset + place.size // 2
    content[middle : middle + 40] = bytes(b ^ 0xFF for b in content[middle : middle + 40])
    path.write_bytes(content)
    return path


def _no_features(sources: Sources) -> Path:
    return write_h5(sources.patches / f"{BAD}.h5", sources.bags[BAD], sources.coords[BAD], key="embeddings")


def _slide_level(sources: Sources) -> Path:
    return write_h5(sources.patches / f"{BAD}.h5", np.zeros(768, np.float32))


def _integers(sources: Sources) -> Path:
    return write_h5(sources.patches / f"{BAD}.h5", np.zeros((5, 8), np.int64))


def _short_coords(sources: Sources) -> Path:
    return write_h5(sources.patches / f"{BAD}.h5", sources.bags[BAD], sources.coords[BAD][:-1])


def _nan_coords(sources: Sources) -> Path:
    return write_h5(sources.patches / f"{BAD}.h5", sources.bags[BAD], sources.coords[BAD] * np.nan)


def _huge_coords(sources: Sources) -> Path:
    return write_h5(sources.patches / f"{BAD}.h5", sources.bags[BAD], sources.coords[BAD] + 2**40)


def _pt_instead(sources: Sources, save: Callable[[Path], object]) -> Path:
    _missing(sources)
    path = sources.patches / f"{BAD}.pt"
    save(path)
    return path


def _zip_bomb(sources: Sources) -> Path:
    return _pt_instead(sources, lambda path: torch.save(Bomb(sources.root / "boom"), path))


def _bomb_with_tensor(sources: Sources) -> Path:
    content = {"features": torch.zeros(5, 8), "more": Bomb(sources.root / "boom")}
    return _pt_instead(sources, lambda path: torch.save(content, path))


def _plain_bomb(sources: Sources) -> Path:
    return _pt_instead(sources, lambda path: path.write_bytes(pickle.dumps(Bomb(sources.root / "boom"))))


def _old_bomb(sources: Sources) -> Path:
    bomb = Bomb(sources.root / "boom")
    return _pt_instead(sources, lambda path: torch.save(bomb, path, _use_new_zipfile_serialization=False))


def _dictionary(sources: Sources) -> Path:
    return _pt_instead(sources, lambda path: torch.save({"weights": torch.zeros(5, 8)}, path))


def _integer_tensor(sources: Sources) -> Path:
    return _pt_instead(sources, lambda path: torch.save(torch.zeros(5, 8, dtype=torch.int64), path))


def _truncated_pt(sources: Sources) -> Path:
    def save(path: Path) -> None:
        torch.save(torch.zeros(500, 8), path)
        path.write_bytes(path.read_bytes()[:9000])

    return _pt_instead(sources, save)


# fault -> (how to make it, what is said, part of `expected`, part of `found`)
FAULTS: dict[str, tuple[Callable[[Sources], Path | None], str, str, str | None]] = {
    "missing slide": (_missing, "no patch file", "A1-DX1.h5", None),
    "NaN": (lambda s: _spoil(s, np.nan), "NaN or Inf", "finite", "nan at patch 7, dimension 3"),
    "Inf": (lambda s: _spoil(s, -np.inf), "NaN or Inf", "finite", "-inf at patch 7, dimension 3"),
    "fp16 overflow": (lambda s: _spoil(s, 70_000.0), "overflow float16", "65504", "70000.0 at patch 7, dimension 3"),
    "empty bag": (_empty_bag, "bag is empty", "at least one patch", "(0, 8)"),
    "truncated h5": (_truncated, "cannot be read", "whole HDF5", "truncated file"),
    "zero bytes": (_zero_bytes, "cannot be read", "whole HDF5", "Unable"),
    "damaged block": (_damaged_inside, "cannot be read", "whole HDF5", "Can't"),
    "no features": (_no_features, "no features", "features or feats", "embeddings"),
    "slide-level file": (_slide_level, "unknown shape", "(N, D) or (1, N, D)", "(768,)"),
    "integers": (_integers, "not floats", "float", "int64"),
    "fewer coordinates": (_short_coords, "coordinates do not match", "(21, 2)", "(20, 2)"),
    "NaN coordinates": (_nan_coords, "coordinates do not fit", "finite", "nan"),
    "huge coordinates": (_huge_coords, "coordinates do not fit", "2^31", "up to"),
    "pickle bomb": (_zip_bomb, "not a plain tensor", "tensor", None),
    "pickle bomb beside a tensor": (_bomb_with_tensor, "not a plain tensor", "tensor", None),
    "pickle bomb, bare": (_plain_bomb, "not a plain tensor", "tensor", None),
    "pickle bomb, old format": (_old_bomb, "not a plain tensor", "tensor", None),
    "dictionary": (_dictionary, "no features", "features", "weights"),
    "integer tensor": (_integer_tensor, "not a plain tensor", "floating-point", "int64"),
    "truncated pt": (_truncated_pt, "not a plain tensor", "tensor", None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_slide_is_left_out_and_reported(sources: Sources, fault: str) -> None:
    spoil, message, expected, found = FAULTS[fault]
    path = spoil(sources) or sources.patches
    report = sources.ingest()
    assert not (sources.root / "boom").exists(), "the pickle was executed"
    store = CohortStore.open(sources.out)
    assert BAD not in store.slides["slide_id"].to_pylist()
    assert store.cases["case_id"].to_pylist() == ["A0", "A2", "B0", "B1", "B2"], "its only slide gone, the case goes"
    for slide_id in store.slides["slide_id"].to_pylist():
        np.testing.assert_array_equal(store.read_bag(slide_id), sources.bags[slide_id].astype(np.float16))
    item = next(item for item in report.left_out if item.kind == "slide")
    assert item.id == BAD and item.case_id == "A1"
    assert message in item.reason
    assert expected in (item.expected or "")
    assert item.file == str(path)
    assert found is None or found in (item.found or "")
    assert item.fix
    assert [(i.kind, i.id, i.follows) for i in report.left_out if i.kind == "case"] == [("case", "A1", True)]
    assert BAD in str(report)


@pytest.mark.parametrize("fault", FAULTS)
def test_strict_refuses_a_bad_slide(sources: Sources, fault: str) -> None:
    spoil, message, expected, found = FAULTS[fault]
    path = spoil(sources) or sources.patches
    with pytest.raises(InputError, match="strict") as caught:
        sources.ingest(strict=True)
    error = caught.value
    assert message in error.what
    assert error.case == BAD
    assert error.file == str(path)
    assert expected in (error.expected or "")
    assert found is None or found in (error.found or "")
    assert error.fix
    assert not sources.out.exists()
    assert not (sources.root / "boom").exists(), "the pickle was executed"


def test_the_bomb_is_a_bomb(tmp_path: Path) -> None:
    """The tests above would prove nothing if loading it carelessly did nothing."""
    torch.save(Bomb(tmp_path / "boom"), tmp_path / "bomb.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert (tmp_path / "boom").exists()


def test_a_case_keeps_its_other_slides(sources: Sources) -> None:
    write_h5(sources.patches / "A1-DX2.h5", features(9), grid(9))
    sources.rows.append(["A1", "A1-DX2", "LUAD"])
    sources.write_cases()
    _spoil(sources, np.nan)
    report = sources.ingest()
    assert [item.id for item in report.left_out] == [BAD]
    assert CohortStore.open(sources.out).cases.num_rows == 6


def test_several_bad_slides_in_one_part_file(sources: Sources) -> None:
    for slide_id in ("A0-DX1", "A2-DX1", "B2-DX1"):
        bag = sources.bags[slide_id].copy()
        bag[-1, -1] = np.inf
        write_h5(sources.patches / f"{slide_id}.h5", bag, sources.coords[slide_id])
    report = sources.ingest()
    assert [i.id for i in report.left_out if i.kind == "slide"] == ["A0-DX1", "A2-DX1", "B2-DX1"]
    store = CohortStore.open(sources.out)
    for slide_id in ("A1-DX1", "B0-DX1", "B1-DX1"):
        np.testing.assert_array_equal(store.read_bag(slide_id), sources.bags[slide_id].astype(np.float16))


def test_strict_names_every_fault(sources: Sources) -> None:
    _missing(sources)
    write_h5(sources.patches / "Z9.h5", features(5))
    with pytest.raises(InputError) as caught:
        sources.ingest(strict=True)
    assert "In all 2" in (caught.value.found or "")
    assert "Z9" in (caught.value.found or "")


def test_nothing_left_is_refused(sources: Sources) -> None:
    for slide_id in sources.bags:
        write_h5(sources.patches / f"{slide_id}.h5", np.full((3, 8), np.nan, np.float32))
    with pytest.raises(InputError, match="nothing is left") as caught:
        sources.ingest()
    assert "6 x slide: features hold NaN" in (caught.value.found or "")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("row", "kind", "name", "reason"),
    [
        (["A9", "A0-DX9", ""], "case", "A9", "no label"),
        (["", "A0-DX9", "LUAD"], "row", "row 7", "no case_id"),
        (["A0", "", "LUAD"], "row", "row 7", "no slide_id"),
    ],
)
def test_incomplete_rows(sources: Sources, row: list[str], kind: str, name: str, reason: str) -> None:
    sources.rows.append(row)
    sources.write_cases()
    report = sources.ingest()
    item = report.left_out[0]
    assert (item.kind, item.id) == (kind, name) and reason in item.reason
    assert item.file == str(sources.cases)
    assert CohortStore.open(sources.out).manifest.num_cases == 6
    with pytest.raises(InputError, match=reason):
        sources.ingest_again(strict=True)


def test_cases_without_genes_and_genes_without_cases(sources: Sources) -> None:
    sources.expression["A1"], sources.expression["C7"] = np.full(5, np.nan), np.ones(5)
    del sources.expression["B0"]
    sources.write_genes()
    report = sources.ingest()
    items = {(i.kind, i.id): i for i in report.left_out if not i.follows}
    assert set(items) == {("case", "A1"), ("case", "B0"), ("gene sample", "C7")}
    assert "NaN" in items["case", "A1"].reason and "TP53" in (items["case", "A1"].found or "")
    assert "no genes" in items["case", "B0"].reason
    assert [i.id for i in report.left_out if i.follows] == ["A1-DX1", "B0-DX1"]
    assert CohortStore.open(sources.out).slides.num_rows == 4


def test_unknown_cases_in_the_gene_file_do_not_make_strict_fail(sources: Sources) -> None:
    sources.expression["C7"] = np.ones(5)
    sources.write_genes()
    assert sources.ingest(strict=True).left_out[0].id == "C7"


def test_a_patch_file_that_is_not_in_the_table(sources: Sources) -> None:
    path = write_h5(sources.patches / "Z9.h5", features(5))
    (sources.patches / "README.txt").write_text("notes")
    report = sources.ingest()
    items = {item.id: item for item in report.left_out}
    assert items["Z9"].file == str(path) and "not in the case table" in items["Z9"].reason
    assert items["README.txt"].reason == "not a patch file"
    with pytest.raises(InputError, match="not in the case table") as caught:
        sources.ingest_again(strict=True)
    assert caught.value.file == str(path)


def _other_width(sources: Sources) -> None:
    write_h5(sources.patches / f"{BAD}.h5", features(20, dim=16), grid(20))


def _other_encoder(sources: Sources) -> None:
    for slide_id, encoder in (("A0-DX1", "uni_v1"), (BAD, "conch_v15")):
        write_h5(sources.patches / f"{slide_id}.h5", sources.bags[slide_id], sources.coords[slide_id], encoder=encoder)


def _two_files(sources: Sources) -> None:
    torch.save(torch.from_numpy(sources.bags[BAD]), sources.patches / f"{BAD}.pt")


def _rows(*more: list[str]) -> Callable[[Sources], None]:
    def change(sources: Sources) -> None:
        sources.rows += more
        sources.write_cases()

    return change


def _no_slide_column(sources: Sources) -> None:
    write_csv(sources.cases, ("case_id", "label"), [[r[0], r[2]] for r in sources.rows])


def _no_label_column(sources: Sources) -> None:
    sources.write_cases(("case_id", "slide_id", "verdict"))


def _no_patch_folder(sources: Sources) -> None:
    sources.patches.rename(sources.root / "elsewhere")


def _no_patch_files(sources: Sources) -> None:
    for path in list(sources.patches.iterdir()):
        path.rename(path.with_suffix(".svs"))


# contradiction -> (how to make it, what is said, case, part of expected, part of found)
CONTRADICTIONS: dict[str, tuple[Callable[[Sources], None], str, str | None, str, str]] = {
    "mixed widths": (_other_width, "several widths", BAD, "one width", "8: A0-DX1.h5; 16: A1-DX1.h5"),
    "mixed encoders": (_other_encoder, "several encoders", BAD, "one encoder", "conch_v15: A1-DX1.h5"),
    "one slide in two files": (_two_files, "two patch files", BAD, "one file", "A1-DX1.h5"),
    "conflicting labels": (_rows(["A1", "A1-DX2", "LUSC"]), "two labels", "A1", "one label", "LUAD and LUSC"),
    "duplicate slide row": (_rows(["A1", "A1-DX1", "LUAD"]), "slide stands twice", BAD, "one row", "rows 2 and 7"),
    "slide of two cases": (_rows(["B1", "A1-DX1.h5", "LUSC"]), "slide stands twice", BAD, "one row", "rows 2 and 7"),
    "path in a slide id": (_rows(["A1", "../../etc/x", "LUAD"]), "is a path", "../../etc/x", "name without", "../"),
    "dots in a slide id": (_rows(["A1", "..", "LUAD"]), "is a path", "..", "name without", ".."),
    "backslash in a slide id": (_rows(["A1", "C:\\x", "LUAD"]), "is a path", "C:\\x", "name without", "C:"),
    "no slide column": (_no_slide_column, "no slide_id column", None, "slide_id", "case_id, label"),
    "no label column": (_no_label_column, "no label column", None, "label", "verdict"),
    "no patch folder": (_no_patch_folder, "no such folder", None, "folder", "nothing"),
    "no patch files": (_no_patch_files, "no patch features", None, ".h5", "A0-DX1.svs"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
@pytest.mark.parametrize("strict", [False, True])
def test_contradictions_are_refused(sources: Sources, kind: str, strict: bool) -> None:
    change, message, case, expected, found = CONTRADICTIONS[kind]
    change(sources)
    with pytest.raises(InputError, match=message) as caught:
        sources.ingest(strict=strict)
    error = caught.value
    assert error.file is not None and Path(error.file).is_relative_to(sources.root)
    assert error.case == case
    assert expected in (error.expected or "")
    assert found in (error.found or "")
    assert error.fix
    assert not sources.out.exists()


def test_neither_patches_nor_genes(sources: Sources) -> None:
    with pytest.raises(InputError, match="neither patches nor genes"):
        sources.ingest(patches=False, genes=False)


def test_a_duplicate_case_without_slides(sources: Sources) -> None:
    write_csv(sources.cases, ("case_id", "label"), [["A0", "x"], ["B0", "y"], ["A0", "x"]])
    with pytest.raises(InputError, match="case stands twice") as caught:
        sources.ingest(patches=False)
    assert (caught.value.case, caught.value.found) == ("A0", "rows 1 and 3")


@pytest.mark.parametrize("what", ["folder", "file"])
def test_an_output_that_is_no_store_is_refused(sources: Sources, what: str) -> None:
    sources.out.parent.mkdir()
    if what == "folder":
        sources.out.mkdir()
        (sources.out / "thesis.tex").write_text("mine")
    else:
        sources.out.write_text("mine")
    with pytest.raises(InputError, match="exists already and is no store") as caught:
        sources.ingest()
    assert caught.value.file == str(sources.out) and caught.value.fix
    assert [p.name for p in sources.out.parent.iterdir()] == ["STORE"]
    assert (sources.out / "thesis.tex" if what == "folder" else sources.out).read_text() == "mine"
    shutil.rmtree(sources.out) if what == "folder" else sources.out.unlink()


def test_the_same_sources_again_change_nothing(sources: Sources) -> None:
    sources.ingest()
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sources.out.rglob("*")}
    report = sources.ingest()
    assert any("nothing is new" in note for note in report.notes)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sources.out.rglob("*")} == before
