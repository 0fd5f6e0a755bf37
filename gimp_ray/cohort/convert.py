"""From what a reader yields to what the store holds: finite float16 embeddings and int32 coordinates.

A finite value that float16 cannot hold (beyond 65,504) is refused like NaN and Inf: silent infinities would reach
the loss. Left out: other storage formats than float16.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gimp_ray.cohort.parts import Chunk
from gimp_ray.cohort.readers.base import PatchSource, unusable
from gimp_ray.cohort.schema import ROW_GROUP_ROWS

# 16 MiB of float32 a chunk: large reads, bounded memory
_CHUNK_VALUES = 4 << 20
_EXPONENT = np.uint16(0x7C00)


def stored_chunks(source: PatchSource) -> Iterator[Chunk]:
    """A slide's chunks as the store holds them; InputError at the first value it cannot hold."""
    first = 0
    for features, known_coords in source.iter_chunks(chunk_rows(source.dim)):
        with np.errstate(over="ignore", invalid="ignore"):
            embeddings = np.ascontiguousarray(features, dtype="<f2")
        if not finite(embeddings):
            raise _not_storable(source, features, embeddings, first)
        yield embeddings, np.full((len(embeddings), 2), -1, np.int32) if known_coords is None else known_coords
        first += len(embeddings)


def chunk_rows(dim: int) -> int:
    """Patches a chunk: a multiple of the row group."""
    return max(1, _CHUNK_VALUES // dim // ROW_GROUP_ROWS) * ROW_GROUP_ROWS


def finite(embeddings: np.ndarray) -> bool:
    """Whether a float16 array has neither NaN nor Inf (by its bits, which is faster than isfinite)."""
    return not bool(np.any((embeddings.view(np.uint16) & _EXPONENT) == _EXPONENT))


def _not_storable(source: PatchSource, features: np.ndarray, embeddings: np.ndarray, first: int) -> Exception:
    row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(embeddings)))
    value = float(features[row, column])
    place = f"{value} at patch {first + row}, dimension {column}"
    if np.isfinite(value):
        fix = "scale the features, or extract them with an encoder whose values fit float16"
        what = "features overflow float16"
        return unusable(what, source.path, source.slide_id, "values between -65504 and 65504", place, fix)
    return unusable("features hold NaN or Inf", source.path, source.slide_id, "finite values", place)
