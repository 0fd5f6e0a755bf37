"""Which columns of a Parquet file hold the embedding and the coordinates, and how rows of them become (n, D).

Left out: reading the file in steps (`patches_parquet.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gimp_ray.ingest.readers.base import FEATURE_NAMES, FLOATS, listed, unusable

COLUMN_NAMES = (*FEATURE_NAMES, "embedding")
COORDS_COLUMNS = (("x", "y"), ("coord_x", "coord_y"), ("coords_x", "coords_y"))
_NUMBERED = re.compile(r"(f|feature_|)(\d+)")
# bfloat16 is read as its 16 bits
_BINARY_DTYPES = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}


@dataclass(frozen=True)
class Layout:
    """The columns used, and how a batch of them becomes (n, D); another shape where its rows are not of one width."""

    columns: tuple[str, ...]
    coords: tuple[str, str] | None
    dim: int
    dtype: str
    decode: Callable[[pa.RecordBatch], np.ndarray]


def layout_of(file: pq.ParquetFile, path: Path, slide_id: str) -> Layout:
    """The layout of an open file, from its footer; InputError where it has none of the known ones, or several."""
    schema, names = file.schema_arrow, file.schema_arrow.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise unusable("the file has a column twice", path, slide_id, "every column once", ", ".join(twice))
    coords = _coords_columns(names, path, slide_id)
    found = [name for name in COLUMN_NAMES if name in names]
    numbered = _numbered(names)
    if len(found) + len(numbered) != 1:
        expected = f"one column named {', '.join(COLUMN_NAMES)}, or columns f0, f1, ... or feature_0, ... or 0, 1, ..."
        what = "the file has several kinds of features" if found or numbered else "the file has no features"
        kinds = found + [f"{columns[0]} to {columns[-1]}" for columns in numbered]
        raise unusable(what, path, slide_id, expected, ", ".join(kinds) or listed(names))
    if numbered:
        return _of_columns(schema, numbered[0], coords, path, slide_id)
    column = schema.field(found[0])
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return _of_lists(file, column, coords, path, slide_id)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if any(is_kind(column.type) for is_kind in binary):
        return _of_binary(file, column, coords, path, slide_id)
    expected = "a list of floats, or binary with dim and dtype in the file's metadata"
    raise unusable("the column of features is of an unknown type", path, slide_id, expected, str(column.type))


def _of_lists(
    file: pq.ParquetFile, column: pa.Field, coords: tuple[str, str] | None, path: Path, slide_id: str
) -> Layout:
    """A list column; a list without a fixed size has the width that the footer's counts give, checked as it is read."""
    _check_float(column.type.value_type, path, slide_id)
    if pa.types.is_fixed_size_list(column.type):
        dim = column.type.list_size
    else:
        values, rows = _values(file, column.name), file.metadata.num_rows
        if rows and values % rows:
            expected, found = "as many values in every row", f"{values} values in {rows} rows"
            raise unusable("the embeddings are not of one width", path, slide_id, expected, found)
        dim = values // rows if rows else 0
    decode = _ListDecoder(column.name, dim)
    return Layout((column.name,), coords, dim, str(np.dtype(column.type.value_type.to_pandas_dtype())), decode)


def _of_binary(
    file: pq.ParquetFile, column: pa.Field, coords: tuple[str, str] | None, path: Path, slide_id: str
) -> Layout:
    said = metadata(file)
    dim, dtype = (said.get(f"gimp.{name}", said.get(name, "")) for name in ("dim", "dtype"))
    order = {"little": "<", "big": ">"}.get(said.get("gimp.byte_order", said.get("byte_order", "little")))
    if not dim.isdecimal() or dtype not in _BINARY_DTYPES or order is None:
        expected = f"dim and dtype ({', '.join(_BINARY_DTYPES)}) in the file's metadata"
        raise unusable("binary features of an unknown format", path, slide_id, expected, f"{dim=}, {dtype=}")
    values = np.dtype(order + _BINARY_DTYPES[dtype])
    size = column.type.byte_width if pa.types.is_fixed_size_binary(column.type) else None
    if size not in (None, int(dim) * values.itemsize):
        expected, found = f"{int(dim) * values.itemsize} bytes: {dim} values of {dtype}", f"{size} bytes"
        raise unusable("the embeddings are not of the width that is said", path, slide_id, expected, found)
    return Layout((column.name,), coords, int(dim), dtype, _BinaryDecoder(column.name, int(dim), values, dtype))


