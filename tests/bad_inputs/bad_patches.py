"""Bad patch files of every format: HDF5 of CLAM, TRIDENT and STAMP, pt, npy, npz, Parquet, zarr."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import patch_files as files
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from cohort_files import features, grid, write_h5

from tests.bad_inputs.corpus import CASES, SLIDE, Case, Inputs, left_out, passed_over, refused

Spoil = Callable[[Inputs], object]
N, DIM = 21, 8


class Bomb:
    """A pickle that makes a file when it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def bomb(inputs: Inputs) -> Bomb:
    """A bomb whose trace would be found beside the sources."""
    return Bomb(inputs.root / "boom")


def with_value(value: float, dtype: str = "float64") -> np.ndarray:
    """Features of which one is another value."""
    bag = features(N, DIM).astype(dtype)
    bag[7, 3] = value
    return bag


def cut(path: Path, keep: float = 0.6) -> None:
    """Keep the beginning of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def h5(bag: np.ndarray, coords: np.ndarray | None = None, key: str = "features", **attributes: Any) -> Spoil:
    """The slide as another h5 file."""
    return lambda i: write_h5(i.slide, bag, coords, key=key, **attributes)


def _big_then_cut(inputs: Inputs) -> None:
    cut(write_h5(inputs.slide, features(4000), grid(4000)), 0.5)


def _damaged_block(inputs: Inputs) -> None:
    """The header is whole; a compressed block is not."""
    with h5py.File(inputs.slide, "w") as file:
        values = file.create_dataset(
            "features", data=features(600), chunks=(100, 8), compression="gzip", fletcher32=True
        )
        place = values.id.get_chunk_info(3)
    content = bytearray(inputs.slide.read_bytes())
    middle = place.byte_offset + place.size // 2
    content[middle : middle + 40] = bytes(b ^ 0xFF for b in content[middle : middle + 40])
    inputs.slide.write_bytes(content)


def _a_group(name: str) -> Spoil:
    def spoil(inputs: Inputs) -> None:
        with h5py.File(inputs.slide, "a") as file:
            del file[name]
            file.create_group(name)

    return spoil


def _link_elsewhere(inputs: Inputs) -> None:
    with h5py.File(inputs.slide, "w") as file:
        file["features"] = h5py.ExternalLink("../../nowhere.h5", "features")


def _compound(inputs: Inputs) -> None:
    with h5py.File(inputs.slide, "w") as file:
        file["features"] = np.zeros((5, 8), np.dtype([("a", "f4"), ("b", "f4")]))


def _no_file(inputs: Inputs) -> None:
    inputs.slide.unlink()


def _folder(inputs: Inputs) -> None:
    inputs.slide.unlink()
    inputs.slide.mkdir()


def _link_loop(inputs: Inputs) -> None:
    inputs.slide.unlink()
    inputs.slide.symlink_to(inputs.slide.name)


def _link_to_nothing(inputs: Inputs) -> None:
    inputs.slide.unlink()
    inputs.slide.symlink_to("gone.h5")


def _clam(inputs: Inputs) -> Path:
    """CLAM's own layout: h5_files with coordinates alone, pt_files with the features."""
    patches = inputs.sources.patches
    for name, bag in inputs.sources.bags.items():
        (patches / f"{name}.h5").unlink()
        write_h5(patches / "h5_files" / f"{name}.h5", inputs.sources.coords[name], key="coords")
        (patches / "pt_files").mkdir(exist_ok=True)
        torch.save(torch.from_numpy(bag), patches / "pt_files" / f"{name}.pt")
    return patches


def _clam_other_coords(inputs: Inputs) -> None:
    write_h5(_clam(inputs) / "h5_files" / f"{SLIDE}.h5", grid(N + 5), key="coords")


def _clam_damaged_coords(inputs: Inputs) -> None:
    (_clam(inputs) / "h5_files" / f"{SLIDE}.h5").write_bytes(b"")


