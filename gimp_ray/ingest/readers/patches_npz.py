"""Patch features in numpy's `.npz`: `features`, `feats` or `embeddings` (N, D), and `coords` or `coordinates` (N, 2).

Compressed or not, the arrays are read as streams of rows: a zip member cannot be memory-mapped, and `np.load` would
unpack all of it. An array in column order is unpacked to a temporary file first. Never with `allow_pickle`. Left out:
attributes stored as further arrays.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from gimp_ray.ingest.readers.base import (
    PatchAttributes,
    PatchSource,
    SourceChunk,
    bag_shape,
    check_coords_shape,
    check_float,
    coords_name,
    feature_name,
    integer_coords,
    unreadable,
)
from gimp_ray.ingest.readers.patches_npy import Header, mapped, read_header

_COPY_BYTES = 1 << 20
# NotImplementedError: a way of packing that zipfile does not know; RuntimeError: an encrypted file
_FAULTS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Members:
    """The arrays used, by the names of their zip members."""

    features: str
    features_header: Header
    coords: str | None
    coords_header: Header | None


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size of the arrays, from the zip directory and the arrays' headers."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, slide_id)
    except _FAULTS as error:
        raise unreadable(path, slide_id, "npz", error) from error
    header = members.features_header
    check_float(header.dtype, path, slide_id)
    n_patches, dim = bag_shape(header.shape, path, slide_id)
    known = members.coords_header is not None
    if members.coords_header is not None:
        check_coords_shape(members.coords_header.shape, n_patches, path, slide_id)
    attributes = PatchAttributes(coord_unit="px" if known else None)
    return PatchSource(slide_id, path, n_patches, dim, header.dtype.name, known, _chunks, attributes)


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    path, slide_id = source.path, source.slide_id
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, slide_id)
            features = _rows(archive, members.features, members.features_header, rows)
            if members.coords is None or members.coords_header is None:
                yield from ((part, None) for part in features)
                return
            coords = _rows(archive, members.coords, members.coords_header, rows)
            for part, places in zip(features, coords, strict=True):
                yield part, integer_coords(places, path, slide_id)
    except _FAULTS as error:
        raise unreadable(path, slide_id, "npz", error) from error


def _members(archive: zipfile.ZipFile, path: Path, slide_id: str) -> _Members:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    features, coords = feature_name(names, path, slide_id) + ".npy", coords_name(names, path, slide_id)
    if coords is None:
        return _Members(features, _header(archive, features), None, None)
    return _Members(features, _header(archive, features), coords + ".npy", _header(archive, coords + ".npy"))


def _header(archive: zipfile.ZipFile, member: str) -> Header:
    with archive.open(member) as stream:
        header = read_header(stream)
    if header.dtype.hasobject:
        raise ValueError(f"{member} holds Python objects, which are never loaded")
    size = archive.getinfo(member).file_size
    if size != header.size:
        raise ValueError(f"{member} has {size} bytes, its header asks for {header.size}")
    return header


def _rows(archive: zipfile.ZipFile, member: str, header: Header, rows: int) -> Iterator[np.ndarray]:
    """The rows of an array, `rows` at a time."""
    with archive.open(member) as stream:
        n, width = header.shape[-2:]
        if header.fortran:
            yield from _unpacked(stream, header, rows)
            return
        stream.read(header.start)
        for start in range(0, n, rows):
            part = np.empty((min(rows, n - start), width), header.dtype)
            _fill(stream, part)
            yield part
        stream.read(1)  # at its end a zip member is compared with its checksum


def _fill(stream: IO[bytes], part: np.ndarray) -> None:
    view = part.reshape(-1).view(np.uint8).data
    for start in range(0, len(view), _COPY_BYTES):
        piece = stream.read(min(_COPY_BYTES, len(view) - start))
        view[start : start + len(piece)] = piece
        if len(piece) < min(_COPY_BYTES, len(view) - start):
            raise EOFError("the array ends early")


def _unpacked(stream: IO[bytes], header: Header, rows: int) -> Iterator[np.ndarray]:
    """An array in column order, whose rows are spread over all of it."""
    with contextlib.ExitStack() as stack:
        file = cast(IO[bytes], stack.enter_context(tempfile.TemporaryFile()))
        shutil.copyfileobj(stream, file, _COPY_BYTES)
        file.flush()
        array = mapped(file, header)
        for start in range(0, len(array), rows):
            yield array[start : start + rows]
