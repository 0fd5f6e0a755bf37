"""From what a reader yields to what the store holds: finite embeddings in the store's number format, int32 coordinates.

A finite value that the format cannot hold (float16: beyond 65,504) is refused like NaN and Inf: silent infinities
would reach the loss. Left out: the formats themselves (`dtypes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gimp_ray.ingest.readers.base import PatchSource, unusable
from gimp_ray.store.dtypes import encode, largest, not_finite
from gimp_ray.store.parts import Chunk
from gimp_ray.store.schema import ROW_GROUP_ROWS

# 8 MiB of float32 a chunk: large reads, yet it is still in the processor's cache when it is rounded
_CHUNK_VALUES = 2 << 20


def stored_chunks(source: PatchSource, dtype: str = "float16") -> Iterator[Chunk]:
    """A slide's chunks as the store holds them; InputError at the first value it cannot hold."""
    first = 0
    for features, known_coords in source.iter_chunks(chunk_rows(source.dim)):
        embeddings, finite = encode(features, dtype)
        if not finite:
            raise _not_storable(source, features, not_finite(embeddings, dtype), dtype, first)
        yield embeddings, np.full((len(embeddings), 2), -1, np.int32) if known_coords is None else known_coords
        first += len(embeddings)
    if first != source.n_patches:
        what, expected = "the file holds other than the patches it said", f"{source.n_patches} patches"
        raise unusable(what, source.path, source.slide_id, expected, f"{first} patches")


def chunk_rows(dim: int) -> int:
    """Patches a chunk: a multiple of the row group."""
    return max(1, _CHUNK_VALUES // dim // ROW_GROUP_ROWS) * ROW_GROUP_ROWS


def _not_storable(source: PatchSource, features: np.ndarray, bad: np.ndarray, dtype: str, first: int) -> Exception:
    row, column = (int(i[0]) for i in np.nonzero(bad))
    value = float(features[row, column])
    place = f"{value} at patch {first + row}, dimension {column}"
    if np.isfinite(value):
        fix = "scale the features, or store them as float32 or bfloat16"
        what, limit = f"features overflow {dtype}", largest(dtype)
        return unusable(what, source.path, source.slide_id, f"values between -{limit:g} and {limit:g}", place, fix)
    return unusable("features hold NaN or Inf", source.path, source.slide_id, "finite values", place)
