"""Patch features in Parquet, one file a slide, one row a patch.

The embedding is (a) a list column of constant width, (b) a binary column whose `dim` and `dtype` stand in the file's
metadata, as in a store's own part files, or (c) D float columns, `f0, f1, ...`, `feature_0, ...` or `0, 1, ...`.
Coordinates are columns `x, y`, `coord_x, coord_y` or `coords_x, coords_y`. Read in batches of rows over a memory map.
The metadata may name encoder, patch size and the like as TRIDENT's attributes do. Left out: other columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gimp_ray.ingest.readers.base import (
    PatchSource,
    SourceChunk,
    bag_shape,
    exact_chunks,
    integer_coords,
    named_attributes,
    unreadable,
    unusable,
)
from gimp_ray.ingest.readers.patches_parquet_layout import Layout, layout_of, metadata

_FAULTS = (pa.ArrowException, OSError, ValueError)
# D columns are unpacked a page each: in a row group of more bytes that would be most of the bag at once
_WIDE_BYTES = 64 << 20
_BLOCK_BYTES = 16 << 20


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size and columns of a file, from its footer."""
    try:
        with pq.ParquetFile(path) as file:
            layout = layout_of(file, path, slide_id)
            said = metadata(file)
            n_patches, dim = bag_shape((file.metadata.num_rows, layout.dim), path, slide_id)
    except _FAULTS as error:
        raise unreadable(path, slide_id, "Parquet", error) from error
    known = layout.coords is not None
    attributes = named_attributes(said, said, said, known)
    return PatchSource(slide_id, path, n_patches, dim, layout.dtype, known, _chunks, attributes)


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    try:
        with pq.ParquetFile(source.path, memory_map=True) as file:
            layout = layout_of(file, source.path, source.slide_id)
            yield from exact_chunks(_pieces(file, layout, source, rows), rows)
    except _FAULTS as error:
        raise unreadable(source.path, source.slide_id, "Parquet", error) from error


def _pieces(file: pq.ParquetFile, layout: Layout, source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    columns = [*layout.columns, *(layout.coords or ())]
    for group in range(file.metadata.num_row_groups):
        if len(layout.columns) > 1 and file.metadata.row_group(group).total_byte_size > _WIDE_BYTES:
            yield from _turned(file, group, layout, source, rows)
            continue
        for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            features = layout.decode(batch)
            if features.shape != (batch.num_rows, layout.dim):
                what, expected = "the embeddings are not of one width", f"{layout.dim} values in every row"
                found = "rows of another width, or without a value"
                raise unusable(what, source.path, source.slide_id, expected, found)
            yield features, _coords(batch, layout, source)


def _turned(file: pq.ParquetFile, group: int, layout: Layout, source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    """A large row group of D columns, turned into rows on disk, some columns at a time."""
    n = file.metadata.row_group(group).num_rows
    coords = None
    if layout.coords is not None:
        coords = _coords(file.read_row_group(group, columns=list(layout.coords), use_threads=False), layout, source)
    with tempfile.TemporaryFile() as place:
        turned = np.memmap(place, layout.dtype, "w+", shape=(n, layout.dim))
        width = max(1, _BLOCK_BYTES // (n * turned.itemsize))
        for first in range(0, layout.dim, width):
            names = list(layout.columns[first : first + width])
            table = file.read_row_group(group, columns=names, use_threads=False)
            turned[:, first : first + width] = np.stack([table[name].to_numpy() for name in names], axis=1)
        for start in range(0, n, rows):
            part = np.array(turned[start : start + rows])
            yield part, None if coords is None else coords[start : start + rows]


def _coords(batch: pa.RecordBatch | pa.Table, layout: Layout, source: PatchSource) -> np.ndarray | None:
    if layout.coords is None:
        return None
    places = [np.asarray(batch[name]) for name in layout.coords]
    return integer_coords(np.stack(places, axis=1), source.path, source.slide_id)
