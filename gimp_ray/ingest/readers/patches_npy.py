"""Patch features in numpy's `.npy`: one array (N, D) or (1, N, D) of floats, memory-mapped.

Never with `allow_pickle`: an array of objects is refused from its header. Coordinates come from the file that CLAM or
TRIDENT puts elsewhere, else they are unknown. Left out: several arrays in one file (`patches_npz.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from gimp_ray.ingest.readers import patches_h5
from gimp_ray.ingest.readers.base import PatchSource, SourceChunk, bag_shape, check_float, unreadable

_FAULTS = (OSError, ValueError, EOFError)


@dataclass(frozen=True)
class Header:
    """What an array in numpy's format says before its values, which begin at byte `start`."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def size(self) -> int:
        """Bytes of header and values."""
        return self.start + int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size of an array file, from its header."""
    try:
        with path.open("rb") as stream:
            header = read_header(stream)
        check_float(header.dtype, path, slide_id)
        n_patches, dim = bag_shape(header.shape, path, slide_id)
        if path.stat().st_size < header.size:
            raise ValueError(f"{path.stat().st_size} bytes, its header asks for {header.size}")
    except _FAULTS as error:
        raise unreadable(path, slide_id, "npy", error) from error
    return patches_h5.with_coords_file(PatchSource(slide_id, path, n_patches, dim, header.dtype.name, False, _chunks))


def read_header(stream: IO[bytes]) -> Header:
    """The header at the start of a stream; ValueError where there is none, or none of numbers."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version[0]}.{version[1]}, which is for arrays of records")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return Header(shape, fortran, dtype, stream.tell())


def mapped(source: Path | IO[bytes], header: Header) -> np.ndarray:
    """The values as a memory map, (N, D) for a bag stored as (1, N, D) too."""
    order = "F" if header.fortran else "C"
    array = np.memmap(source, header.dtype, "r", header.start, header.shape, order)  # type: ignore[call-overload]
    return np.asarray(array[0] if array.ndim == 3 else array)


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    try:
        with source.path.open("rb") as stream:
            features = mapped(source.path, read_header(stream))
    except _FAULTS as error:
        raise unreadable(source.path, source.slide_id, "npy", error) from error
    coords = patches_h5.read_coords(source.coords_path, source.slide_id) if source.coords_path else None
    for start in range(0, source.n_patches, rows):
        yield features[start : start + rows], None if coords is None else coords[start : start + rows]
