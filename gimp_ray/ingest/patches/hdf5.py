"""Patch features in HDF5, as CLAM, TRIDENT and STAMP write them, and the coordinates other formats take from there.

`features` (CLAM, TRIDENT) or `feats` (STAMP), (N, D) or (1, N, D); `coords` (N, 2), optional. A slide-level vector (D,)
is a bag of one patch, where the folder (TRIDENT's `slide_features_ENCODER`) or the file (STAMP's `feat_type`) declares
it; TRIDENT keeps the coordinates of the slide's patches in such a file, and they are not the vector's.

The HDF5 library looks up every HDF5 chunk in an index, and tools write chunks as small as one patch, so reading through
it takes ten times as long as reading the bytes. `DatasetRows` therefore reads unfiltered values at their byte offsets,
which the library is asked for once, in a few large reads; everything else goes through the library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from gimp_ray.ingest.patches.source import (
    PatchAttributes,
    PatchSource,
    SourceChunk,
    bag_shape,
    check_coords_shape,
    check_float,
    integer_coords,
    is_slide_level,
    named_attributes,
    reading,
    unusable,
)

FEATURE_KEYS = ("features", "feats")
COORDS_KEY = "coords"

# a file compressed in large HDF5 chunks would otherwise unpack each of them for every read
_CHUNK_CACHE_BYTES = 128 << 20
# a piece as large is a read of its own; smaller ones are read together with what lies between, if that is little
_OWN_READ_BYTES = 256 << 10
_LARGEST_GAP = 64 << 10


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size and attributes of a feature file, from its header."""
    with h5py.File(path, "r") as file:
        features, coords = _features(file), _coords(file)
        check_float(features.dtype)
        attributes, dtype = _attributes(file, features, coords), str(features.dtype)
        slide_level = is_slide_level(path) or file.attrs.get("feat_type") in ("slide", "patient", b"slide", b"patient")
        if slide_level and features.size and features.shape in ((features.size,), (1, features.size)):
            attributes, dim = dataclasses.replace(attributes, coord_unit=None), int(features.size)
            return PatchSource(slide_id, path, 1, dim, dtype, False, _chunks, attributes, slide_level=True)
        n_patches, dim = bag_shape(features.shape)
        if coords is not None:
            check_coords_shape(coords.shape, n_patches)
        return PatchSource(slide_id, path, n_patches, dim, dtype, coords is not None, _chunks, attributes)


def with_coords_file(source: PatchSource) -> PatchSource:
    """A source without coordinates of its own, with those of the HDF5 file that its tool puts elsewhere.

    That is `h5_files/SLIDE.h5` beside the file or its folder (CLAM), or `patches/SLIDE_patches.h5` beside its folder
    (TRIDENT). Without one the source stays as it is.
    """
    folder, names = source.path.parent, dict.fromkeys((source.path.stem, source.slide_id))
    files = [parent / "h5_files" / f"{name}.h5" for parent in (folder, folder.parent) for name in names]
    files += [folder.parent / "patches" / f"{name}_patches.h5" for name in names]
    for path in files:
        if path.is_file():
            with reading(path, source.slide_id), h5py.File(path, "r") as file:
                coords = _coords(file)
                if coords is not None:
                    check_coords_shape(coords.shape, source.n_patches)
                    features = next((file[key] for key in FEATURE_KEYS if key in file), None)
                    attributes = _attributes(file, features, coords)
                    return dataclasses.replace(source, has_coords=True, coords_path=path, attributes=attributes)
    return source


def read_coords(path: Path, slide_id: str) -> np.ndarray:
    """All coordinates of a file: (N, 2) int32."""
    with reading(path, slide_id), h5py.File(path, "r") as file:
        coords = file[COORDS_KEY]
        return integer_coords(coords[0] if coords.ndim == 3 else coords[()])


def has_features(path: Path) -> bool:
    """Whether a file holds features; True as well where it cannot be read, so that it is looked at and reported."""
    try:
        with h5py.File(path, "r") as file:
            return any(key in file for key in FEATURE_KEYS)
    except (OSError, RuntimeError):
        return True


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(h5py.File(source.path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES))
        features = _features(file)
        if source.slide_level:
            yield features[()].reshape(1, source.dim), None
            return
        values = stack.enter_context(DatasetRows(features, source.path))
        xy = stack.enter_context(DatasetRows(file[COORDS_KEY], source.path)) if source.has_coords else None
        for start in range(0, source.n_patches, rows):
            stop = min(start + rows, source.n_patches)
            yield values.read(start, stop), None if xy is None else integer_coords(xy.read(start, stop))


def _features(file: h5py.File) -> h5py.Dataset:
    for key in FEATURE_KEYS:
        if isinstance(file.get(key), h5py.Dataset):
            return file[key]
    expected = f"a data set named {' or '.join(FEATURE_KEYS)}"
    raise unusable("the file has no features", expected, ", ".join(file) or "an empty file")


def _coords(file: h5py.File) -> h5py.Dataset | None:
    """The coordinates, None without any; InputError where something else has their name."""
    coords = file.get(COORDS_KEY)
    if coords is not None and not isinstance(coords, h5py.Dataset):
        raise unusable("the coordinates are no data set", f"a data set named {COORDS_KEY}", type(coords).__name__)
    return coords


def _attributes(file: h5py.File, features: h5py.Dataset | None, coords: h5py.Dataset | None) -> PatchAttributes:
    of_features = {} if features is None else dict(features.attrs)
    of_coords = {} if coords is None else dict(coords.attrs)
    return named_attributes(dict(file.attrs), of_features, of_coords, coords is not None)


