"""Part files: Parquet files of patches, written a slide after another and read by row group.

Any Parquet reader can read them. Ours need not decode: an uncompressed column of fixed-size binary is its values after
a page header, and every column of a row group is written as one page, so a window is a copy of bytes at offsets the
footer names (the file's metadata promises it: `gimp.pages`). In object storage a window is one ranged request, the
coordinates between its row groups included (0.4 % more). Compressed parts, and all parts where checksums are to be
verified, go through Arrow's decoder.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.io import storage
from gimp_ray.store.dtypes import STORED, width
from gimp_ray.store.schema import ROW_GROUP_ROWS, table_schema

# a chunk of patches as stored: (n, D) embeddings in the store's number format, (n, 2) int32 coordinates
Chunk = tuple[np.ndarray, np.ndarray]

# (row group, rows to skip, rows to take), and (place in the file, bytes)
_Piece = tuple[int, int, int]
_Run = tuple[int, int]

ONE_PAGE = b"one a column chunk"
_LONGEST_PAGE_HEADER = 256
_REQUEST_BYTES = 32 << 20
_CHUNK_ROWS = 8 * ROW_GROUP_ROWS


@dataclass(frozen=True)
class _Layout:
    """Where the values of an uncompressed part file lie.

    Attributes:
        rows: (row groups,) patches of each.
        offsets: column -> (row groups,) place of its first value in the file.
        widths: column -> bytes of a value.
    """

    rows: NDArray[np.int64]
    offsets: dict[str, NDArray[np.int64]]
    widths: dict[str, int]


@dataclass(frozen=True)
class _Part:
    """An open part file: its bytes, its footer, and where its values lie (None: they must be decoded)."""

    source: Any
    footer: pq.FileMetaData
    layout: _Layout | None
    mapped: NDArray[np.uint8] | None = field(repr=False)


class PartReader:
    """Reads row groups of a store's part files, keeping the footers of the last `keep` files.

    Args:
        filesystem, root: where the store is.
        dim, dtype: of its embeddings; part files of others are refused. Without `dim` any are read.
        verify: compare each row group with its checksum when it is read.

    Threads may share it: a read of bytes at a place is safe, and one through Arrow's decoder makes its own Parquet
    reader over the shared footer (0.1 ms), because those are not promised to be.
    """

    def __init__(
        self,
        filesystem: pafs.FileSystem,
        root: str,
        dim: int | None = None,
        dtype: str = "float16",
        *,
        verify: bool = False,
        keep: int = 256,
    ) -> None:
        self._filesystem, self._root, self._keep, self._verify = filesystem, root, keep, verify
        self._dim, self._dtype = dim, dtype
        self._parts: OrderedDict[str, Future[_Part]] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, name: str) -> pq.ParquetFile:
        """The part file `name` (relative to the store); InputError when it is missing or no Parquet file."""
        part = self._part(name)
        return pq.ParquetFile(
            part.source, metadata=part.footer, pre_buffer=part.mapped is None, page_checksum_verification=self._verify
        )

    def places(self, name: str) -> NDArray[np.int64] | None:
        """Where the first embedding of each row group lies in the file; None where embeddings must be decoded."""
        layout = self._part(name).layout
        return None if layout is None else layout.offsets["embedding"]

    def read(self, name: str, first_group: int, start: int, out: NDArray[np.uint8], column: str = "embedding") -> int:
        """Fill `out` (n, bytes of a value) with a column's values of the rows from `start` on, counted from row group
        `first_group`; returns how many of the n rows there were.
        """
        part = self._part(name)
        have = part.footer.num_row_groups
        pieces = [piece for piece in _pieces(first_group, start, len(out)) if piece[0] < have]
        if part.layout is None or (part.mapped is None and column != "embedding"):
            # values that lie far apart: Arrow's reader asks for all of them at a time
            return self._decode(name, pieces, out, column)
        runs = list(_runs(part.layout, pieces, column))
        flat = out.reshape(-1)
        if part.mapped is not None:
            done = self._copy(name, runs, part.mapped, 0, flat)
        else:
            done = 0
            for some in _requests(runs):
                low, length = some[0][0], some[-1][0] + some[-1][1] - some[0][0]
                done += self._copy(name, some, self._request(name, part.source, low, length), low, flat[done:])
        return done // out.shape[1]

    def chunks(self, name: str, first_group: int, n_patches: int, dim: int, dtype: str) -> Iterator[Chunk]:
        """A slide as it is stored, a few row groups at a time; fewer patches where the file holds fewer."""
        for start in range(0, n_patches, _CHUNK_ROWS):
            n = min(_CHUNK_ROWS, n_patches - start)
            packed = np.empty((n, width(dim, dtype)), dtype=np.uint8)
            xy = np.empty((2, n, 4), dtype=np.uint8)
            found = self._read_all(name, first_group, start, {"x": xy[0], "y": xy[1], "embedding": packed})
            yield packed[:found].view(STORED[dtype]), xy.view("<i4")[:, :found, 0].T
            if found < n:
                return

    def _read_all(self, name: str, first_group: int, start: int, out: dict[str, NDArray[np.uint8]]) -> int:
        """The same as `read` for several columns at a time, which in object storage is one request."""
        part = self._part(name)
        if part.layout is None or part.mapped is not None:
            return min(self.read(name, first_group, start, array, column) for column, array in out.items())
        length = min(len(array) for array in out.values())
        pieces = [p for p in _pieces(first_group, start, length) if p[0] < part.footer.num_row_groups]
        if not pieces:
            return 0
        runs = {column: list(_runs(part.layout, pieces, column)) for column in out}
        low = min(some[0][0] for some in runs.values())
        high = max(sum(some[-1]) for some in runs.values())
        data = self._request(name, part.source, low, high - low)
        return min(
            self._copy(name, runs[c], data, low, array.reshape(-1)) // array.shape[1] for c, array in out.items()
        )

    def batches(self, name: str, groups: range, column: str) -> Iterator[pa.Array]:
        """One Arrow array for each of the row groups, in order, through Arrow's decoder."""
        try:
            batches = self.open(name).iter_batches(
                ROW_GROUP_ROWS, row_groups=list(groups), columns=[column], use_threads=False
            )
            for batch in batches:
                yield batch.column(0)
        except (pa.ArrowException, OSError, IndexError) as error:
            raise self._unreadable(name, error) from error

    def _copy(self, name: str, runs: list[_Run], data: NDArray[np.uint8], shift: int, out: NDArray[np.uint8]) -> int:
        """Copy runs of a file, of which `data` is the part from `shift` on, after one another; returns the bytes."""
        done = 0
        for place, length in runs:
            if place - shift + length > len(data):
                raise self._damaged(name, f"{shift + len(data)} bytes, its footer speaks of {place + length}")
            out[done : done + length] = data[place - shift : place - shift + length]
            done += length
        return done

    def _request(self, name: str, source: Any, offset: int, length: int) -> NDArray[np.uint8]:
        try:
            data = storage.retry_read(*self._place(name), lambda: source.read_at(length, offset))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(name, error) from error
        if len(data) != length:
            raise self._damaged(name, f"{len(data)} of {length} bytes from {offset} on")
        return np.frombuffer(data, dtype=np.uint8)

    def _decode(self, name: str, pieces: list[_Piece], out: NDArray[np.uint8], column: str) -> int:
        if not pieces:
            return 0
        arrays, done = self.batches(name, range(pieces[0][0], pieces[-1][0] + 1), column), 0
        for (_, skip, take), array in zip(pieces, arrays, strict=False):
            rows = packed_rows(array)[skip : skip + take]
            out[done : done + len(rows)] = rows
            done += len(rows)
        return done

    def _part(self, name: str) -> _Part:
        """The open part file; threads that ask for it at the same time open it once."""
        with self._lock:
            known = self._parts.get(name)
            opening: Future[_Part] = known or Future()
            self._parts[name] = opening
            self._parts.move_to_end(name)
            while len(self._parts) > self._keep:
                self._parts.popitem(last=False)  # closed when the last read that uses it is done
        if known is None:
            try:
                opening.set_result(self._open_part(name))
            except BaseException as error:
                with self._lock:
                    self._parts.pop(name, None)  # the next one who asks tries again
                opening.set_exception(error)
        return opening.result()

    def _open_part(self, name: str) -> _Part:
        filesystem, path = self._place(name)
        try:
            if storage.is_local(filesystem):
                source = pa.memory_map(path)
                mapped = np.frombuffer(source.read_buffer(), dtype=np.uint8)
            else:
                source, mapped = storage.retry_read(filesystem, path, lambda: filesystem.open_input_file(path)), None
            footer = storage.retry_read(filesystem, path, lambda: pq.ParquetFile(source).metadata)
            self._check_kind(name, footer)
            return _Part(source, footer, None if self._verify else _layout(footer), mapped)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(name, error) from error

    def _check_kind(self, name: str, footer: pq.FileMetaData) -> None:
        """Refuse a part file whose embeddings are not those that the manifest states."""
        told = {key: value.decode() for key, value in (footer.metadata or {}).items()}
        if self._dim is None:
            return
        schema = footer.schema.to_arrow_schema()
        problems = table_schema("patches").differences(schema, width=width(self._dim, self._dtype))
        found = f"{told.get(b'gimp.dim')} x {told.get(b'gimp.dtype')}"
        if problems or found != f"{self._dim} x {self._dtype}":
            expected = f"embeddings of {self._dim} x {self._dtype}, as the manifest states"
            raise self._damaged(name, "; ".join([found, *problems]), expected=expected)

    def _place(self, name: str) -> tuple[pafs.FileSystem, str]:
        """A part file is below the store, or, in a store merged of others, wherever its name says."""
        return storage.resolve(name) if storage.is_uri(name) else (self._filesystem, storage.join(self._root, name))

    def _unreadable(self, name: str, error: Exception) -> InputError:
        return self._damaged(name, str(error), storage.advice(self._place(name)[0], error))

    def _damaged(self, name: str, found: str, fix: str | None = None, expected: str | None = None) -> InputError:
        return InputError(
            "a part file of the store cannot be read",
            file=storage.display_uri(*self._place(name)) if not storage.is_uri(name) else name,
            expected=expected or "a Parquet file of patches, as ingest wrote it",
            found=found[:500],
            fix=fix or "`gimp check STORE` lists what is damaged; copy the store again or ingest the sources again",
        )


