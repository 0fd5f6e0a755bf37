"""Every patch format is read whole, in order and in bounded memory; what cannot be used is refused with a reason."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch
from cohort_files import Sources, features, grid, make_sources, write_h5
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_files import (
    FORMATS,
    TRIDENT,
    columns,
    exact_values,
    lists,
    npy,
    npz,
    packed,
    parquet,
    pt,
    said,
    slide_level_h5,
    trident_tree,
    xy,
    zarr_array,
    zarr_group,
)

from gimp_ray.errors import InputError
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.ingest.patches import PATCH_READERS, PatchSource, inspect_patches
from gimp_ray.store import CohortStore

SLIDE = "S 1"
V, C = exact_values(), grid(50)


def _read(source: PatchSource, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
    """All of a source, after a look at its chunks."""
    parts = list(source.iter_chunks(rows))
    lengths = [len(part) for part, _ in parts]
    full, rest = divmod(source.n_patches, rows)
    assert lengths == [rows] * full + [rest] * bool(rest)
    assert all((coords is not None) == source.has_coords for _, coords in parts)
    bag = np.concatenate([part for part, _ in parts])
    if not source.has_coords:
        return bag, None
    places = [coords for _, coords in parts if coords is not None]
    assert all(len(part) == len(coords) and coords.dtype == np.int32 for (part, coords) in parts if coords is not None)
    return bag, np.concatenate(places)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_whole_and_in_order(tmp_path: Path, name: str) -> None:
    known = FORMATS[name]
    path = known.write(tmp_path, V, C)
    source = inspect_patches(path, SLIDE)
    assert (source.slide_id, source.path, source.n_patches, source.dim) == (SLIDE, path, 50, 12)
    assert (source.has_coords, source.dtype) == (known.coords, known.dtype)
    assert source.attributes.coord_unit == ("px" if known.coords else None)
    for rows in (9, 64):
        bag, coords = _read(source, rows)
        np.testing.assert_array_equal(bag.astype(np.float32), V)
        assert bag.dtype.kind == "f"
        if known.coords:
            np.testing.assert_array_equal(coords, C)


@pytest.mark.parametrize("name", FORMATS)
def test_a_source_is_read_in_another_process_too(tmp_path: Path, name: str) -> None:
    source = inspect_patches(FORMATS[name].write(tmp_path, V, C), SLIDE)
    bag, _ = _read(pickle.loads(pickle.dumps(source)), 32)
    np.testing.assert_array_equal(bag.astype(np.float32), V)


def test_every_ending_has_a_format_here() -> None:
    written = {".h5", ".hdf5", *(f".{name.split(',')[0].split()[0]}" for name in FORMATS)}
    assert set(PATCH_READERS) <= written


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    dim=st.integers(1, 9),
    rows=st.integers(1, 45),
    compressed=st.booleans(),
    order=st.sampled_from("CF"),
)
def test_npz_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory, n: int, dim: int, rows: int, compressed: bool, order: str
) -> None:
    values, coords = exact_values(n, dim), grid(n)
    array = np.array(values, order=order)  # type: ignore[call-overload]
    path = npz(tmp_path_factory.mktemp("npz"), compressed=compressed, features=array, coords=coords)
    bag, places = _read(inspect_patches(path, SLIDE), rows)
    np.testing.assert_array_equal(bag, values)
    np.testing.assert_array_equal(places, coords)


# a bag of 16 MB in steps of 0.5 MB
LARGE, LARGE_ROWS = (8_192, 512), 256
BIG: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "npy": npy,
    "npz": lambda f, v: npz(f, features=v),
    "npz, compressed": lambda f, v: npz(f, compressed=True, features=np.zeros_like(v)),
    "npz, column order": lambda f, v: npz(f, features=np.asfortranarray(v)),
    "pt": lambda f, v: pt(f, {"features": torch.from_numpy(v)}),
    "h5": lambda f, v: write_h5(f / "S 1.h5", v),
    "parquet, one row group": lambda f, v: parquet(
        f, pa.table({"features": lists(v)}), len(v), compression="none", use_dictionary=False
    ),
    "parquet, columns": lambda f, v: parquet(f, pa.table(columns(v, "f")), len(v), use_dictionary=False),
    "parquet, packed row groups": lambda f, v: parquet(
        f, said(pa.table({"features": packed(v)}), dim=512, dtype="float32"), 2048, use_dictionary=False
    ),
    "zarr": lambda f, v: zarr_array(f, v, chunks=(128, 512)),
}


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return np.tile(exact_values(64, 512), (LARGE[0] // 64, 1))


# read a whole bag at a time: once, with some blocks of it beside that
WHOLE = ("npz", "npz, compressed", "npz, column order", "zarr")


@pytest.mark.parametrize("name", BIG)
def test_a_large_bag_is_not_held_or_only_once(tmp_path: Path, large: np.ndarray, name: str) -> None:
    path = BIG[name](tmp_path, large)
    inspect_patches(path, SLIDE)  # what a format imports is not counted
    pa.default_memory_pool().release_unused()
    tracemalloc.start()
    try:
        source = inspect_patches(path, SLIDE)
        assert _held() < 1 << 20, "looking at a file reads its header alone"
        read = highest = 0
        for part, _ in source.iter_chunks(LARGE_ROWS):
            read += len(part)
            highest = max(highest, pa.total_allocated_bytes())
        highest += _held()
    finally:
        tracemalloc.stop()
    assert read == LARGE[0]
    bag = LARGE[0] * LARGE[1] * 4
    assert highest < (bag * 1.5 if name in WHOLE or name.startswith("parquet") else bag // 4)


def _held() -> int:
    return tracemalloc.get_traced_memory()[1]


def test_a_zarr_chunk_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zarr_group(tmp_path, 3, (20, 12), features=V, coords=C)
    opened: list[str] = []
    read = Path.open

    def counted(self: Path, *args: object, **options: object) -> object:
        opened.append(self.as_posix())
        return read(self, *args, **options)  # type: ignore[call-overload]

    source = inspect_patches(path, SLIDE)
    monkeypatch.setattr(Path, "open", counted)
    _read(source, 7)
    chunks = [name for name in opened if "/features/c/" in name]
    assert sorted(set(chunks)) == sorted(chunks)


def test_trident_s_attributes(tmp_path: Path) -> None:
    path = trident_tree(tmp_path) / "20x_256px_0px_overlap" / "features_uni_v1" / "A.h5"
    a = inspect_patches(path, "A").attributes
    assert (a.encoder, a.magnification, a.patch_size, a.overlap) == ("uni_v1", 20.0, 256, 0)
    assert (a.patch_size_level0, a.level0_width, a.level0_height, a.coord_unit) == (512, 50_000, 40_000, "px")


def test_folders_say_what_the_file_does_not(tmp_path: Path) -> None:
    place = tmp_path / "2.5x_512px_32px_overlap" / "features_conch_v15"
    a = inspect_patches(write_h5(place / "A.h5", V, C, encoder="None"), "A").attributes
    assert (a.encoder, a.magnification, a.patch_size, a.overlap) == ("conch_v15", 2.5, 512, 32)
    torch.save(torch.from_numpy(V), place / "B.pt")
    assert inspect_patches(place / "B.pt", "B").attributes.encoder == "conch_v15"
    elsewhere = inspect_patches(write_h5(tmp_path / "features" / "C.h5", V, C), "C").attributes
    assert (elsewhere.encoder, elsewhere.magnification) == (None, None)


def test_a_pt_or_npy_file_of_trident_finds_its_coordinates(tmp_path: Path) -> None:
    place = tmp_path / "20x_256px_0px_overlap"
    (place / "features_uni_v1").mkdir(parents=True)
    write_h5(place / "patches" / "S 1_patches.h5", C, key="coords")
    with h5py.File(place / "patches" / "S 1_patches.h5", "a") as file:
        file["coords"].attrs.update(TRIDENT)
    for path in (pt(place / "features_uni_v1", torch.from_numpy(V)), npy(place / "features_uni_v1", V)):
        source = inspect_patches(path, SLIDE)
        np.testing.assert_array_equal(_read(source, 20)[1], C)
        assert (source.attributes.encoder, source.attributes.patch_size_level0) == ("uni_v1", 512)


@pytest.mark.parametrize(
    ("folder", "said_", "thing"),
    [
        ("20x_256px_0px_overlap/features_conch_v15", {"encoder": "uni_v1", **TRIDENT}, "encoder"),
        ("10x_256px_0px_overlap/features_uni_v1", {"encoder": "uni_v1", **TRIDENT}, "magnification"),
        ("20x_512px_0px_overlap/features_uni_v1", TRIDENT, "patch size"),
        ("20x_256px_64px_overlap/features_uni_v1", TRIDENT, "overlap"),
    ],
)
def test_a_file_in_the_wrong_folder_is_refused(
    tmp_path: Path, folder: str, said_: dict[str, object], thing: str
) -> None:
    path = write_h5(tmp_path / folder / "A.h5", V, C, **said_)
    with pytest.raises(InputError, match=f"another {thing}") as caught:
        inspect_patches(path, "A")
    assert (caught.value.file, caught.value.case) == (str(path), "A")
    assert caught.value.expected and caught.value.found and "rename" in (caught.value.fix or "")


def test_a_folder_may_spell_the_encoder_its_own_way(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "features_UNI-v1" / "A.h5", V, C, encoder="uni_v1")
    assert inspect_patches(path, "A").attributes.encoder == "uni_v1"


def test_clam_s_patch_size_at_a_level_is_not_the_folder_s(tmp_path: Path) -> None:
    place = tmp_path / "20x_256px_0px_overlap" / "features_uni_v1"
    path = write_h5(place / "A.h5", V, C, patch_size=512, patch_level=0)
    a = inspect_patches(path, "A").attributes
    assert (a.patch_size, a.patch_level, a.magnification) == (512, 0, 20.0)


@pytest.mark.parametrize("shape", [(12,), (1, 12)])
def test_slide_level_features_are_bags_of_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = slide_level_h5(tmp_path / "slide_features_titan" / "A.h5", V[0].reshape(shape), C, **TRIDENT)
    source = inspect_patches(path, "A")
    assert (source.n_patches, source.dim, source.has_coords, source.slide_level) == (1, 12, False, True)
    assert (source.attributes.encoder, source.attributes.coord_unit) == ("titan", None)
    np.testing.assert_array_equal(_read(source, 512)[0], V[:1])


def test_stamp_says_in_the_file_that_it_is_of_a_slide(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "A.h5", V[0], key="feats")
    with pytest.raises(InputError, match="unknown shape"):
        inspect_patches(path, "A")
    with h5py.File(path, "a") as file:
        file.attrs.update({"feat_type": "patient", "encoder": "cobra"})
    source = inspect_patches(path, "A")
    assert (source.n_patches, source.attributes.encoder, source.slide_level) == (1, "cobra", True)


def test_attributes_of_zarr_and_parquet(tmp_path: Path) -> None:
    import zarr

    path = zarr_group(tmp_path, 2, (20, 12), features=V, coords=C)
    group = zarr.open_group(str(path), mode="a")
    group.attrs["encoder"] = "uni_v1"
    group["coords"].attrs.update(TRIDENT)
    table = said(pa.table({"features": lists(V), **xy(C)}), encoder="uni_v1", **TRIDENT)
    for file in (path, parquet(tmp_path, table)):
        a = inspect_patches(file, SLIDE).attributes
        assert (a.encoder, a.magnification, a.patch_size, a.patch_size_level0) == ("uni_v1", 20.0, 256, 512)


class Bomb:
    """A pickle that makes a file when it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def _objects(folder: Path) -> np.ndarray:
    array = np.empty((3, 4), object)
    array[:] = Bomb(folder / "boom")
    return array


