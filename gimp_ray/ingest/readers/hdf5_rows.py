"""Rows of an HDF5 data set, read where they lie in the file instead of through the HDF5 library where that is the same.

The library looks every HDF5 chunk up in an index, and tools write chunks as small as one patch: reading such a file
through it takes ten times as long as reading its bytes. Values that are stored unfiltered as numpy would store them
are therefore read by their places, which the library is asked for once, in a few large reads. Left out: compressed
data sets, split columns, virtual and external data sets: those go through the library.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from numpy.typing import NDArray

# a piece as large is a read of its own; smaller ones are read together with what lies between, if that is little
_OWN_READ_BYTES = 256 << 10
_LARGEST_GAP = 64 << 10


@dataclass(frozen=True)
class _Places:
    """Where the rows of a data set lie.

    Attributes:
        offsets: (pieces,) place in the file of each piece, in the order of the rows.
        rows: rows of a piece; the last may be cut short.
        row_bytes: bytes of a row.
    """

    offsets: NDArray[np.int64]
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
        self._places = _places(dataset)
        if self._places is not None and not self._agrees():
            self._places = None

    def __enter__(self) -> DatasetRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    @property
    def by_place(self) -> bool:
        """Whether the rows are read by their places."""
        return self._places is not None

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Rows `start` to `stop - 1`.

        Raises:
            OSError: the file ends before them, or cannot be read.
        """
        if self._places is None:
            return self._through_library(start, stop)
        out = np.empty((stop - start, self._dim), dtype=self._dataset.dtype)
        flat = out.reshape(-1).view(np.uint8)
        for done, runs in _reads(self._places, start, stop):
            self._fill(flat[done:], runs)
        return out

    def _through_library(self, start: int, stop: int) -> NDArray[np.generic]:
        rows = self._dataset[0, start:stop] if self._dataset.ndim == 3 else self._dataset[start:stop]
        return np.asarray(rows)

    def _fill(self, flat: NDArray[np.uint8], runs: list[tuple[int, int]]) -> None:
        """Fill the beginning of `flat` with runs (place, bytes) that lie close together."""
        if len(runs) == 1:
            place, length = runs[0]
            self._read_at(place, flat[:length])
            return
        first, end = runs[0][0], runs[-1][0] + runs[-1][1]
        along = np.empty(end - first, dtype=np.uint8)
        self._read_at(first, along)
        done = 0
        for place, length in runs:
            flat[done : done + length] = along[place - first : place - first + length]
            done += length

    def _read_at(self, place: int, out: NDArray[np.uint8]) -> None:
        self._file.seek(place)
        view, done = memoryview(out.data), 0
        while done < len(view):
            got = self._file.readinto(view[done:])
            if not got:
                raise OSError(f"the file ends at byte {place + done}, its header speaks of {place + len(view)}")
            done += got

    def _agrees(self) -> bool:
        """Whether the library gives the same first, middle and last row: its word is what counts."""
        for row in sorted({0, self._count // 2, self._count - 1}):
            try:
                same = self.read(row, row + 1).tobytes() == self._through_library(row, row + 1).tobytes()
            except OSError:
                return False
            if not same:
                return False
        return True


def _places(dataset: h5py.Dataset) -> _Places | None:
    """Where the rows lie, None where only the library can read them."""
    file, properties = dataset.file, dataset.id.get_create_plist()
    plain = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype) and dataset.dtype.kind in "fiu"
    if not plain or properties.get_nfilters() or dataset.is_virtual or dataset.external:
        return None
    if file.driver != "sec2" or file.userblock_size or 0 in dataset.shape:
        return None
    row_bytes = dataset.shape[-1] * dataset.dtype.itemsize
    if properties.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return None if offset is None else _Places(np.array([offset], np.int64), dataset.shape[-2], row_bytes)
    chunks = dataset.chunks
    whole_rows = chunks is not None and chunks[-1] == dataset.shape[-1] and chunks[:-2] in ((), (1,))
    return _chunk_places(dataset, row_bytes) if whole_rows else None


def _chunk_places(dataset: h5py.Dataset, row_bytes: int) -> _Places | None:
    rows, axis = dataset.chunks[-2], len(dataset.shape) - 2
    if not hasattr(dataset.id, "chunk_iter"):  # HDF5 before 1.12.3
        return None
    found: list[tuple[int, int, int]] = []

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        found.append((chunk.chunk_offset[axis], chunk.byte_offset, chunk.size))

    dataset.id.chunk_iter(note)
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    # chunks that were never written have no place; whole-looking files have none such
    if len(table) != -(-dataset.shape[-2] // rows) or (table[:, 2] != rows * row_bytes).any():
        return None
    return _Places(table[np.argsort(table[:, 0]), 1], rows, row_bytes)


def _reads(places: _Places, start: int, stop: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """What to read for rows `start` to `stop - 1`: (bytes before it in the result, runs that lie close together)."""
    first, last = start // places.rows, (stop - 1) // places.rows
    begins = places.offsets[first : last + 1].copy()
    lengths = np.full(len(begins), places.rows * places.row_bytes, dtype=np.int64)
    skip = (start - first * places.rows) * places.row_bytes
    begins[0] += skip
    lengths[0] -= skip
    lengths[-1] -= ((last + 1) * places.rows - stop) * places.row_bytes
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
