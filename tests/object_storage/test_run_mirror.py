"""The copy of a run folder and the folder there: what travels, in which order, and what is never taken for whole."""

from __future__ import annotations

import json
import pickle
import threading
import time
from pathlib import Path

import fsspec
import pytest

from gimp_ray.errors import InputError
from gimp_ray.io import storage
from gimp_ray.io.files import whole_folder
from gimp_ray.io.mirror import local_file, new_file
from gimp_ray.io.storage import StorageError, as_location, waiting_for_storage
from gimp_ray.runs.folder import RunFolder
from tests.object_storage.proxy import FaultProxy

URI = "memory://runs/a"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; another one is another machine."""
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str = URI) -> RunFolder:
    """The same run on a machine that has never seen it."""
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))
    return RunFolder(uri)


def checkpoint(run: RunFolder, step: int, text: str = "weights") -> Path:
    folder = run.checkpoints("pretrain") / f"step-{step:08d}"
    with whole_folder(folder) as aside:
        (aside / "state.safetensors").write_text(text)
        (aside / "state.json").write_text(json.dumps({"step": step}))
    return folder


def names(filesystem: fsspec.AbstractFileSystem) -> set[str]:
    return {path.removeprefix("/runs/a/") for path in filesystem.find("/runs/a")}


@pytest.mark.parametrize(
    "given, place",
    [
        ("s3://bucket/runs/a", "s3://bucket/runs/a"),
        ("s3://bucket/runs/a/", "s3://bucket/runs/a"),
        (Path("s3://bucket/runs/a"), "s3://bucket/runs/a"),
        (Path("gs://bucket/a"), "gs://bucket/a"),
        ("file:///data/run", "/data/run"),
        ("runs/a/", "runs/a"),
        (Path("/data/c:/run"), "/data/c:/run"),
    ],
)
def test_a_place_is_a_path_or_a_uri_however_it_is_given(given: str | Path, place: str) -> None:
    assert as_location(given) == place


def test_a_local_run_has_no_copy(tmp_path: Path, cache: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.update(lambda record: record.update(a=1))
    for travel in (run.pull, run.push, run.pull_models, lambda: run.push_stage("genes", [])):
        travel()
    assert run.path == tmp_path / "run" and run.place == str(run.path) and not cache.exists()
    assert [file.name for file in run.path.iterdir()] == ["run.json"]


def test_what_the_command_and_the_stages_write_comes_to_another_machine(
    there: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = RunFolder(URI)
    here.config_file.parent.mkdir(parents=True)
    here.config_file.write_text("seed: 1\n")
    here.metrics_log("pretrain").parent.mkdir(parents=True)
    here.metrics_log("pretrain").write_text("{}\n")
    checkpoint(here, 4)
    here.model_card("genes").write_text("{}")
    here.push()
    assert names(there) == {"config.yaml"}, "stages are the trainer's to bring"
    here.push_stage("pretrain")
    here.push_stage("genes")
    other = elsewhere(monkeypatch, tmp_path)
    other.pull()
    assert other.path != here.path and other.config_file.read_text() == "seed: 1\n"
    assert other.metrics_log("pretrain").exists() and other.model_card("genes").exists()
    there_of = [file.name for file in other.checkpoints("pretrain").rglob("*") if file.is_file()]
    assert there_of == ["state.json"], "what the stage was made from; weights are for those who train"
    other.pull_stage("pretrain")
    assert (other.checkpoints("pretrain") / "step-00000004" / "state.safetensors").read_text() == "weights"


def test_what_is_not_there_is_no_longer_here(there: fsspec.AbstractFileSystem) -> None:
    run = RunFolder(URI)
    run.update(lambda record: record.update(a=1))
    run.model_file("genes").write_text("old")
    checkpoint(run, 4)
    (run.path / "pretrain" / "tensorboard").mkdir()
    (run.path / "pretrain" / "tensorboard" / "events").write_text("old")
    run.push_stage("pretrain")
    run.push_stage("genes")
    there.rm("/runs/a", recursive=True)
    run.pull()
    run.pull_stage("pretrain")
    assert [file for file in run.path.rglob("*") if file.is_file()] == []
    assert not run.checkpoints("pretrain").exists() and not run.stage_done("genes") and run.record() == {}


def test_a_checkpoint_goes_marker_last_and_is_removed_marker_first(
    there: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = RunFolder(URI), []
    first, second = checkpoint(run, 4), checkpoint(run, 8)
    (run.path / "pretrain" / "best-epoch-0001.safetensors").write_text("best")
    (run.path / "pretrain" / "metrics.jsonl").write_text("")
    run.model_file("pretrain").write_text("weights")
    run.model_card("pretrain").write_text("{}")
    kind = type(there)
    put, remove = kind.put_file, kind.rm_file
    monkeypatch.setattr(kind, "put_file", lambda self, a, b: (done.append("+" + b[7:]), put(self, a, b)))
    monkeypatch.setattr(kind, "rm_file", lambda self, a: (done.append("-" + a[7:]), remove(self, a)))
    run.push_stage("pretrain")
    assert done == [
        "+/pretrain/best-epoch-0001.safetensors",
        "+/pretrain/checkpoints/step-00000004/state.safetensors",
        "+/pretrain/checkpoints/step-00000008/state.safetensors",
        "+/pretrain/metrics.jsonl",
        "+/pretrain/checkpoints/step-00000004/state.json",
        "+/pretrain/checkpoints/step-00000008/state.json",
        "+/pretrain.json",
        "+/pretrain.safetensors",
    ]
    done.clear()
    run.push_stage("pretrain", [second])
    assert done == [f"-/pretrain/checkpoints/{first.name}/state.json"] + [
        f"-/pretrain/{name}" for name in (f"checkpoints/{first.name}/state.safetensors", "best-epoch-0001.safetensors")
    ]


def test_a_checkpoint_written_again_is_not_whole_meanwhile(
    there: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, kind = RunFolder(URI), type(there)
    checkpoint(run, 4, "of two workers")
    run.push_stage("pretrain")
    checkpoint(run, 4, "of one worker")
    put = kind.put_file

    def killed(self, here: str, target: str) -> None:
        if target.endswith("state.json"):
            raise KeyboardInterrupt
        put(self, here, target)

    monkeypatch.setattr(kind, "put_file", killed)
    with pytest.raises(KeyboardInterrupt):
        run.push_stage("pretrain")
    assert names(there) == {"pretrain/checkpoints/step-00000004/state.safetensors"}


def test_a_torn_checkpoint_is_never_taken_for_one(
    there: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(URI)
    checkpoint(run, 4)
    checkpoint(run, 8)
    run.push_stage("pretrain")
    there.rm_file("/runs/a/pretrain/checkpoints/step-00000008/state.json")
    for machine in (run, elsewhere(monkeypatch, tmp_path)):
        machine.pull_stage("pretrain")
        assert [folder.name for folder in machine.checkpoints("pretrain").iterdir()] == ["step-00000004"]
    # and it goes with the next checkpoint
    kept = checkpoint(run, 12)
    run.push_stage("pretrain", [kept])
    assert names(there) == {f"pretrain/checkpoints/{kept.name}/{name}" for name in ("state.json", "state.safetensors")}


def test_rays_bookkeeping_half_written_files_and_damaged_checkpoints_stay(there: fsspec.AbstractFileSystem) -> None:
    run = RunFolder(URI)
    for name in ("ray/attempt/x", ".run.json.aside", "pretrain/checkpoints/damaged-step-00000004/state.json"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("x")
    kept = checkpoint(run, 8)
    there.pipe("/runs/a/ray/attempt-b/y", b"y")
    run.push()
    run.push_stage("pretrain", [kept])
    run.pull()
    run.pull_stage("pretrain")
    whole = {f"pretrain/checkpoints/{kept.name}/{name}" for name in ("state.json", "state.safetensors")}
    assert names(there) == {"ray/attempt-b/y"} | whole
    assert (run.path / "ray/attempt/x").exists()
    assert (run.path / "pretrain/checkpoints/damaged-step-00000004/state.json").exists()


def test_only_what_differs_travels(bucket: str, s3_proxy: FaultProxy, tmp_path: Path, monkeypatch) -> None:
    run = RunFolder(f"{bucket}/runs/a")
    for number in range(5):
        (run.path / "figures").mkdir(parents=True, exist_ok=True)
        (run.path / "figures" / f"{number}.png").write_bytes(bytes(1000))
    run.push()
    assert s3_proxy.count("PUT") == 5
    s3_proxy.forget()
    run.push()
    run.pull()
    RunFolder(run.place).pull()
    assert (s3_proxy.count("PUT"), s3_proxy.bytes_read(r"\.png")) == (0, 0)
    # the same size within the same second
    other = elsewhere(monkeypatch, tmp_path, run.place)
    other.pull()
    (other.path / "figures" / "3.png").write_bytes(b"\1" * 1000)
    other.push()
    assert [request.path[-5:] for request in s3_proxy.requests("PUT")] == ["3.png"]
    s3_proxy.forget()
    run.pull()
    assert [request.path[-5:] for request in s3_proxy.requests("GET", "png")] == ["3.png"]
    assert (run.path / "figures" / "3.png").read_bytes() == b"\1" * 1000


def test_processes_of_one_machine_share_the_copy(there: fsspec.AbstractFileSystem) -> None:
    run = RunFolder(URI)
    run.model_file("genes").parent.mkdir(parents=True)
    run.model_file("genes").write_bytes(bytes(100_000))
    run.push_stage("genes")
    run.model_file("genes").unlink()
    failures = []

    def worker() -> None:
        try:
            mine = RunFolder(URI)
            mine.pull_models()
            assert mine.model_file("genes").stat().st_size == 100_000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and [file.name for file in run.path.iterdir()] == ["genes.safetensors"]


def test_a_damaged_index_costs_a_transfer_and_nothing_else(there: fsspec.AbstractFileSystem) -> None:
    run = RunFolder(URI)
    run.update(lambda record: record.update(a=1))
    (index,) = run.path.parent.glob("*.index")
    index.write_text("{")
    run.pull()
    assert run.record() == {"a": 1} and "run.json" in index.read_text()


def test_files_by_uri(there: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    with new_file(f"{URI}/model.safetensors") as aside:
        aside.write_text("weights")
    with new_file(f"{URI}/model.json") as aside:
        aside.write_text("card")
    with pytest.raises(RuntimeError), new_file(f"{URI}/other.json"):
        raise RuntimeError("killed")
    assert names(there) == {"model.safetensors", "model.json"}
    file = local_file(Path(f"{URI}/model.safetensors"))
    assert file.read_text() == "weights" and file.with_suffix(".json").read_text() == "card"
    with pytest.raises(InputError, match="does not exist") as refusal:
        local_file(f"{URI}/nothing.safetensors")
    assert refusal.value.file == f"{URI}/nothing.safetensors"
    with new_file(tmp_path / "a.txt") as aside:
        aside.write_text("here")
    assert local_file(tmp_path / "a.txt").read_text() == "here"


@pytest.mark.parametrize(
    "uri, said", [("nosuch://bucket/a", "cannot be used"), ("s3://bucket/a?region=x", "cannot have a query")]
)
def test_a_place_that_cannot_be_used_is_refused_by_name(uri: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refusal:
        RunFolder(uri).pull()
    assert refusal.value.file == uri and refusal.value.fix


def test_a_missing_bucket_and_a_wrong_key_are_named(s3_env, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder("s3://no-such-bucket/runs/a")
    with pytest.raises(StorageError, match="cannot be written") as missing:
        run.update(lambda record: record.update(a=1))
    assert missing.value.file == "s3://no-such-bucket/runs/a/run.json" and "bucket" in str(missing.value.fix)
    assert str(pickle.loads(pickle.dumps(missing.value))) == str(missing.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    type(fsspec.filesystem("s3")).clear_instance_cache()
    with pytest.raises(StorageError, match="cannot be listed") as refused:
        RunFolder(f"{bucket}/runs/a").pull()
    assert "credentials" in str(refused.value.fix)


def test_only_what_may_pass_is_waited_for(s3_env, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv(storage.TIMEOUT_VARIABLE, "600")
    with waiting_for_storage(), pytest.raises(StorageError, match="cannot be written"):
        RunFolder("s3://no-such-bucket/runs/a").update(lambda record: record.update(a=1))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    type(fsspec.filesystem("s3")).clear_instance_cache()
    with waiting_for_storage(), pytest.raises(StorageError, match="cannot be listed"):
        RunFolder(f"{bucket}/runs/a").pull()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["soon", "10 min"])
def test_a_patience_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(storage.TIMEOUT_VARIABLE, text)
    with pytest.raises(InputError, match="is no number"), waiting_for_storage():
        pass


def test_a_cache_that_cannot_be_written_is_named(
    there: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GIMP_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be kept here") as refusal:
        RunFolder(URI).pull()
    assert "GIMP_RAY_CACHE" in str(refusal.value.fix)
