"""Runs in object storage: stopped here and continued on a machine that has nothing, through a storage that fails."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from gimp_ray import pipeline
from gimp_ray.cli.commands import main
from gimp_ray.config import Config
from gimp_ray.config_files import load_config, to_yaml
from gimp_ray.engine.checkpoint import checkpoint_folders
from gimp_ray.errors import ConfigError
from gimp_ray.io import storage
from gimp_ray.io.mirror import new_file
from gimp_ray.io.storage import StorageError
from gimp_ray.runs.folder import RunFolder
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights
from tests.object_storage.proxy import FaultProxy

Machine = Callable[[], None]
WRITE_REPORT = "gimp_ray.reports.write_report"
SMALL = TINY | {"evaluate": {"resamples": 20, "reference_rows": False}}


@pytest.fixture(scope="module")
def local(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Every stage in one go in a local folder."""
    run = tmp_path_factory.mktemp("local") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WRITE_REPORT, lambda place: None)
        return pipeline.run_all(load_config(None, {"store": str(store_path), "run": str(run)}, base=SMALL))


@pytest.fixture(autouse=True)
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """From here on a machine with an empty cache."""

    def move() -> None:
        monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))

    move()
    return move


@pytest.fixture
def remote(store_path: Path, bucket: str) -> Config:
    return load_config(None, {"store": str(store_path), "run": f"{bucket}/runs/a"}, base=SMALL)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else here."""
    monkeypatch.setattr(WRITE_REPORT, lambda place: None)


def bucket_of(config: Config) -> str:
    return str(config.run).split("/")[2]


def fetched(config: Config) -> RunFolder:
    run = RunFolder(config.run or "")
    run.pull()
    return run


def test_every_stage_stopped_and_continued_on_an_empty_machine_ends_in_the_bits_of_a_local_run(
    remote: Config, local: RunFolder, new_machine: Machine
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WRITE_REPORT, lambda place: None)
        pipeline.run_all(changed(remote, genes__train__stop_after=1))
        new_machine()
        # the best epoch's weights so far come along, as does the log
        pipeline.run_all(changed(remote, train__stop_after=2, checkpoint__every_steps=2, checkpoint__keep=1))
        new_machine()
    pipeline.run_all(remote)
    new_machine()
    run = fetched(remote)
    for stage in ("genes", "pretrain", "finetune"):
        assert metrics(run, stage) == metrics(local, stage)
        assert same_weights(run.model_file(stage), local.model_file(stage))
    for name in ("evaluation/metrics.json", "evaluation/predictions.parquet"):
        assert (run.path / name).read_bytes() == (local.path / name).read_bytes()
    assert {"confusion_matrix.png", "tsne_finetune.png"} <= {file.name for file in run.figures.iterdir()}
    assert f"--run {remote.run}-again" in (run.path / "summary.md").read_text()
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["stopped", "stopped", "done"]
    run.pull_stage("pretrain")
    saved = [folder.name for folder in checkpoint_folders(run.checkpoints("pretrain"))]
    assert saved == ["step-00000006", "step-00000009"], "what is removed here is removed there"


def test_the_command_line_takes_uris(remote: Config, new_machine: Machine, bucket: str, no_report: None) -> None:
    config = f"{bucket}/settings/run.yaml"
    with new_file(config) as aside:
        aside.write_text(to_yaml(changed(remote, run=None)))
    run, shell = str(remote.run), CliRunner()
    done = shell.invoke(main, ["pretrain-genes", "--config", config, "--run", f"{run}/"], catch_exceptions=False)
    assert done.output.splitlines()[-1] == f"pretrain-genes: done, see {run}/summary.md"
    new_machine()
    done = shell.invoke(main, ["pretrain", "--run", run, "--train.epochs", "1"], catch_exceptions=False)
    assert done.exit_code == 0 and "genes epoch" not in done.output, "what is done there is not done again"
    new_machine()
    done = shell.invoke(main, ["embed", "--run", run, "--out", f"{bucket}/all.parquet"], catch_exceptions=False)
    assert done.output == f"wrote {bucket}/all.parquet\n"
    assert pq.read_table(f"{bucket}/all.parquet", filesystem=None).num_rows == 20
    refused = shell.invoke(main, ["finetune", "--run", f"{bucket}/runs/b", "--store", str(remote.store)])
    assert refused.exit_code == 2 and f"file: {bucket}/runs/b/pretrain.safetensors" in refused.output


def test_a_run_that_was_removed_there_begins_anew(remote: Config, no_report: None) -> None:
    import s3fs

    pipeline.pretrain_genes(changed(remote, genes__train__stop_after=1))
    with pytest.raises(ConfigError, match=r"genes\.groups"):
        pipeline.pretrain_genes(changed(remote, genes__groups=2))
    s3fs.S3FileSystem().rm(remote.run, recursive=True)
    run = pipeline.pretrain_genes(changed(remote, genes__groups=2))
    assert run.stage_done("genes") and len(run.record()["attempts"]) == 1


def test_errors_that_pass_change_no_byte(
    remote: Config, local: RunFolder, s3_proxy: FaultProxy, new_machine: Machine, no_report: None
) -> None:
    state = r"step-\d+/state.safetensors"
    writes = [
        s3_proxy.fault("slow_down", "PUT", "run.json", last=2),
        s3_proxy.fault("reset", "PUT", state, last=1),
        s3_proxy.fault("lost", "PUT", "state.json", last=1),
        s3_proxy.fault("truncate", "PUT", "genes.safetensors", last=1),
    ]
    pipeline.pretrain_genes(changed(remote, genes__train__stop_after=2))
    new_machine()
    reads = [
        s3_proxy.fault("slow_down", "GET", f"/{bucket_of(remote)}/?$", last=2),
        s3_proxy.fault("slow_down", "GET", "config.yaml", last=1),
        s3_proxy.fault("reset", "GET", state, last=2),
        s3_proxy.fault("truncate", "GET", "state.json", last=2),
    ]
    run = pipeline.pretrain_genes(remote)
    assert [rule.done for rule in writes + reads] == [2, 1, 1, 1, 2, 1, 2, 2]
    assert metrics(run, "genes") == metrics(local, "genes")
    new_machine()
    assert same_weights(fetched(remote).model_file("genes"), local.model_file("genes"))


def test_an_upload_that_fails_is_told_once_and_made_up_for(
    remote: Config,
    local: RunFolder,
    s3_proxy: FaultProxy,
    new_machine: Machine,
    no_report: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    # all six attempts of the first checkpoint's upload: two of the client, three times
    rule = s3_proxy.fault("slow_down", "PUT", "step-.*state", last=6)
    pipeline.pretrain_genes(remote)
    assert rule.done == 6
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: s3://")]
    assert len(said) == 2 and "will be tried again with the next checkpoint" in said[0], said
    assert f"{remote.run} has all of stage 'genes' again" in said[1]
    new_machine()
    run = fetched(remote)
    assert metrics(run, "genes") == metrics(local, "genes")
    assert same_weights(run.model_file("genes"), local.model_file("genes"))
    run.pull_stage("genes")
    assert len(checkpoint_folders(run.checkpoints("genes"))) == 2, "those no longer kept are removed there as well"


def test_a_storage_that_stays_away_ends_in_an_error_that_names_the_object_and_loses_nothing(
    remote: Config,
    local: RunFolder,
    s3_proxy: FaultProxy,
    new_machine: Machine,
    no_report: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv(storage.TIMEOUT_VARIABLE, "3")
    s3_proxy.fault("slow_down", "PUT", "step-.*state", first=3)
    with pytest.raises(StorageError, match="what stage 'genes' wrote could not be brought") as error:
        pipeline.pretrain_genes(remote)
    assert error.value.file is not None and error.value.file.startswith(f"{remote.run}/genes/checkpoints/step-")
    here = RunFolder(remote.run or "")
    assert str(here.path) in str(error.value.fix) and "goes on from what is in the bucket" in str(error.value.fix)
    assert here.stage_done("genes"), "it was trained to its end"
    s3_proxy.heal()
    new_machine()
    there = fetched(remote)
    assert there.record()["attempts"][-1]["status"].startswith("failed: StorageError: what stage 'genes' wrote")
    there.pull_stage("genes")
    (first,) = there.checkpoints("genes").iterdir()
    assert json.loads((first / "state.json").read_text())["epoch"] == 1
    run = pipeline.pretrain_genes(remote)
    assert metrics(run, "genes") == metrics(local, "genes")
    assert same_weights(run.model_file("genes"), local.model_file("genes"))


def test_a_failure_is_noted_where_the_run_is(remote: Config, new_machine: Machine, no_report: None) -> None:
    with pytest.raises(Exception, match="not finite"):
        pipeline.pretrain_genes(changed(remote, genes__train__lr=1e30, train__clip_norm=0, train__warmup=0))
    new_machine()
    assert "not finite" in fetched(remote).record()["attempts"][-1]["status"]
