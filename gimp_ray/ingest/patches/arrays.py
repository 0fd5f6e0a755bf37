"""Patch features in files of arrays: `.npy`, `.npz`, `.pt` and `.zarr`.

An array is (N, D) or (1, N, D); where a file names its arrays, `features`, `feats` or `embeddings`, and `coords` or
`coordinates` (N, 2). npy and pt are memory-mapped; npz, zarr and pt in torch's format before 1.6 are read a whole bag
at a time. No pickle is ever executed: arrays of objects and zarr's codec `pickle` are refused from their headers, and
torch loads with `weights_only=True`.
"""

from __future__ import annotations

import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from gimp_ray.errors import InputError
from gimp_ray.ingest.patches.hdf5 import read_coords, with_coords_file
from gimp_ray.ingest.patches.source import (
    COORDS_NAMES,
    FEATURE_NAMES,
    PatchAttributes,
    PatchSource,
    SourceChunk,
    bag_shape,
    check_coords_shape,
    check_float,
    coords_name,
    feature_name,
    integer_coords,
    named_attributes,
    unusable,
)

if TYPE_CHECKING:
    import torch

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TORCH_FLOATS = ("float16", "bfloat16", "float32", "float64")

# the features, whose slices are read when they are taken, and the coordinates
Arrays = tuple[Any, np.ndarray | None]


def inspect_npy(path: Path, slide_id: str) -> PatchSource:
    """Size of a `.npy` file, from its header. Coordinates come from the file that CLAM or TRIDENT puts elsewhere."""
    with path.open("rb") as stream:
        shape, dtype, size = _header(stream)
    check_float(dtype)
    source = _source(path, slide_id, _load_npy, shape, dtype.name)
    if path.stat().st_size < size:
        raise ValueError(f"{path.stat().st_size} bytes, its header asks for {size}")
    return with_coords_file(source)


def inspect_npz(path: Path, slide_id: str) -> PatchSource:
    """Size of the arrays of a `.npz` file, from the zip directory and the arrays' headers."""
    with zipfile.ZipFile(path) as archive:
        features, coords = _members(archive)
        shape, dtype = _member_header(archive, features)
        coords_shape = None if coords is None else _member_header(archive, coords)[0]
    check_float(dtype)
    return _source(path, slide_id, _load_npz, shape, dtype.name, coords_shape)


def inspect_pt(path: Path, slide_id: str) -> PatchSource:
    """Size of a tensor (CLAM, TANGLE), or of a dictionary of tensors; its values stay on disk, unless the file is in
    torch's format before 1.6."""
    features, coords = _load_pt(path)
    coords_shape = None if coords is None else coords.shape
    source = _source(path, slide_id, _load_pt, tuple(features.shape), _dtype(features), coords_shape)
    return with_coords_file(source) if coords is None else source


def inspect_zarr(path: Path, slide_id: str) -> PatchSource:
    """Size and attributes of a `.zarr` folder, format 2 or 3, from its metadata and the list of stored chunks."""
    root, features, coords = _zarr_arrays(path)
    check_float(np.dtype(features.dtype))
    coords_shape = None if coords is None else coords.shape
    of_coords = {} if coords is None else coords.attrs.asdict()
    attributes = named_attributes(root.attrs.asdict(), features.attrs.asdict(), of_coords, coords is not None)
    dtype = np.dtype(features.dtype).name
    source = _source(path, slide_id, _load_zarr, features.shape, dtype, coords_shape, attributes)
    for array in (features, coords):
        if array is not None:
            _check_stored(array)
    return source


def _source(
    path: Path,
    slide_id: str,
    load: Callable[[Path], Arrays],
    shape: tuple[int, ...],
    dtype: str,
    coords_shape: tuple[int, ...] | None = None,
    attributes: PatchAttributes | None = None,
) -> PatchSource:
    n_patches, dim = bag_shape(shape)
    known = coords_shape is not None
    if coords_shape is not None:
        check_coords_shape(coords_shape, n_patches)
    attributes = attributes or PatchAttributes(coord_unit="px" if known else None)
    return PatchSource(slide_id, path, n_patches, dim, dtype, known, partial(_chunks, load), attributes)


