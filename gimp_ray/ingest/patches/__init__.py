"""Patch features of other tools: finding their files, reading each format, writing them into a store's part files.

A new format is one `inspect` function and one line in `PATCH_READERS`.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from pathlib import Path

from gimp_ray.ingest.patches import arrays, hdf5, parquet
from gimp_ray.ingest.patches.source import PatchAttributes, PatchSource, reading, unusable, with_folder_attributes

__all__ = ["PATCH_READERS", "PatchAttributes", "PatchSource", "inspect_patches"]

PATCH_READERS: dict[str, Callable[[Path, str], PatchSource]] = {
    ".h5": hdf5.inspect,
    ".hdf5": hdf5.inspect,
    ".pt": arrays.inspect_pt,
    ".npy": arrays.inspect_npy,
    ".npz": arrays.inspect_npz,
    ".parquet": parquet.inspect,
    ".zarr": arrays.inspect_zarr,
}
_REASONS = {
    errno.ELOOP: "a symbolic link that leads back to itself",
    errno.ENOENT: "nothing there, or a symbolic link that leads nowhere",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


def inspect_patches(path: Path, slide_id: str) -> PatchSource:
    """Look at a slide's feature file; InputError where it cannot be used."""
    with reading(path, slide_id):
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                next(path.iterdir(), None)
            elif stat.S_ISREG(mode):
                path.open("rb").close()
            else:  # reading a pipe would wait for ever
                raise unusable("the patch file is no file", "a file or a zarr folder", "a pipe or device")
        except OSError as error:
            found = _REASONS.get(error.errno or 0, str(error))
            fix = "put the file there and let this user read it, or leave the slide out of the case table"
            raise unusable("the patch file cannot be opened", "a file that this user may read", found, fix) from error
        return with_folder_attributes(PATCH_READERS[path.suffix.lower()](path, slide_id))