def _zarr_pickle(folder: Path) -> Path:
    path = zarr_array(folder, V, chunks=(50, 12), zarr_format=2, compressors=None)
    document = json.loads((path / ".zarray").read_text())
    document["filters"] = [{"id": "pickle", "protocol": 5}]
    (path / ".zarray").write_text(json.dumps(document))
    (path / "0.0").write_bytes(pickle.dumps(Bomb(folder / "boom")))
    return path


def _cut(path: Path, keep: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def _flipped(path: Path, mark: bytes) -> Path:
    """A byte changed in the middle of the values, which checksums alone can tell."""
    content = bytearray(path.read_bytes())
    content[content.index(mark) + len(mark) // 2] ^= 0x01
    path.write_bytes(content)
    return path


def _damaged_zarr(folder: Path, missing: bool) -> Path:
    path = zarr_group(folder, 3, (10, 12), features=V, coords=C)
    chunk = path / "features" / "c" / "3" / "0"
    if missing:
        chunk.unlink()
    else:
        _cut(chunk)
    return path


def _empty_folder(folder: Path) -> Path:
    (folder / "S 1.zarr").mkdir()
    return folder / "S 1.zarr"


def _without_column(folder: Path) -> Path:
    table = pa.table(columns(V, "f"))
    return parquet(folder, table.drop_columns(["f4"]))


def _ragged(folder: Path, even: bool) -> Path:
    """Lists of 12, 11 and 13 values, whose mean is 12; or of 12 and 11."""
    rows = V[:3].tolist()
    rows[1].pop()
    if even:
        rows[2].append(1.0)
    return parquet(folder, pa.table({"features": pa.array(rows, pa.list_(pa.float32()))}))


def _null_row(folder: Path, kind: pa.DataType) -> Path:
    rows = [*V[:3].tolist(), None]
    return parquet(folder, pa.table({"features": pa.array(rows, kind)}))


def _wrong_width(folder: Path) -> Path:
    return parquet(folder, said(pa.table({"features": packed(V)}), dim=13, dtype="float32"))


def _short_blob(folder: Path) -> Path:
    rows = [row.tobytes() for row in V[:3]]
    rows[1] = rows[1][:-4]
    return parquet(folder, said(pa.table({"features": pa.array(rows)}), dim=12, dtype="float32"))


def _two_zip_headers(folder: Path) -> Path:
    """An npz whose array says that it is longer than it is."""
    npz(folder, features=V)
    with zipfile.ZipFile(folder / "S 1.npz") as archive:
        content = archive.read("features.npy")
    with zipfile.ZipFile(folder / "S 1.npz", "w") as archive:
        archive.writestr("features.npy", content.replace(b"(50, 12)", b"(90, 12)"))
    return folder / "S 1.npz"


T = torch.from_numpy
# fault -> (how to make it, what is said, part of what was found)
FAULTS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "pt, two candidates": (lambda f: pt(f, {"features": T(V), "feats": T(V)}), "several arrays", "features, feats"),
    "pt, no candidate": (lambda f: pt(f, {"x": T(V)}), "no features", "x"),
    "pt, no tensors": (lambda f: pt(f, {"features": [1.0]}), "not a plain tensor", "without tensors"),
    "pt, a list": (lambda f: pt(f, [T(V)]), "not a plain tensor", "list"),
    "pt, a vector": (lambda f: pt(f, T(V[0])), "unknown shape", "(12,)"),
    "pt, integers in a dictionary": (lambda f: pt(f, {"features": T(C)}), "not a plain tensor", "int64"),
    "pt, numpy": (lambda f: pt(f, V), "not a plain tensor", "numpy"),
    "pt, few coordinates": (lambda f: pt(f, {"features": T(V), "coords": T(C[1:])}), "do not match", "(49, 2)"),
    "pt, a bomb in a dictionary": (
        lambda f: pt(f, {"features": T(V), "x": Bomb(f / "boom")}), "not a plain tensor", "getattr"
    ),
    "npy, integers": (lambda f: npy(f, C), "not floats", "int64"),
    "npy, objects": (lambda f: npy(f, _objects(f)), "not floats", "object"),
    "npy, records": (lambda f: npy(f, np.zeros(3, "f4,i4")), "not floats", "f0"),
    "npy, cut short": (lambda f: _cut(npy(f, V)), "cannot be read", "bytes"),
    "npy, cut in the header": (lambda f: _cut(npy(f, V), 0.01), "cannot be read", ""),
    "npy, empty": (lambda f: npy(f, V[:0]), "bag is empty", "(0, 12)"),
    "npy, cube": (lambda f: npy(f, np.zeros((2, 5, 12), np.float32)), "unknown shape", "(2, 5, 12)"),
    "npz, integers": (lambda f: npz(f, features=C), "not floats", "int64"),
    "npz, objects": (lambda f: npz(f, features=_objects(f)), "cannot be read", "never loaded"),
    "npz, object coordinates": (lambda f: npz(f, features=V, coords=_objects(f)), "cannot be read", "never loaded"),
    "npz, two candidates": (lambda f: npz(f, features=V, feats=V), "several arrays", "features, feats"),
    "npz, two coordinates": (lambda f: npz(f, feats=V, coords=C, coordinates=C), "several arrays", "coords, coord"),
    "npz, no candidate": (lambda f: npz(f, arr_0=V), "no features", "arr_0"),
    "npz, few coordinates": (lambda f: npz(f, feats=V, coords=C[1:]), "do not match", "(49, 2)"),
    "npz, NaN coordinates": (lambda f: npz(f, feats=V, coords=C * np.nan), "do not fit", "nan"),
    "npz, cut short": (lambda f: _cut(npz(f, features=V)), "cannot be read", "zip"),
    "npz, a changed byte": (lambda f: _flipped(npz(f, features=V), V[9].tobytes()), "cannot be read", "CRC"),
    "npz, a false length": (_two_zip_headers, "cannot be read", "asks for"),
    "parquet, integers": (lambda f: parquet(f, pa.table({"features": lists(C)})), "not floats", "int64"),
    "parquet, integer column": (lambda f: parquet(f, pa.table({**columns(V, "f"), "f2": C[:, 0]})), "not floats", "f2"),
    "parquet, a gap": (_without_column, "column of features is missing", "f5 as number 4"),
    "parquet, two kinds": (
        lambda f: parquet(f, pa.table({"features": lists(V), **columns(V, "f")})), "several kinds", "f0 to f11"
    ),
    "parquet, two namings": (
        lambda f: parquet(f, pa.table({**columns(V, "feature_"), **columns(V, "f")})), "several kinds", "f0 to f11"
    ),
    "parquet, nothing": (lambda f: parquet(f, pa.table({"case_id": ["A"]})), "no features", "case_id"),
    "parquet, text": (lambda f: parquet(f, pa.table({"features": ["A"]})), "unknown type", "string"),
    "parquet, no dim": (lambda f: parquet(f, pa.table({"features": packed(V)})), "unknown format", "dim=''"),
    "parquet, another dim": (_wrong_width, "width that the metadata give", "48 bytes"),
    "parquet, a short value": (_short_blob, "not of one width", "another width"),
    "parquet, ragged": (lambda f: _ragged(f, False), "not of one width", "35 values in 3 rows"),
    "parquet, ragged evenly": (lambda f: _ragged(f, True), "not of one width", "another width"),
    "parquet, a null list": (lambda f: _null_row(f, pa.list_(pa.float32(), 12)), "not of one width", "without a value"),
    "parquet, two pairs": (
        lambda f: parquet(f, pa.table({"features": lists(V), **xy(C), **xy(C, "coord_x", "coord_y")})),
        "pairs of coordinates", "coord_x",
    ),
    "parquet, null coordinates": (
        lambda f: parquet(f, pa.table({"features": lists(V[:2]), "x": [1, None], "y": [1, 2]})), "do not fit", "nan"
    ),
    "parquet, empty": (lambda f: parquet(f, pa.table({"features": lists(V)})[:0]), "bag is empty", "(0, 12)"),
    "parquet, cut short": (lambda f: _cut(parquet(f, pa.table({"features": lists(V)}))), "cannot be read", "Parquet"),
    "zarr, integers": (lambda f: zarr_array(f, C), "not floats", "int64"),
    "zarr, two candidates": (lambda f: zarr_group(f, 2, (9, 12), feats=V, features=V), "several arrays", "feats"),
    "zarr, no candidate": (lambda f: zarr_group(f, 3, (9, 12), X=V), "no features", "X"),
    "zarr, few coordinates": (lambda f: zarr_group(f, 2, (9, 12), feats=V, coords=C[1:]), "do not match", "(49, 2)"),
    "zarr, a vector": (lambda f: zarr_array(f, V[0]), "unknown shape", "(12,)"),
    "zarr, a missing chunk": (lambda f: _damaged_zarr(f, True), "chunks of the array", "4 chunks"),
    "zarr, a damaged chunk": (lambda f: _damaged_zarr(f, False), "cannot be read", ""),
    "zarr, pickles": (_zarr_pickle, r"pickle|cannot be read", ""),
    "zarr, nothing in it": (_empty_folder, "cannot be read", "No group"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_refused(tmp_path: Path, fault: str) -> None:
    make, message, found = FAULTS[fault]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        _read(inspect_patches(path, SLIDE), 16)
    error = caught.value
    assert (error.file, error.case) == (str(path), SLIDE)
    assert found in (error.found or "")
    assert error.expected and error.fix
    assert not (tmp_path / "boom").exists(), "a pickle was executed"


def test_the_array_of_objects_is_a_bomb(tmp_path: Path) -> None:
    """The tests above would prove nothing if loading it carelessly did nothing."""
    np.load(npy(tmp_path, _objects(tmp_path)), allow_pickle=True)
    assert (tmp_path / "boom").exists()


def test_a_cut_array_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for path in (_cut(npy(tmp_path, V), 0.9), _two_zip_headers(tmp_path)):
        with pytest.raises(InputError, match="cannot be read"):
            inspect_patches(path, SLIDE)


def test_zarr_is_asked_for_by_name_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zarr_array(tmp_path, V)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match="needs the package zarr") as caught:
        inspect_patches(path, SLIDE)
    assert caught.value.fix == "pip install 'gimp-ray[formats]'"


def _link_to_nothing(folder: Path) -> None:
    (folder / "A.h5").symlink_to(folder / "gone.h5")


def _link_to_itself(folder: Path) -> None:
    (folder / "A.h5").symlink_to("A.h5")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "A.h5")


@pytest.mark.parametrize(
    ("make", "found"), [(_link_to_nothing, "leads nowhere"), (_link_to_itself, "back to itself"), (_pipe, "pipe")]
)
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None], found: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=r"cannot be opened|is no file") as caught:
        inspect_patches(tmp_path / "A.h5", "A")
    assert found in (caught.value.found or "") and caught.value.fix
    assert (caught.value.file, caught.value.case) == (str(tmp_path / "A.h5"), "A")


