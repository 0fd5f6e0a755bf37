"""A run in object storage on a Ray cluster of its own: worker, controller and command find it by its URI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gimp_ray.config_files import load_config, to_yaml
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY
from tests.object_storage.fixtures import bucket, s3_env, s3_server  # noqa: F401
from tests.object_storage.server import S3Server, s3_client

pytestmark = pytest.mark.ray


def test_a_worker_trains_in_a_bucket(
    store_path: Path,
    tmp_path: Path,
    bucket: str,  # noqa: F811
    s3_env: S3Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = {"store": str(store_path), "run": f"{bucket}/runs/a", "train.workers": 1, "genes.train.epochs": 1}
    (tmp_path / "run.yaml").write_text(to_yaml(load_config(None, tree, base=TINY)))
    # a process of its own, since a cluster hands on the environment it was started in
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run(
        [sys.executable, "-m", "gimp_ray.cli.commands", "pretrain-genes", "--config", str(tmp_path / "run.yaml")],
        env=environment | {"GIMP_RAY_CACHE": str(tmp_path / "cache"), "RAY_AUTH_MODE": "disabled"},
        cwd=Path(__file__).parents[2],
        check=True,
    )
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "another"))
    run = RunFolder(f"{bucket}/runs/a")
    run.pull()
    assert run.stage_done("genes") and read_lines(run.metrics_log("genes"))
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["done"]
    names = s3_client(s3_env.endpoint).list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
    assert any(name["Key"].startswith("runs/a/ray/") for name in names), "Ray's bookkeeping is where every node is"
    assert not (run.path / "ray").exists()
