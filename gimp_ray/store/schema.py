"""The stored tables' schemas, loaded from `storage_schemas/*.json`: each column's Arrow type, unit and meaning."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

TABLES = (
    "manifest", "modality_bag", "modality_vector",
    "cases", "slides", "patches", "genes", "expression", "features", "values", "splits", "sources",
)  # fmt: skip
ROW_GROUP_ROWS = 512
LAYOUT_VERSION = 3
READABLE_LAYOUTS = (2, 3)

_PLAIN_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "list<string>": pa.list_(pa.string()),
    "map<string, string>": pa.map_(pa.string(), pa.string()),
    "map<string, object>": pa.map_(pa.string(), pa.string()),
    "map<string, int32>": pa.map_(pa.string(), pa.int32()),
}
_SIZED_BINARY = re.compile(r"fixed_size_binary\[(?:(\d+)\*)?([a-z_]\w*)\]")


@dataclass(frozen=True)
class Column:
    """One column of a stored table; `type` is Arrow's name, with sizes by name (`fixed_size_binary[4*num_genes]`)."""

    name: str
    type: str
    unit: str | None
    nullable: bool
    meaning: str


@dataclass(frozen=True)
class TableSchema:
    """One stored table; `extra_columns` says which further columns it may hold, None forbids them."""

    name: str
    version: int
    stored_as: str
    rows: str
    sorted_by: tuple[str, ...]
    extra_columns: str | None
    columns: tuple[Column, ...]

    def arrow(self, **sizes: int) -> pa.Schema:
        """The Arrow schema; `sizes` gives the symbolic sizes, such as `num_genes=2000`."""
        return pa.schema([pa.field(c.name, arrow_type(c.type, **sizes), nullable=c.nullable) for c in self.columns])

    def markdown(self) -> str:
        """The table as documentation: heading, columns, what else it may hold."""
        lines = [
            f"### `{self.stored_as}` (schema version {self.version})",
            "",
            f"{self.rows[0].upper()}{self.rows[1:]}.",
        ]
        if self.sorted_by:
            lines[-1] += f" Sorted by {', '.join(self.sorted_by)}."
        lines += ["", "| column | type | unit | null | meaning |", "|---|---|---|---|---|"]
        for c in self.columns:
            null = "yes" if c.nullable else "no"
            lines.append(f"| {c.name} | {c.type} | {c.unit or '-'} | {null} | {c.meaning} |")
        if self.extra_columns is not None:
            lines += ["", f"Further columns: {self.extra_columns}."]
        return "\n".join(lines) + "\n"

    def differences(self, found: pa.Schema, **sizes: int) -> list[str]:
        """What in `found` contradicts this schema, one sentence each; empty when it fits."""
        problems = []
        expected = self.arrow(**sizes)
        for field in expected:
            index = found.get_field_index(field.name)
            if index < 0:
                problems.append(f"column {field.name} is missing")
            elif found.field(index).type != field.type:
                problems.append(f"column {field.name} is {found.field(index).type}, not {field.type}")
            elif found.field(index).nullable and not field.nullable:
                problems.append(f"column {field.name} may be null")
        extra = [name for name in found.names if name not in expected.names]
        if extra and self.extra_columns is None:
            problems.append(f"unknown columns: {', '.join(extra)}")
        return problems


def vector_tables(name: str) -> tuple[str, str]:
    """The tables of a vector modality: of its features, and of its values."""
    return ("genes", "expression") if name == "rna" else (f"{name}.features", f"{name}.values")


def folder() -> Path:
    """Where the schema files are: inside the installed package, else at the repository's root."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "storage_schemas", package.parent / "storage_schemas"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"storage_schemas is neither in {package} nor beside it: the installation is incomplete")


@functools.cache
def table_schema(name: str) -> TableSchema:
    """The schema of one of `TABLES`, or of a table of a modality (`cnv.features` has the schema `features`)."""
    document = json.loads((folder() / f"{name.rpartition('.')[2]}.json").read_text(encoding="utf-8"))
    columns = tuple(Column(**column) for column in document["columns"])
    return TableSchema(
        name=document["table"],
        version=document["version"],
        stored_as=document["stored_as"],
        rows=document["rows"],
        sorted_by=tuple(document["sorted_by"]),
        extra_columns=document["extra_columns"],
        columns=columns,
    )


def arrow_type(name: str, **sizes: int) -> pa.DataType:
    """The Arrow type of a type name of `storage_schemas`."""
    if name in _PLAIN_TYPES:
        return _PLAIN_TYPES[name]
    match = _SIZED_BINARY.fullmatch(name)
    if match is None:
        raise ValueError(f"storage_schemas names an unknown type: {name}")
    return pa.binary(int(match[1] or 1) * sizes[match[2]])