@pytest.mark.parametrize("ending", [".h5", ".npy", ".zarr"])
def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    path = tmp_path / f"A{ending}"
    path.mkdir() if ending == ".zarr" else path.write_bytes(b"x")

    def refuse(self: Path, *_: object, **__: object) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so a mode would prove nothing
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="cannot be opened") as caught:
        inspect_patches(path, "A")
    assert caught.value.found == "permission denied"


def test_a_link_to_a_file_is_as_good_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "A.npz").symlink_to(npz(tmp_path, features=V))
    assert inspect_patches(tmp_path / "A.npz", "A").n_patches == 50


def test_a_cohort_of_every_format(tmp_path: Path) -> None:
    """Each slide in another format: the same store as from h5 alone, coordinates apart."""
    sources = make_sources(tmp_path)
    for slide_id, ending, write in (
        ("A0-DX1", ".npz", lambda f, v, c: npz(f, compressed=True, features=v, coords=c)),
        ("A1-DX1", ".zarr", lambda f, v, c: zarr_group(f, 2, (7, 8), features=v, coords=c)),
        ("A2-DX1", ".parquet", lambda f, v, c: parquet(f, pa.table({**columns(v, "f"), **xy(c)}))),
        ("B0-DX1", ".npy", lambda f, v, c: npy(f, v)),
        ("B1-DX1", ".pt", lambda f, v, c: pt(f, {"feats": T(v), "coords": T(c)})),
    ):
        (sources.patches / f"{slide_id}.h5").unlink()
        path = write(tmp_path, sources.bags[slide_id], sources.coords[slide_id])
        shutil.move(path, sources.patches / f"{slide_id}{ending}")
    report = sources.ingest(strict=True)
    store = CohortStore.open(sources.out)
    for slide_id, bag in sources.bags.items():
        np.testing.assert_array_equal(store.read_bag(slide_id), bag.astype(np.float16))
        if slide_id != "B0-DX1":
            np.testing.assert_array_equal(store.read_coords(slide_id), sources.coords[slide_id])
    assert "1 of 6 slides have no coordinates; theirs are stored as -1" in report.notes