def row_groups(n_patches: int) -> int:
    """How many row groups a slide of `n_patches` patches has."""
    return -(-n_patches // ROW_GROUP_ROWS)


def packed_rows(array: pa.Array) -> NDArray[np.uint8]:
    """The (n, bytes of a value) bytes of an Arrow array of fixed-size values without nulls, without a copy."""
    size = array.type.bit_width // 8
    flat = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return flat[array.offset * size : (array.offset + len(array)) * size].reshape(len(array), size)


def _pieces(first_group: int, start: int, length: int) -> Iterator[_Piece]:
    """The row groups of a window of a slide that begins at row group `first_group`."""
    while length > 0:
        group, skip = divmod(start, ROW_GROUP_ROWS)
        take = min(length, ROW_GROUP_ROWS - skip)
        yield first_group + group, skip, take
        start, length = start + take, length - take


def _runs(layout: _Layout, pieces: list[_Piece], column: str) -> Iterator[_Run]:
    size, offsets = layout.widths[column], layout.offsets[column]
    for group, skip, take in pieces:
        take = min(take, int(layout.rows[group]) - skip)  # noqa: PLW2901
        if take > 0:
            yield int(offsets[group]) + skip * size, take * size


def _requests(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Runs that are asked for together: what lies between them is small beside another request."""
    some: list[_Run] = []
    for run in runs:
        if some and run[0] + run[1] - some[0][0] > _REQUEST_BYTES:
            yield some
            some = []
        some.append(run)
    if some:
        yield some


def _layout(footer: pq.FileMetaData) -> _Layout | None:
    """Where values lie, None where the file does not promise one uncompressed page a column chunk."""
    if (footer.metadata or {}).get(b"gimp.pages") != ONE_PAGE:
        return None
    schema, groups = footer.schema.to_arrow_schema(), footer.num_row_groups
    widths = {name: schema.field(name).type.bit_width // 8 for name in schema.names}
    rows = np.zeros(groups, dtype=np.int64)
    offsets = {name: np.zeros(groups, dtype=np.int64) for name in widths}
    for g in range(groups):
        group = footer.row_group(g)
        rows[g] = group.num_rows
        for i, (name, size) in enumerate(widths.items()):
            chunk = group.column(i)
            header = chunk.total_compressed_size - group.num_rows * size
            if chunk.compression != "UNCOMPRESSED" or not 0 < header <= _LONGEST_PAGE_HEADER:
                return None
            offsets[name][g] = chunk.data_page_offset + header
    return _Layout(rows, offsets, widths)
