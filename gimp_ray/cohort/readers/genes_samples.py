"""The seam every reader of per-sample gene files fills: the values of one sample, keyed by gene.

A reader is one file with `fits(head) -> bool` and `read(path, data, column) -> SampleValues`, listed in `genes.py`. It
gets the file's bytes, since those are hashed as well. Left out: which file is whose (`cohort/gene_files.py`).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from gimp_ray.errors import InputError


@dataclass(frozen=True)
class SampleValues:
    """One sample: `gene_ids` (G,) strings, `values` (G,) float32; `unit` where the content says it.

    `gene_columns` are strings of Arrow, for every file has them and only those of the first are looked at.
    """

    gene_ids: pa.Array
    values: np.ndarray
    unit: str | None = None
    gene_columns: dict[str, pa.Array] = field(default_factory=dict)


def unzipped(path: Path, data: bytes) -> bytes:
    """The content of a plain or gzip file; InputError where the gzip is damaged."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, str(error)) from error


def read_table(path: Path, text: bytes, names: list[str], skipped: int, types: dict[str, pa.DataType]) -> pa.Table:
    """The columns of `types` of a tab-separated table; InputError where they are not as said."""
    try:
        return csv.read_csv(
            pa.BufferReader(text),
            read_options=csv.ReadOptions(column_names=names, skip_rows=skipped, use_threads=False),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=["", "NA", "NaN"],
                strings_can_be_null=False,
            ),
        ).combine_chunks()
    except pa.ArrowException as error:
        raise damaged(path, str(error)[:300]) from error


def sample_values(table: pa.Table, unit: str | None, gene_columns: dict[str, pa.Array] | None = None) -> SampleValues:
    """The sample of a table whose first two columns are gene ids and float32 values; a missing value is NaN."""
    ids = table.column(0).combine_chunks()
    values = np.array(table.column(1).to_numpy(), dtype=np.float32)
    return SampleValues(ids, values, unit, gene_columns or {})


def damaged(path: Path, found: str) -> InputError:
    """The refusal of one sample's file."""
    fix = "download the file again"
    return InputError("the sample's gene file is damaged", file=path, expected="a whole file", found=found, fix=fix)
