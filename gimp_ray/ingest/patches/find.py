"""Which patch file belongs to which slide, in a folder as CLAM, TRIDENT or a user lays it out.

The folder holds files, or CLAM's `h5_files/` and `pt_files/`, or it is a TRIDENT tree: a job folder with
`20x_256px_0px_overlap/features_ENCODER/SLIDE.h5` in it, or any folder of that path. A `SLIDE.zarr` folder is a file
here. Where CLAM or TRIDENT has a slide as h5 and as pt, the h5 file is used, since it has coordinates. Names that begin
with a dot are skipped; everything else that is not read is listed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gimp_ray.errors import InputError
from gimp_ray.ingest.cases import slide_stem
from gimp_ray.ingest.patches import PATCH_READERS, hdf5
from gimp_ray.ingest.patches.source import feature_encoder, is_coords_folder, listed

# a job folder's features lie two levels down, those of a folder of jobs three
_DEPTH = 3
_NOT_PATCHES = "not a patch file"
_COORDS_ONLY = "coordinates without features"
_SLIDE_LEVEL = "slide-level features; give this folder itself to read them"
_NOT_LOOKED_INTO = "a folder that was not looked into"
_PICTURES = "pictures"
_KNOWN_FOLDERS = {"patches": _COORDS_ONLY, "visualization": _PICTURES}
_STRAY = "patch files in no folder of features"
_NO_FEATURES = "no folder of features in it, as far as it was looked into"
# what is not listed of the folders in a folder without features
_PLAIN = (_NOT_PATCHES, _PICTURES, _STRAY, _NOT_LOOKED_INTO, _NO_FEATURES)


@dataclass(frozen=True)
class PatchFiles:
    """The files of a folder: `by_slide` is used; `shadowed` is the other file of a slide that has two.

    `folder` is where the files are, which in a TRIDENT tree is a folder below the one given. `other` is all else that
    was found there, with what it is.
    """

    folder: Path
    by_slide: dict[str, Path]
    shadowed: dict[Path, Path]
    other: dict[Path, str]


def find_patch_files(folder: Path, encoder: str | None = None) -> PatchFiles:
    """The patch files of a folder, by the stems of their names: slide ids, or case ids.

    Args:
        folder: as described above.
        encoder: reads the `features_ENCODER` folder of a TRIDENT tree that has several.

    Raises:
        InputError: no such folder, none that can be read, no patch file in it, one slide in two files, or several
            encoders or coordinate folders in the tree and none chosen.
    """
    encoder = None if encoder is None else encoder.removeprefix("features_")
    try:
        _check_folder(folder)
        direct = _direct(folder)
        own = feature_encoder(folder.name)
        if own is not None or (direct and not _has_tree(folder)):  # what lies in folders below is not read
            if encoder not in (None, own):
                raise _no_such_encoder(folder, str(encoder), [] if own is None else [folder])
            inner = [path for path in _entries(folder)[1] if path.name not in ("h5_files", "pt_files")]
            return _files_of(folder, direct, dict.fromkeys(inner, _NOT_LOOKED_INTO))
        features, other = _walk(folder, _DEPTH, {_identity(folder): folder})
        if not features:
            if encoder is not None:
                raise _no_such_encoder(folder, encoder, [])
            return _files_of(folder, direct, other)
        chosen = _choose(folder, features, direct, encoder)
        strays = dict.fromkeys(direct, f"not in {chosen.relative_to(folder)}, which is read")
        passed = {path: "features that are not read" for path in features if path != chosen}
        return _files_of(chosen, _direct(chosen), {**other, **strays, **passed})
    except OSError as error:
        fix = "let this user read the folder"
        where, found = error.filename or folder, error.strerror or str(error)
        raise InputError("the folder of patch features cannot be read", file=where, found=found, fix=fix) from error


def _check_folder(folder: Path) -> None:
    fix = "give the folder that holds the feature files"
    if folder.suffix.lower() == ".zarr" and folder.is_dir():
        what, found = "this is one slide's file, not a folder of slides", folder.name
        raise InputError(what, file=folder, expected="a folder of patch features", found=found, fix=fix)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing at this path"
        what = "there is no such folder of patch features"
        raise InputError(what, file=folder, expected="a folder", found=found, fix=fix)


def _files_of(folder: Path, direct: Sequence[Path], other: dict[Path, str]) -> PatchFiles:
    """The files by slide; `direct` are those of the folder and of CLAM's two folders in it."""
    here = [path for path in direct if path.parent == folder]
    if feature_encoder(folder.name) is None:
        _by_slide(here)  # refuses SLIDE.h5 beside SLIDE.pt in a folder that no tool has written
    pt, rest = ([path for path in direct if (path.suffix.lower() == ".pt") == is_pt] for is_pt in (True, False))
    by_slide = _by_slide(rest)
    shadowed: dict[Path, Path] = {}
    for slide_id, path in _by_slide(pt).items():
        first = by_slide.setdefault(slide_id, path)
        if first is path:
            continue
        if first.suffix.lower() not in (".h5", ".hdf5"):
            raise _two_files(slide_id, first, path)
        if hdf5.has_features(first):
            shadowed[path] = first
        else:  # CLAM's coordinate files: the pt reader takes the coordinates from there
            by_slide[slide_id], shadowed[first] = path, path
    for parent in _with_clam_folders(folder):
        files, folders = _entries(parent)
        found = {path: what for path in files if (what := _other_file(path)) is not None}
        inner = {} if parent == folder else dict.fromkeys(folders, _NOT_LOOKED_INTO)
        other = {**found, **inner, **other}
    if not by_slide:
        telling = [f"{path.name}: {what}" for path, what in other.items() if what != _NOT_PATCHES]
        names = sorted(path.name for path in folder.iterdir())
        endings = ", ".join(PATCH_READERS)
        raise InputError(
            "the folder holds no patch features",
            file=folder,
            expected=f"files ending in {endings}, or h5_files/, pt_files/ or features_*/ with such files",
            found=listed(telling or names) or "an empty folder",
            fix="give the folder that holds the feature files",
        )
    return PatchFiles(folder, by_slide, shadowed, other)


