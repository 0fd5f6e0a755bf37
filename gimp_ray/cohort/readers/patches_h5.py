"""Patch features in HDF5, as CLAM, TRIDENT and STAMP write them.

`features` (CLAM, TRIDENT) or `feats` (STAMP), (N, D) or (1, N, D); `coords` (N, 2), optional. Patch size, level,
magnification and encoder come from the attributes of coords, features and the file. Left out: attributes that
nothing downstream uses (save paths).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gimp_ray.cohort.readers.base import (
    PatchAttributes,
    PatchSource,
    SourceChunk,
    bag_shape,
    integer_coords,
    unusable,
)

FEATURE_KEYS = ("features", "feats")
COORDS_KEY = "coords"

# a file compressed in large HDF5 chunks would otherwise unpack each of them for every read
_CHUNK_CACHE_BYTES = 128 << 20


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size and attributes of a feature file, from its header."""
    try:
        with h5py.File(path, "r") as file:
            key = _feature_key(file, path, slide_id)
            features = file[key]
            if features.dtype.kind != "f":
                raise unusable(
                    "features are not floats", path, slide_id, "float16, float32 or float64", str(features.dtype)
                )
            n_patches, dim = bag_shape(features.shape, path, slide_id)
            coords = file.get(COORDS_KEY)
            if coords is not None:
                _check_coords(coords, n_patches, path, slide_id)
            attributes = _attributes(file, features, coords)
            dtype = str(features.dtype)
    except (OSError, RuntimeError, KeyError) as error:
        raise _unreadable(path, slide_id, error) from error
    return PatchSource(slide_id, path, n_patches, dim, dtype, coords is not None, _chunks, attributes)


def inspect_coords(path: Path, slide_id: str, n_patches: int) -> PatchAttributes | None:
    """Attributes of a file used for its `n_patches` coordinates alone; None where it has no coordinates."""
    try:
        with h5py.File(path, "r") as file:
            coords = file.get(COORDS_KEY)
            if coords is None:
                return None
            _check_coords(coords, n_patches, path, slide_id)
            return _attributes(file, next((file[k] for k in FEATURE_KEYS if k in file), None), coords)
    except (OSError, RuntimeError, KeyError) as error:
        raise _unreadable(path, slide_id, error) from error


def read_coords(path: Path, slide_id: str) -> np.ndarray:
    """All coordinates of a file: (N, 2) int32."""
    try:
        with h5py.File(path, "r") as file:
            return integer_coords(_rows(file[COORDS_KEY], 0, None), path, slide_id)
    except (OSError, RuntimeError, KeyError) as error:
        raise _unreadable(path, slide_id, error) from error


def has_features(path: Path) -> bool:
    """Whether a file holds features; True as well where it cannot be read, so that it is looked at and reported."""
    try:
        with h5py.File(path, "r") as file:
            return any(key in file for key in FEATURE_KEYS)
    except (OSError, RuntimeError):
        return True


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    try:
        with h5py.File(source.path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES) as file:
            features = file[_feature_key(file, source.path, source.slide_id)]
            for start in range(0, source.n_patches, rows):
                stop = min(start + rows, source.n_patches)
                coords = None
                if source.has_coords:
                    coords = integer_coords(_rows(file[COORDS_KEY], start, stop), source.path, source.slide_id)
                yield _rows(features, start, stop), coords
    except (OSError, RuntimeError, KeyError) as error:
        raise _unreadable(source.path, source.slide_id, error) from error


def _feature_key(file: h5py.File, path: Path, slide_id: str) -> str:
    for key in FEATURE_KEYS:
        if isinstance(file.get(key), h5py.Dataset):
            return key
    expected, found = " or ".join(FEATURE_KEYS), ", ".join(file) or "an empty file"
    raise unusable("the file has no features", path, slide_id, f"a data set named {expected}", found)


def _rows(dataset: h5py.Dataset, start: int, stop: int | None) -> np.ndarray:
    return dataset[0, start:stop] if dataset.ndim == 3 else dataset[start:stop]


def _check_coords(coords: h5py.Dataset, n_patches: int, path: Path, slide_id: str) -> None:
    shape = coords.shape[1:] if len(coords.shape) == 3 and coords.shape[0] == 1 else coords.shape
    if tuple(shape) != (n_patches, 2):
        raise unusable(
            "coordinates do not match the features", path, slide_id, f"({n_patches}, 2)", str(tuple(coords.shape))
        )


def _attributes(file: h5py.File, features: h5py.Dataset | None, coords: h5py.Dataset | None) -> PatchAttributes:
    of_file, of_features = dict(file.attrs), dict(features.attrs) if features is not None else {}
    of_coords = dict(coords.attrs) if coords is not None else {}
    size, level = _whole(of_coords, "patch_size"), _whole(of_coords, "patch_level")
    level0 = _whole(of_coords, "patch_size_level0")
    if level0 is None and size is not None and level is not None:
        # CLAM gives the size at its level and that level's downsample, as (x, y)
        downsample = np.atleast_1d(of_coords.get("downsample", 1.0 if level == 0 else np.nan))[0]
        level0 = round(size * float(downsample)) if np.isfinite(downsample) else None
    unit = _text(of_coords, "unit") or _text(of_file, "unit")
    width, height = _whole(of_coords, "level0_width"), _whole(of_coords, "level0_height")
    if width is None and level == 0 and "level_dim" in of_coords and np.shape(of_coords["level_dim"]) == (2,):
        width, height = (int(edge) for edge in of_coords["level_dim"])
    return PatchAttributes(
        encoder=_text(of_features, "encoder") or _text(of_file, "encoder") or _text(of_file, "extractor"),
        coord_unit=None if coords is None else "um" if unit == "um" else "px",
        patch_size=size if size is not None else _whole(of_file, "tile_size_px"),
        patch_level=level,
        patch_size_level0=level0,
        magnification=_number(of_coords, "target_magnification"),
        level0_width=width,
        level0_height=height,
    )


def _number(attributes: Mapping[str, Any], key: str) -> float | None:
    try:
        return float(attributes[key])
    except (KeyError, TypeError, ValueError):
        return None


def _whole(attributes: Mapping[str, Any], key: str) -> int | None:
    value = _number(attributes, key)
    return None if value is None or not abs(value) < 2**31 else round(value)


def _text(attributes: Mapping[str, Any], key: str) -> str | None:
    value = attributes.get(key)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and value else None


def _unreadable(path: Path, slide_id: str, error: Exception) -> Exception:
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    return unusable(
        "the file cannot be read: it is damaged, cut short, or no HDF5 file", path, slide_id, "a whole HDF5 file", found
    )
