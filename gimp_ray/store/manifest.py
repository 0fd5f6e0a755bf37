"""The manifest: what a store says about itself, and the fingerprint of what it holds.

The fingerprint hashes contents, not files: two ingests of the same sources have the same one, whatever the part
files, the compression, the number of workers or the day. Left out: checking it against the files (`check.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.io import places
from gimp_ray.store.schema import LAYOUT_VERSION, table_schema

FORMAT = "gimp-ray cohort store"
FILE = "manifest.json"

# columns of slides.parquet that say where bytes lie, not what they are
_PLACES = ("file", "first_row_group")


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`; the fields' meanings and units stand in `storage_schemas/manifest.json`."""

    format: str
    version: int
    created_by: str
    created_at: str
    dim: int | None
    dtype: str
    row_group_rows: int
    compression: str
    patch_order: str
    revision: int
    encoder: str | None
    magnification: float | None
    patch_size: int | None
    overlap: int | None
    coordinates: str | None
    num_cases: int
    num_slides: int
    num_patches: int
    num_genes: int
    gene_unit: str | None
    gene_list_sha256: str | None
    classes: tuple[str, ...]
    files: dict[str, str]
    tables: dict[str, str]
    schema_versions: dict[str, int]
    superseded: tuple[str, ...]
    members: dict[str, str]
    fingerprint: str

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


