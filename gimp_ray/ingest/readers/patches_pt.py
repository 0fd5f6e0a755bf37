"""Patch features in `.pt` files saved by torch: one tensor (CLAM, TANGLE), or a dictionary of tensors.

The tensor is (N, D) or (1, N, D); in a dictionary it is `features`, `feats` or `embeddings`, and `coords` (N, 2) may
stand beside it. Loads with `weights_only=True`, which refuses everything but plain data: no pickle is ever executed.
Coordinates may also come from the file that CLAM or TRIDENT puts elsewhere. Left out: numpy arrays saved with torch,
which weights_only refuses.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gimp_ray.errors import InputError
from gimp_ray.ingest.readers import patches_h5
from gimp_ray.ingest.readers.base import (
    PatchAttributes,
    PatchSource,
    SourceChunk,
    bag_shape,
    check_coords_shape,
    coords_name,
    feature_name,
    integer_coords,
    unusable,
)

if TYPE_CHECKING:
    import torch

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size of a tensor file; its values stay on disk unless it is in torch's old format, which must be loaded whole."""
    features, coords = _load(path, slide_id)
    n_patches, dim = bag_shape(tuple(features.shape), path, slide_id)
    source = PatchSource(slide_id, path, n_patches, dim, _dtype(features), False, _chunks)
    if coords is None:
        return patches_h5.with_coords_file(source)
    check_coords_shape(tuple(coords.shape), n_patches, path, slide_id)
    return dataclasses.replace(source, has_coords=True, attributes=PatchAttributes(coord_unit="px"))


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    import torch

    features, own = _load(source.path, source.slide_id)
    features = features[0] if features.ndim == 3 else features
    coords = None
    if source.coords_path is not None:
        coords = patches_h5.read_coords(source.coords_path, source.slide_id)
    elif own is not None:
        coords = integer_coords((own[0] if own.ndim == 3 else own).numpy(), source.path, source.slide_id)
    for start in range(0, source.n_patches, rows):
        part = features[start : start + rows]
        # numpy knows no bfloat16; float32 holds it exactly
        part = part.float() if part.dtype == torch.bfloat16 else part
        yield part.numpy(), None if coords is None else coords[start : start + rows]


def _load(path: Path, slide_id: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The features, and the coordinates where the file holds them."""
    import torch

    try:
        loaded = _torch_load(path)
    except Exception as error:  # unpickling raises whatever the bytes lead it to; none of it has run code
        raise _refused(path, slide_id, _reason(error)) from error
    if not isinstance(loaded, dict):
        return _features(loaded, path, slide_id), None
    tensors = {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise _refused(path, slide_id, f"a dictionary without tensors: {', '.join(map(str, loaded)) or 'empty'}")
    names = [key for key in tensors if isinstance(key, str)]
    coords = coords_name(names, path, slide_id)
    return _features(tensors[feature_name(names, path, slide_id)], path, slide_id), _coords(
        None if coords is None else tensors[coords], path, slide_id
    )


def _features(loaded: object, path: Path, slide_id: str) -> torch.Tensor:
    import torch

    if not isinstance(loaded, torch.Tensor) or loaded.layout != torch.strided or _dtype(loaded) not in _FLOATS:
        dtype = f" of {loaded.dtype}" if isinstance(loaded, torch.Tensor) else ""
        raise _refused(path, slide_id, f"{type(loaded).__name__}{dtype}")
    return loaded.detach()


def _coords(tensor: torch.Tensor | None, path: Path, slide_id: str) -> torch.Tensor | None:
    import torch

    if tensor is None:
        return None
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        raise unusable("coordinates are not numbers", path, slide_id, "integers or floats", str(tensor.dtype))
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _torch_load(path: Path) -> object:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd pickles; they are refused
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """What torch found: the first thing that is no plain data, or its own words without its advice to load anyway."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"{named[1]}, which is no tensor"
    return _COLOURS.sub("", str(error).partition(". ")[0]).strip().splitlines()[0] if str(error) else repr(error)


def _refused(path: Path, slide_id: str, found: str) -> InputError:
    fix = "save the features alone: torch.save(features, path); a file that is not plain tensors is never loaded"
    if "numpy" in found:
        fix = "save a tensor, not a numpy array: torch.save(torch.from_numpy(features), path), or write HDF5"
    expected = "one floating-point tensor (N, D) saved with torch.save, or a dictionary of tensors with features"
    return unusable("the .pt file is not a plain tensor", path, slide_id, expected, found, fix)
