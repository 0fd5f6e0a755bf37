"""Which patch file belongs to which slide, in a folder as CLAM, TRIDENT or a user lays it out.

The folder holds files, or CLAM's `h5_files/` and `pt_files/`. Where a slide has both, the h5 file is used, since it has
coordinates. Left out: TRIDENT's tree of encoders (give the folder with the `.h5` files).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gimp_ray.cohort.readers import PATCH_READERS, patches_h5
from gimp_ray.cohort.readers.case_table import slide_stem
from gimp_ray.errors import InputError


@dataclass(frozen=True)
class PatchFiles:
    """`by_slide` is used; `shadowed` is the other file of a slide that has two; `other` are no patch files."""

    folder: Path
    by_slide: dict[str, Path]
    shadowed: dict[Path, Path]
    other: tuple[Path, ...]


def find_patch_files(folder: Path) -> PatchFiles:
    """The patch files of a folder.

    Raises:
        InputError: no such folder, no patch file in it, or one slide in two files.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing at this path"
        fix = "give the folder that holds the feature files"
        raise InputError(
            "there is no such folder of patch features", file=folder, expected="a folder", found=found, fix=fix
        )
    try:
        direct = _files(folder)
        h5_files, pt_files = (_files(folder / name) for name in ("h5_files", "pt_files"))
    except OSError as error:
        raise InputError("the folder of patch features cannot be read", file=folder, found=str(error)) from error
    other = tuple(path for path in direct + h5_files + pt_files if path.suffix.lower() not in PATCH_READERS)
    _by_slide([path for path in direct if path not in other])  # refuses SLIDE.h5 beside SLIDE.pt
    used = [path for path in direct + h5_files + pt_files if path not in other]
    h5, pt = ([path for path in used if (path.suffix.lower() == ".pt") == is_pt] for is_pt in (False, True))
    by_slide = _by_slide(h5)
    shadowed: dict[Path, Path] = {}
    for slide_id, path in _by_slide(pt).items():
        first = by_slide.setdefault(slide_id, path)
        if first is path:
            continue
        if patches_h5.has_features(first):
            shadowed[path] = first
        else:  # CLAM's coordinate files: the pt reader takes the coordinates from there
            by_slide[slide_id], shadowed[first] = path, path
    if not by_slide:
        raise InputError(
            "the folder holds no patch features",
            file=folder,
            expected=f"files ending in {', '.join(PATCH_READERS)}, or h5_files/ or pt_files/ with such files",
            found=", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "an empty folder",
            fix="give the folder that holds the feature files",
        )
    return PatchFiles(folder, by_slide, shadowed, other)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())


def _by_slide(paths: list[Path]) -> dict[str, Path]:
    by_slide: dict[str, Path] = {}
    for path in paths:
        slide_id = slide_stem(path.name)
        if slide_id in by_slide:
            raise InputError(
                "a slide has two patch files",
                file=path,
                case=slide_id,
                expected="one file a slide",
                found=f"{by_slide[slide_id]} and {path}",
                fix="keep one of them in the folder",
            )
        by_slide[slide_id] = path
    return by_slide