def _of_columns(
    schema: pa.Schema, columns: Sequence[str], coords: tuple[str, str] | None, path: Path, slide_id: str
) -> Layout:
    numbers = [int(_NUMBERED.fullmatch(name)[2]) for name in columns]  # type: ignore[index]
    if numbers != list(range(len(columns))):
        gap = next(i for i, number in enumerate(numbers) if number != i)
        expected = f"{len(columns)} columns with the numbers 0 to {len(columns) - 1}"
        raise unusable("a column of features is missing", path, slide_id, expected, f"{columns[gap]} as number {gap}")
    for name in columns:
        _check_float(schema.field(name).type, path, slide_id, name)
    kinds = {schema.field(name).type.to_pandas_dtype() for name in columns}
    dtype = str(np.result_type(*kinds))
    return Layout(tuple(columns), coords, len(columns), dtype, _ColumnsDecoder(tuple(columns), dtype))


@dataclass(frozen=True)
class _ListDecoder:
    column: str
    dim: int

    def __call__(self, batch: pa.RecordBatch) -> np.ndarray:
        array = batch.column(self.column)
        values = array.flatten()
        fixed = pa.types.is_fixed_size_list(array.type)
        if array.null_count or not (fixed or np.all(np.diff(array.offsets.to_numpy()) == self.dim)):
            return np.empty((0, 0))
        return np.asarray(values.to_numpy(zero_copy_only=False).reshape(-1, self.dim))


@dataclass(frozen=True)
class _BinaryDecoder:
    column: str
    dim: int
    values: np.dtype  # type: ignore[type-arg]
    dtype: str

    def __call__(self, batch: pa.RecordBatch) -> np.ndarray:
        array = batch.column(self.column)
        size = self.dim * self.values.itemsize
        if array.null_count:
            return np.empty((0, 0))
        if pa.types.is_fixed_size_binary(array.type):
            first, data = array.offset * size, array.buffers()[1]
        else:
            width = "<i8" if pa.types.is_large_binary(array.type) else "<i4"
            ends = np.frombuffer(array.buffers()[1], width)[array.offset : array.offset + len(array) + 1]
            if not np.all(np.diff(ends) == size):
                return np.empty((0, 0))
            first, data = int(ends[0]), array.buffers()[2]
        flat = np.frombuffer(data, self.values, len(array) * self.dim, first).reshape(-1, self.dim)
        # numpy knows no bfloat16; float32 holds it exactly
        return (flat.astype(np.uint32) << 16).view(np.float32) if self.dtype == "bfloat16" else flat


@dataclass(frozen=True)
class _ColumnsDecoder:
    columns: tuple[str, ...]
    dtype: str

    def __call__(self, batch: pa.RecordBatch) -> np.ndarray:
        out = np.empty((batch.num_rows, len(self.columns)), self.dtype)
        for i, name in enumerate(self.columns):
            out[:, i] = batch.column(name).to_numpy(zero_copy_only=False)
        return out


def _coords_columns(names: Sequence[str], path: Path, slide_id: str) -> tuple[str, str] | None:
    found = [pair for pair in COORDS_COLUMNS if set(pair) <= set(names)]
    if len(found) > 1:
        kinds, expected = ("; ".join(", ".join(pair) for pair in pairs) for pairs in (found, COORDS_COLUMNS))
        what, fix = "the file has several pairs of coordinates", "keep one pair in the file"
        raise unusable(what, path, slide_id, f"one of {expected}", kinds, fix)
    return found[0] if found else None


def _numbered(names: Sequence[str]) -> list[list[str]]:
    """The columns named by number, one list for each way of naming, in the order of their numbers."""
    families: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            families.setdefault(match[1], []).append((int(match[2]), name))
    return [[name for _, name in sorted(family)] for family in families.values()]


def _values(file: pq.ParquetFile, column: str) -> int:
    """How many values a list column holds, by the footer; a row of null or of nothing counts as one."""
    total = 0
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        chunks = (row_group.column(i) for i in range(row_group.num_columns))
        total += sum(c.num_values for c in chunks if c.path_in_schema.partition(".")[0] == column)
    return total


def metadata(file: pq.ParquetFile) -> Mapping[str, str]:
    """The file's key-value metadata as text."""
    pairs = (file.schema_arrow.metadata or {}).items()
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in pairs}


def _check_float(kind: pa.DataType, path: Path, slide_id: str, column: str | None = None) -> None:
    if not pa.types.is_floating(kind):
        found = str(kind) if column is None else f"{kind} in column {column}"
        raise unusable("features are not floats", path, slide_id, FLOATS, found)
