"""Patch features in Parquet, one file a slide, one row a patch; a whole bag is read at a time.

The embedding is (a) a list column of constant width, (b) a binary column whose `dim` and `dtype` stand in the file's
metadata, as in a store's own part files, or (c) D float columns, `f0, f1, ...`, `feature_0, ...` or `0, 1, ...`.
Coordinates are columns `x, y`, `coord_x, coord_y` or `coords_x, coords_y`. The metadata may name encoder, patch size
and the like as TRIDENT's attributes do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gimp_ray.ingest.patches.source import (
    FEATURE_NAMES,
    FLOATS,
    PatchSource,
    SourceChunk,
    bag_shape,
    integer_coords,
    listed,
    named_attributes,
    unusable,
)

COLUMN_NAMES = (*FEATURE_NAMES, "embedding")
COORDS_COLUMNS = (("x", "y"), ("coord_x", "coord_y"), ("coords_x", "coords_y"))
_NUMBERED = re.compile(r"(f|feature_|)(\d+)")
# bfloat16 is read as its 16 bits
_BINARY_DTYPES = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}
# D columns are read so many at a time, and lists and binary values so many rows at a time, beside the bag they fill
_COLUMNS_AT_ONCE, _ROWS_AT_ONCE = 64, 4096


@dataclass(frozen=True)
class _Layout:
    """The columns of the embedding (one, or D of them) and of the coordinates; `binary` is the type of packed ones."""

    columns: tuple[str, ...]
    coords: tuple[str, str] | None
    dim: int
    dtype: str
    binary: np.dtype | None = None  # type: ignore[type-arg]


def inspect(path: Path, slide_id: str) -> PatchSource:
    """Size and columns of a file, from its footer."""
    with pq.ParquetFile(path) as file:
        layout, recorded = _layout(file), _metadata(file)
        n_patches, dim = bag_shape((file.metadata.num_rows, layout.dim))
    known = layout.coords is not None
    attributes = named_attributes(recorded, recorded, recorded, known)
    return PatchSource(slide_id, path, n_patches, dim, layout.dtype, known, _chunks, attributes)


def _chunks(source: PatchSource, rows: int) -> Iterator[SourceChunk]:
    with pq.ParquetFile(source.path) as file:
        layout = _layout(file)
    # a map is faster, but the pages of all D columns would stay in memory beside the bag
    with pq.ParquetFile(source.path, memory_map=len(layout.columns) == 1) as file:
        features, coords = _bag(file, layout), None
        if layout.coords is not None:
            table = file.read(columns=list(layout.coords), use_threads=False)
            coords = integer_coords(np.stack([table[name].to_numpy() for name in layout.coords], axis=1))
    for start in range(0, source.n_patches, rows):
        yield features[start : start + rows], None if coords is None else coords[start : start + rows]


def _bag(file: pq.ParquetFile, layout: _Layout) -> np.ndarray:
    """All embeddings, (N, D)."""
    dtype = "float32" if layout.dtype == "bfloat16" else layout.binary if layout.binary is not None else layout.dtype
    out = np.empty((file.metadata.num_rows, layout.dim), dtype)
    if len(layout.columns) > 1:
        for first in range(0, layout.dim, _COLUMNS_AT_ONCE):
            names = layout.columns[first : first + _COLUMNS_AT_ONCE]
            table = file.read(columns=list(names), use_threads=False)
            for i, name in enumerate(names, first):
                out[:, i] = table[name].to_numpy()
        return out
    done = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(layout.columns), use_threads=False):
        array = batch.column(0)
        rows = None if array.null_count else _unpacked(array, layout)
        if rows is None:
            found = "rows of another width, or without a value"
            raise unusable("the embeddings are not of one width", f"{layout.dim} values in every row", found)
        out[done : done + len(array)] = rows
        done += len(array)
    return out


def _unpacked(array: pa.Array, layout: _Layout) -> np.ndarray | None:
    """Lists or packed values as (n, D); None where one is of another width."""
    if layout.binary is None:
        fixed = pa.types.is_fixed_size_list(array.type)
        if not fixed and (np.diff(array.offsets.to_numpy()) != layout.dim).any():
            return None
        return np.asarray(array.flatten().to_numpy(zero_copy_only=False).reshape(-1, layout.dim))
    size = layout.dim * layout.binary.itemsize
    if pa.types.is_fixed_size_binary(array.type):
        first, data = array.offset * size, array.buffers()[1]
    else:
        width = "<i8" if pa.types.is_large_binary(array.type) else "<i4"
        ends = np.frombuffer(array.buffers()[1], width)[array.offset : array.offset + len(array) + 1]
        if (np.diff(ends) != size).any():
            return None
        first, data = int(ends[0]), array.buffers()[2]
    values = np.frombuffer(data, layout.binary, len(array) * layout.dim, first).reshape(-1, layout.dim)
    # numpy knows no bfloat16; float32 holds it exactly
    return (values.astype(np.uint32) << 16).view(np.float32) if layout.dtype == "bfloat16" else values


def _layout(file: pq.ParquetFile) -> _Layout:
    """The columns used, from the footer; InputError where the file has none of the known kinds, or several."""
    schema, names = file.schema_arrow, file.schema_arrow.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise unusable("the file has a column twice", "every column once", ", ".join(twice))
    pairs = [pair for pair in COORDS_COLUMNS if set(pair) <= set(names)]
    if len(pairs) > 1:
        found, known = ("; ".join(", ".join(pair) for pair in some) for some in (pairs, COORDS_COLUMNS))
        what = "the file has several pairs of coordinates"
        raise unusable(what, f"one of {known}", found, "keep one pair in the file")
    coords = pairs[0] if pairs else None
    kinds: dict[str, list[str]] = {name: [name] for name in COLUMN_NAMES if name in names}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            kinds.setdefault(f"{match[1]} numbered", []).append(name)
    if len(kinds) != 1:
        expected = f"one column named {', '.join(COLUMN_NAMES)}, or columns f0, f1, ... or feature_0, ... or 0, 1, ..."
        what = "the file has several kinds of features" if kinds else "the file has no features"
        numbered = [sorted(some, key=_number) for kind, some in kinds.items() if kind not in COLUMN_NAMES]
        listing = [kind for kind in kinds if kind in COLUMN_NAMES] + [f"{some[0]} to {some[-1]}" for some in numbered]
        raise unusable(what, expected, ", ".join(listing) or listed(names))
    ((kind, columns),) = kinds.items()
    if kind not in COLUMN_NAMES:
        return _of_columns(schema, sorted(columns, key=_number), coords)
    column = schema.field(kind)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return _of_lists(file, column, coords)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(is_kind(column.type) for is_kind in binary):
        return _of_binary(file, column, coords)
    expected = "a list of floats, or binary with dim and dtype in the file's metadata"
    raise unusable("the column of features is of an unknown type", expected, str(column.type))


def _of_lists(file: pq.ParquetFile, column: pa.Field, coords: tuple[str, str] | None) -> _Layout:
    """A list column; a list without a fixed size has the width that the footer's counts give, checked as it is read."""
    _check_float(column.type.value_type)
    if pa.types.is_fixed_size_list(column.type):
        dim = column.type.list_size
    else:  # a row of null or of nothing counts as one value
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        values = sum(c.num_values for c in chunks if c.path_in_schema.partition(".")[0] == column.name)
        rows = file.metadata.num_rows
        if rows and values % rows:
            found = f"{values} values in {rows} rows"
            raise unusable("the embeddings are not of one width", "as many values in every row", found)
        dim = values // rows if rows else 0
    return _Layout((column.name,), coords, dim, str(np.dtype(column.type.value_type.to_pandas_dtype())))


