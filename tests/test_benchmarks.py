"""The store's benchmark runs, and gives every row with figures that can be: how fast is no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.object_storage.server import weed_binary

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The results as JSON, and what was printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks.store", "--quick", "--out", str(folder / "r.json")]
    ran = subprocess.run([*command, "--folder", str(folder)], capture_output=True, cwd=ROOT, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in folder.iterdir()] == ["r.json"], "it leaves nothing behind"
    return json.loads((folder / "r.json").read_text(encoding="utf-8")), ran.stdout


def spreads(found: Any) -> list[dict[str, float]]:
    """Every median with its least and most, wherever it stands."""
    if isinstance(found, dict):
        return [found] if set(found) == {"median", "min", "max"} else [s for v in found.values() for s in spreads(v)]
    return [s for v in found for s in spreads(v)] if isinstance(found, list) else []


def test_every_contestant_has_its_row(done: tuple[dict[str, Any], str]) -> None:
    result, _ = done
    readers = [row["reader"] for row in result["windows"]]
    assert readers[0] == "this store" and len(readers) == len(set(readers)) == 7
    assert [row["patches"] for row in result["sizes"]["rows"]] == list(result["scale"]["bag_sizes"])
    assert len({(row["layout"], row["processes"], row["from"]) for row in result["ingest"]}) == 12
    assert [row["step"] for row in result["stages"]] == ["read", "round", "hash", "write", "write and compare"]
    assert len({(row["dtype"], row["compression"]) for row in result["formats"]}) == 6
    for figure in spreads(result):
        assert 0 < figure["min"] <= figure["median"] <= figure["max"] < np.inf


def test_what_does_not_depend_on_the_machine_is_as_promised(done: tuple[dict[str, Any], str]) -> None:
    result, _ = done
    sizes = {(row["dtype"], row["compression"]): row["size_over_float32"] for row in result["formats"]}
    assert 0.5 < sizes["float16", "none"] < 0.55 and 1 < sizes["float32", "none"] < 1.05
    assert all(row["allocated"] < 3 for row in result["sizes"]["rows"]), "windows of memory, whatever the bag"
    assert result["ingest_memory"]["peak_mb"] < 1500
    if weed_binary() is not None:
        assert [row["length"] for row in result["s3"]["bytes"]] == list(result["scale"]["lengths"])
        assert all(1 <= row["fetched_over_needed"] <= 1.15 and row["requests"] == 1 for row in result["s3"]["bytes"])


def test_the_tables_name_the_machine_and_no_path_of_it(done: tuple[dict[str, Any], str]) -> None:
    result, printed = done
    assert str(result["machine"]["cpu"]) in printed and "python -m benchmarks.store --quick" in printed
    assert str(ROOT) not in printed + json.dumps(result)
    assert str(Path.home()) + "/" not in printed