def _trident(*encoders: str) -> Callable[[Inputs], Path]:
    """TRIDENT's tree with the same slides; returns the features' folder of the last encoder."""

    def spoil(inputs: Inputs) -> Path:
        for path in inputs.sources.patches.iterdir():
            path.unlink()
        places = [f"20x_256px_0px_overlap/features_{encoder}" for encoder in encoders]
        files.trident_tree(inputs.sources.patches, places, [f"{case_id}-DX1" for case_id in CASES])
        return inputs.sources.patches / places[-1]

    return spoil


def _trident_cut(inputs: Inputs) -> None:
    cut(_trident("uni_v1")(inputs) / f"{SLIDE}.h5", 0.3)


def _trident_one_encoder(inputs: Inputs) -> None:
    _trident("uni_v1")(inputs)
    inputs.options += ["--encoder", "conch_v15"]


def _trident_without_features(inputs: Inputs) -> None:
    shutil.rmtree(_trident("uni_v1")(inputs))


def _trident_two_sizes(inputs: Inputs) -> None:
    folder = _trident("uni_v1")(inputs)
    shutil.copytree(folder, inputs.sources.patches / "10x_512px_0px_overlap" / folder.name)


def _stamp_infinite(inputs: Inputs) -> None:
    with h5py.File(inputs.slide, "w") as file:
        file["feats"], file["coords"] = features(N), grid(N) * np.inf
        file.attrs.update({"tile_size_px": 256})


def _stamp_among_clam(inputs: Inputs) -> None:
    with h5py.File(inputs.slide, "w") as file:
        file["feats"], file["coords"] = features(N), grid(N) / 2
        file.attrs["unit"] = "um"


def pt(content: Callable[[Inputs], Any] | Any, **options: Any) -> Spoil:
    """The slide as a file saved by torch."""

    def spoil(inputs: Inputs) -> Path:
        path = inputs.instead(".pt")
        torch.save(content(inputs) if callable(content) else content, path, **options)
        return path

    return spoil


def _bare_bomb(inputs: Inputs) -> None:
    inputs.instead(".pt").write_bytes(pickle.dumps(bomb(inputs)))


def _pt_cut(inputs: Inputs) -> None:
    path = inputs.instead(".pt")
    torch.save(torch.zeros(500, DIM), path)
    cut(path)


def written(ending: str, content: bytes) -> Spoil:
    """The slide as a file of these bytes."""
    return lambda i: i.instead(ending).write_bytes(content)


def npy(content: Callable[[Inputs], Any] | np.ndarray, keep: float = 1.0) -> Spoil:
    """The slide as a numpy array, of which a part may be kept."""

    def spoil(inputs: Inputs) -> None:
        path = inputs.instead(".npy")
        np.save(path, content(inputs) if callable(content) else content)
        cut(path, keep)

    return spoil


def npz(content: Callable[[Inputs], dict[str, Any]] | dict[str, Any], keep: float = 1.0) -> Spoil:
    """The slide as a numpy archive, of which a part may be kept."""

    def spoil(inputs: Inputs) -> None:
        path = inputs.instead(".npz")
        np.savez(path, **(content(inputs) if callable(content) else content))
        cut(path, keep)

    return spoil


def _npz_flipped(inputs: Inputs) -> None:
    """A byte of the values is another one: the zip's checksum tells."""
    path = inputs.instead(".npz")
    np.savez(path, features=features(N), coords=grid(N))
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(content)


def table(columns: dict[str, Any], keep: float = 1.0) -> Spoil:
    """The slide as a Parquet file, of which a part may be kept."""

    def spoil(inputs: Inputs) -> None:
        path = inputs.instead(".parquet")
        pq.write_table(pa.table(columns), path)
        cut(path, keep)

    return spoil


def _ragged_lists() -> pa.Array:
    return pa.array([[1.0] * DIM] * 4 + [[1.0] * (DIM - 1)])


def zarr_group(spoil_folder: Callable[[Path], object] | None = None, **arrays: np.ndarray) -> Spoil:
    """The slide as a zarr group; a function may spoil its folder."""

    def spoil(inputs: Inputs) -> None:
        path = inputs.instead(".zarr")
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        for name, array in arrays.items():
            group.create_array(name, data=array, chunks=(7, array.shape[1]))
        if spoil_folder is not None:
            spoil_folder(path)

    return spoil