def _rewrite(sources: Sources, slide_id: str, place: str = "", **attributes: object) -> Path:
    (sources.patches / f"{slide_id}.h5").unlink(missing_ok=True)
    path = sources.patches / place / f"{slide_id}.h5"
    return write_h5(path, sources.bags[slide_id], sources.coords[slide_id], **attributes)


def test_a_cohort_in_a_trident_tree(sources: Sources) -> None:
    place = "20x_256px_0px_overlap/features_uni_v1"
    for slide_id in sources.bags:
        path = _rewrite(sources, slide_id, place, **TRIDENT)
        write_h5(path.parents[1] / "patches" / f"{slide_id}_patches.h5", sources.coords[slide_id], key="coords")
    (sources.patches / place / "A0-DX1.h5.lock").touch()
    report = sources.ingest(strict=True)
    store = CohortStore.open(sources.out)
    rows = store.slides.to_pylist()
    assert {(row["encoder"], row["magnification"], row["overlap"]) for row in rows} == {("uni_v1", 20.0, 0)}
    assert store.manifest.encoder == "uni_v1"
    items = {(item.kind, item.id): item.reason for item in report.left_out}
    assert set(items) == {("folder", "patches"), ("patch file", "A0-DX1.h5.lock")}
    assert "coordinates" in items["folder", "patches"]


