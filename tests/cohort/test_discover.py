"""Which files of a folder are read, as CLAM, TRIDENT or a user lays it out; all else is listed or refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cohort_files import features, grid, write_h5
from patch_files import trident_tree, zarr_array

from gimp_ray.errors import InputError
from gimp_ray.ingest.patches import find
from gimp_ray.ingest.patches.find import find_patch_files

UNI, CONCH = "20x_256px_0px_overlap/features_uni_v1", "20x_512px_0px_overlap/features_conch_v15"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def _h5(path: Path) -> Path:
    return write_h5(path, features(3), grid(3))


def _reasons(folder: Path, **options: str) -> dict[str, str]:
    found = find_patch_files(folder, **options)
    return {path.relative_to(folder).as_posix(): what for path, what in found.other.items()}


@pytest.mark.parametrize("start", [".", "20x_256px_0px_overlap", UNI])
def test_any_folder_of_a_trident_tree_will_do(tmp_path: Path, start: str) -> None:
    job = trident_tree(tmp_path / "job")
    found = find_patch_files(job / start)
    assert found.folder == job / UNI
    assert found.by_slide == {"A": job / UNI / "A.h5", "B": job / UNI / "B.h5"}
    assert found.shadowed == {}


def test_what_stands_beside_the_features_is_listed(tmp_path: Path) -> None:
    job = trident_tree(tmp_path / "job")
    (job / UNI / "A.h5.lock").touch()
    write_h5(job / "20x_256px_0px_overlap" / "slide_features_titan" / "A.h5", features(1)[0], grid(3))
    reasons = _reasons(job)
    assert {name: reasons.pop(f"20x_256px_0px_overlap/{name}") for name in ("patches", "visualization")} == {
        "patches": "coordinates without features",
        "visualization": "pictures",
    }
    assert "slide-level" in reasons.pop("20x_256px_0px_overlap/slide_features_titan")
    assert "lock" in reasons.pop(f"{UNI}/A.h5.lock")
    assert {reasons.pop(name)[:21] for name in ("thumbnails", "contours", "contours_geojson")} == {
        "no folder of features"
    }
    assert set(reasons) == {
        "20x_256px_0px_overlap/_config_feats_uni_v1.json",
        "20x_256px_0px_overlap/_logs_feats_uni_v1.txt",
        "_logs_segmentation.txt",
    }
    assert set(reasons.values()) == {"not a patch file"}


def test_several_encoders_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    other = "20x_256px_0px_overlap/features_conch_v15"
    job = trident_tree(tmp_path / "job", (UNI, other))
    with pytest.raises(InputError, match="several encoders") as caught:
        find_patch_files(job)
    assert caught.value.found == f"{other}, {UNI}"
    assert "conch_v15, uni_v1" in (caught.value.fix or "")
    assert find_patch_files(job, encoder="uni_v1").folder == job / UNI
    assert find_patch_files(job / "20x_256px_0px_overlap", encoder="features_conch_v15").folder == job / other
    assert _reasons(job, encoder="uni_v1")[other] == "features that are not read"


def test_several_magnifications_are_refused(tmp_path: Path) -> None:
    other = "10x_256px_0px_overlap/features_uni_v1"
    job = trident_tree(tmp_path / "job", (UNI, other))
    for encoder in (None, "uni_v1"):
        with pytest.raises(InputError, match="several magnifications") as caught:
            find_patch_files(job, encoder)
        assert caught.value.found == f"{other}, {UNI}"
        assert "give one of these folders" in (caught.value.fix or "")
    assert find_patch_files(job / "10x_256px_0px_overlap").folder == job / other


def test_an_encoder_may_choose_the_magnification_too(tmp_path: Path) -> None:
    job = trident_tree(tmp_path / "job", (UNI, CONCH))
    with pytest.raises(InputError, match="several encoders"):
        find_patch_files(job)
    assert find_patch_files(job, encoder="conch_v15").folder == job / CONCH


@pytest.mark.parametrize("start", [".", UNI, "plain"])
def test_an_encoder_that_is_not_there_is_refused(tmp_path: Path, start: str) -> None:
    job = trident_tree(tmp_path / "job")
    _h5(job.parent / "plain" / "A.h5")
    folder = tmp_path / "plain" if start == "plain" else job / start
    with pytest.raises(InputError, match="no features of encoder virchow") as caught:
        find_patch_files(folder, encoder="virchow")
    assert ("features_uni_v1" in (caught.value.found or "")) == (start != "plain")


def test_an_empty_folder_of_features_is_no_choice(tmp_path: Path) -> None:
    job = trident_tree(tmp_path / "job")
    (job / "20x_256px_0px_overlap" / "features_conch_v15").mkdir()
    assert find_patch_files(job).folder == job / UNI
    assert "without files" in _reasons(job)["20x_256px_0px_overlap/features_conch_v15"]


def test_own_files_beside_a_tree_are_refused(tmp_path: Path) -> None:
    job = trident_tree(tmp_path / "job")
    _h5(job / "A.h5")
    with pytest.raises(InputError, match="patch files, and a folder of features") as caught:
        find_patch_files(job)
    assert UNI in (caught.value.found or "") and "A.h5" in (caught.value.found or "")
    assert find_patch_files(job, encoder="uni_v1").folder == job / UNI
    assert "not in" in _reasons(job, encoder="uni_v1")["A.h5"]


def test_folders_below_plain_files_are_listed(tmp_path: Path) -> None:
    _h5(tmp_path / "A.h5")
    _h5(tmp_path / "old" / "B.h5")
    (tmp_path / "B.h5").mkdir()
    assert find_patch_files(tmp_path).by_slide == {"A": tmp_path / "A.h5"}
    assert _reasons(tmp_path) == dict.fromkeys(("old", "B.h5"), "a folder that was not looked into")


def test_slide_level_features_are_read_where_they_are_given(tmp_path: Path) -> None:
    folder = tmp_path / "20x_256px_0px_overlap" / "slide_features_titan"
    write_h5(folder / "A.h5", features(1)[0], grid(3))
    assert find_patch_files(folder).by_slide == {"A": folder / "A.h5"}
    with pytest.raises(InputError, match="no patch features") as caught:
        find_patch_files(tmp_path)
    assert "slide-level features; give this folder" in (caught.value.found or "")


def test_coordinates_alone_are_no_features(tmp_path: Path) -> None:
    job = trident_tree(tmp_path / "job")
    shutil.rmtree(job / UNI)
    for start in (job, job / "20x_256px_0px_overlap", job / "20x_256px_0px_overlap" / "patches"):
        with pytest.raises(InputError, match="no patch features") as caught:
            find_patch_files(start)
        assert "coordinates without features" in (caught.value.found or "")


def test_files_one_folder_deeper_are_pointed_at(tmp_path: Path) -> None:
    _h5(tmp_path / "cohort" / "A.h5")
    with pytest.raises(InputError, match="no patch features") as caught:
        find_patch_files(tmp_path)
    assert "cohort: patch files in no folder of features: 1" in (caught.value.found or "")


def test_clam_s_two_folders(tmp_path: Path) -> None:
    h5, pt = tmp_path / "h5_files", tmp_path / "pt_files"
    pt.mkdir()
    for slide in ("A", "B", "C"):
        torch.save(torch.zeros(3, 4), pt / f"{slide}.pt")
    _h5(h5 / "A.h5")
    write_h5(h5 / "B.h5", grid(3), key="coords")
    (h5 / "notes.txt").touch()
    found = find_patch_files(tmp_path)
    assert found.by_slide == {"A": h5 / "A.h5", "B": pt / "B.pt", "C": pt / "C.pt"}
    assert found.shadowed == {pt / "A.pt": h5 / "A.h5", h5 / "B.h5": pt / "B.pt"}
    assert found.other == {h5 / "notes.txt": "not a patch file"}
    assert find_patch_files(pt).by_slide == {s: pt / f"{s}.pt" for s in "ABC"}


def test_an_h5_of_trident_comes_before_its_pt(tmp_path: Path) -> None:
    job = trident_tree(tmp_path / "job")
    torch.save(torch.zeros(3, 4), job / UNI / "A.pt")
    for start in (job, job / UNI):
        found = find_patch_files(start)
        assert found.by_slide["A"] == job / UNI / "A.h5"
        assert found.shadowed == {job / UNI / "A.pt": job / UNI / "A.h5"}


@pytest.mark.parametrize(
    "names",
    [
        ("A.h5", "A.pt"),
        ("A.h5", "A.svs.h5"),
        ("A.npz", "A.npy"),
        ("A.parquet", "A.h5"),
        ("h5_files/A.h5", "A.h5"),
        ("A.npy", "pt_files/A.pt"),
        (f"{UNI}/A.npy", f"{UNI}/A.h5"),
        (f"{UNI}/A.npy", f"{UNI}/A.pt"),
    ],
)
def test_a_slide_in_two_files_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(InputError, match="two patch files") as caught:
        find_patch_files(tmp_path)
    assert caught.value.case == "A"
    assert all(str(tmp_path / name) in (caught.value.found or "") for name in names)


def test_every_ending_is_found_and_names_may_be_odd(tmp_path: Path) -> None:
    zarr_array(tmp_path, features(3))
    names = ["TCGA 1 (copy).H5", "b.hdf5", "Ω.pt", "d.e.npy", "f.svs.npz", "g.ndpi.parquet"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".hidden.h5").touch()
    found = find_patch_files(tmp_path)
    assert set(found.by_slide) == {"S 1", "TCGA 1 (copy)", "b", "Ω", "d.e", "f", "g"}
    assert found.by_slide["S 1"] == tmp_path / "S 1.zarr"
    assert found.other == {}


def test_one_slide_s_zarr_folder_is_not_a_cohort(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one slide's file"):
        find_patch_files(zarr_array(tmp_path, features(3)))


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    real = trident_tree(tmp_path / "real", (UNI,))
    job = tmp_path / "job" / "20x_256px_0px_overlap"
    job.mkdir(parents=True)
    (job / "features_uni_v1").symlink_to(real / UNI)
    assert set(find_patch_files(tmp_path / "job").by_slide) == {"A", "B"}
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "A.h5").symlink_to(real / UNI / "A.h5")
    assert find_patch_files(tmp_path / "links").by_slide == {"A": tmp_path / "links" / "A.h5"}


def test_a_loop_of_links_is_walked_once_and_listed(tmp_path: Path) -> None:
    job = trident_tree(tmp_path / "job")
    (job / "20x_256px_0px_overlap" / "up").symlink_to(job)
    (job / "alias").symlink_to(job / "20x_256px_0px_overlap")
    (job / "loop").symlink_to("loop")
    found = find_patch_files(job)
    assert found.folder == job / UNI
    reasons = {path.name: what for path, what in found.other.items()}
    assert reasons["up"] == "a symbolic link that leads back to a folder above it"
    assert "the same folder as" in reasons["alias"]
    assert reasons["loop"] == "not a patch file"


def test_a_loop_alone_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "up").symlink_to(tmp_path)
    with pytest.raises(InputError, match="no patch features") as caught:
        find_patch_files(tmp_path)
    assert "leads back" in (caught.value.found or "")
    (tmp_path / "A.h5").symlink_to("A.h5")
    assert find_patch_files(tmp_path).by_slide == {"A": tmp_path / "A.h5"}, "its reader says what is wrong with it"


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder nobody may list; root may list everything, so a mode would prove nothing."""
    place = trident_tree(tmp_path / "job", (UNI, CONCH)) / CONCH
    scan = os.scandir

    def refuse(folder: Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder) == place:
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(find.os, "scandir", refuse)
    return place


