"""The doctor answers on any machine: every check stands alone, and bad news comes with what to do."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from gimp_ray.cli import doctor
from gimp_ray.cli.doctor import GIB, PACKAGES, Check, Node, format_checks, node_troubles, run_checks


def check(name: str, **options: str) -> Check:
    return next(one for one in run_checks(**options) if one.name == name)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def test_every_subject_is_checked_once_and_bad_news_has_a_fix() -> None:
    checks = run_checks()
    subjects = "Python, PyTorch, CUDA, libraries, Ray, CPUs, memory, shared memory, disk, S3"
    assert [one.name for one in checks] == subjects.split(", ")
    for one in checks:
        assert one.found and (one.status == "PASS" or one.fix)
    # this very test needs these
    assert all(one.status == "PASS" for one in checks if one.name in ("Python", "PyTorch", "libraries"))
    assert check("PyTorch").found == torch.__version__


def test_ray_is_not_started() -> None:
    run_checks()
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_one_sick_check_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> None:
        raise OSError("no such\nluck")

    monkeypatch.setattr(psutil, "virtual_memory", explode)
    checks = run_checks()
    assert len(checks) == 10
    assert next(one for one in checks if one.name == "memory").found == "the check itself failed: OSError: no such"
    assert next(one for one in checks if one.name == "disk").status in ("PASS", "WARN")


@pytest.mark.parametrize(("gib", "status"), [(0.5, "FAIL"), (2.0, "WARN"), (32.0, "PASS")])
def test_memory(monkeypatch: pytest.MonkeyPatch, gib: float, status: str) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * GIB, total=64 * GIB))
    assert check("memory").status == status


@pytest.mark.parametrize(("gib", "disk", "shm"), [(0.1, "FAIL", "WARN"), (5, "WARN", "PASS"), (100, "PASS", "PASS")])
def test_disk_and_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gib: float, disk: str, shm: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=gib * GIB, total=200 * GIB))
    assert check("disk").status == disk
    assert doctor._shared_memory(tmp_path)[0] == shm
    assert doctor._shared_memory(tmp_path / "absent")[0] == "WARN"


@pytest.mark.parametrize(("cpus", "status"), [(1, "WARN"), (2, "PASS")])
def test_one_cpu_must_stay_free_for_ray_data(monkeypatch: pytest.MonkeyPatch, cpus: int, status: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    assert check("CPUs").status == status


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.60.0", "PASS"), ("3.0.0.dev0", "PASS"), ("2.59.1", "FAIL"), ("2.9.0", "FAIL"), ("2.60rc1", "PASS")],
)
def test_rays_version_is_compared_by_number(monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__version__=version))
    found = check("Ray")
    assert (found.status, found.found) == (status, version)


def test_a_missing_library_is_a_fail_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    found = check("libraries")
    assert found.status == "FAIL" and found.fix == "pip install 'safetensors>=0.4.3'"


@pytest.mark.parametrize(("bf16", "status"), [(True, "PASS"), (False, "WARN")])
def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch, bf16: bool, status: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    found = check("CUDA")
    assert found.status == status and found.found.startswith("GPU 0, GPU 1")


def test_no_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check("CUDA").status == "WARN"


def test_s3_credentials_are_found_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("S3").status == "WARN"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUSH")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhush")
    found = check("S3")
    assert found.status == "PASS" and "hush" not in (found.found + found.fix).lower()


def test_a_bucket_out_of_reach_is_a_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens on the discard port
    status, found, fix = doctor._s3("s3://bucket/store")
    assert status == "FAIL" and "s3://bucket/store" in found and "AWS_ENDPOINT_URL" in fix


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_cluster_that_does_not_answer_is_a_fail_within_seconds(address: str) -> None:
    found = check("Ray cluster", address=address)
    assert found.status == "FAIL" and found.found == f"nobody listens at {address}"


def test_nodes_that_differ_are_named() -> None:
    same = dict.fromkeys(PACKAGES, "1.0")
    good = [Node("head", same, stop_wait_s=240), Node("one", same)]
    assert node_troubles(good, takes_jobs=True) == []
    old, bare = Node("old", same | {"torch": "0.9"}), Node("bare", {k: v for k, v in same.items() if k != "gimp-ray"})
    ((found, fix),) = node_troubles([*good, old], takes_jobs=True)
    assert found == "torch: 0.9 on old; 1.0 on head, one" and "torch" in fix
    ((found, fix),) = node_troubles([*good, bare], takes_jobs=True)
    assert found == "gimp-ray: 1.0 on head, one; none on bare" and "--working-dir" in fix
    ((found, _),) = node_troubles([*good, Node("mute", answered=False)], takes_jobs=True)
    assert "mute" in found


def test_a_head_that_kills_stopped_jobs_at_once_is_told_of() -> None:
    hasty = [Node("head", dict.fromkeys(PACKAGES, "1.0"), stop_wait_s=3)]
    ((found, fix),) = node_troubles(hasty, takes_jobs=True)
    assert "after 3 s" in found and "RAY_JOB_STOP_WAIT_TIME_S" in fix
    # a local Ray takes no jobs
    assert node_troubles(hasty, takes_jobs=False) == []


def test_a_store_that_is_none_is_a_fail(tmp_path: Path) -> None:
    found = check("store", store=str(tmp_path / "nowhere"))
    assert found.status == "FAIL" and "gimp ingest" in found.fix


def test_text_has_every_check_its_fix_and_a_verdict() -> None:
    good, bad = Check("Python", "PASS", "3.11.9", ""), Check("disk", "FAIL", "0.1 GiB", "free some space")
    text = format_checks([good, bad])
    assert text.splitlines()[:3] == [
        "PASS  Python  3.11.9",
        "FAIL  disk    0.1 GiB",
        "              -> free some space",
    ]
    assert text.endswith("1 PASS, 0 WARN, 1 FAIL: not fit: mend what FAILs first")
    assert format_checks([good]).endswith("1 PASS, 0 WARN, 0 FAIL: fit")