@dataclass(frozen=True)
class _Offsets:
    """Where the rows of a data set lie.

    Attributes:
        starts: (pieces,) byte offset of each piece, in the order of the rows.
        rows: rows of a piece; the last may be cut short.
        row_bytes: bytes of a row.
    """

    starts: NDArray[np.int64]
    rows: int
    row_bytes: int


class DatasetRows:
    """Slices of rows of an (N, D) or (1, N, D) data set as (n, D) arrays. Use as a context manager.

    Args:
        dataset: the data set, whose file stays open meanwhile.
        path: its file.
    """

    def __init__(self, dataset: h5py.Dataset, path: Path) -> None:
        self._dataset = dataset
        self._count, self._dim = (int(n) for n in dataset.shape[-2:])
        self._file = FileIO(path)
        self._offsets = _offsets(dataset)
        if self._offsets is not None and not self._agrees():
            self._offsets = None

    def __enter__(self) -> DatasetRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def by_offset(self) -> bool:
        """Whether the rows are read at their byte offsets."""
        return self._offsets is not None

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Rows `start` to `stop - 1`.

        Raises:
            OSError: the file ends before them, or cannot be read.
        """
        if self._offsets is None:
            return self._through_library(start, stop)
        out = np.empty((stop - start, self._dim), dtype=self._dataset.dtype)
        flat = out.reshape(-1).view(np.uint8)
        for done, runs in _reads(self._offsets, start, stop):
            self._fill(flat[done:], runs)
        return out

    def _through_library(self, start: int, stop: int) -> NDArray[np.generic]:
        rows = self._dataset[0, start:stop] if self._dataset.ndim == 3 else self._dataset[start:stop]
        return np.asarray(rows)

    def _fill(self, flat: NDArray[np.uint8], runs: list[tuple[int, int]]) -> None:
        """Fill the beginning of `flat` with runs (offset, bytes) that lie close together."""
        if len(runs) == 1:
            offset, length = runs[0]
            self._read_at(offset, flat[:length])
            return
        first, end = runs[0][0], runs[-1][0] + runs[-1][1]
        along = np.empty(end - first, dtype=np.uint8)
        self._read_at(first, along)
        done = 0
        for offset, length in runs:
            flat[done : done + length] = along[offset - first : offset - first + length]
            done += length

    def _read_at(self, offset: int, out: NDArray[np.uint8]) -> None:
        self._file.seek(offset)
        view, done = memoryview(out.data), 0
        while done < len(view):
            got = self._file.readinto(view[done:])
            if not got:
                raise OSError(f"the file ends at byte {offset + done}, its header speaks of {offset + len(view)}")
            done += got

    def _agrees(self) -> bool:
        """Whether the library gives the same first, middle and last row, which decides."""
        for row in sorted({0, self._count // 2, self._count - 1}):
            try:
                same = self.read(row, row + 1).tobytes() == self._through_library(row, row + 1).tobytes()
            except OSError:
                return False
            if not same:
                return False
        return True


def _offsets(dataset: h5py.Dataset) -> _Offsets | None:
    """Where the rows lie; None where only the library can read them."""
    file, properties = dataset.file, dataset.id.get_create_plist()
    plain = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype) and dataset.dtype.kind in "fiu"
    if not plain or properties.get_nfilters() or dataset.is_virtual or dataset.external:
        return None
    if file.driver != "sec2" or file.userblock_size or 0 in dataset.shape:
        return None
    row_bytes = dataset.shape[-1] * dataset.dtype.itemsize
    if properties.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return None if offset is None else _Offsets(np.array([offset], np.int64), dataset.shape[-2], row_bytes)
    chunks = dataset.chunks
    whole_rows = chunks is not None and chunks[-1] == dataset.shape[-1] and chunks[:-2] in ((), (1,))
    return _chunk_offsets(dataset, row_bytes) if whole_rows else None


def _chunk_offsets(dataset: h5py.Dataset, row_bytes: int) -> _Offsets | None:
    rows, axis = dataset.chunks[-2], len(dataset.shape) - 2
    if not hasattr(dataset.id, "chunk_iter"):  # HDF5 before 1.12.3
        return None
    found: list[tuple[int, int, int]] = []

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        found.append((chunk.chunk_offset[axis], chunk.byte_offset, chunk.size))

    dataset.id.chunk_iter(note)
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    # chunks that were never written have no offset; whole-looking files have none such
    if len(table) != -(-dataset.shape[-2] // rows) or (table[:, 2] != rows * row_bytes).any():
        return None
    return _Offsets(table[np.argsort(table[:, 0]), 1], rows, row_bytes)


def _reads(offsets: _Offsets, start: int, stop: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """What to read for rows `start` to `stop - 1`: (bytes before it in the result, runs that lie close together)."""
    first, last = start // offsets.rows, (stop - 1) // offsets.rows
    begins = offsets.starts[first : last + 1].copy()
    lengths = np.full(len(begins), offsets.rows * offsets.row_bytes, dtype=np.int64)
    skip = (start - first * offsets.rows) * offsets.row_bytes
    begins[0] += skip
    lengths[0] -= skip
    lengths[-1] -= ((last + 1) * offsets.rows - stop) * offsets.row_bytes
    gaps = begins[1:] - (begins[:-1] + lengths[:-1])
    edges = np.concatenate([[0], np.flatnonzero(gaps) + 1, [len(begins)]])
    before = np.concatenate([[0], np.cumsum(lengths)])
    runs = [(int(begins[a]), int(before[b] - before[a])) for a, b in itertools.pairwise(edges)]
    together: list[tuple[int, int]] = []
    done = at = 0
    for run in runs:
        if together and (
            max(run[1], together[-1][1]) >= _OWN_READ_BYTES or not 0 <= run[0] - sum(together[-1]) <= _LARGEST_GAP
        ):
            yield at, together
            together, at = [], done
        together.append(run)
        done += run[1]
    yield at, together
