"""Readers of other tools' files, one small file a format.

    patches_*   features and coordinates of one slide, behind the seam in `base.py`
    genes_*     expression matrices, behind the seam in `matrix.py`
    case_table, split_table   the user's CSV files

A new patch format is one file and one line in `PATCH_READERS`; a new gene format one file and one line in
`genes.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gimp_ray.cohort.readers import patches_h5, patches_pt
from gimp_ray.cohort.readers.base import PatchAttributes, PatchSource

PATCH_READERS: dict[str, Callable[[Path, str], PatchSource]] = {
    ".h5": patches_h5.inspect,
    ".hdf5": patches_h5.inspect,
    ".pt": patches_pt.inspect,
}


def inspect_patches(path: Path, slide_id: str) -> PatchSource:
    """Look at a slide's feature file; InputError where it cannot be used."""
    return PATCH_READERS[path.suffix.lower()](path, slide_id)


__all__ = ["PATCH_READERS", "PatchAttributes", "PatchSource", "inspect_patches"]