def test_a_folder_without_permission_is_refused_or_listed(locked: Path) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        find_patch_files(locked)
    assert (caught.value.file, caught.value.found) == (str(locked), "Permission denied")
    job = locked.parents[1]
    assert find_patch_files(job).folder == job / UNI
    assert _reasons(job)[CONCH] == "a folder that cannot be read: Permission denied"


def test_folders_too_deep_are_not_looked_into(tmp_path: Path) -> None:
    trident_tree(tmp_path / "a" / "b" / "job")
    with pytest.raises(InputError, match="no patch features"):
        find_patch_files(tmp_path)
    trident_tree(tmp_path / "job")
    assert find_patch_files(tmp_path).folder == tmp_path / "job" / UNI


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared/data) is not on this machine")
def test_real_bags_in_a_trident_tree(tmp_path: Path) -> None:
    folder = tmp_path / "20x_224px_0px_overlap" / "features_efficientnet"
    folder.mkdir(parents=True)
    for path in (SHARED / "patches" / "wsi_bags").glob("*.h5"):
        (folder / path.name).symlink_to(path)
    found = find_patch_files(tmp_path)
    assert set(found.by_slide) == {"CMU-1-Small-Region", "TCGA-CR-7395-01A-01-TS1"}
    from gimp_ray.ingest.patches import inspect_patches

    for slide_id, path in found.by_slide.items():
        source = inspect_patches(path, slide_id)
        a = source.attributes
        assert (a.encoder, a.magnification, a.patch_size, a.overlap) == ("efficientnet", 20.0, 224, 0)
        with h5py.File(path) as file:
            bag = np.concatenate([part for part, _ in source.iter_chunks(50)])
            np.testing.assert_array_equal(bag, file["features"][:])
