"""What TRIDENT's folder names say about the files in them: `20x_256px_0px_overlap/features_ENCODER/SLIDE.h5`.

The attributes of a file come first; what they do not say, its folders may. Where both speak they must agree: a file in
the folder of another encoder was put there by mistake. Left out: which folder of a tree is read (`discover.py`).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from gimp_ray.ingest.readers.base import PatchAttributes, PatchSource, unusable

_FEATURES = re.compile(r"features_(.+)")
_SLIDE_FEATURES = re.compile(r"slide_features_(.+)")
_COORDS = re.compile(r"(\d+(?:\.\d+)?)x_(\d+)px_(\d+)px_overlap")


def feature_encoder(folder: str) -> str | None:
    """The encoder of a folder named `features_ENCODER`; None for any other name."""
    match = _FEATURES.fullmatch(folder)
    return match[1] if match else None


def is_slide_level(path: Path) -> bool:
    """Whether a file lies in a folder of slide-level vectors, `slide_features_ENCODER`."""
    return _SLIDE_FEATURES.fullmatch(path.parent.name) is not None


def is_coords_folder(folder: str) -> bool:
    """Whether a folder is named after magnification, patch size and overlap."""
    return _COORDS.fullmatch(folder) is not None


def folder_attributes(path: Path) -> PatchAttributes:
    """What the folders of a feature file say: encoder, magnification, patch size and overlap (px at it)."""
    name = path.parent.name
    match = _FEATURES.fullmatch(name) or _SLIDE_FEATURES.fullmatch(name)
    if match is None:
        return PatchAttributes()
    coords = _COORDS.fullmatch(path.parent.parent.name)
    if coords is None:
        return PatchAttributes(encoder=match[1])
    magnification, size, overlap = float(coords[1]), int(coords[2]), int(coords[3])
    return PatchAttributes(encoder=match[1], magnification=magnification, patch_size=size, overlap=overlap)


def with_folder_attributes(source: PatchSource) -> PatchSource:
    """The source with what its folders say added; InputError where a folder contradicts the file."""
    said, own = folder_attributes(source.path), source.attributes
    added: dict[str, Any] = {}
    for name in ("encoder", "magnification", "patch_size", "overlap"):
        of_folder, of_file = getattr(said, name), getattr(own, name)
        if of_folder is None:
            continue
        if of_file is None:
            added[name] = of_folder
        elif not _same(of_folder, of_file) and not _of_a_level(name, own):
            raise _contradiction(name, of_folder, of_file, source)
    return dataclasses.replace(source, attributes=dataclasses.replace(own, **added)) if added else source


def _same(of_folder: object, of_file: object) -> bool:
    if isinstance(of_folder, str) and isinstance(of_file, str):
        return _plain(of_folder) == _plain(of_file)
    return of_folder == of_file


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _of_a_level(name: str, own: PatchAttributes) -> bool:
    """CLAM's coordinates, which TRIDENT reads too, have a patch size at a pyramid level: another number."""
    return name == "patch_size" and own.magnification is None


def _contradiction(name: str, of_folder: object, of_file: object, source: PatchSource) -> Exception:
    thing = name.replace("_", " ")
    what, expected = f"the folder and the file name another {thing}", f"{thing} {of_folder}, as its folder says"
    folder = source.path.parent if name == "encoder" else source.path.parent.parent
    fix = f"put the file into its own folder, or rename {folder.name} if that is what is wrong"
    return unusable(what, source.path, source.slide_id, expected, f"{thing} {of_file} in the file", fix)
