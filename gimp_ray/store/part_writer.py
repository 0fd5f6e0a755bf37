"""Writing part files: Parquet files of patches, a slide after another, in row groups of 512 patches and one page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from gimp_ray.store.dtypes import STORED, width
from gimp_ray.store.parts import ONE_PAGE, Chunk
from gimp_ray.store.schema import ROW_GROUP_ROWS, table_schema


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
        self._digest.update(np.ascontiguousarray(embeddings).data)
        self._coords.append(np.ascontiguousarray(coords, dtype="<i4").tobytes())

    def hexdigest(self) -> str:
        digest = self._digest.copy()
        for coords in self._coords:
            digest.update(coords)
        return digest.hexdigest()


class PartWriter:
    """Writes one part file. Use as a context manager; add slides one after the other.

    Args:
        path: the file, on `filesystem`.
        dim: embedding width D.
        compression: `none` or `zstd`.
        dtype: number format of the embeddings.
        filesystem: where `path` is; the local disk without it.

    Attributes:
        on_row_group: called after every row group with its slide, the byte the file now ends at, and its embeddings
            and coordinates as they were to be written.
    """

    def __init__(
        self,
        path: str,
        dim: int,
        compression: str = "none",
        dtype: str = "float16",
        filesystem: pafs.FileSystem | None = None,
    ) -> None:
        metadata = {
            "gimp.table": "patches",
            "gimp.version": str(table_schema("patches").version),
            "gimp.dim": str(dim),
            "gimp.dtype": dtype,
            "gimp.byte_order": "little",
            "gimp.patch_order": "source",
            "gimp.pages": ONE_PAGE.decode(),
        }
        self.on_row_group: Callable[[str, int, np.ndarray, np.ndarray], None] | None = None
        self._width, self._stored = width(dim, dtype), STORED[dtype]
        self._schema = table_schema("patches").arrow(width=self._width).with_metadata(metadata)
        self._row_groups = 0
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._sink = (filesystem or pafs.LocalFileSystem()).open_output_stream(path)
        self._writer = pq.ParquetWriter(
            self._sink,
            self._schema,
            compression=compression,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
            data_page_size=(ROW_GROUP_ROWS + 1) * self._width,
        )

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._hashing.shutdown()
        try:
            self._writer.close()
        finally:
            self._sink.close()

    def add_slide(self, slide_id: str, chunks: Iterable[Chunk]) -> SlideRecord:
        """Write a slide from its chunks; every chunk but the last holds a multiple of 512 patches."""
        first, n_patches, digest, last = self._row_groups, 0, SlideHash(), False
        low, high = np.full(2, np.iinfo(np.int32).max), np.full(2, np.iinfo(np.int32).min)
        hashed: Future[None] | None = None
        for embeddings, coords in chunks:
            if last:
                raise ValueError(f"slide {slide_id}: a chunk that is no multiple of {ROW_GROUP_ROWS} must be the last")
            last = len(embeddings) % ROW_GROUP_ROWS != 0
            if hashed is not None:
                hashed.result()
            hashed = self._hashing.submit(digest.update, embeddings, coords)
            for start in range(0, len(embeddings), ROW_GROUP_ROWS):
                rows = slice(start, start + ROW_GROUP_ROWS)
                self._write_row_group(slide_id, embeddings[rows], coords[rows])
            low, high = np.minimum(low, coords.min(axis=0)), np.maximum(high, coords.max(axis=0))
            n_patches += len(embeddings)
        if hashed is not None:
            hashed.result()
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        return SlideRecord(slide_id, first, n_patches, *box, digest.hexdigest())

    def _write_row_group(self, slide_id: str, embeddings: np.ndarray, coords: np.ndarray) -> None:
        self._writer.write_table(self._table(embeddings, coords), row_group_size=ROW_GROUP_ROWS)
        self._row_groups += 1
        if self.on_row_group is not None:
            self.on_row_group(slide_id, self._sink.tell(), embeddings, coords)

    def _table(self, embeddings: np.ndarray, coords: np.ndarray) -> pa.Table:
        n = len(embeddings)
        data = pa.py_buffer(np.ascontiguousarray(embeddings, dtype=self._stored))
        packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(self._width), n, [None, data])
        xy = np.ascontiguousarray(coords.T, dtype=np.int32)
        return pa.Table.from_arrays([pa.array(xy[0]), pa.array(xy[1]), packed], schema=self._schema)
