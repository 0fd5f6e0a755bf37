"""The seam every patch reader fills: a `PatchSource` that knows its size and yields chunks of patches.

A reader is one file with `inspect(path, slide_id) -> PatchSource`, listed in `readers/__init__.py`. It reads headers
only in `inspect`, never holds a whole bag while it yields, raises InputError for a file it cannot use, and never
changes the order of the patches. What several formats share is here too: shapes, names of arrays, attributes.
Left out: fp16 and its overflow, which are the same for all formats (`convert.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gimp_ray.errors import InputError

# features as stored in the source, (n, D) floating point; coordinates (n, 2) int32, None where unknown
SourceChunk = tuple[np.ndarray, np.ndarray | None]

# what tools call the embeddings and the coordinates in a file that names its arrays
FEATURE_NAMES = ("features", "feats", "embeddings")
COORDS_NAMES = ("coords", "coordinates")
FLOATS = "float16, float32 or float64"


@dataclass(frozen=True)
class PatchAttributes:
    """What a file says about its patches; None where it does not. Units as in `storage_schemas/slides.json`."""

    encoder: str | None = None
    coord_unit: str | None = None
    patch_size: int | None = None
    patch_level: int | None = None
    patch_size_level0: int | None = None
    magnification: float | None = None
    overlap: int | None = None
    level0_width: int | None = None
    level0_height: int | None = None


@dataclass(frozen=True)
class PatchSource:
    """One slide's patches in a file of another tool, looked at but not read.

    `slide_level` says that the file holds one vector of the whole slide: a bag of one patch without coordinates.
    """

    slide_id: str
    path: Path
    n_patches: int
    dim: int
    dtype: str
    has_coords: bool
    chunks: Callable[[PatchSource, int], Iterator[SourceChunk]]
    attributes: PatchAttributes = field(default_factory=PatchAttributes)
    coords_path: Path | None = None
    slide_level: bool = False

    def iter_chunks(self, rows: int) -> Iterator[SourceChunk]:
        """Chunks of exactly `rows` patches, the last with what remains, in the file's order."""
        return self.chunks(self, rows)


def bag_shape(shape: tuple[int, ...], path: Path, slide_id: str) -> tuple[int, int]:
    """(N, D) of a bag stored as (N, D) or (1, N, D); InputError for other shapes and for an empty bag."""
    if 0 in shape:
        fix = "leave the slide out of the case table, or extract its features again"
        raise unusable("the bag is empty", path, slide_id, "at least one patch", f"shape {tuple(shape)}", fix)
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise unusable("features have an unknown shape", path, slide_id, "(N, D) or (1, N, D)", str(tuple(shape)))
    return int(shape[0]), int(shape[1])


def check_coords_shape(shape: tuple[int, ...], n_patches: int, path: Path, slide_id: str) -> None:
    """InputError unless coordinates are (N, 2) or (1, N, 2) for the N patches of the features."""
    if tuple(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape) != (n_patches, 2):
        what, expected = "coordinates do not match the features", f"({n_patches}, 2)"
        raise unusable(what, path, slide_id, expected, str(tuple(shape)))


def check_float(dtype: np.dtype[Any], path: Path, slide_id: str) -> None:
    """InputError unless features are stored as floats."""
    if dtype.kind != "f":
        raise unusable("features are not floats", path, slide_id, FLOATS, str(dtype))


def feature_name(names: Collection[str], path: Path, slide_id: str) -> str:
    """Which of a file's arrays holds the features; InputError where none or several may."""
    found = [name for name in FEATURE_NAMES if name in names]
    if len(found) == 1:
        return found[0]
    expected = f"one array named {', '.join(FEATURE_NAMES[:-1])} or {FEATURE_NAMES[-1]}"
    if found:
        fix = "keep one of them in the file"
        raise unusable("the file has several arrays of features", path, slide_id, expected, ", ".join(found), fix)
    raise unusable("the file has no features", path, slide_id, expected, listed(names) or "an empty file")


def coords_name(names: Collection[str], path: Path, slide_id: str) -> str | None:
    """Which of a file's arrays holds the coordinates, None without any; InputError where several may."""
    found = [name for name in COORDS_NAMES if name in names]
    if len(found) > 1:
        expected, fix = f"one array named {' or '.join(COORDS_NAMES)}", "keep one of them in the file"
        raise unusable("the file has several arrays of coordinates", path, slide_id, expected, ", ".join(found), fix)
    return found[0] if found else None


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


