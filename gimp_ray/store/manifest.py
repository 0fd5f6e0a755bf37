"""The manifest: what a store says about itself, and the fingerprint of what it holds.

The fingerprint hashes contents, not files: two ingests of the same sources have the same one, whatever the part
files, the compression, the number of workers or the day.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from gimp_ray.errors import InputError
from gimp_ray.io import storage
from gimp_ray.store.schema import LAYOUT_VERSION, READABLE_LAYOUTS, table_schema

FORMAT = "gimp-ray cohort store"
FILE = "manifest.json"
PATCHES, RNA = "patches", "rna"
CHECKSUMS = "crc32"

# columns of slides.parquet that say where bytes lie, not what they are
_LOCATIONS = ("file", "first_row_group")


@dataclass(frozen=True)
class Bag:
    """A modality with any number of embeddings a slide; fields as in `storage_schemas/modality_bag.json`."""

    kind: str
    dim: int
    dtype: str
    row_group_rows: int
    compression: str
    patch_order: str
    encoder: str | None
    magnification: float | None
    patch_size: int | None
    overlap: int | None
    coordinates: str
    checksums: str | None
    num_cases: int
    num_slides: int
    num_patches: int


@dataclass(frozen=True)
class Vector:
    """A modality with one value of each named feature a case; fields as in `storage_schemas/modality_vector.json`."""

    kind: str
    num_features: int
    unit: str | None
    feature_list_sha256: str
    num_cases: int


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`; the fields' meanings and units stand in `storage_schemas/manifest.json`."""

    format: str
    version: int
    created_by: str
    created_at: str
    revision: int
    num_cases: int
    classes: tuple[str, ...]
    modalities: dict[str, Bag | Vector]
    files: dict[str, str]
    tables: dict[str, str]
    schema_versions: dict[str, int]
    superseded: tuple[str, ...]
    members: dict[str, str]
    fingerprint: str

    @property
    def patches(self) -> Bag | None:
        """The bag of patch embeddings; None in a store without patches."""
        bag = self.modalities.get(PATCHES)
        return bag if isinstance(bag, Bag) else None

    @property
    def vectors(self) -> dict[str, Vector]:
        """The modalities with named features: name -> what is stored."""
        return {name: one for name, one in self.modalities.items() if isinstance(one, Vector)}

    @property
    def dim(self) -> int | None:
        """Width of a patch embedding; None in a store without patches."""
        return self.patches.dim if self.patches else None

    @property
    def dtype(self) -> str:
        """Number format of the patch embeddings."""
        return self.patches.dtype if self.patches else "float16"

    @property
    def encoder(self) -> str | None:
        return self.patches.encoder if self.patches else None

    @property
    def num_slides(self) -> int:
        return self.patches.num_slides if self.patches else 0

    @property
    def num_patches(self) -> int:
        return self.patches.num_patches if self.patches else 0

    @property
    def num_genes(self) -> int:
        """Genes of the modality `rna`; 0 in a store without it."""
        return self.vectors[RNA].num_features if RNA in self.vectors else 0

    @property
    def gene_unit(self) -> str | None:
        return self.vectors[RNA].unit if RNA in self.vectors else None

    def to_json(self) -> str:
        """The file's text; its last field, `checksum`, is the SHA-256 of all the others."""
        document = dataclasses.asdict(self)
        return json.dumps({**document, "checksum": checksum(document)}, indent=2, ensure_ascii=False) + "\n"


def checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's fields, `checksum` itself left out."""
    fields = {name: value for name, value in document.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_manifest(filesystem: pafs.FileSystem, root: str, verify: bool = True) -> Manifest:
    """Read and validate `root/manifest.json`; InputError when there is no usable store.

    Args:
        filesystem, root: where the store is.
        verify: refuse a manifest whose checksum is not that of its fields.
    """
    path = f"{root}/{FILE}"
    try:
        with filesystem.open_input_stream(path) as stream:
            text = stream.read().decode("utf-8")
    except FileNotFoundError:
        raise InputError(
            "this is not a cohort store: it has no manifest",
            file=storage.display_uri(filesystem, path),
            expected="a folder written by `gimp ingest`",
            found=_instead(filesystem, root),
            fix="give the path of a store, or make one with `gimp ingest`",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        what, fix = "the store's manifest cannot be read", storage.advice(filesystem, error)
        raise InputError(what, file=storage.display_uri(filesystem, path), found=str(error), fix=fix) from error
    return parse_manifest(text, storage.display_uri(filesystem, path), verify)


def parse_manifest(text: str, path: str, verify: bool = True) -> Manifest:
    """The manifest in `text`, of this layout or an earlier one; `path` is named in refusals."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _damaged(path, "a JSON object", str(error)) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else document
        raise _damaged(path, f"format: {FORMAT!r}", repr(found))
    if document.get("version") not in READABLE_LAYOUTS:
        raise InputError(
            "the store's layout is of another version",
            file=path,
            expected=f"version {' or '.join(map(str, READABLE_LAYOUTS))}",
            found=f"version {document.get('version')}",
            fix="ingest the sources again with this version of gimp-ray, or open the store with the one that wrote it",
        )
    try:
        if document["version"] < LAYOUT_VERSION:
            document = _upgraded(document)
        elif verify and document.get("checksum") != checksum(document):
            found = f"checksum {checksum(document)[:16]} of its fields"
            raise _damaged(path, f"checksum {str(document.get('checksum'))[:16]}, as it says", found)
        modalities: dict[str, Bag | Vector] = {
            name: _typed(Bag if one["kind"] == "bag" else Vector, f"modality_{one['kind']}", one)
            for name, one in document["modalities"].items()
        }
        as_text = {name: json.dumps(one) for name, one in document["modalities"].items()}
        found = _typed(Manifest, "manifest", {**document, "modalities": as_text})
    except (pa.ArrowException, TypeError, ValueError, KeyError, AttributeError, FileNotFoundError) as error:
        raise _damaged(path, "the fields of storage_schemas/manifest.json", str(error)) from error
    return dataclasses.replace(
        found, modalities=modalities, classes=tuple(found.classes), superseded=tuple(found.superseded)
    )


def _typed(kind: type[Any], schema: str, document: Mapping[str, Any]) -> Any:
    """`document` as a `kind`; Arrow is a strict judge of types and nulls, and the schema file stays the one truth."""
    row = {name: list(value.items()) if isinstance(value, dict) else value for name, value in document.items()}
    table = pa.Table.from_pylist([row], schema=table_schema(schema).arrow())
    table.validate(full=True)
    missing = [field.name for field in table.schema if not field.nullable and table[field.name].null_count]
    if missing:
        raise ValueError(f"no value for {', '.join(missing)}")
    return kind(**{field.name: document[field.name] for field in dataclasses.fields(kind)})


def _upgraded(old: dict[str, Any]) -> dict[str, Any]:
    """A manifest of layout 2, which had one bag and one vector as fields of its own, in the fields of this layout."""
    modalities: dict[str, Any] = {}
    if old["dim"] is not None:
        modalities[PATCHES] = {"kind": "bag", **{f.name: old.get(f.name) for f in dataclasses.fields(Bag)[1:]}}
    if old["num_genes"]:
        unit, genes = old["gene_unit"], old["gene_list_sha256"]
        modalities[RNA] = {"kind": "vector", "num_features": old["num_genes"], "unit": unit}
        modalities[RNA] |= {"feature_list_sha256": genes, "num_cases": old["num_cases"]}
    return {**old, "modalities": modalities, "checksum": ""}


def content_sha256(table: pa.Table) -> str:
    """SHA-256 of a small table's values by column, apart from where bytes lie.

    Every column gives its name and type, the values of its rows in order, and which of them are null; how Arrow cuts
    them into chunks and Parquet into row groups does not show. About 0.5 GB a second.
    """
    digest = hashlib.sha256(f"{table.num_rows}\n".encode())
    for field in table.schema:
        if field.name not in _LOCATIONS:
            kind, values = _column_sha256(table[field.name])
            digest.update(json.dumps([field.name, kind, values], ensure_ascii=False).encode())
    return digest.hexdigest()


def gene_list_sha256(gene_ids: Sequence[str]) -> str:
    """SHA-256 of the ids of genes or other features in order, each followed by a newline."""
    return hashlib.sha256("".join(f"{gene}\n" for gene in gene_ids).encode()).hexdigest()


def program() -> str:
    """Name and version of this program, for `created_by`."""
    try:
        return f"gimp-ray {importlib.metadata.version('gimp-ray')}"
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "gimp-ray"


def store_fingerprint(
    contents: Mapping[str, str], modalities: Mapping[str, Bag | Vector], version: int = LAYOUT_VERSION
) -> str:
    """SHA-256 over the tables' content hashes (`slides` has the slides' own) and what gives values their meaning.

    Args:
        contents: table -> SHA-256 of its values; `sources` does not count.
        modalities: of the store.
        version: the layout the store was written in.
    """
    meaning: dict[str, object] = {}
    if version < LAYOUT_VERSION:
        bag, rna = modalities.get(PATCHES), modalities.get(RNA)
        meaning = {name: getattr(bag, name, None) for name in ("dim", "dtype", "encoder")}
        meaning["dtype"] = meaning["dtype"] or "float16"
        meaning["gene_unit"] = getattr(rna, "unit", None)
    else:
        for name, one in modalities.items():
            told = ("kind", "dim", "dtype", "encoder") if isinstance(one, Bag) else ("kind", "unit")
            meaning[name] = {field: getattr(one, field) for field in told}
    content = {name: value for name, value in contents.items() if name != "sources"}
    document = {"content": content, "meaning": meaning, "layout": version}
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