def test_files_named_by_case(sources: Sources) -> None:
    """One file a patient, as STAMP's patient-level features: the slide id of its row is the case id."""
    for row in sources.rows:
        (sources.patches / f"{row[0]}-DX1.h5").rename(sources.patches / f"{row[0]}.h5")
        row[1] = row[0]
    sources.write_cases()
    sources.ingest(strict=True)
    store = CohortStore.open(sources.out)
    assert (
        store.slides["slide_id"].to_pylist()
        == store.slides["case_id"].to_pylist()
        == ["A0", "A1", "A2", "B0", "B1", "B2"]
    )


def test_a_cohort_of_slide_vectors(sources: Sources) -> None:
    for slide_id, bag in sources.bags.items():
        path = sources.patches / "slide_features_titan" / f"{slide_id}.h5"
        slide_level_h5(path, bag[0], sources.coords[slide_id], **TRIDENT)
        (sources.patches / f"{slide_id}.h5").unlink()
    with pytest.raises(InputError, match="no patch features") as caught:
        sources.ingest()
    assert "slide-level" in (caught.value.found or "")
    report = ingest_cohort(
        patches=sources.patches / "slide_features_titan",
        genes=sources.genes,
        cases=sources.cases,
        out=sources.out,
        options=IngestOptions(workers=1, progress=False, strict=True),
    )
    store = CohortStore.open(sources.out)
    assert (store.manifest.encoder, store.manifest.patches.coordinates, store.manifest.num_patches) == (
        "titan",
        "none",
        6,
    )
    np.testing.assert_array_equal(store.read_bag("B1-DX1"), sources.bags["B1-DX1"][:1].astype(np.float16))
    assert "6 of 6 slides are one vector of the slide each: a bag of one patch" in report.notes


