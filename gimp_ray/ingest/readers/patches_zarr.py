"""Patch features in zarr, format 2 or 3: a folder `SLIDE.zarr`.

A group with `features`, `feats` or `embeddings` and, optionally, `coords` or `coordinates`, or one array (N, D) alone.
Attributes are read under TRIDENT's names. Reads whole stored chunks one after the other, so memory follows their size.
A chunk that is not stored would read as zeros: an interrupted copy looks like that, so it is refused. So is the codec
`pickle`. Left out: zip files of zarr, and AnnData or SpatialData in zarr.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gimp_ray.errors import InputError
from gimp_ray.ingest.readers.base import (
    COORDS_NAMES,
    FEATURE_NAMES,
    PatchSource,
    SourceChunk,
    bag_shape,
    check_coords_shape,
    check_float,
    coords_name,
    exact_chunks,
    feature_name,
    integer_coords,
    named_attributes,
    unreadable,
    unusable,
)


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size and attributes of the arrays, from their metadata and the list of stored chunks."""
    root, features, coords = _arrays(path, slide_id)
    check_float(np.dtype(features.dtype), path, slide_id)
    n_patches, dim = bag_shape(features.shape, path, slide_id)
    if coords is not None:
        check_coords_shape(coords.shape, n_patches, path, slide_id)
    for array in (features, coords):
        if array is not None:
            _check_stored(array, path, slide_id)
    of_coords = {} if coords is None else coords.attrs.asdict()
    attributes = named_attributes(root.attrs.asdict(), features.attrs.asdict(), of_coords, coords is not None)
    dtype = np.dtype(features.dtype).name
    return PatchSource(slide_id, path, n_patches, dim, dtype, coords is not None, _chunks, attributes)


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    _, features, coords = _arrays(source.path, source.slide_id)
    steps = exact_chunks(((part, None) for part in _stored_rows(features, rows, source)), rows)
    if coords is None:
        yield from steps
        return
    places = exact_chunks(((part, None) for part in _stored_rows(coords, rows, source)), rows)
    for (part, _), (place, _) in zip(steps, places, strict=True):
        yield part, integer_coords(place, source.path, source.slide_id)


def _stored_rows(array: Any, rows: int, source: PatchSource) -> Iterator[np.ndarray]:
    """The rows of an array in steps that end where a stored chunk ends: no chunk is unpacked twice."""
    first = array.ndim - 2
    stored = int(array.chunks[first])
    step = max(1, rows // stored) * stored
    for start in range(0, array.shape[first], step):
        try:
            part = array[0, start : start + step] if first else array[start : start + step]
        except Exception as error:  # a codec raises whatever damaged bytes lead it to
            raise unreadable(source.path, source.slide_id, "zarr", error) from error
        yield np.asarray(part)


def _arrays(path: Path, slide_id: str) -> tuple[Any, Any, Any]:
    """What was opened (group or array), its features, and its coordinates or None."""
    try:
        import zarr
    except ImportError as error:
        fix = "pip install 'gimp-ray[formats]'"
        what = "reading zarr needs the package zarr, which is not installed"
        raise unusable(what, path, slide_id, "the package zarr", str(error), fix) from error
    try:
        root = zarr.open(str(path), mode="r")
        if isinstance(root, zarr.Array):
            features, coords = root, None
        else:
            # asked one by one: what else is in the group may be of a type that zarr cannot open
            names = [n for n in (*FEATURE_NAMES, *COORDS_NAMES) if isinstance(root.get(n), zarr.Array)]
            if not any(name in FEATURE_NAMES for name in names):
                names = sorted(entry.name for entry in path.iterdir() if entry.name not in FEATURE_NAMES)
            features, known = root[feature_name(names, path, slide_id)], coords_name(names, path, slide_id)
            coords = root[known] if known else None
        for array in (features, coords):
            if array is not None:
                _refuse_pickle(array, path, slide_id)
    except InputError:
        raise
    except Exception as error:  # damaged metadata raise whatever they lead zarr to
        raise unreadable(path, slide_id, "zarr", error) from error
    return root, features, coords


def _refuse_pickle(array: Any, path: Path, slide_id: str) -> None:
    """Refuse the codec that runs pickles, before anything is decoded."""
    metadata = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    if "pickle" in json.dumps(metadata, default=str).lower():
        expected, fix = "an array of floats", "write the array again without it"
        raise unusable("the array is stored as pickles, which are never loaded", path, slide_id, expected, None, fix)


def _check_stored(array: Any, path: Path, slide_id: str) -> None:
    """Refuse an array some of whose chunks are not there."""
    grid = array.shards or array.chunks
    in_one = math.prod(g // c for g, c in zip(grid, array.chunks, strict=True))
    expected = math.prod(-(-n // g) for n, g in zip(array.shape, grid, strict=True))
    found = array.nchunks_initialized // in_one
    if found < expected:
        what = f"chunks of the array {array.name.strip('/') or 'of features'} are not stored"
        fix = "copy the folder again; if they hold zeros alone, write the array with write_empty_chunks=True"
        raise unusable(what, path, slide_id, f"{expected} chunks", f"{found} chunks", fix)
