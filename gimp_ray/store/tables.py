"""Writing the small tables of a store, and the manifest that names them.

Extra columns of the case table keep their names and types: those with one value a case go to cases.parquet, those
that differ between the slides of a case to slides.parquet.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from gimp_ray.io import storage
from gimp_ray.store.manifest import (
    CHECKSUMS,
    FORMAT,
    Bag,
    Manifest,
    Vector,
    content_sha256,
    gene_list_sha256,
    program,
    store_fingerprint,
)
from gimp_ray.store.schema import LAYOUT_VERSION, ROW_GROUP_ROWS, TABLES, table_schema, vector_tables

_VECTOR_GROUP_BYTES = 1 << 20


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
        self._filesystem, self._root = storage.resolve(place)
        self._revision = revision
        self.names: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.contents: dict[str, str] = {}

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table of `storage_schemas`, which must fit its schema."""
        problems = table_schema(name).differences(table.schema)
        if problems:
            raise ValueError(f"{name} does not fit its file of storage_schemas: {'; '.join(problems)}")
        path = self._path(name)
        pq.write_table(
            table.replace_schema_metadata(_metadata(name)), path, filesystem=self._filesystem, compression="zstd"
        )
        self._done(name, path, content_sha256(table))

    def write_vector(
        self,
        modality: str,
        features: pa.Table,
        case_ids: Sequence[str],
        values: Callable[[str], np.ndarray],
        unit: str | None,
    ) -> Vector:
        """Write a vector modality and return its entry of the manifest.

        Args:
            modality: its name; `rna` is stored as genes.parquet and expression.parquet.
            features: its table of features (`features_table`).
            case_ids: the cases that have values, sorted.
            values: (G,) float32 of a case.
            unit: of the values.
        """
        of_features, of_values = vector_tables(modality)
        self.write(of_features, features)
        n, digest = features.num_rows, ValuesHash()
        meaning = {"gimp.num_genes": str(n), "gimp.dtype": "float32", "gimp.byte_order": "little"}
        arrow = table_schema(of_values).arrow(num_genes=n).with_metadata({**_metadata(of_values), **meaning})
        path, rows = self._path(of_values), max(1, _VECTOR_GROUP_BYTES // (4 * n))
        with pq.ParquetWriter(
            path, arrow, filesystem=self._filesystem, compression="none", use_dictionary=False, write_statistics=False,
            write_page_checksum=True,
        ) as writer:  # fmt: skip
            for start in range(0, len(case_ids), rows):
                ids = list(case_ids[start : start + rows])
                block = np.ascontiguousarray(np.stack([values(case_id) for case_id in ids]), dtype="<f4")
                packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * n), len(ids), [None, pa.py_buffer(block)])
                table = pa.Table.from_arrays([pa.array(ids, pa.string()), packed], schema=arrow)
                writer.write_table(table, row_group_size=rows)
                digest.update(ids, block)
        self._done(of_values, path, digest.hexdigest())
        return Vector("vector", n, unit, gene_list_sha256(features.column(0).to_pylist()), len(case_ids))

    def manifest(
        self,
        cases: pa.Table,
        modalities: Mapping[str, Bag | Vector],
        superseded: Iterable[str] = (),
        members: Mapping[str, str] | None = None,
    ) -> Manifest:
        """The manifest of the tables written; `superseded` and `members` as in `storage_schemas/manifest.json`."""
        return Manifest(
            format=FORMAT,
            version=LAYOUT_VERSION,
            created_by=program(),
            created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            revision=self._revision,
            num_cases=cases.num_rows,
            classes=tuple(sorted(label for label in cases["label"].unique().to_pylist() if label is not None)),
            modalities=dict(modalities),
            files=self.names,
            tables=self.files,
            schema_versions={name: table_schema(name).version for name in TABLES},
            superseded=tuple(sorted(superseded)),
            members=dict(members or {}),
            fingerprint=store_fingerprint(self.contents, modalities),
        )

    def _path(self, name: str) -> str:
        file = table_schema(name).stored_as.replace("NAME", name.partition(".")[0])
        if self._revision > 1:
            stem, _, ending = file.rpartition(".")
            file = f"{stem}.r{self._revision}.{ending}"
        self.names[name] = file
        return f"{self._root}/{file}"

    def _done(self, name: str, path: str, content: str) -> None:
        self.files[self.names[name]] = file_sha256(self._filesystem, path)
        self.contents[name] = content


class ValuesHash:
    """SHA-256 over a table of values: each block's case ids, then its values; blocks do not show in it."""

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


