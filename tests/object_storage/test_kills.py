"""A run killed between a checkpoint's data and its marker, and continued each time on a machine that has nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gimp_ray import pipeline
from gimp_ray.config_files import load_config, to_yaml
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights
from tests.object_storage.proxy import FaultProxy
from tests.object_storage.server import S3Server, s3_client

pytestmark = pytest.mark.ray  # the slow tier: each attempt is a process that imports torch
ROOT = Path(__file__).parents[2]


def test_killed_in_the_middle_of_an_upload(
    store_path: Path,
    tmp_path: Path,
    bucket: str,
    s3_env: S3Server,
    s3_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_config(None, {"store": str(store_path), "run": str(tmp_path / "run")}, base=TINY)
    local = pipeline.pretrain(changed(config, genes__encoder="none"))
    remote = changed(config, genes__encoder="none", run=f"{bucket}/runs/a")
    (tmp_path / "run.yaml").write_text(to_yaml(remote))
    # what comes between a checkpoint's data and its marker
    s3_proxy.fault("latency", "HEAD", "state.safetensors", seconds=1.0)
    for attempt in range(2):
        killed = start(tmp_path, attempt)
        asked_before = s3_proxy.count("HEAD", "state.safetensors")
        until = time.monotonic() + 120
        while s3_proxy.count("HEAD", "state.safetensors") < asked_before + 2 and time.monotonic() < until:
            assert killed.poll() is None, "it came to its end"
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        whole, torn = checkpoints(s3_env, bucket)
        assert (whole, torn) == (attempt + 1, 1)
    s3_proxy.heal()
    assert start(tmp_path, 9).wait() == 0
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "mine"))
    run = RunFolder(remote.run or "")
    run.pull()
    assert metrics(run, "pretrain") == metrics(local, "pretrain")
    assert same_weights(run.model_file("pretrain"), local.model_file("pretrain"))
    assert checkpoints(s3_env, bucket) == (2, 0)
    statuses = [attempt["status"] for attempt in run.record()["attempts"]]
    assert statuses == ["running", "running", "done"]


def start(folder: Path, attempt: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gimp_ray.cli.commands", "pretrain", "--config", str(folder / "run.yaml")],
        env=os.environ | {"GIMP_RAY_CACHE": str(folder / f"cache-{attempt}")},
        cwd=ROOT,
    )


def checkpoints(server: S3Server, bucket: str) -> tuple[int, int]:
    """How many are whole in the bucket, and how many are not."""
    listed = s3_client(server.endpoint).list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
    names = [item["Key"] for item in listed]
    data = {re.sub("state.safetensors$", "", name) for name in names if name.endswith("/state.safetensors")}
    whole = {re.sub("state.json$", "", name) for name in names if name.endswith("/state.json")}
    assert whole <= data
    return len(whole), len(data - whole)
