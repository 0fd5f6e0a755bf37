"""Part files: Parquet files of patches, written a slide after another and read by row group.

A window reads the row groups it touches and, for embeddings, that one column (design.md: bytes read follow tokens
used). Layout measured on a 6,000 x 1024 window: uncompressed fixed-size binary 4 ms, list columns 45 ms.
Left out: which slide is where (`store.py`) and where the patches come from (`readers/`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from gimp_ray.cohort.schema import ROW_GROUP_ROWS, table_schema
from gimp_ray.errors import InputError

# a chunk of patches as stored: (n, D) float16 embeddings, (n, 2) int32 coordinates
Chunk = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class SlideRecord:
    """What writing a slide told about it: place in its part file, size, bounding box (level-0 corner) and hash."""

    slide_id: str
    first_row_group: int
    n_patches: int
    x_min: int
    y_min: int
    x_max: int
    y_max: int
    sha256: str


class SlideHash:
    """SHA-256 over a slide's stored embeddings in order, then its coordinates."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._coords: list[bytes] = []

    def update(self, embeddings: np.ndarray, coords: np.ndarray) -> None:
        self._digest.update(np.ascontiguousarray(embeddings, dtype="<f2").data)
        self._coords.append(np.ascontiguousarray(coords, dtype="<i4").tobytes())

    def hexdigest(self) -> str:
        digest = self._digest.copy()
        for coords in self._coords:
            digest.update(coords)
        return digest.hexdigest()


class PartWriter:
    """Writes one part file. Use as a context manager; add slides one after the other."""

    def __init__(self, path: str, dim: int, compression: str = "none") -> None:
        metadata = {
            "gimp.table": "patches",
            "gimp.version": str(table_schema("patches").version),
            "gimp.dim": str(dim),
            "gimp.dtype": "float16",
            "gimp.byte_order": "little",
            "gimp.patch_order": "source",
        }
        self._dim = dim
        self._schema = table_schema("patches").arrow(dim=dim).with_metadata(metadata)
        self._row_groups = 0
        self._writer = pq.ParquetWriter(
            path, self._schema, compression=compression, use_dictionary=False, write_statistics=False
        )

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._writer.close()

    def add_slide(self, slide_id: str, chunks: Iterable[Chunk]) -> SlideRecord:
        """Write a slide from its chunks; every chunk but the last holds a multiple of 512 patches."""
        first, n_patches, digest, last = self._row_groups, 0, SlideHash(), False
        low, high = np.full(2, np.iinfo(np.int32).max), np.full(2, np.iinfo(np.int32).min)
        for embeddings, coords in chunks:
            if last:
                raise ValueError(f"slide {slide_id}: a chunk that is no multiple of {ROW_GROUP_ROWS} must be the last")
            last = len(embeddings) % ROW_GROUP_ROWS != 0
            self._writer.write_table(self._table(embeddings, coords), row_group_size=ROW_GROUP_ROWS)
            digest.update(embeddings, coords)
            low, high = np.minimum(low, coords.min(axis=0)), np.maximum(high, coords.max(axis=0))
            n_patches += len(embeddings)
            self._row_groups += row_groups(len(embeddings))
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        return SlideRecord(slide_id, first, n_patches, *box, digest.hexdigest())

    def _table(self, embeddings: np.ndarray, coords: np.ndarray) -> pa.Table:
        n = len(embeddings)
        data = pa.py_buffer(np.ascontiguousarray(embeddings, dtype="<f2"))
        packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * self._dim), n, [None, data])
        xy = np.ascontiguousarray(coords.T, dtype=np.int32)
        return pa.Table.from_arrays([pa.array(xy[0]), pa.array(xy[1]), packed], schema=self._schema)


class PartReader:
    """Reads row groups of a store's part files, keeping the footers of the last `keep` files.

    Threads may share it: every read makes its own Parquet reader over the shared footer (0.1 ms), because
    Arrow's readers are not promised to be thread-safe.
    """

    def __init__(self, filesystem: pafs.FileSystem, root: str, keep: int = 128) -> None:
        self._filesystem, self._root, self._keep = filesystem, root, keep
        self._footers: OrderedDict[str, tuple[Any, pq.FileMetaData]] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, name: str) -> pq.ParquetFile:
        """The part file `name` (relative to the store); InputError when it is missing or no Parquet file."""
        with self._lock:
            known = self._footers.get(name)
            if known is not None:
                self._footers.move_to_end(name)
        if known is None:
            known = self._open_footer(name)
            with self._lock:
                self._footers[name] = known
                while len(self._footers) > self._keep:
                    self._footers.popitem(last=False)  # closed when the last read that uses it is done
        source, footer = known
        return pq.ParquetFile(source, metadata=footer, pre_buffer=not isinstance(source, pa.MemoryMappedFile))

    def batches(self, name: str, groups: range, column: str) -> Iterator[pa.Array]:
        """One Arrow array for each of the row groups, in order."""
        try:
            batches = self.open(name).iter_batches(
                ROW_GROUP_ROWS, row_groups=list(groups), columns=[column], use_threads=False
            )
            for batch in batches:
                yield batch.column(0)
        except (pa.ArrowException, OSError, IndexError) as error:
            raise self._damaged(name, str(error)) from error

    def _open_footer(self, name: str) -> tuple[Any, pq.FileMetaData]:
        path = f"{self._root}/{name}"
        try:
            local = isinstance(self._filesystem, pafs.LocalFileSystem)
            source = pa.memory_map(path) if local else self._filesystem.open_input_file(path)
            return source, pq.ParquetFile(source).metadata
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(name, str(error)) from error

    def _damaged(self, name: str, found: str) -> InputError:
        return InputError(
            "a part file of the store cannot be read",
            file=f"{self._root}/{name}",
            expected="a Parquet file of patches, as ingest wrote it",
            found=found,
            fix="`gimp check STORE` lists what is damaged; copy the store again or ingest the sources again",
        )


def row_groups(n_patches: int) -> int:
    """How many row groups a slide of `n_patches` patches has."""
    return -(-n_patches // ROW_GROUP_ROWS)


def embeddings_of(array: pa.Array, dim: int) -> np.ndarray:
    """The (n, dim) float16 values of an Arrow array of embeddings, without a copy."""
    flat = np.frombuffer(array.buffers()[1], dtype="<f2")
    return flat[array.offset * dim : (array.offset + len(array)) * dim].reshape(len(array), dim)
