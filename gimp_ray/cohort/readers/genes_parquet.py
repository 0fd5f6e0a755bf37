"""Gene matrices as Parquet: a text column with ids (a written pandas index will do), numbers in the rest.

The ids are the pandas index, else the first text column. Further text columns are kept where rows are genes, and
refused where rows are cases. Only the samples asked for stay in memory, as float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gimp_ray.cohort.readers.genes_blocks import Blocks
from gimp_ray.cohort.readers.genes_columns import gene_column
from gimp_ray.cohort.readers.genes_head import FileHead
from gimp_ray.cohort.readers.matrix import EVERYTHING, RawMatrix, ReadRequest
from gimp_ray.errors import InputError

_VALUES_AT_ONCE = 32 << 20


def fits(head: FileHead) -> bool:
    """Whether the file begins as Parquet does."""
    return head.magic.startswith(b"PAR1")


def read(path: Path, request: ReadRequest = EVERYTHING) -> RawMatrix:
    """Read the samples asked for; InputError where it is no table of numbers with a text column."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        index, texts, numeric = _kinds_of_columns(file.schema_arrow, path)
        blocks = Blocks(path, [names[i] for i in numeric], [names[i] for i in texts], request)
        columns = [names[numeric[i]] for i in blocks.columns_to_read]
        read_names = [names[i] for i in (index, *texts)] + columns
        rows_at_once = max(1, _VALUES_AT_ONCE // len(read_names))
        for batch in file.iter_batches(batch_size=rows_at_once, columns=read_names):
            ids = [str(name).strip() for name in _strings(batch, names[index])]
            blocks.add(ids, [_strings(batch, names[i]) for i in texts], _numbers(batch, columns))
    except (pa.ArrowException, OSError) as error:
        raise _bad(path, str(error)[:300]) from error
    return blocks.matrix()


def _kinds_of_columns(schema: pa.Schema, path: Path) -> tuple[int, list[int], list[int]]:
    """Places of the id column, of the other text columns and of the numbers."""
    texts = [i for i, field in enumerate(schema) if _is_text(field.type)]
    index = _pandas_index(schema)
    named = next((i for i in texts if schema.names[i] in index), texts[0] if texts else None)
    beside = [i for i in range(len(schema)) if i != named and (i in texts or gene_column(schema.names[i]))]
    numeric = [i for i in range(len(schema)) if i not in (named, *beside)]
    strange = [schema.names[i] for i in numeric if not _is_number(schema.types[i])]
    if named is None or strange or not numeric:
        names = ", ".join(schema.names[i] for i in texts) or "none"
        raise _bad(path, f"text columns: {names}" + (f"; not numbers: {', '.join(strange[:5])}" if strange else ""))
    return named, beside, numeric


def _pandas_index(schema: pa.Schema) -> list[str]:
    try:
        columns = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, ValueError, TypeError):
        return []
    return [name for name in columns if isinstance(name, str)]


def _strings(batch: pa.RecordBatch, name: str) -> list[str | None]:
    values: list[str | None] = batch.column(name).cast(pa.string()).to_pylist()
    return values


def _numbers(batch: pa.RecordBatch, names: Sequence[str]) -> np.ndarray:
    """The columns as (rows, columns) float32."""
    by_column = np.empty((len(names), batch.num_rows), dtype=np.float32)
    for place, name in enumerate(names):
        by_column[place] = batch.column(name).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return by_column.T


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _bad(path: Path, found: str) -> InputError:
    expected = "a text column with the ids, numbers in the others"
    fix = "write the file again with the ids in a text column of their own, or give the matrix as CSV or TSV"
    return InputError("the gene file is not a matrix", file=path, expected=expected, found=found, fix=fix)