def _chunks(load: Callable[[Path], Arrays], source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    features, coords = load(source.path)
    features = features[0] if features.ndim == 3 else features
    if source.coords_path is not None:
        coords = read_coords(source.coords_path, source.slide_id)
    elif coords is not None:
        coords = integer_coords(coords[0] if coords.ndim == 3 else coords)
    for start in range(0, source.n_patches, rows):
        part = features[start : start + rows]
        if not isinstance(part, np.ndarray):  # a tensor; numpy knows no bfloat16, and float32 holds it exactly
            part = (part.float() if _dtype(part) == "bfloat16" else part).numpy()
        yield part, None if coords is None else coords[start : start + rows]


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype, and bytes of header and values of an array in numpy's format; ValueError where there is none."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version[0]}.{version[1]}, which is for arrays of records")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype, stream.tell() + math.prod(shape) * dtype.itemsize


def _load_npy(path: Path) -> Arrays:
    return np.load(path, mmap_mode="r", allow_pickle=False), None


def _members(archive: zipfile.ZipFile) -> tuple[str, str | None]:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    coords = coords_name(names)
    return f"{feature_name(names)}.npy", None if coords is None else f"{coords}.npy"


def _member_header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(member) as stream:
        shape, dtype, size = _header(stream)
    if dtype.hasobject:
        raise ValueError(f"{member} holds Python objects, which are never loaded")
    found = archive.getinfo(member).file_size
    if found != size:
        raise ValueError(f"{member} has {found} bytes, its header asks for {size}")
    return shape, dtype


def _load_npz(path: Path) -> Arrays:
    def read(member: str) -> np.ndarray:
        with archive.open(member) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            stream.read(1)  # at its end a zip member is compared with its checksum
        return array

    with zipfile.ZipFile(path) as archive:
        features, coords = _members(archive)
        return read(features), None if coords is None else read(coords)


def _load_pt(path: Path) -> tuple[torch.Tensor, np.ndarray | None]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickles; they are refused
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # unpickling raises whatever the bytes lead it to; none of it has run code
        named = re.search(r"GLOBAL (\S+)", str(error))
        # torch's message without its advice to load the file anyway
        own = _COLOURS.sub("", str(error).partition(". ")[0]).strip().splitlines()[0] if str(error) else repr(error)
        raise _not_plain(f"{named[1]}, which is no tensor" if named else own) from error
    if not isinstance(loaded, dict):
        return _feature_tensor(loaded), None
    tensors = {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise _not_plain(f"a dictionary without tensors: {', '.join(map(str, loaded)) or 'empty'}")
    names = [key for key in tensors if isinstance(key, str)]
    known = coords_name(names)
    features = _feature_tensor(tensors[feature_name(names)])
    if known is None:
        return features, None
    coords = tensors[known].detach()
    if coords.layout != torch.strided or coords.is_complex() or coords.is_quantized:
        raise unusable("coordinates are not numbers", "integers or floats", str(coords.dtype))
    return features, (coords.float() if coords.dtype == torch.bfloat16 else coords).numpy()


def _feature_tensor(loaded: object) -> torch.Tensor:
    import torch

    if not isinstance(loaded, torch.Tensor) or loaded.layout != torch.strided or _dtype(loaded) not in _TORCH_FLOATS:
        dtype = f" of {loaded.dtype}" if isinstance(loaded, torch.Tensor) else ""
        raise _not_plain(f"{type(loaded).__name__}{dtype}")
    return loaded.detach()


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _not_plain(found: str) -> InputError:
    fix = "save the features alone: torch.save(features, path); a file that is not plain tensors is never loaded"
    if "numpy" in found:
        fix = "save a tensor, not a numpy array: torch.save(torch.from_numpy(features), path), or write HDF5"
    expected = "one floating-point tensor (N, D) saved with torch.save, or a dictionary of tensors with features"
    return unusable("the .pt file is not a plain tensor", expected, found, fix)


def _zarr_arrays(path: Path) -> tuple[Any, Any, Any]:
    """What was opened (group or array), its features, and its coordinates or None."""
    try:
        import zarr
    except ImportError as error:
        what = "reading zarr needs the package zarr, which is not installed"
        raise unusable(what, "the package zarr", str(error), "pip install 'gimp-ray[formats]'") from error
    root = zarr.open(str(path), mode="r")
    if isinstance(root, zarr.Array):
        features, coords = root, None
    else:
        # asked one by one: what else is in the group may be of a type that zarr cannot open
        names = [name for name in (*FEATURE_NAMES, *COORDS_NAMES) if isinstance(root.get(name), zarr.Array)]
        if not any(name in FEATURE_NAMES for name in names):
            names = sorted(entry.name for entry in path.iterdir() if entry.name not in FEATURE_NAMES)
        features, known = root[feature_name(names)], coords_name(names)
        coords = root[known] if known else None
    for array in (features, coords):
        metadata = {} if array is None else array.metadata.to_dict()
        if "pickle" in json.dumps({k: v for k, v in metadata.items() if k != "attributes"}, default=str).lower():
            what, fix = "the array is stored as pickles, which are never loaded", "write the array again without it"
            raise unusable(what, "an array of floats", None, fix)
    return root, features, coords


def _load_zarr(path: Path) -> Arrays:
    _, features, coords = _zarr_arrays(path)
    return np.asarray(features[:]), None if coords is None else np.asarray(coords[:])


def _check_stored(array: Any) -> None:
    """Refuse an array some of whose chunks are not there: they would read as zeros, and an interrupted copy is so."""
    grid = array.shards or array.chunks
    in_one = math.prod(g // c for g, c in zip(grid, array.chunks, strict=True))
    expected = math.prod(-(-n // g) for n, g in zip(array.shape, grid, strict=True))
    found = array.nchunks_initialized // in_one
    if found < expected:
        what = f"chunks of the array {array.name.strip('/') or 'of features'} are not stored"
        fix = "copy the folder again; if they hold zeros alone, write the array with write_empty_chunks=True"
        raise unusable(what, f"{expected} chunks", f"{found} chunks", fix)
