"""docs/store.md says what the schemas say, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohort_files import Sources

from gimp_ray.store.schema import TABLES, table_schema

PAGE = Path(__file__).parents[2] / "docs" / "store.md"


def _examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_tables_are_those_of_the_schemas() -> None:
    """After a change of storage_schemas, put `table_schema(name).markdown()` of all tables between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    stated = text.partition("<!-- tables -->\n")[2].partition("<!-- /tables -->")[0]
    assert stated == "\n".join(table_schema(name).markdown() for name in TABLES)


def test_the_examples_are_found() -> None:
    assert len(_examples()) == 4


@pytest.mark.parametrize("number", range(4), ids=["CohortStore", "pandas", "DuckDB", "Polars"])
def test_the_examples_run(sources: Sources, number: int) -> None:
    sources.ingest()
    names: dict[str, Any] = {"STORE": str(sources.out)}
    exec(_examples()[number], names)
    if number == 2:
        assert names["per_class"] == [("LUAD", 3, 63), ("LUSC", 3, 72)]
    if number == 3:
        assert names["by_size"].row(0) == ("B2-DX1", "B2", 25)
    bag = names["bag"] if number == 0 else names["embeddings"]
    np.testing.assert_array_equal(bag, sources.bags["A0-DX1"].astype(np.float16))
    if number > 1:
        return
    coords = names["coords"] if number == 0 else names["xy"].to_numpy()
    np.testing.assert_array_equal(coords, sources.coords["A0-DX1"])
    expected = sources.expression["B1"].astype(np.float32)
    found = names["genes"][1] if number == 0 else names["expression"].loc["B1", sources.gene_ids].to_numpy()
    np.testing.assert_array_equal(found, expected)
