"""Readers of other tools' files, one small file a format.

    patches_*   features and coordinates of one slide, behind the seam in `base.py`; `patches_trident` is no format but
                what TRIDENT's folder names say
    genes_*     expression matrices, behind the seam in `matrix.py`
    case_table, split_table   the user's CSV files

A new patch format is one file and one line in `PATCH_READERS`; a new gene format one file and one line in
`genes.py`.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from pathlib import Path

from gimp_ray.ingest.readers import patches_h5, patches_npy, patches_npz, patches_parquet, patches_pt, patches_zarr
from gimp_ray.ingest.readers.base import PatchAttributes, PatchSource, unusable
from gimp_ray.ingest.readers.patches_trident import with_folder_attributes

PATCH_READERS: dict[str, Callable[[Path, str], PatchSource]] = {
    ".h5": patches_h5.inspect,
    ".hdf5": patches_h5.inspect,
    ".pt": patches_pt.inspect,
    ".npy": patches_npy.inspect,
    ".npz": patches_npz.inspect,
    ".parquet": patches_parquet.inspect,
    ".zarr": patches_zarr.inspect,
}
_REASONS = {
    errno.ELOOP: "a symbolic link that leads back to itself",
    errno.ENOENT: "nothing there, or a symbolic link that leads nowhere",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


def inspect_patches(path: Path, slide_id: str) -> PatchSource:
    """Look at a slide's feature file; InputError where it cannot be used."""
    try:
        _check_opens(path, slide_id)
        source = PATCH_READERS[path.suffix.lower()](path, slide_id)
    except OSError as error:
        found = _REASONS.get(error.errno or 0, str(error))
        fix = "put the file there and let this user read it, or leave the slide out of the case table"
        what = "the patch file cannot be opened"
        raise unusable(what, path, slide_id, "a file that this user may read", found, fix) from error
    return with_folder_attributes(source)


def _check_opens(path: Path, slide_id: str) -> None:
    """OSError where a file is not there or not readable; a pipe or device, which would wait for ever, is refused."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        next(path.iterdir(), None)
    elif stat.S_ISREG(mode):
        path.open("rb").close()
    else:
        raise unusable("the patch file is no file", path, slide_id, "a file or a zarr folder", "a pipe or device")


__all__ = ["PATCH_READERS", "PatchAttributes", "PatchSource", "inspect_patches"]
