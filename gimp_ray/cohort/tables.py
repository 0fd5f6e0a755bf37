"""Writing the small tables of a store: cases, slides, genes, expression, splits.

Extra columns of the case table keep their names and types: those with one value a case go to cases.parquet, those
that differ between the slides of a case to slides.parquet. Left out: the part files (`parts.py`, `patch_ingest.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gimp_ray.cohort.manifest import content_sha256
from gimp_ray.cohort.schema import table_schema

_EXPRESSION_GROUP_BYTES = 1 << 20


class TableWriter:
    """Writes tables into a store folder and remembers their hashes.

    Attributes:
        files: table file -> SHA-256 of the file.
        contents: table -> SHA-256 of its values, for the fingerprint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, str] = {}
        self.contents: dict[str, str] = {}

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table of `storage_schemas`, which must fit its schema."""
        schema = table_schema(name)
        problems = schema.differences(table.schema)
        if problems:
            raise ValueError(f"{name} does not fit storage_schemas/{name}.json: {'; '.join(problems)}")
        path = self._folder / schema.stored_as
        pq.write_table(table.replace_schema_metadata(_metadata(name)), path, compression="zstd")
        self.files[schema.stored_as] = file_sha256(path)
        self.contents[name] = content_sha256(table)

    def write_expression(self, case_ids: Sequence[str], num_genes: int, values: Callable[[str], np.ndarray]) -> None:
        """Write the expression of the cases in the order given; `values(case_id)` is (G,) float32."""
        schema = table_schema("expression")
        arrow = schema.arrow(num_genes=num_genes).with_metadata(
            {
                **_metadata("expression"),
                "gimp.num_genes": str(num_genes),
                "gimp.dtype": "float32",
                "gimp.byte_order": "little",
            }
        )
        path = self._folder / schema.stored_as
        rows = max(1, _EXPRESSION_GROUP_BYTES // (4 * num_genes))
        digest = ExpressionHash()
        with pq.ParquetWriter(path, arrow, compression="none", use_dictionary=False, write_statistics=False) as writer:
            for start in range(0, len(case_ids), rows):
                ids = list(case_ids[start : start + rows])
                block = np.ascontiguousarray(np.stack([values(case_id) for case_id in ids]), dtype="<f4")
                packed = pa.FixedSizeBinaryArray.from_buffers(
                    arrow.field("values").type, len(ids), [None, pa.py_buffer(block)]
                )
                writer.write_table(
                    pa.Table.from_arrays([pa.array(ids, pa.string()), packed], schema=arrow), row_group_size=rows
                )
                digest.update(ids, block)
        self.files[schema.stored_as] = file_sha256(path)
        self.contents["expression"] = digest.hexdigest()


class ExpressionHash:
    """SHA-256 over the expression table: each block's case ids, then its values; blocks do not show in it."""

    def __init__(self) -> None:
        self._ids, self._values = hashlib.sha256(), hashlib.sha256()

    def update(self, case_ids: Sequence[str], values: np.ndarray) -> None:
        self._ids.update("".join(f"{case_id}\n" for case_id in case_ids).encode())
        self._values.update(np.ascontiguousarray(values, dtype="<f4").data)

    def hexdigest(self) -> str:
        return hashlib.sha256((self._ids.hexdigest() + self._values.hexdigest()).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def constant_by_case(extra: pa.Table, case_ids: Sequence[str | None]) -> tuple[list[str], list[str]]:
    """The extra columns with one value a case, and the ones that differ within a case."""
    constant: list[str] = []
    varying: list[str] = []
    for name in extra.column_names:
        first: dict[str, object] = {}
        same = all(
            case_id is None or first.setdefault(case_id, value) == value
            for case_id, value in zip(case_ids, extra[name].to_pylist(), strict=True)
        )
        (constant if same else varying).append(name)
    return constant, varying


def cases_table(labels: Mapping[str, str], extra: pa.Table, row_of: Mapping[str, int]) -> pa.Table:
    """cases.parquet: the cases of `labels`, sorted, with the columns of `extra` at the rows `row_of` says."""
    ids = sorted(labels)
    columns = {"case_id": ids, "label": [labels[case_id] for case_id in ids]}
    return with_extra(
        pa.table(columns, schema=table_schema("cases").arrow()), extra, [row_of[case_id] for case_id in ids]
    )


def with_extra(table: pa.Table, extra: pa.Table, rows: Sequence[int]) -> pa.Table:
    """`table` with the columns of `extra` at `rows`; a name the table has already gets the prefix `table_`."""
    chosen = extra.take(pa.array(rows, pa.int64()))
    for name in chosen.column_names:
        column = chosen[name]
        column = column.cast(pa.string()) if pa.types.is_null(column.type) else column
        name = name if name not in table.column_names else f"table_{name}"  # noqa: PLW2901
        table = table.append_column(pa.field(name, column.type), column)
    return table.combine_chunks()


def genes_table(gene_ids: Sequence[str]) -> pa.Table:
    """genes.parquet."""
    columns = {"gene_id": list(gene_ids), "position": np.arange(len(gene_ids), dtype=np.int32)}
    return pa.table(columns, schema=table_schema("genes").arrow())


def _metadata(name: str) -> dict[str, str]:
    return {"gimp.table": name, "gimp.version": str(table_schema(name).version)}