def bag_of(
    slides: pa.Table, *, dim: int, dtype: str, compression: str, checksums: str | None = CHECKSUMS, **attributes: Any
) -> Bag:
    """The manifest's entry of the patches of slides.parquet; `attributes`: encoder, magnification, patch_size, overlap.

    What `attributes` does not name is the column's one value, None where it has none or several.
    """
    for name in ("encoder", "magnification", "patch_size", "overlap"):
        if name not in attributes:
            values = [value for value in slides[name].unique().to_pylist() if value is not None]
            attributes[name] = values[0] if len(values) == 1 else None
    known = set(slides["has_coords"].unique().to_pylist())
    return Bag(
        kind="bag",
        dim=dim,
        dtype=dtype,
        row_group_rows=ROW_GROUP_ROWS,
        compression=compression,
        patch_order="source",
        coordinates="some" if len(known) > 1 else "none" if known == {False} else "all",
        checksums=checksums,
        num_cases=len(slides["case_id"].unique()),
        num_slides=slides.num_rows,
        num_patches=pc.sum(slides["n_patches"]).as_py() or 0,
        **attributes,
    )


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


def cases_table(labels: Mapping[str, str | None], extra: pa.Table, row_of: Mapping[str, int]) -> pa.Table:
    """cases.parquet: the cases of `labels` (no label: "" or None), sorted, with the columns of `extra` at `row_of`."""
    ids = sorted(labels)
    columns = {"case_id": ids, "label": [labels[case_id] or None for case_id in ids]}
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


def with_modalities(cases: pa.Table, having: Mapping[str, Collection[str]]) -> pa.Table:
    """cases.parquet with a column `has_NAME` for every vector modality that some case lacks."""
    for name, ids in having.items():
        has = [case_id in ids for case_id in cases["case_id"].to_pylist()]
        if not all(has):
            cases = cases.append_column(pa.field(f"has_{name}", pa.bool_()), pa.array(has))
    return cases


def features_table(
    modality: str, feature_ids: Sequence[str], columns: Mapping[str, Sequence[str | None]] | None = None
) -> pa.Table:
    """The table of features of a vector modality, with the further columns of its file: symbol, gene_type, ..."""
    schema = table_schema(vector_tables(modality)[0]).arrow()
    table = pa.table([list(feature_ids), np.arange(len(feature_ids), dtype=np.int32)], schema=schema)
    for name, values in sorted((columns or {}).items()):
        table = table.append_column(pa.field(name, pa.string()), pa.array(values, pa.string()))
    return table


def _metadata(name: str) -> dict[str, str]:
    return {"gimp.table": name, "gimp.version": str(table_schema(name).version)}


@dataclass(frozen=True)
class Signature:
    """Size and dates of a file, or of all files of a folder; a rewrite changes at least one of them."""

    bytes: int
    mtime_ns: int
    ctime_ns: int


def signature(path: Path) -> Signature:
    """How `path` looks now; a folder (zarr) by all that is in it."""
    if not path.is_dir():
        stat = path.stat()
        return Signature(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    stats = [(Path(top) / name).stat() for top, _, names in os.walk(path) for name in names]
    return Signature(
        sum(s.st_size for s in stats),
        max((s.st_mtime_ns for s in stats), default=0),
        max((s.st_ctime_ns for s in stats), default=0),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sources_table(
    patches: Mapping[str, Path],
    tables: Mapping[Path, tuple[str, str | None]],
    kept: Iterable[Mapping[str, object]] = (),
) -> pa.Table:
    """sources.parquet: the patch file of each slide, the kind and, if known, hash of each table, and rows kept."""
    rows: dict[tuple[str, str, str], dict[str, object]] = {}
    for row in kept:
        if row["kind"] != "patches" or row["id"] not in patches:
            rows[str(row["kind"]), str(row["id"]), str(row["file"])] = dict(row)
    for slide_id, path in patches.items():
        rows["patches", slide_id, str(path)] = _row("patches", slide_id, path, None)
    for path, (kind, sha256) in tables.items():
        rows[kind, path.name, str(path)] = _row(kind, path.name, path, sha256 or sha256_of(path))
    ordered = [rows[key] for key in sorted(rows)]
    return pa.Table.from_pylist(ordered, schema=table_schema("sources").arrow())


def _row(kind: str, name: str, path: Path, sha256: str | None) -> dict[str, object]:
    s = signature(path)
    return {
        "kind": kind,
        "id": name,
        "file": str(path),
        "bytes": s.bytes,
        "mtime_ns": s.mtime_ns,
        "ctime_ns": s.ctime_ns,
        "sha256": sha256,
    }
