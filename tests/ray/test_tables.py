"""A small table on the cluster: what is missing runs, and only that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gimp_ray.config_files import flatten
from gimp_ray.experiments.grid import Resources
from gimp_ray.experiments.spec import build_table
from gimp_ray.experiments.table import make_table, plan_table
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

ROWS = [
    {"name": "scratch", "config": {"finetune.init": "scratch"}},
    {"name": "wide head", "config": {"finetune.init": "scratch", "finetune.hidden": 16}},
    # refused when it starts: no gene sets are there
    {"name": "refused", "config": {"finetune.init": "scratch", "genes.sets": "/nowhere/sets.gmt"}},
]


def attempts(run: RunFolder) -> int:
    return len(run.record().get("attempts", []))


def test_a_table_runs_what_is_missing_and_nothing_twice(cluster: None, store_path: Path, tmp_path: Path) -> None:
    base = flatten(TINY) | {"store": str(store_path), "evaluate.resamples": 50, "finetune.train.epochs": 1}
    table = build_table({"title": "t", "base": base, "rows": ROWS, "folds": 1, "seeds": 1})
    out, room = tmp_path / "out", Resources(concurrent=2, cpus=0.5)
    first = make_table(plan_table(table, out), room)
    planned = plan_table(table, out)
    scratch, wide, _ = (RunFolder(cell.step.uri) for cell in planned.cells)
    (shared,) = (RunFolder(need.uri) for need in planned.cells[0].step.needs)

    # a refusal is not tried again, and says why; the others are done
    (missing,) = first["missing"]
    assert missing["row"] == "refused" and "which failed: there is no such file of gene sets" in missing["why"]
    assert [row["runs"] for row in first["rows"]] == [1, 1, 0, 1, 1]
    # one gene encoder for both, trained apart
    assert shared.stage_done("genes") and not scratch.stage_done("genes") and not wide.stage_done("genes")
    assert [attempts(run) for run in (scratch, wide, shared)] == [1, 1, 1]
    assert all(row["metrics"]["accuracy"]["value"] is not None for row in first["rows"] if row["runs"])

    kept = build_table(table.model_dump() | {"rows": [row.model_dump() for row in table.rows[:2]]})
    again = make_table(plan_table(kept, out), room)
    assert again["missing"] == [] and [attempts(run) for run in (scratch, wide, shared)] == [1, 1, 1]

    shutil.rmtree(wide.path)
    third = make_table(plan_table(kept, out), room)
    assert third["missing"] == [] and [attempts(run) for run in (scratch, wide, shared)] == [1, 1, 1]
    # the same config, seed and store: the same figures, whoever ran it
    assert third["rows"][1]["metrics"] == again["rows"][1]["metrics"]
    assert wide.record()["created"] >= scratch.record()["created"]