def _other_width(inputs: Inputs) -> None:
    write_h5(inputs.slide, features(N, 16), grid(N))


def _other_encoder(inputs: Inputs) -> None:
    for slide_id, encoder in (("A0-DX1", "uni_v1"), (SLIDE, "conch_v15")):
        bag, coords = inputs.sources.bags[slide_id], inputs.sources.coords[slide_id]
        write_h5(inputs.sources.patches / f"{slide_id}.h5", bag, coords, encoder=encoder)


def _two_files(inputs: Inputs) -> None:
    torch.save(torch.zeros(N, DIM), inputs.slide.with_suffix(".pt"))


def _other_endings(inputs: Inputs) -> None:
    for path in list(inputs.sources.patches.iterdir()):
        path.rename(path.with_suffix(".svs"))


def _a_stranger(inputs: Inputs) -> None:
    write_h5(inputs.sources.patches / "Z9.h5", features(5))


def _loop_for_a_folder(inputs: Inputs) -> None:
    shutil.rmtree(inputs.sources.patches)
    inputs.sources.patches.symlink_to("patches")


def _a_file_for_a_folder(inputs: Inputs) -> None:
    inputs.patches = inputs.slide


def coords(*shape: int) -> np.ndarray:
    """Coordinates of any shape."""
    return np.ones(shape)


def _of(file: str, cases: Sequence[Case]) -> tuple[Case, ...]:
    """Cases whose message names the same file."""
    return tuple(Case(c.name, c.spoil, (*c.says, file), c.left_out, c.refused, c.kind) for c in cases)


NOT_WHOLE = "damaged, cut short, or no"
NO_TENSOR = "not a plain tensor"

H5 = _of(
    f"{SLIDE}.h5",
    (
        left_out("h5 of no bytes", lambda i: i.slide.write_bytes(b""), NOT_WHOLE),
        left_out("h5 that is text", lambda i: i.slide.write_text("<html>404</html>"), NOT_WHOLE),
        left_out("h5 cut short", _big_then_cut, NOT_WHOLE, "truncated file"),
        left_out("h5 with a damaged block", _damaged_block, NOT_WHOLE),
        left_out("h5 with another key", h5(features(N), grid(N), key="embeddings"), "no features", "embeddings"),
        left_out("h5 whose features are a group", _a_group("features"), "no features"),
        left_out("h5 whose coordinates are a group", _a_group("coords"), "the coordinates are no data set", "Group"),
        left_out("h5 that links to another file", _link_elsewhere, "no features"),
        left_out("h5 of integers", h5(np.zeros((N, DIM), np.int64)), "not floats", "int64"),
        left_out("h5 of texts", h5(np.full((N, DIM), b"x")), "not floats", "S1"),
        left_out("h5 of pairs", _compound, "not floats"),
        left_out("h5 with NaN", h5(with_value(np.nan), grid(N)), "NaN or Inf", "nan at patch 7, dimension 3"),
        left_out("h5 with Inf", h5(with_value(-np.inf)), "NaN or Inf", "-inf at patch 7, dimension 3"),
        left_out("h5 beyond float16", h5(with_value(7e4)), "overflow float16", "70000.0 at patch 7, dimension 3"),
        left_out("h5 of no patches", h5(np.zeros((0, DIM)), np.zeros((0, 2))), "bag is empty", "(0, 8)"),
        left_out("h5 of a vector", h5(np.zeros(DIM)), "unknown shape", "(8,)"),
        left_out("h5 of two bags", h5(np.zeros((2, 5, DIM))), "unknown shape", "(2, 5, 8)"),
        left_out("h5 with too few coordinates", h5(features(N), grid(N - 1)), "do not match", "(20, 2)"),
        left_out("h5 with too many coordinates", h5(features(N), grid(N + 1)), "do not match", "(22, 2)"),
        left_out("h5 with boxes", h5(features(N), coords(N, 4)), "do not match", "(21, 4)"),
        left_out("h5 with NaN coordinates", h5(features(N), grid(N) * np.nan), "coordinates do not fit", "nan"),
        left_out("h5 with huge coordinates", h5(features(N), grid(N) + 2**40), "coordinates do not fit"),
        left_out("h5 with texts for coordinates", h5(features(N), np.full((N, 2), b"x")), "not numbers"),
        left_out("STAMP with infinite coordinates", _stamp_infinite, "coordinates do not fit"),
        left_out("STAMP without features", h5(grid(N), key="coords"), "no features", "coords"),
        left_out("symbolic link to itself", _link_loop, "cannot be opened", "leads back to itself"),
        left_out("symbolic link to nothing", _link_to_nothing, "cannot be opened", "leads nowhere"),
        left_out("TRIDENT, cut short", _trident_cut, NOT_WHOLE),
        left_out("CLAM, coordinates of other length", _clam_other_coords, "do not match", "(26, 2)"),
        left_out("CLAM, damaged coordinates", _clam_damaged_coords, NOT_WHOLE),
    ),
)

