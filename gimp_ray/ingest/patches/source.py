"""`PatchSource`: one slide's patches in a file of another tool, with its size, its attributes and its values in chunks.

Each format has `inspect(path, slide_id) -> PatchSource`, which reads headers only. Shared here: the checks of shapes,
names and types, the attributes that files and TRIDENT's folders record, and the messages about a bad file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
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
_FIX = "extract the slide's features again, or leave the slide out of the case table"
_KINDS = {".h5": "HDF5", ".hdf5": "HDF5", ".parquet": "Parquet"}

# TRIDENT's folders: 20x_256px_0px_overlap/features_ENCODER/SLIDE.h5
_FEATURES = re.compile(r"(slide_)?features_(.+)")
_COORDS = re.compile(r"(\d+(?:\.\d+)?)x_(\d+)px_(\d+)px_overlap")


@dataclass(frozen=True)
class PatchAttributes:
    """What a file records about its patches; None where it does not. Units as in `storage_schemas/slides.json`."""

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
    """A slide's patch file after a look at its header.

    `coords_path` is another file that holds the coordinates. With `slide_level` the file holds one vector of the whole
    slide: a bag of one patch without coordinates.
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
        with reading(self.path, self.slide_id):
            yield from self.chunks(self, rows)


def unusable(what: str, expected: str | None, found: str | None, fix: str = _FIX) -> InputError:
    """The refusal of a slide's file; `reading` adds the file and the slide."""
    return InputError(what, expected=expected, found=found, fix=fix)


@contextlib.contextmanager
def reading(path: Path, slide_id: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into an InputError that names the file and the slide."""
    try:
        yield
    except MemoryError:
        raise
    except InputError as error:
        error.file, error.case = error.file or str(path), error.case or slide_id
        raise
    except Exception as error:
        kind = _KINDS.get(path.suffix.lower(), path.suffix.lower()[1:])
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"the file cannot be read: it is damaged, cut short, or no {kind} file"
        raise InputError(
            what, file=path, case=slide_id, expected=f"a whole {kind} file", found=found, fix=_FIX
        ) from error


def bag_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(N, D) of a bag stored as (N, D) or (1, N, D); InputError for other shapes and for an empty bag."""
    if 0 in shape:
        fix = "leave the slide out of the case table, or extract its features again"
        raise unusable("the bag is empty", "at least one patch", f"shape {tuple(shape)}", fix)
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise unusable("features have an unknown shape", "(N, D) or (1, N, D)", str(tuple(shape)))
    return int(shape[0]), int(shape[1])


def check_coords_shape(shape: tuple[int, ...], n_patches: int) -> None:
    """InputError unless coordinates are (N, 2) or (1, N, 2) for the N patches of the features."""
    if tuple(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape) != (n_patches, 2):
        raise unusable("coordinates do not match the features", f"({n_patches}, 2)", str(tuple(shape)))


def check_float(dtype: np.dtype[Any]) -> None:
    """InputError unless features are stored as floats."""
    if dtype.kind != "f":
        raise unusable("features are not floats", FLOATS, str(dtype))


def feature_name(names: Collection[str]) -> str:
    """Which of a file's arrays holds the features; InputError where none or several may."""
    found = [name for name in FEATURE_NAMES if name in names]
    if len(found) == 1:
        return found[0]
    expected = f"one array named {', '.join(FEATURE_NAMES[:-1])} or {FEATURE_NAMES[-1]}"
    if found:
        what = "the file has several arrays of features"
        raise unusable(what, expected, ", ".join(found), "keep one of them in the file")
    raise unusable("the file has no features", expected, listed(names) or "an empty file")


def coords_name(names: Collection[str]) -> str | None:
    """Which of a file's arrays holds the coordinates, None without any; InputError where several may."""
    found = [name for name in COORDS_NAMES if name in names]
    if len(found) > 1:
        what, expected = "the file has several arrays of coordinates", f"one array named {' or '.join(COORDS_NAMES)}"
        raise unusable(what, expected, ", ".join(found), "keep one of them in the file")
    return found[0] if found else None


def integer_coords(values: np.ndarray) -> np.ndarray:
    """Coordinates as int32, rounded where a tool keeps fractions; InputError where not finite or too large."""
    if values.dtype.kind == "f":
        values = np.rint(values)
    elif values.dtype.kind not in "iu":
        raise unusable("coordinates are not numbers", "integers or floats", str(values.dtype))
    limits = np.iinfo(np.int32)
    if not bool(np.all((values >= limits.min) & (values <= limits.max))):  # false for NaN as well
        raise unusable("coordinates do not fit", "finite numbers below 2^31", f"up to {values.max()}")
    return values.astype(np.int32)


def named_attributes(
    of_file: Mapping[str, Any], of_features: Mapping[str, Any], of_coords: Mapping[str, Any], has_coords: bool
) -> PatchAttributes:
    """The attributes of a file, its features and its coordinates, under the names CLAM, TRIDENT and STAMP use.

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


def feature_encoder(folder: str) -> str | None:
    """The encoder of a TRIDENT folder named `features_ENCODER`; None for any other name."""
    match = _FEATURES.fullmatch(folder)
    return match[2] if match and not match[1] else None


def is_slide_level(path: Path) -> bool:
    """Whether a file lies in TRIDENT's folder of slide-level vectors, `slide_features_ENCODER`."""
    match = _FEATURES.fullmatch(path.parent.name)
    return bool(match and match[1])


def is_coords_folder(folder: str) -> bool:
    """Whether a folder is named after magnification, patch size and overlap, as TRIDENT's are."""
    return _COORDS.fullmatch(folder) is not None


def with_folder_attributes(source: PatchSource) -> PatchSource:
    """The source with what TRIDENT's folder names add; InputError where a folder contradicts the file."""
    folder, own = source.path.parent, source.attributes
    features, coords = _FEATURES.fullmatch(folder.name), _COORDS.fullmatch(folder.parent.name)
    if features is None:
        return source
    recorded: dict[str, Any] = {"encoder": features[2]}
    if coords:
        recorded |= {"magnification": float(coords[1]), "patch_size": int(coords[2]), "overlap": int(coords[3])}
    added: dict[str, Any] = {}
    for name, of_folder in recorded.items():
        of_file = getattr(own, name)
        if of_file is None:
            added[name] = of_folder
        elif name == "encoder":
            same = re.sub(r"[^a-z0-9]", "", of_folder.lower()) == re.sub(r"[^a-z0-9]", "", of_file.lower())
        else:  # CLAM's coordinates, which TRIDENT reads too, have a patch size at a pyramid level: another number
            same = of_folder == of_file or (name == "patch_size" and own.magnification is None)
        if of_file is not None and not same:
            thing = name.replace("_", " ")
            wrong = folder if name == "encoder" else folder.parent
            raise unusable(
                f"the folder and the file name another {thing}",
                f"{thing} {of_folder}, as its folder says",
                f"{thing} {of_file} in the file",
                f"put the file into its own folder, or rename {wrong.name} if that is what is wrong",
            )
    return dataclasses.replace(source, attributes=dataclasses.replace(own, **added)) if added else source


def listed(names: Iterable[str], limit: int = 10) -> str:
    """The first names of many, for a message."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _size_on_level0(
    of_coords: Mapping[str, Any], size: int | None, level: int | None, magnification: float | None
) -> int | None:
    recorded, of_slide = _whole(of_coords, "patch_size_level0"), _number(of_coords, "level0_magnification")
    if recorded is not None or size is None:
        return recorded
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