def _has_tree(folder: Path) -> bool:
    """Whether folders of features lie beside the folder's own patch files."""
    inner = _entries(folder)[1]
    with contextlib.suppress(OSError):  # what cannot be read is no reason against the folder's own files
        inner += [path for parent in inner if is_coords_folder(parent.name) for path in _entries(parent)[1]]
        return any(feature_encoder(path.name) is not None and _direct(path) for path in inner)
    return False


def _walk(folder: Path, depth: int, seen: dict[tuple[int, int], Path]) -> tuple[list[Path], dict[Path, str]]:
    """Folders of features with files in them, down to `depth`, and everything else with what it is.

    A symbolic link is never followed twice to one folder.
    """
    files, folders = _entries(folder)
    features: list[Path] = []
    other = {path: _other_file(path) or _STRAY for path in files}
    for path in folders:
        try:
            what = _other_folder(path, depth, seen)
            if what is not None:
                other[path] = what
                continue
            seen[_identity(path)] = path
            if feature_encoder(path.name) is None:
                found, rest = _walk(path, depth - 1, seen)
                features += found
                other |= rest if found else _short(path, rest)
            elif _direct(path):
                features.append(path)
            else:
                other[path] = "a folder of features without files"
        except OSError as error:
            other[path] = f"a folder that cannot be read: {error.strerror or error}"
    return features, other


def _other_folder(path: Path, depth: int, seen: dict[tuple[int, int], Path]) -> str | None:
    """What a folder is that need not be looked into; None for one that must be."""
    what = _SLIDE_LEVEL if path.name.startswith("slide_features_") else _KNOWN_FOLDERS.get(path.name)
    if what is not None or depth == 0:
        return what or _NOT_LOOKED_INTO
    known = seen.get(_identity(path))
    if known is None:
        return None
    if known in path.parents:
        return "a symbolic link that leads back to a folder above it"
    return f"the same folder as {known}"


