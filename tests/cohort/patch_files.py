"""Patch files of every format, made small for the tests of their readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from cohort_files import features, grid, write_h5

TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "level0_width": 50_000,
    "level0_height": 40_000,
    "savetodir": "20x_256px_0px_overlap",
}

# (folder, (N, D) float32, (N, 2) int64) -> the file
Writer = Callable[[Path, np.ndarray, np.ndarray], Path]


@dataclass(frozen=True)
class Format:
    """A way of writing a slide: `coords` tells whether it keeps coordinates, `dtype` what the features come as."""

    write: Writer
    coords: bool = True
    dtype: str = "float32"


def pt(folder: Path, content: Any, name: str = "S 1.pt") -> Path:
    """A file saved by torch."""
    torch.save(content, folder / name)
    return folder / name


def npz(folder: Path, name: str = "S 1.npz", compressed: bool = False, **arrays: np.ndarray) -> Path:
    """A numpy archive."""
    (np.savez_compressed if compressed else np.savez)(folder / name, **arrays)
    return folder / name


def npy(folder: Path, array: np.ndarray, name: str = "S 1.npy") -> Path:
    """One numpy array."""
    np.save(folder / name, array)
    return folder / name


def parquet(folder: Path, table: pa.Table, rows: int = 13, **options: Any) -> Path:
    """A Parquet file with row groups that no chunk of a reader ends with."""
    pq.write_table(table, folder / "S 1.parquet", row_group_size=rows, **options)
    return folder / "S 1.parquet"


def zarr_group(folder: Path, version: int, chunks: tuple[int, ...], **arrays: np.ndarray) -> Path:
    """A zarr group; every array has the chunks of `chunks` along its rows."""
    group = zarr.open_group(str(folder / "S 1.zarr"), mode="w", zarr_format=version)
    for name, array in arrays.items():
        lengths = (*array.shape[:-2], chunks[-2], array.shape[-1]) if name[0] == "c" else chunks
        group.create_array(name, data=array, chunks=lengths)
    return folder / "S 1.zarr"


def zarr_array(folder: Path, array: np.ndarray, **options: Any) -> Path:
    """One zarr array."""
    zarr.create_array(str(folder / "S 1.zarr"), data=array, **options)
    return folder / "S 1.zarr"


def lists(values: np.ndarray, kind: str = "fixed", dtype: pa.DataType | None = None) -> pa.Array:
    """(N, D) as a column of lists: `fixed`, `list` or `large`."""
    flat = pa.array(values.reshape(-1), dtype or pa.from_numpy_dtype(values.dtype))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    ends = np.arange(0, values.size + 1, values.shape[1])
    array = pa.ListArray if kind == "list" else pa.LargeListArray
    return array.from_arrays(pa.array(ends, pa.int32() if kind == "list" else pa.int64()), flat)


def packed(values: np.ndarray, kind: str = "fixed") -> pa.Array:
    """(N, D) as a column of binary: `fixed`, `binary` or `large`."""
    rows = [row.tobytes() for row in values]
    size = values.shape[1] * values.itemsize
    return pa.array(rows, {"fixed": pa.binary(size), "binary": pa.binary(), "large": pa.large_binary()}[kind])


def xy(coords: np.ndarray, x: str = "x", y: str = "y") -> dict[str, pa.Array]:
    """The two columns of coordinates."""
    return {x: pa.array(coords[:, 0]), y: pa.array(coords[:, 1])}


def said(table: pa.Table, **metadata: object) -> pa.Table:
    """A table with metadata; underscores in a name that begins with gimp_ stand for its dot."""
    return table.replace_schema_metadata({k.replace("gimp_", "gimp."): str(v) for k, v in metadata.items()})


def columns(values: np.ndarray, prefix: str) -> dict[str, pa.Array]:
    """D columns, in an order that is not that of their numbers."""
    order = sorted(range(values.shape[1]), key=str)
    return {f"{prefix}{i}": pa.array(values[:, i]) for i in order[::-1]}


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32 values that bfloat16 holds exactly."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _trident(folder: Path, v: np.ndarray, c: np.ndarray) -> Path:
    with h5py.File(folder / "S 1.h5", "w") as file:
        file.create_dataset("features", data=v, chunks=(1, v.shape[1]), maxshape=(None, v.shape[1]))
        file["features"].attrs.update({"name": "S 1", "encoder": "uni_v1"})
        file.create_dataset("coords", data=c, chunks=(1, 2), maxshape=(None, 2)).attrs.update(TRIDENT)
    return folder / "S 1.h5"


def _double(folder: Path, v: np.ndarray, c: np.ndarray) -> Path:
    return npz(folder, feats=v.astype(">f8"), coordinates=c.astype(np.float64) + 0.25)


def _columns(folder: Path, v: np.ndarray, c: np.ndarray, prefix: str) -> Path:
    names = pa.array([f"tile {i}" for i in range(len(v))])
    return parquet(folder, pa.table({"tile": names, **columns(v, prefix), **xy(c, "coords_x", "coords_y")}))


def _mixed_columns(folder: Path, v: np.ndarray, c: np.ndarray) -> Path:
    table = columns(v, "f")
    table["f3"] = pa.array(v[:, 3].astype(np.float64))
    return parquet(folder, pa.table({**table, **xy(c)}))


def _own_part_file(folder: Path, v: np.ndarray, c: np.ndarray) -> Path:
    table = pa.table({**xy(c.astype(np.int32)), "embedding": packed(v.astype("<f2"))})
    gimp = {"gimp_dim": v.shape[1], "gimp_dtype": "float16", "gimp_byte_order": "little"}
    return parquet(folder, said(table, **gimp), compression="none", use_dictionary=False)


def _bfloat16(folder: Path, v: np.ndarray, c: np.ndarray) -> Path:
    table = pa.table({"features": packed(bfloat16_bits(v), "binary"), **xy(c, "coord_x", "coord_y")})
    return parquet(folder, said(table, dim=v.shape[1], dtype="bfloat16"))


def _big_endian(folder: Path, v: np.ndarray, c: np.ndarray) -> Path:
    table = pa.table({"feats": packed(v.astype(">f8"), "large"), **xy(c)})
    return parquet(folder, said(table, dim=v.shape[1], dtype="float64", byte_order="big"))


# values that every float format holds exactly: a quarter of a small integer
FORMATS: dict[str, Format] = {
    "h5 of TRIDENT": Format(_trident),
    "h5 without coordinates": Format(lambda f, v, c: write_h5(f / "S 1.hdf5", v), coords=False),
    "pt": Format(lambda f, v, c: pt(f, torch.from_numpy(v)), coords=False),
    "pt, batched": Format(lambda f, v, c: pt(f, torch.from_numpy(v[None])), coords=False),
    "pt, dictionary": Format(
        lambda f, v, c: pt(f, {"features": torch.from_numpy(v), "coords": torch.from_numpy(c), "name": "S 1", "n": 3})
    ),
    "pt, dictionary, batched": Format(
        lambda f, v, c: pt(f, {"feats": torch.from_numpy(v[None]), "coordinates": torch.from_numpy(c[None])})
    ),
    "pt, dictionary, bfloat16": Format(
        lambda f, v, c: pt(f, {"embeddings": torch.from_numpy(v).bfloat16(), "label": torch.zeros(3)}),
        coords=False,
        dtype="bfloat16",
    ),
    "npy": Format(lambda f, v, c: npy(f, v), coords=False),
    "npy, batched float16": Format(lambda f, v, c: npy(f, v[None].astype(np.float16)), coords=False, dtype="float16"),
    "npy, column order": Format(lambda f, v, c: npy(f, np.asfortranarray(v)), coords=False),
    "npz": Format(lambda f, v, c: npz(f, features=v, coords=c)),
    "npz, compressed": Format(lambda f, v, c: npz(f, compressed=True, embeddings=v, coords=c.astype(np.int32))),
    "npz, column order": Format(lambda f, v, c: npz(f, features=np.asfortranarray(v), coords=np.asfortranarray(c))),
    "npz, batched": Format(lambda f, v, c: npz(f, feats=v[None], coords=c[None], more=np.zeros(3))),
    "npz, big-endian float64": Format(_double, dtype="float64"),
    "npz without coordinates": Format(lambda f, v, c: npz(f, features=v), coords=False),
    "parquet, lists": Format(lambda f, v, c: parquet(f, pa.table({"features": lists(v), **xy(c)}))),
    "parquet, lists of any size": Format(
        lambda f, v, c: parquet(f, pa.table({"embeddings": lists(v, "list"), **xy(c)}), store_schema=False)
    ),
    "parquet, large lists of float16": Format(
        lambda f, v, c: parquet(f, pa.table({"feats": lists(v.astype(np.float16), "large")})),
        coords=False,
        dtype="float16",
    ),
    "parquet, a store's part file": Format(_own_part_file, dtype="float16"),
    "parquet, binary bfloat16": Format(_bfloat16, dtype="bfloat16"),
    "parquet, binary big-endian": Format(_big_endian, dtype="float64"),
    "parquet, columns f0": Format(lambda f, v, c: _columns(f, v, c, "f")),
    "parquet, columns feature_0": Format(lambda f, v, c: _columns(f, v, c, "feature_")),
    "parquet, columns 0": Format(lambda f, v, c: _columns(f, v, c, "")),
    "parquet, columns of two types": Format(_mixed_columns, dtype="float64"),
    "zarr 2": Format(lambda f, v, c: zarr_group(f, 2, (7, v.shape[1]), features=v, coords=c)),
    "zarr 3": Format(lambda f, v, c: zarr_group(f, 3, (64, 5), feats=v, coordinates=c)),
    "zarr 3, batched": Format(
        lambda f, v, c: zarr_group(f, 3, (1, 7, 12), embeddings=v[None], more=v[None]), coords=False
    ),
    "zarr 3, sharded": Format(
        lambda f, v, c: zarr_array(f, v, chunks=(4, v.shape[1]), shards=(20, v.shape[1])), coords=False
    ),
    "zarr 2, one array": Format(
        lambda f, v, c: zarr_array(f, v.astype(np.float64), chunks=(9, v.shape[1]), zarr_format=2),
        coords=False,
        dtype="float64",
    ),
}  # fmt: skip


def exact_values(n: int = 50, dim: int = 12, seed: int = 0) -> np.ndarray:
    """(n, dim) float32 values that bfloat16 and float16 hold exactly."""
    return (np.random.default_rng(seed).integers(-120, 120, (n, dim)) / 4).astype(np.float32)


def trident_tree(
    job: Path, places: Sequence[str] = ("20x_256px_0px_overlap/features_uni_v1",), slides: Sequence[str] = ("A", "B")
) -> Path:
    """A job folder as TRIDENT leaves it, with features at `places` and everything that stands beside them."""
    for number, place in enumerate(places):
        folder = job / place
        encoder = folder.name.removeprefix("features_")
        for i, slide in enumerate(slides):
            bag, coords = features(5 + i, seed=number * 100 + i), grid(5 + i)
            write_h5(folder / f"{slide}.h5", bag, coords, encoder=encoder, **TRIDENT)
            write_h5(folder.parent / "patches" / f"{slide}_patches.h5", coords, key="coords")
        (folder.parent / f"_config_feats_{encoder}.json").write_text(json.dumps({"encoder": encoder}))
        (folder.parent / f"_logs_feats_{encoder}.txt").write_text("A: done\n")
        (folder.parent / "visualization").mkdir(exist_ok=True)
        (folder.parent / "visualization" / "A.jpg").write_bytes(b"jpg")
    for name in ("thumbnails", "contours", "contours_geojson"):
        (job / name).mkdir(parents=True, exist_ok=True)
        (job / name / "A.jpg").write_bytes(b"jpg")
    (job / "_logs_segmentation.txt").write_text("A: done\n")
    return job


def slide_level_h5(path: Path, vector: np.ndarray, coords: np.ndarray, **attributes: Any) -> Path:
    """A slide-level file of TRIDENT: a vector, and the coordinates of the patches it was made of."""
    return write_h5(path, vector, coords, **attributes)
