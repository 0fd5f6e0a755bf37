"""A table in object storage, read and written on a machine that has nothing of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gimp_ray.errors import ConfigError
from gimp_ray.experiments.grid import Resources
from gimp_ray.experiments.table import make_table, plan_table
from gimp_ray.io import storage
from gimp_ray.runs.folder import RunFolder
from tests.object_storage.fixtures import bucket, s3_env, s3_proxy, s3_server
from tests.tables.made import finished, table_of

__all__ = ["bucket", "s3_env", "s3_proxy", "s3_server"]
pytestmark = pytest.mark.slow


def test_a_table_in_object_storage_is_found_again_and_written_there(
    store_path: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_machine() -> None:
        monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))

    monkeypatch.setattr("gimp_ray.experiments.table.save_figure", lambda figure, file: file)
    table, out = table_of(store_path, {"name": "a"}, {"name": "b"}), f"{bucket}/tables/one"
    another_machine()
    planned = plan_table(table, out)
    assert set(planned.missing.values()) == {"not begun"}
    for number, cell in enumerate(planned.cells):
        assert cell.step.uri.startswith(f"{out}/runs/")
        finished(cell, planned.store, number)
        run = RunFolder(cell.step.uri)
        run.push()
        run.push_stage("finetune")

    another_machine()
    again = plan_table(table, out)
    assert again.missing == {}
    found = make_table(again, Resources())
    assert [row["runs"] for row in found["rows"]] == [1, 1, 1, 1]
    filesystem, root = storage.resolve(out)
    assert b"A & B" in storage.read_bytes(filesystem, f"{root}/table.md")

    another_machine()
    other = table_of(store_path, {"name": "a", "config": {"finetune.hidden": 7}})
    with pytest.raises(ConfigError, match=r"was made with another 'finetune.hidden'"):
        plan_table(other, out)