FOLDERS = (
    left_out("no patch file", _no_file, "no patch file", f"{SLIDE}.h5"),
    left_out("folder for a file", _folder, "no patch file", f"{SLIDE}.h5"),
    passed_over("patch file of nobody", _a_stranger, "not in the case table", "Z9.h5"),
    refused("TRIDENT, two encoders", _trident("uni_v1", "conch_v15"), "several encoders", "features_conch_v15"),
    refused("TRIDENT, another encoder", _trident_one_encoder, "no features of encoder conch_v15", "features_uni_v1"),
    refused("TRIDENT, coordinates alone", _trident_without_features, "no patch features", "coordinates without"),
    refused("TRIDENT, two patch sizes", _trident_two_sizes, "several magnifications", "10x_512px"),
    refused("slides of two widths", _other_width, "several widths", f"16: {SLIDE}.h5"),
    refused("slides of two encoders", _other_encoder, "several encoders", f"conch_v15: {SLIDE}.h5"),
    refused("micrometres among pixels", _stamp_among_clam, "several units", f"um: {SLIDE}.h5"),
    refused("slide in two files", _two_files, "two patch files", f"{SLIDE}.pt"),
    refused("folder of pictures", _other_endings, "no patch features", f"{SLIDE}.svs"),
    refused("patches a loop of links", _loop_for_a_folder, "no such folder", "patches"),
    refused("patches a file", _a_file_for_a_folder, "no such folder", "a file"),
    refused("patches nowhere", lambda i: shutil.rmtree(i.sources.patches), "no such folder", "nothing at this path"),
)

PT = _of(
    f"{SLIDE}.pt",
    (
        left_out("pickle bomb", pt(bomb), NO_TENSOR),
        left_out("pickle bomb beside a tensor", pt(lambda i: {"feats": torch.zeros(N, 8), "x": bomb(i)}), NO_TENSOR),
        left_out("pickle bomb, bare", _bare_bomb, NO_TENSOR),
        left_out("pickle bomb, old format", pt(bomb, _use_new_zipfile_serialization=False), NO_TENSOR),
        left_out("pt cut short", _pt_cut, NO_TENSOR),
        left_out("pt of no bytes", written(".pt", b""), NO_TENSOR),
        left_out("pt of integers", pt(torch.zeros(N, DIM, dtype=torch.int64)), NO_TENSOR, "int64"),
        left_out("pt of complex numbers", pt(torch.zeros(N, DIM, dtype=torch.complex64)), NO_TENSOR, "complex64"),
        left_out("pt that is sparse", pt(torch.zeros(N, DIM).to_sparse()), NO_TENSOR),
        left_out("pt of a numpy array", pt(features(N)), NO_TENSOR, "torch.from_numpy"),
        left_out("pt with NaN", pt(torch.from_numpy(with_value(np.nan))), "NaN or Inf", "nan at patch 7"),
        left_out("pt of weights", pt({"weights": torch.zeros(N, DIM)}), "no features", "weights"),
        left_out("pt of settings", pt({"lr": 0.1}), NO_TENSOR, "lr"),
        left_out("pt of two features", pt({"features": torch.zeros(5, 8), "feats": torch.zeros(5, 8)}), "several"),
        left_out("pt with other coordinates", pt({"feats": torch.zeros(N, 8), "coords": torch.zeros(5, 2)}), "(5, 2)"),
    ),
)  # fmt: skip

