"""An S3 server that is stopped for half a minute and started again, with the store and the run folder in it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gimp_ray import pipeline
from gimp_ray.config import Config
from gimp_ray.errors import InputError
from gimp_ray.io import storage
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import LOCK, RunFolder
from tests.conftest import changed
from tests.engine.test_resume import metrics, same_weights
from tests.faults.running import beside, steps_logged
from tests.faults.slow import held
from tests.object_storage.server import S3Server, s3_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OUTAGE_S = 30


@pytest.fixture
def remote(tiny: Config, bucket: str) -> Config:
    """A copy of the store in a bucket, and a run beside it: 60 mini-batches, a checkpoint every four."""
    filesystem, root = storage.resolve(f"{bucket}/store")
    for file in Path(tiny.store or "").rglob("*"):
        if file.is_file():
            storage.write_bytes(filesystem, f"{root}/{file.relative_to(tiny.store or '')}", file.read_bytes())
    return changed(
        tiny,
        store=f"{bucket}/store",
        run=f"{bucket}/runs/a",
        genes__encoder="none",
        train__epochs=20,
        checkpoint__every_epochs=20,
        checkpoint__every_steps=4,
    )


def test_training_goes_on_or_waits_and_nothing_is_lost(
    remote: Config, tiny: Config, s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "cache"))
    run = RunFolder(remote.run or "")
    held(run).parent.mkdir(parents=True)
    held(run).touch()
    with beside(remote, tmp_path) as command:
        command.until(lambda: steps_logged(run, "pretrain") >= 9)
        s3_env.stop()
        stopped = time.time()
        held(run).unlink()
        time.sleep(OUTAGE_S)
        s3_env.start()
        started = time.time()
        command.succeeded()
    times = [line["time"] for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]
    print(
        f"{sum(stopped < at < started for at in times)} steps while it was away, the rest at "
        f"{min(at for at in times if at > started) - started:.0f} s after it came back"
    )
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["done"]
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "another"))
    there = RunFolder(remote.run or "")
    there.pull()
    whole = pipeline.pretrain(changed(remote, store=tiny.store, run=str(tmp_path / "whole")))
    assert metrics(there, "pretrain") == metrics(whole, "pretrain")
    assert same_weights(there.model_file("pretrain"), whole.model_file("pretrain"))


def test_one_command_at_a_time_on_a_run_in_a_bucket(
    remote: Config, s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "cache"))
    run = RunFolder(remote.run or "")
    held(run).parent.mkdir(parents=True)
    held(run).touch()
    with beside(remote, tmp_path) as command:
        command.until(lambda: steps_logged(run, "pretrain") >= 5)
        monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "another"))
        with pytest.raises(InputError, match="another command is at work on this run") as refusal:
            pipeline.pretrain(remote)
        assert f"process {command.process.pid} on this machine" in (refusal.value.found or "")
        assert f"{remote.run}/{LOCK}" in (refusal.value.fix or "")
    # killed: its lock is taken over
    assert objects(s3_env, remote, LOCK)
    pipeline.pretrain(changed(remote, train__stop_after=3))
    assert not objects(s3_env, remote, LOCK)
    record = RunFolder(remote.run or "").record()
    assert [attempt["status"] for attempt in record["attempts"]] == ["running", "stopped"]


def objects(server: S3Server, config: Config, name: str) -> list[str]:
    """Objects of the run whose names end so."""
    bucket, _, prefix = str(config.run).removeprefix("s3://").partition("/")
    listed = s3_client(server.endpoint).list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return [item["Key"] for item in listed if item["Key"].endswith(name)]
