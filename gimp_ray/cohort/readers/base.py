"""The seam every patch reader fills: a `PatchSource` that knows its size and yields chunks of patches.

A reader is one file with `inspect(path, slide_id) -> PatchSource`, listed in `readers/__init__.py`. It reads headers
only in `inspect`, never holds a whole bag while it yields, raises InputError for a file it cannot use, and never
changes the order of the patches. Left out: fp16 and its overflow, which are the same for all formats (`convert.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gimp_ray.errors import InputError

# features as stored in the source, (n, D) floating point; coordinates (n, 2) int32, None where unknown
SourceChunk = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class PatchAttributes:
    """What a file says about its patches; None where it does not. Units as in `storage_schemas/slides.json`."""

    encoder: str | None = None
    coord_unit: str | None = None
    patch_size: int | None = None
    patch_level: int | None = None
    patch_size_level0: int | None = None
    magnification: float | None = None
    level0_width: int | None = None
    level0_height: int | None = None


@dataclass(frozen=True)
class PatchSource:
    """One slide's patches in a file of another tool, looked at but not read."""

    slide_id: str
    path: Path
    n_patches: int
    dim: int
    dtype: str
    has_coords: bool
    chunks: Callable[[PatchSource, int], Iterator[SourceChunk]]
    attributes: PatchAttributes = field(default_factory=PatchAttributes)
    coords_path: Path | None = None

    def iter_chunks(self, rows: int) -> Iterator[SourceChunk]:
        """Chunks of exactly `rows` patches, the last with what remains, in the file's order."""
        return self.chunks(self, rows)


def bag_shape(shape: tuple[int, ...], path: Path, slide_id: str) -> tuple[int, int]:
    """(N, D) of a bag stored as (N, D) or (1, N, D); InputError for other shapes and for an empty bag."""
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise unusable("features have an unknown shape", path, slide_id, "(N, D) or (1, N, D)", str(tuple(shape)))
    if 0 in shape:
        fix = "leave the slide out of the case table, or extract its features again"
        raise unusable("the bag is empty", path, slide_id, "at least one patch", f"shape {tuple(shape)}", fix)
    return shape[0], shape[1]


def integer_coords(values: np.ndarray, path: Path, slide_id: str) -> np.ndarray:
    """Coordinates as int32, rounded where a tool keeps fractions; InputError where not finite or too large."""
    if values.dtype.kind == "f":
        values = np.rint(values)
    elif values.dtype.kind not in "iu":
        raise unusable("coordinates are not numbers", path, slide_id, "integers or floats", str(values.dtype))
    limits = np.iinfo(np.int32)
    if not bool(np.all((values >= limits.min) & (values <= limits.max))):  # false for NaN as well
        raise unusable("coordinates do not fit", path, slide_id, "finite numbers below 2^31", f"up to {values.max()}")
    return values.astype(np.int32)


def unusable(
    what: str, path: Path, slide_id: str, expected: str | None, found: str | None, fix: str | None = None
) -> InputError:
    """The refusal of one slide's file."""
    fix = fix or "extract the slide's features again, or leave the slide out of the case table"
    return InputError(what, file=path, case=slide_id, expected=expected, found=found, fix=fix)