def read_manifest(filesystem: pafs.FileSystem, root: str) -> Manifest:
    """Read and validate `root/manifest.json`; InputError when there is no usable store."""
    path = f"{root}/{FILE}"
    try:
        with filesystem.open_input_stream(path) as stream:
            text = stream.read().decode("utf-8")
    except FileNotFoundError:
        raise InputError(
            "this is not a cohort store: it has no manifest",
            file=places.named(filesystem, path),
            expected="a folder written by `gimp ingest`",
            found=_instead(filesystem, root),
            fix="give the path of a store, or make one with `gimp ingest`",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        what, fix = "the store's manifest cannot be read", places.advice(filesystem, error)
        raise InputError(what, file=places.named(filesystem, path), found=str(error), fix=fix) from error
    return parse_manifest(text, places.named(filesystem, path))


def parse_manifest(text: str, path: str) -> Manifest:
    """The manifest in `text`; `path` is named in refusals."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _damaged(path, "a JSON object", str(error)) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else document
        raise _damaged(path, f"format: {FORMAT!r}", repr(found))
    if document.get("version") != LAYOUT_VERSION:
        raise InputError(
            "the store's layout is of another version",
            file=path,
            expected=f"version {LAYOUT_VERSION}",
            found=f"version {document.get('version')}",
            fix="ingest the sources again with this version of gimp-ray, or open the store with the one that wrote it",
        )
    row = {**document, **{name: _pairs(document, name) for name in ("files", "tables", "schema_versions", "members")}}
    try:
        # Arrow is a strict judge of types and nulls, and the schema file stays the one source of truth
        table = pa.Table.from_pylist([row], schema=table_schema("manifest").arrow())
        table.validate(full=True)
        missing = [f.name for f in table.schema if not f.nullable and table[f.name].null_count]
        if missing:
            raise ValueError(f"no value for {', '.join(missing)}")
        known = {field.name: document[field.name] for field in dataclasses.fields(Manifest)}
    except (pa.ArrowException, TypeError, ValueError, KeyError) as error:
        raise _damaged(path, "the fields of storage_schemas/manifest.json", str(error)) from error
    return Manifest(**{**known, "classes": tuple(known["classes"]), "superseded": tuple(known["superseded"])})


def content_sha256(table: pa.Table) -> str:
    """SHA-256 of a small table's values by column, apart from where bytes lie.

    Every column gives its name and type, the values of its rows in order, and which of them are null; how Arrow cuts
    them into chunks and Parquet into row groups does not show. About 0.5 GB a second.
    """
    digest = hashlib.sha256(f"{table.num_rows}\n".encode())
    for field in table.schema:
        if field.name not in _PLACES:
            kind, values = _column_sha256(table[field.name])
            digest.update(json.dumps([field.name, kind, values], ensure_ascii=False).encode())
    return digest.hexdigest()


def gene_list_sha256(gene_ids: Sequence[str]) -> str:
    """SHA-256 of the gene ids in order, each followed by a newline."""
    return hashlib.sha256("".join(f"{gene}\n" for gene in gene_ids).encode()).hexdigest()


def program() -> str:
    """Name and version of this program, for `created_by`."""
    try:
        return f"gimp-ray {importlib.metadata.version('gimp-ray')}"
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "gimp-ray"


def store_fingerprint(content: dict[str, str], **meaning: object) -> str:
    """SHA-256 over the tables' content hashes (`slides` has the slides' own) and what gives values their meaning."""
    document = {"content": content, "meaning": meaning, "layout": LAYOUT_VERSION}
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _column_sha256(column: pa.ChunkedArray) -> tuple[str, str]:
    """The type of a column, and SHA-256 of its values: sizes (-1 is null) and bytes of text, else nulls and numbers."""
    kind = _read_back_as(column.type)
    column, text = column if column.type == kind else column.cast(kind, safe=False), _text_like(kind)
    values, marks = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        if text:
            marks.update(pc.fill_null(pc.binary_length(chunk), -1).cast(pa.int64()).to_numpy().astype("<i8").data)
            values.update(_bytes_of_text(chunk.drop_null()))
        else:
            marks.update(chunk.is_valid().cast(pa.uint8()).to_numpy().data)
            values.update(_bytes_of_values(chunk))
    # Parquet renames the values of a list
    return str(kind).replace("<item: ", "<element: "), hashlib.sha256(
        (marks.hexdigest() + values.hexdigest()).encode()
    ).hexdigest()


def _read_back_as(kind: pa.DataType) -> pa.DataType:
    """The type a column has when it was written to Parquet and read; dictionaries as their values."""
    if pa.types.is_dictionary(kind):
        return _read_back_as(kind.value_type)
    if pa.types.is_date64(kind):
        return pa.date32()
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    return pa.time32("ms") if kind == pa.time32("s") else kind


def _text_like(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _bytes_of_text(values: pa.Array) -> bytes | memoryview:
    """The bytes of all values after one another."""
    if not len(values):
        return b""
    data = values.buffers()[2]
    large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    offsets = np.frombuffer(values.buffers()[1], dtype="<i8" if large else "<i4")
    low, high = offsets[values.offset], offsets[values.offset + len(values)]
    return b"" if data is None else memoryview(data)[low:high]


def _bytes_of_values(values: pa.Array) -> bytes | memoryview:
    """Little-endian numbers with 0 where a value is null; of a type that is rare in tables, JSON."""
    kind = values.type
    if pa.types.is_boolean(kind):
        values = values.cast(pa.uint8())
    elif pa.types.is_temporal(kind) and kind.bit_width in (32, 64):
        values = values.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return "".join(json.dumps(v, default=str, ensure_ascii=False) + "\n" for v in values.to_pylist()).encode()
    numbers = (values.fill_null(0) if values.null_count else values).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(numbers, dtype=numbers.dtype.newbyteorder("<")).view(np.uint8).data


def _pairs(document: dict[str, object], key: str) -> list[tuple[str, object]]:
    value = document.get(key)
    return list(value.items()) if isinstance(value, dict) else []


def _damaged(path: str, expected: str, found: str) -> InputError:
    fix = "ingest the sources again; a store is never edited by hand"
    return InputError("the store's manifest is damaged", file=path, expected=expected, found=found, fix=fix)


def _instead(filesystem: pafs.FileSystem, root: str) -> str:
    """What there is in place of a store."""
    try:
        if filesystem.get_file_info(root).type == pafs.FileType.Directory:
            return "a folder without manifest.json"
        bucket = root.partition("/")[0]
        if filesystem.type_name == "s3" and filesystem.get_file_info(bucket).type == pafs.FileType.NotFound:
            return f"no bucket of the name {bucket}"
    except OSError:
        pass
    return "nothing at this path"
