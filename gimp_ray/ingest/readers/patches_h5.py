"""Patch features in HDF5, as CLAM, TRIDENT and STAMP write them.

`features` (CLAM, TRIDENT) or `feats` (STAMP), (N, D) or (1, N, D); `coords` (N, 2), optional. Patch size, level,
magnification and encoder come from the attributes of coords, features and the file. A slide-level vector (D,) is a bag
of one patch, where the folder (TRIDENT's `slide_features_ENCODER`) or the file (STAMP's `feat_type`) says that it is
one; TRIDENT keeps the coordinates of the slide's patches in such a file, and they are not the vector's. Left out:
attributes that nothing downstream uses (save paths).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from gimp_ray.ingest.readers.base import (
    PatchAttributes,
    PatchSource,
    SourceChunk,
    bag_shape,
    check_coords_shape,
    check_float,
    integer_coords,
    named_attributes,
    unreadable,
    unusable,
)
from gimp_ray.ingest.readers.hdf5_rows import DatasetRows
from gimp_ray.ingest.readers.patches_trident import is_slide_level

FEATURE_KEYS = ("features", "feats")
COORDS_KEY = "coords"

# a file compressed in large HDF5 chunks would otherwise unpack each of them for every read
_CHUNK_CACHE_BYTES = 128 << 20
_FAULTS = (OSError, RuntimeError, KeyError)


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size and attributes of a feature file, from its header."""
    try:
        with h5py.File(path, "r") as file:
            features = file[_feature_key(file, path, slide_id)]
            check_float(features.dtype, path, slide_id)
            coords = _coords(file, path, slide_id)
            attributes, dtype = _attributes(file, features, coords), str(features.dtype)
            if _is_vector(file, features, path):
                attributes = dataclasses.replace(attributes, coord_unit=None)
                dim = int(features.size)
                return PatchSource(slide_id, path, 1, dim, dtype, False, _chunks, attributes, slide_level=True)
            n_patches, dim = bag_shape(features.shape, path, slide_id)
            if coords is not None:
                check_coords_shape(coords.shape, n_patches, path, slide_id)
            return PatchSource(slide_id, path, n_patches, dim, dtype, coords is not None, _chunks, attributes)
    except _FAULTS as error:
        raise unreadable(path, slide_id, "HDF5", error) from error


def inspect_coords(path: Path, slide_id: str, n_patches: int) -> PatchAttributes | None:
    """Attributes of a file used for its `n_patches` coordinates alone; None where it has no coordinates."""
    try:
        with h5py.File(path, "r") as file:
            coords = _coords(file, path, slide_id)
            if coords is None:
                return None
            check_coords_shape(coords.shape, n_patches, path, slide_id)
            return _attributes(file, next((file[k] for k in FEATURE_KEYS if k in file), None), coords)
    except _FAULTS as error:
        raise unreadable(path, slide_id, "HDF5", error) from error


def with_coords_file(source: PatchSource) -> PatchSource:
    """A source without coordinates of its own, with those of the HDF5 file that its tool puts elsewhere.

    That is `h5_files/SLIDE.h5` beside the file or its folder (CLAM), or `patches/SLIDE_patches.h5` beside its folder
    (TRIDENT). Without one the source stays as it is.
    """
    folder, names = source.path.parent, dict.fromkeys((source.path.stem, source.slide_id))
    places = [place / "h5_files" / f"{name}.h5" for place in (folder, folder.parent) for name in names]
    places += [folder.parent / "patches" / f"{name}_patches.h5" for name in names]
    for candidate in places:
        if candidate.is_file():
            attributes = inspect_coords(candidate, source.slide_id, source.n_patches)
            if attributes is not None:
                return dataclasses.replace(source, has_coords=True, coords_path=candidate, attributes=attributes)
    return source


def read_coords(path: Path, slide_id: str) -> np.ndarray:
    """All coordinates of a file: (N, 2) int32."""
    try:
        with h5py.File(path, "r") as file:
            return integer_coords(_rows(file[COORDS_KEY], 0, None), path, slide_id)
    except _FAULTS as error:
        raise unreadable(path, slide_id, "HDF5", error) from error


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
            if source.slide_level:
                yield features[()].reshape(1, source.dim), None
                return
            with contextlib.ExitStack() as stack:
                values = stack.enter_context(DatasetRows(features, source.path))
                places = stack.enter_context(DatasetRows(file[COORDS_KEY], source.path)) if source.has_coords else None
                for start in range(0, source.n_patches, rows):
                    stop = min(start + rows, source.n_patches)
                    coords = None
                    if places is not None:
                        coords = integer_coords(places.read(start, stop), source.path, source.slide_id)
                    yield values.read(start, stop), coords
    except _FAULTS as error:
        raise unreadable(source.path, source.slide_id, "HDF5", error) from error


def _feature_key(file: h5py.File, path: Path, slide_id: str) -> str:
    for key in FEATURE_KEYS:
        if isinstance(file.get(key), h5py.Dataset):
            return key
    expected, found = " or ".join(FEATURE_KEYS), ", ".join(file) or "an empty file"
    raise unusable("the file has no features", path, slide_id, f"a data set named {expected}", found)


def _coords(file: h5py.File, path: Path, slide_id: str) -> h5py.Dataset | None:
    """The coordinates, None without any; InputError where something else has their name."""
    coords = file.get(COORDS_KEY)
    if coords is not None and not isinstance(coords, h5py.Dataset):
        what = "the coordinates are no data set"
        raise unusable(what, path, slide_id, f"a data set named {COORDS_KEY}", type(coords).__name__)
    return coords


def _is_vector(file: h5py.File, features: h5py.Dataset, path: Path) -> bool:
    """Whether the features are one vector, (D,) or (1, D), and said to be of the whole slide."""
    kind = file.attrs.get("feat_type")
    said = is_slide_level(path) or kind in ("slide", "patient", b"slide", b"patient")
    return bool(said and features.size and features.shape in ((features.size,), (1, features.size)))


def _rows(dataset: h5py.Dataset, start: int, stop: int | None) -> np.ndarray:
    return dataset[0, start:stop] if dataset.ndim == 3 else dataset[start:stop]


def _attributes(file: h5py.File, features: h5py.Dataset | None, coords: h5py.Dataset | None) -> PatchAttributes:
    of_features = {} if features is None else dict(features.attrs)
    of_coords = {} if coords is None else dict(coords.attrs)
    return named_attributes(dict(file.attrs), of_features, of_coords, coords is not None)