def exact_chunks(pieces: Iterable[SourceChunk], rows: int) -> Iterator[SourceChunk]:
    """The same patches in chunks of exactly `rows`, for formats that read in steps of their own."""
    held: list[SourceChunk] = []
    count = 0
    for features, coords in pieces:
        start = 0
        while count + len(features) - start >= rows:
            stop = start + rows - count
            held.append((features[start:stop], None if coords is None else coords[start:stop]))
            yield _joined(held)
            held, count, start = [], 0, stop
        if start < len(features):
            held.append((features[start:], None if coords is None else coords[start:]))
            count += len(features) - start
    if held:
        yield _joined(held)


def named_attributes(
    of_file: Mapping[str, Any], of_features: Mapping[str, Any], of_coords: Mapping[str, Any], has_coords: bool
) -> PatchAttributes:
    """What the attributes of a file, its features and its coordinates say, under the names CLAM, TRIDENT and STAMP use.

    TRIDENT's `overlap` and `patch_size` are pixels at the magnification read, CLAM's `patch_size` at its level.
    """
    size, level = _whole(of_coords, "patch_size"), _whole(of_coords, "patch_level")
    magnification = _number(of_coords, "target_magnification")
    width, height = _whole(of_coords, "level0_width"), _whole(of_coords, "level0_height")
    if width is None and level == 0 and np.shape(of_coords.get("level_dim", ())) == (2,):
        width, height = (int(edge) for edge in of_coords["level_dim"])
    unit = _text(of_coords, "unit") or _text(of_file, "unit")
    return PatchAttributes(
        encoder=_text(of_features, "encoder") or _text(of_file, "encoder") or _text(of_file, "extractor"),
        coord_unit=None if not has_coords else "um" if unit == "um" else "px",
        patch_size=size if size is not None else _whole(of_file, "tile_size_px"),
        patch_level=level,
        patch_size_level0=_size_on_level0(of_coords, size, level, magnification),
        magnification=magnification,
        overlap=_whole(of_coords, "overlap"),
        level0_width=width,
        level0_height=height,
    )


def listed(names: Iterable[str], limit: int = 10) -> str:
    """The first names of many, for a message."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def unusable(
    what: str, path: Path, slide_id: str, expected: str | None, found: str | None, fix: str | None = None
) -> InputError:
    """The refusal of one slide's file."""
    fix = fix or "extract the slide's features again, or leave the slide out of the case table"
    return InputError(what, file=path, case=slide_id, expected=expected, found=found, fix=fix)


def unreadable(path: Path, slide_id: str, kind: str, error: Exception) -> InputError:
    """The refusal of a slide's file that is no whole file of its kind (`HDF5`, `Parquet`, ...)."""
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    what = f"the file cannot be read: it is damaged, cut short, or no {kind} file"
    return unusable(what, path, slide_id, f"a whole {kind} file", found)


def _joined(held: list[SourceChunk]) -> SourceChunk:
    if len(held) == 1:
        return held[0]
    coords = [part for _, part in held if part is not None]
    return np.concatenate([part for part, _ in held]), np.concatenate(coords) if coords else None


def _size_on_level0(
    of_coords: Mapping[str, Any], size: int | None, level: int | None, magnification: float | None
) -> int | None:
    said, of_slide = _whole(of_coords, "patch_size_level0"), _number(of_coords, "level0_magnification")
    if said is not None or size is None:
        return said
    if magnification and of_slide:
        return round(size * of_slide / magnification)
    if level is None:
        return None
    # CLAM gives the size at its level and that level's downsample, as (x, y)
    downsample = np.atleast_1d(of_coords.get("downsample", 1.0 if level == 0 else np.nan))[0]
    return round(size * float(downsample)) if np.isfinite(downsample) else None


def _number(attributes: Mapping[str, Any], key: str) -> float | None:
    try:
        value = float(attributes[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _whole(attributes: Mapping[str, Any], key: str) -> int | None:
    value = _number(attributes, key)
    return None if value is None or not abs(value) < 2**31 else round(value)


def _text(attributes: Mapping[str, Any], key: str) -> str | None:
    value = attributes.get(key)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    # TRIDENT writes the text None where it does not know its encoder
    return value if isinstance(value, str) and value not in ("", "None") else None
