"""A method from outside the package, by the page that explains how to write one: run, evaluated, embedded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.errors import ConfigError
from gimp_ray.runs.folder import RunFolder, read_json

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-a-method.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the page's method in a package of its own."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    folder = tmp_path / "elsewhere"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_package" / "max_pool.py").write_text(code, encoding="utf-8")
    (folder / "my_package" / "nothing.py").write_text("VALUE = 1\n", encoding="utf-8")
    return folder


def gimp(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which finds the package on PYTHONPATH alone."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    return subprocess.run(
        [sys.executable, "-m", "gimp_ray.cli.commands", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd=package,
        check=False,
    )


def test_a_method_of_the_users_own_is_run_evaluated_and_embedded(tiny: Config, package: Path, tmp_path: Path) -> None:
    settings = {
        "train": {"workers": 0, "threads": 1},
        "method": {"name": "my_package.max_pool", "dim": 16, "train": {"epochs": 2}},
        "evaluate": {"resamples": 20},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    run = RunFolder(tmp_path / "own")
    given = ("--config", str(tmp_path / "run.yaml"), "--store", str(tiny.store), "--run", str(run.path))
    done = gimp(package, "run", *given)
    assert done.returncode == 0, done.stderr
    card = read_json(run.model_card("finetune"))
    assert card["method"] == "my_package.max_pool" and card["config"]["method"]["dim"] == 16
    rows = read_json(run.evaluation / "metrics.json")["rows"]
    assert rows[0]["method"] == "Max pool + MLP" and len(rows) == 3
    # the card names the module, and predicting finds it; the same case has the same answer
    done = gimp(package, "embed", "--run", str(run.path), "--out", str(tmp_path / "all.parquet"))
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "all.parquet").to_pylist()
    before = {row["case_id"]: row for row in pq.read_table(run.evaluation / "embeddings.parquet").to_pylist()}
    names = [name for name in table[0] if name.startswith("prob_")]
    assert len(table) == 20 and names
    for row in table:
        np.testing.assert_allclose([row[n] for n in names], [before[row["case_id"]][n] for n in names], rtol=1e-6)
    refused = gimp(package, "run", *given, "--method.width", "3")
    assert refused.returncode == 2 and "unknown config key 'method.width' of method Max pool + MLP" in refused.stderr
    changed = gimp(package, "evaluate", *given[2:], "--method.dim", "8")
    assert changed.returncode == 2 and "method.dim" in changed.stderr


def test_a_module_that_is_not_there_or_holds_no_method_is_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(package))
    for name in ("my_package.nothing", "my_package.other", "no_package.mine"):
        with pytest.raises(ConfigError, match=r"'method\.name': there is no method") as refusal:
            load_config(None, {"method.name": name})
        assert "METHOD" in (refusal.value.expected or "")