def _magnifications(sources: Sources) -> None:
    _rewrite(sources, "A0-DX1", **TRIDENT)
    _rewrite(sources, "A1-DX1", **{**TRIDENT, "target_magnification": 10})


def _patch_sizes(sources: Sources) -> None:
    _rewrite(sources, "A0-DX1", **TRIDENT)
    _rewrite(sources, "A1-DX1", **{**TRIDENT, "patch_size": 512})


def _overlaps(sources: Sources) -> None:
    _rewrite(sources, "A0-DX1", **TRIDENT)
    _rewrite(sources, "A1-DX1", **{**TRIDENT, "overlap": 64})


def _units(sources: Sources) -> None:
    _rewrite(sources, "A1-DX1", unit="um")


def _levels(sources: Sources) -> None:
    with h5py.File(write_h5(sources.patches / "A1-DX1.h5", features(1)), "a") as file:
        file.attrs["feat_type"] = "slide"


@pytest.mark.parametrize(
    ("change", "message", "found"),
    [
        (_magnifications, "several magnifications", "20x: A0-DX1.h5; 10x: A1-DX1.h5"),
        (_patch_sizes, "several sizes", "256 px: A0-DX1.h5; 512 px: A1-DX1.h5"),
        (_overlaps, "overlap differently", "0 px: A0-DX1.h5; 64 px: A1-DX1.h5"),
        (_units, "several units", "px: A0-DX1.h5; um: A1-DX1.h5"),
        (_levels, "one vector of the slide", "patches: A0-DX1.h5; one vector: A1-DX1.h5"),
    ],
)
def test_a_mixed_cohort_is_refused(
    sources: Sources, change: Callable[[Sources], None], message: str, found: str
) -> None:
    change(sources)
    with pytest.raises(InputError, match=message) as caught:
        sources.ingest()
    error = caught.value
    assert (error.case, error.file, error.found) == ("A1-DX1", str(sources.patches / "A1-DX1.h5"), found)
    assert "ingest one cohort" in (error.fix or "") and "in a cohort" in (error.expected or "")
    assert not sources.out.exists()


def test_clam_s_patch_sizes_may_differ(sources: Sources) -> None:
    """512 px of a slide scanned at 40x show what 256 px of one scanned at 20x do; the file does not say which."""
    _rewrite(sources, "A1-DX1", patch_size=512, patch_level=0)
    assert "the slides differ in patch_size: 256, 512" in sources.ingest(strict=True).notes
