"""A written store has exactly the tables, columns, types and versions of storage_schemas."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cohort_files import Sources

from gimp_ray.store.manifest import Bag, Manifest, Vector
from gimp_ray.store.schema import TABLES, folder, table_schema

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_explained(name: str) -> None:
    document = json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
    assert document["table"] == name
    assert isinstance(document["version"], int)
    for column in document["columns"]:
        assert set(column) == {"name", "type", "unit", "nullable", "meaning"}
        assert len(column["meaning"]) > 4, column
    assert table_schema(name).arrow(width=8, num_genes=3).names == [c["name"] for c in document["columns"]]


def test_no_schema_file_is_forgotten() -> None:
    assert sorted(path.stem for path in folder().glob("*.json")) == sorted(TABLES)


def test_manifest_fields_are_the_schema_s() -> None:
    for kind, schema in ((Manifest, "manifest"), (Bag, "modality_bag"), (Vector, "modality_vector")):
        columns = [c.name for c in table_schema(schema).columns if c.name != "checksum"]
        assert [f.name for f in dataclasses.fields(kind)] == columns


def test_schemas_ship_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["storage_schemas"] == "gimp_ray/storage_schemas"


def test_written_tables_have_the_schemas(sources: Sources) -> None:
    store = sources.store()
    sizes = {"num_genes": store.num_genes}
    for name in ("cases", "slides", "genes", "expression", "splits", "sources"):
        schema = table_schema(name)
        written = pq.read_schema(sources.out / schema.stored_as)
        assert written.remove_metadata() == schema.arrow(**sizes), name
        assert written.metadata[b"gimp.version"] == str(schema.version).encode()
    document = json.loads((sources.out / "manifest.json").read_text(encoding="utf-8"))
    assert list(document) == [c.name for c in table_schema("manifest").columns]
    assert document["schema_versions"] == {name: table_schema(name).version for name in TABLES}


def test_part_files_have_the_measured_layout(sources: Sources) -> None:
    store = sources.store()
    path = sources.out / store.slides["file"][0].as_py()
    file = pq.ParquetFile(path)
    assert file.schema_arrow.remove_metadata() == table_schema("patches").arrow(width=16)
    assert file.schema_arrow.field("embedding").type == pa.binary(16)
    metadata = {k: v for k, v in file.schema_arrow.metadata.items() if k.startswith(b"gimp.")}
    assert metadata[b"gimp.dtype"] == b"float16"
    assert metadata[b"gimp.dim"] == b"8"
    assert metadata[b"gimp.byte_order"] == b"little"
    assert metadata[b"gimp.patch_order"] == b"source"
    for group in range(file.metadata.num_row_groups):
        for column in range(3):
            chunk = file.metadata.row_group(group).column(column)
            assert chunk.compression == "UNCOMPRESSED"
            assert chunk.statistics is None
            assert not any("DICTIONARY" in encoding for encoding in chunk.encodings)


def test_a_table_that_differs_is_told() -> None:
    schema = table_schema("cases")
    assert schema.differences(schema.arrow().append(pa.field("age", pa.float64()))) == []
    wrong = pa.schema([pa.field("case_id", pa.int64(), nullable=False)])
    assert schema.differences(wrong) == ["column case_id is int64, not string", "column label is missing"]
    extra = table_schema("expression").arrow(num_genes=2).append(pa.field("symbol", pa.string()))
    assert table_schema("expression").differences(extra, num_genes=2) == ["unknown columns: symbol"]
    loose = pa.schema([pa.field("case_id", pa.string()), pa.field("label", pa.string(), nullable=False)])
    assert schema.differences(loose) == ["column case_id may be null"]
