"""What is read from the store equals the source in float16, for every format, with order and coordinates kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cohort_files import Sources, features, grid, make_sources, write_h5

from gimp_ray.store import CohortStore

N, DIM = 1100, 8
Writer = Callable[[Path, np.ndarray, np.ndarray], np.ndarray | None]


def _clam(folder: Path, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
    write_h5(folder / "A0-DX1.h5", values, coords, patch_size=256, patch_level=0)
    return coords


def _one_patch_a_chunk(folder: Path, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
    with h5py.File(folder / "A0-DX1.h5", "w") as file:
        file.create_dataset("features", data=values, chunks=(1, DIM))
        file.create_dataset("coords", data=coords.astype(np.int32), chunks=(1, 2))
    return coords


def _batched(folder: Path, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
    write_h5(folder / "A0-DX1.h5", values[None], coords)
    return coords


def _half(folder: Path, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
    write_h5(folder / "A0-DX1.h5", values.astype(np.float16), coords)
    return coords


def _double_gzip(folder: Path, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
    with h5py.File(folder / "A0-DX1.h5", "w") as file:
        file.create_dataset("features", data=values.astype(np.float64), compression="gzip", chunks=(100, 3))
        file.create_dataset("coords", data=coords)
    return coords


def _stamp(folder: Path, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
    with h5py.File(folder / "A0-DX1.h5", "w") as file:
        file["feats"], file["coords"] = values, coords + 0.25
        file.attrs.update({"extractor": "ctranspath", "tile_size_px": 224})
    return coords


def _no_coords(folder: Path, values: np.ndarray, coords: np.ndarray) -> None:
    write_h5(folder / "A0-DX1.hdf5", values)


def _pt(folder: Path, values: np.ndarray, coords: np.ndarray) -> None:
    torch.save(torch.from_numpy(values), folder / "A0-DX1.pt")


def _pt_batched_parameter(folder: Path, values: np.ndarray, coords: np.ndarray) -> None:
    torch.save(torch.nn.Parameter(torch.from_numpy(values[None])), folder / "A0-DX1.pt")


def _pt_old_format(folder: Path, values: np.ndarray, coords: np.ndarray) -> None:
    torch.save(torch.from_numpy(values), folder / "A0-DX1.pt", _use_new_zipfile_serialization=False)


def _pt_with_coords(folder: Path, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
    torch.save(torch.from_numpy(values), folder / "A0-DX1.pt")
    write_h5(folder / "h5_files" / "A0-DX1.h5", values[:0], coords, key="other", patch_size=256, patch_level=0)
    return coords


FORMATS: list[Writer] = [
    _clam, _one_patch_a_chunk, _batched, _half, _double_gzip, _stamp, _no_coords,
    _pt, _pt_batched_parameter, _pt_old_format, _pt_with_coords,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__.strip("_"))
def test_every_format_round_trips(tmp_path: Path, write: Writer) -> None:
    sources = make_sources(tmp_path)
    (sources.patches / "A0-DX1.h5").unlink()
    values, coords = features(N, DIM, seed=9), grid(N)
    known = write(sources.patches, values, coords)
    store = sources.store()
    bag = store.read_bag("A0-DX1")
    assert bag.dtype == np.float16
    np.testing.assert_array_equal(bag, values.astype(np.float16))
    expected = np.full((N, 2), -1) if known is None else known
    np.testing.assert_array_equal(store.read_coords("A0-DX1"), expected)
    row = store.slides.filter(np.array(store.slides["slide_id"]) == "A0-DX1").to_pylist()[0]
    assert row["has_coords"] == (known is not None)
    box = (row["x_min"], row["y_min"], row["x_max"], row["y_max"])
    assert box == ((None,) * 4 if known is None else (0, 0, coords[:, 0].max(), coords[:, 1].max()))
    assert store.manifest.patches.coordinates == ("some" if known is None else "all")


def test_bfloat16_tensors_round_trip(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    (sources.patches / "A0-DX1.h5").unlink()
    tensor = torch.from_numpy(features(600, DIM)).bfloat16()
    torch.save(tensor, sources.patches / "A0-DX1.pt")
    np.testing.assert_array_equal(sources.store().read_bag("A0-DX1"), tensor.to(torch.float16).numpy())


def test_chunks_larger_than_a_read_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gimp_ray.ingest.patches.write._CHUNK_VALUES", 512 * DIM)
    sources = make_sources(tmp_path, sizes={"A0-DX1": 1600, "A1-DX1": 1024, "A2-DX1": 1025})
    store = sources.store()
    for slide_id in ("A0-DX1", "A1-DX1", "A2-DX1"):
        np.testing.assert_array_equal(store.read_bag(slide_id), sources.bags[slide_id].astype(np.float16))
        np.testing.assert_array_equal(store.read_coords(slide_id), sources.coords[slide_id])


def test_attributes_of_the_tools_are_kept(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    bag, coords = sources.bags["A0-DX1"], sources.coords["A0-DX1"]
    trident = {
        "patch_size": 512,
        "patch_size_level0": 1024,
        "target_magnification": 20,
        "level0_magnification": 40,
        "overlap": 0,
        "level0_width": 50_000,
        "level0_height": 40_000,
    }
    write_h5(sources.patches / "A0-DX1.h5", bag, coords, encoder="uni_v1", **trident)
    clam = {"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}
    write_h5(sources.patches / "A1-DX1.h5", sources.bags["A1-DX1"], sources.coords["A1-DX1"], **clam)
    report = sources.ingest()
    store = CohortStore.open(sources.out)
    rows = {row["slide_id"]: row for row in store.slides.to_pylist()}
    a0, a1, a2 = rows["A0-DX1"], rows["A1-DX1"], rows["A2-DX1"]
    names = ("patch_size", "patch_level", "patch_size_level0", "magnification", "level0_width", "encoder")
    assert [a0[name] for name in names] == [512, None, 1024, 20.0, 50_000, "uni_v1"]
    assert [a1[name] for name in names] == [256, 1, 1024, None, None, None]
    assert (a2["patch_level"], a2["patch_size_level0"], a2["coord_unit"]) == (0, 256, "px")
    assert store.manifest.encoder == "uni_v1"
    assert "the slides differ in patch_size: 256, 512" in report.notes


def test_clam_folders_prefer_h5_and_fall_back_to_pt(sources: Sources) -> None:
    for slide_id, bag in sources.bags.items():
        (sources.patches / f"{slide_id}.h5").rename(_made(sources.patches / "h5_files") / f"{slide_id}.h5")
        torch.save(torch.from_numpy(bag), _made(sources.patches / "pt_files") / f"{slide_id}.pt")
    (sources.patches / "h5_files" / "A1-DX1.h5").unlink()
    write_h5(sources.patches / "h5_files" / "A2-DX1.h5", np.zeros(1), sources.coords["A2-DX1"], key="stitched")
    report = sources.ingest()
    store = CohortStore.open(sources.out)
    used = {row["slide_id"]: Path(str(row["file"])).name for row in report.kept["slides"]}
    assert used == {**{s: f"{s}.h5" for s in sources.bags}, "A1-DX1": "A1-DX1.pt", "A2-DX1": "A2-DX1.pt"}
    for slide_id, bag in sources.bags.items():
        np.testing.assert_array_equal(store.read_bag(slide_id), bag.astype(np.float16))
    np.testing.assert_array_equal(store.read_coords("A2-DX1"), sources.coords["A2-DX1"])
    assert store.read_coords("A1-DX1").max() == -1
    assert "1 of 6 slides have no coordinates; theirs are stored as -1" in report.notes
    shadowed = {item.id for item in report.left_out}
    assert shadowed == {"A0-DX1.pt", "A2-DX1.h5", "B0-DX1.pt", "B1-DX1.pt", "B2-DX1.pt"}


def test_compressed_stores_hold_the_same(tmp_path: Path) -> None:
    plain, packed = (make_sources(tmp_path / name, sizes={"A0-DX1": 1500}) for name in ("plain", "packed"))
    a, b = plain.store(compression="none"), packed.store(compression="zstd")
    assert b.manifest.patches.compression == "zstd"
    np.testing.assert_array_equal(a.read_bag("A0-DX1"), b.read_bag("A0-DX1"))
    assert a.fingerprint == b.fingerprint


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