def _short(folder: Path, below: dict[Path, str]) -> dict[Path, str]:
    """A folder without features as one entry, beside the folders in it that must be listed."""
    listed_below = {path: what for path, what in below.items() if what not in _PLAIN}
    strays = sum(what == _STRAY for what in below.values())
    return {folder: f"{_STRAY}: {strays} files of this folder" if strays else _NO_FEATURES, **listed_below}


def _choose(folder: Path, found: Sequence[Path], direct: Sequence[Path], encoder: str | None) -> Path:
    """The one folder of features to read; InputError where several could be meant."""
    wanted = [path for path in found if encoder is None or feature_encoder(path.name) == encoder]
    if not wanted and encoder is not None:
        raise _no_such_encoder(folder, encoder, found)
    encoders = sorted({feature_encoder(path.name) or "" for path in wanted})
    several = len({path.parent for path in wanted}) > 1
    if len(wanted) == 1 and (encoder is not None or not direct):
        return wanted[0]
    if len(wanted) == 1:
        what = "the folder holds patch files, and a folder of features"
        fix = "give the folder of features, or move the files elsewhere"
        names = listed([path.name for path in direct], 3)
        raise InputError(
            what, file=folder, expected="one of the two", found=f"{_names(folder, wanted)}; {names}", fix=fix
        )
    if len(encoders) > 1:
        what = "the tree holds the features of several encoders"
        fix = f"choose one of the encoders {', '.join(encoders)}, or give one of these folders"
    else:
        what = "the tree holds features of several magnifications, patch sizes or overlaps"
        fix = "give one of these folders, or the folder above it: ingest one cohort a magnification"
    if len(encoders) > 1 and several:
        fix = "give one of these folders"
    raise InputError(what, file=folder, expected="one folder of features", found=_names(folder, wanted), fix=fix)


def _no_such_encoder(folder: Path, encoder: str, found: Sequence[Path]) -> InputError:
    what, expected = f"there are no features of encoder {encoder}", f"a folder features_{encoder} with patch files"
    fix = "choose an encoder that is there, or none where the folder holds one encoder's files alone"
    names = _names(folder, found) or "no folder of features"
    return InputError(what, file=folder, expected=expected, found=names, fix=fix)


def _names(folder: Path, paths: Iterable[Path]) -> str:
    return listed(str(path.relative_to(folder)) if path != folder else folder.name for path in paths)


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder, zarr folders among them, and its other folders, sorted."""
    files: list[Path] = []
    folders: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                path = Path(entry.path)
                (folders if _is_folder(entry) and path.suffix.lower() != ".zarr" else files).append(path)
    return sorted(files), sorted(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link that leads back to itself: its reader says so
        return False


def _other_file(path: Path) -> str | None:
    """What a file is that holds no patch features, by its name; None for a patch file."""
    if path.parent.name == "patches" and path.name.endswith("_patches.h5"):
        return _COORDS_ONLY
    if path.suffix.lower() == ".lock":
        return "a lock: the file beside it may not be whole"
    return None if path.suffix.lower() in PATCH_READERS else _NOT_PATCHES


def _with_clam_folders(folder: Path) -> list[Path]:
    """A folder and those of CLAM's two folders that are in it."""
    return [folder, *(path for path in (folder / "h5_files", folder / "pt_files") if path.is_dir())]


def _direct(folder: Path) -> list[Path]:
    """The patch files of a folder and of CLAM's two folders in it."""
    return [p for parent in _with_clam_folders(folder) for p in _entries(parent)[0] if _other_file(p) is None]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _by_slide(paths: Sequence[Path]) -> dict[str, Path]:
    by_slide: dict[str, Path] = {}
    for path in paths:
        slide_id = slide_stem(path.stem)
        if slide_id in by_slide:
            raise _two_files(slide_id, by_slide[slide_id], path)
        by_slide[slide_id] = path
    return by_slide


def _two_files(slide_id: str, first: Path, second: Path) -> InputError:
    return InputError(
        "a slide has two patch files",
        file=second,
        case=slide_id,
        expected="one file a slide",
        found=f"{first} and {second}",
        fix="keep one of them in the folder",
    )