NUMPY = (
    *_of(
        f"{SLIDE}.npy",
        (
            left_out("npy cut short", npy(features(N), keep=0.7), NOT_WHOLE),
            left_out("npy that is text", written(".npy", b"1,2,3\n"), NOT_WHOLE),
            left_out("npy of objects", npy(lambda i: np.array([[bomb(i)]], object)), "not floats", "object"),
            left_out("npy of integers", npy(np.zeros((N, DIM), np.int32)), "not floats", "int32"),
            left_out("npy with NaN", npy(with_value(np.nan)), "NaN or Inf"),
            left_out("npy of a vector", npy(np.zeros(DIM)), "unknown shape"),
        ),
    ),
    *_of(
        f"{SLIDE}.npz",
        (
            left_out("npz cut short", npz({"features": features(N)}, keep=0.7), NOT_WHOLE),
            left_out("npz of objects", npz(lambda i: {"features": np.array([[bomb(i)]], object)}), "objects"),
            left_out("npz with another key", npz({"arr_0": features(N)}), "no features", "arr_0"),
            left_out("npz with other coordinates", npz({"feats": features(N), "coords": grid(3)}), "do not match"),
            left_out("npz with a wrong checksum", _npz_flipped, NOT_WHOLE),
            left_out("npz with Inf", npz({"features": with_value(np.inf)}), "NaN or Inf"),
        ),
    ),
)

PARQUET = _of(
    f"{SLIDE}.parquet",
    (
        left_out("parquet cut short", table({"features": files.lists(features(N))}, keep=0.8), NOT_WHOLE),
        left_out("parquet that is CSV", written(".parquet", b"f0,f1\n1,2\n"), NOT_WHOLE),
        left_out("parquet without features", table(files.xy(grid(N))), "features", "x, y"),
        left_out(
            "parquet of ragged lists", table({"features": _ragged_lists()}), "not of one width", "39 values in 5 rows"
        ),
        left_out("parquet with a missing patch", table({"features": pa.array([[1.0, 2.0], None])}), "not of one width"),
        left_out("parquet with NaN", table({"features": files.lists(with_value(np.nan))}), "NaN or Inf"),
        left_out("parquet with a missing column", table({"f0": [1.0], "f2": [1.0]}), "is missing", "f2"),
    ),
)

ZARR = _of(
    f"{SLIDE}.zarr",
    (
        left_out("zarr of nothing", lambda i: i.instead(".zarr").mkdir(), NOT_WHOLE),
        left_out("zarr with another key", zarr_group(values=features(N)), "no features", "values"),
        left_out("zarr of integers", zarr_group(features=np.zeros((N, 8), np.int16)), "not floats", "int16"),
        left_out(
            "zarr without a chunk", zarr_group(lambda p: (p / "features" / "1.0").unlink(), features=features(N)),
            "not stored", "2 chunks",
        ),
        left_out(
            "zarr with a damaged chunk",
            zarr_group(lambda p: (p / "features" / "1.0").write_bytes(b"damaged"), features=features(N)), NOT_WHOLE,
        ),
        left_out(
            "zarr with damaged metadata",
            zarr_group(lambda p: (p / "features" / ".zarray").write_text("{"), features=features(N)), NOT_WHOLE,
        ),
        left_out("zarr with other coordinates", zarr_group(features=features(N), coords=grid(3)), "do not match"),
        left_out("zarr with NaN", zarr_group(features=with_value(np.nan)), "NaN or Inf"),
    ),
)  # fmt: skip

BAD_PATCHES: tuple[Case, ...] = (*H5, *FOLDERS, *PT, *NUMPY, *PARQUET, *ZARR)
