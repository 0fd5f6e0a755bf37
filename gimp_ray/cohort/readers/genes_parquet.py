"""Gene matrices as Parquet: one text column with ids (a written pandas index will do), numbers in the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gimp_ray.cohort.readers.matrix import RawMatrix
from gimp_ray.errors import InputError


def read(path: Path) -> RawMatrix:
    """Read the matrix; InputError where it is no table of numbers with one text column."""
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise _bad(path, str(error)[:300]) from error
    texts = [i for i, field in enumerate(table.schema) if _is_text(field.type)]
    others = [i for i in range(table.num_columns) if i not in texts]
    strange = [table.schema.names[i] for i in others if not _is_number(table.schema.types[i])]
    if len(texts) != 1 or strange:
        names = ", ".join(table.schema.names[i] for i in texts) or "none"
        raise _bad(path, f"text columns: {names}" + (f"; not numbers: {', '.join(strange[:5])}" if strange else ""))
    ids = table.column(texts[0]).cast(pa.string()).to_pylist()
    by_column = np.empty((len(others), table.num_rows), dtype=np.float32)
    for place, i in enumerate(others):
        by_column[place] = table.column(i).cast(pa.float32(), safe=False).to_numpy()
    return RawMatrix(path, [str(name).strip() for name in ids], [table.schema.names[i] for i in others], by_column.T)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _bad(path: Path, found: str) -> InputError:
    expected = "one text column with the ids, numbers in all others"
    return InputError("the gene file is not a matrix", file=path, expected=expected, found=found)
