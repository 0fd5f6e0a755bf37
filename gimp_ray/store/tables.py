"""Writing the small tables of a store: cases, slides, genes, expression, splits.

Extra columns of the case table keep their names and types: those with one value a case go to cases.parquet, those
that differ between the slides of a case to slides.parquet. Left out: the part files (`parts.py`, `patch_ingest.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from gimp_ray.io import places
from gimp_ray.store.manifest import content_sha256
from gimp_ray.store.schema import table_schema

_EXPRESSION_GROUP_BYTES = 1 << 20


class TableWriter:
    """Writes tables into a store and remembers their hashes.

    Args:
        place: the store, a path or URI.
        revision: of the store; from 2 on the tables' files carry it, so that none in use is written over.

    Attributes:
        names: table -> its file.
        files: table file -> SHA-256 of the file.
        contents: table -> SHA-256 of its values, for the fingerprint.
    """

    def __init__(self, place: str, revision: int = 1) -> None:
        self._filesystem, self._root = places.resolve(place)
        self._revision = revision
        self.names: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.contents: dict[str, str] = {}

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table of `storage_schemas`, which must fit its schema."""
        problems = table_schema(name).differences(table.schema)
        if problems:
            raise ValueError(f"{name} does not fit storage_schemas/{name}.json: {'; '.join(problems)}")
        path = self._path(name)
        pq.write_table(
            table.replace_schema_metadata(_metadata(name)), path, filesystem=self._filesystem, compression="zstd"
        )
        self._done(name, path, content_sha256(table))

    def write_expression(self, case_ids: Sequence[str], num_genes: int, values: Callable[[str], np.ndarray]) -> None:
        """Write the expression of the cases in the order given; `values(case_id)` is (G,) float32."""
        arrow = (
            table_schema("expression")
            .arrow(num_genes=num_genes)
            .with_metadata(
                {
                    **_metadata("expression"),
                    "gimp.num_genes": str(num_genes),
                    "gimp.dtype": "float32",
                    "gimp.byte_order": "little",
                }
            )
        )
        path = self._path("expression")
        rows = max(1, _EXPRESSION_GROUP_BYTES // (4 * num_genes))
        digest = ExpressionHash()
        with pq.ParquetWriter(
            path, arrow, filesystem=self._filesystem, compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
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
        self._done("expression", path, digest.hexdigest())

    def _path(self, name: str) -> str:
        file = table_schema(name).stored_as
        if self._revision > 1:
            stem, _, ending = file.rpartition(".")
            file = f"{stem}.r{self._revision}.{ending}"
        self.names[name] = file
        return f"{self._root}/{file}"

    def _done(self, name: str, path: str, content: str) -> None:
        self.files[self.names[name]] = file_sha256(self._filesystem, path)
        self.contents[name] = content


class ExpressionHash:
    """SHA-256 over the expression table: each block's case ids, then its values; blocks do not show in it."""

    def __init__(self) -> None:
        self._ids, self._values = hashlib.sha256(), hashlib.sha256()

    def update(self, case_ids: Sequence[str], values: np.ndarray) -> None:
        self._ids.update("".join(f"{case_id}\n" for case_id in case_ids).encode())
        self._values.update(np.ascontiguousarray(values, dtype="<f4").data)

    def hexdigest(self) -> str:
        return hashlib.sha256((self._ids.hexdigest() + self._values.hexdigest()).encode()).hexdigest()


def file_sha256(filesystem: pafs.FileSystem, path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def genes_table(gene_ids: Sequence[str], columns: Mapping[str, Sequence[str | None]] | None = None) -> pa.Table:
    """genes.parquet, with the further columns of the gene file: symbol, gene_type, ..."""
    known = {"gene_id": list(gene_ids), "position": np.arange(len(gene_ids), dtype=np.int32)}
    table = pa.table(known, schema=table_schema("genes").arrow())
    for name, values in sorted((columns or {}).items()):
        table = table.append_column(pa.field(name, pa.string()), pa.array(values, pa.string()))
    return table


def _metadata(name: str) -> dict[str, str]:
    return {"gimp.table": name, "gimp.version": str(table_schema(name).version)}