def _of_binary(file: pq.ParquetFile, column: pa.Field, coords: tuple[str, str] | None) -> _Layout:
    recorded = _metadata(file)
    dim, dtype = (recorded.get(f"gimp.{name}", recorded.get(name, "")) for name in ("dim", "dtype"))
    order = {"little": "<", "big": ">"}.get(recorded.get("gimp.byte_order", recorded.get("byte_order", "little")))
    if not dim.isdecimal() or dtype not in _BINARY_DTYPES or order is None:
        expected = f"dim and dtype ({', '.join(_BINARY_DTYPES)}) in the file's metadata"
        raise unusable("binary features of an unknown format", expected, f"{dim=}, {dtype=}")
    values = np.dtype(order + _BINARY_DTYPES[dtype])
    size = column.type.byte_width if pa.types.is_fixed_size_binary(column.type) else None
    if size not in (None, int(dim) * values.itemsize):
        expected = f"{int(dim) * values.itemsize} bytes: {dim} values of {dtype}"
        raise unusable("the embeddings are not of the width that the metadata give", expected, f"{size} bytes")
    return _Layout((column.name,), coords, int(dim), dtype, values)


def _of_columns(schema: pa.Schema, columns: Sequence[str], coords: tuple[str, str] | None) -> _Layout:
    gap = next((i for i, name in enumerate(columns) if _number(name) != i), None)
    if gap is not None:
        expected = f"{len(columns)} columns with the numbers 0 to {len(columns) - 1}"
        raise unusable("a column of features is missing", expected, f"{columns[gap]} as number {gap}")
    for name in columns:
        _check_float(schema.field(name).type, name)
    dtype = str(np.result_type(*{schema.field(name).type.to_pandas_dtype() for name in columns}))
    return _Layout(tuple(columns), coords, len(columns), dtype)


def _number(column: str) -> int:
    match = _NUMBERED.fullmatch(column)
    assert match is not None
    return int(match[2])


def _metadata(file: pq.ParquetFile) -> dict[str, str]:
    """The file's key-value metadata as text."""
    pairs = (file.schema_arrow.metadata or {}).items()
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in pairs}


def _check_float(kind: pa.DataType, column: str | None = None) -> None:
    if not pa.types.is_floating(kind):
        raise unusable("features are not floats", FLOATS, str(kind) if column is None else f"{kind} in column {column}")
