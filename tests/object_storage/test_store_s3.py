"""A store in object storage: the same as one on a disk, whole or not at all, and read through faults that pass.

The cohort's largest slide has 8,000 patches, so that windows are of the lengths of training, and more bytes than go up
in one request.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gimp_ray.errors import InputError
from gimp_ray.feed.plan import Batching, Plan, index_cases
from gimp_ray.feed.windows import read_windows
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.io import storage
from gimp_ray.store import CohortStore
from gimp_ray.store.check import WARN, check_store
from gimp_ray.store.part_writer import PartWriter
from tests.cohort.cohort_files import Sources, make_sources
from tests.object_storage.fixtures import forget_clients
from tests.object_storage.proxy import FaultProxy
from tests.object_storage.server import S3Server

SIZES = {"A0-DX1": 8000, "B0-DX1": 700}
LARGE, DIM = "A0-DX1", 704
PART = "part-"
ROOT = Path(__file__).parents[2]


def ingest(sources: Sources, out: str | Path, **options: Any) -> None:
    ingest_cohort(
        patches=sources.patches,
        genes=sources.genes,
        cases=sources.cases,
        out=out,
        options=IngestOptions(**{"workers": 1, "progress": False, **options}),
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Sources with a large slide, and the local store made of them at `cohort.out`."""
    sources = make_sources(tmp_path_factory.mktemp("cohort"), SIZES, DIM)
    sources.ingest()
    return sources


@pytest.fixture(scope="module")
def local(cohort: Sources) -> CohortStore:
    return CohortStore.open(cohort.out)


@pytest.fixture(scope="module")
def uri(cohort: Sources, s3_server: S3Server) -> Iterator[str]:
    """The same store in object storage; tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        place = f"{s3_server.make_bucket(f'store-{os.getpid()}')}/cohorts/one"
        ingest(cohort, place)
        yield place


@pytest.fixture
def small(tmp_path: Path) -> Sources:
    return make_sources(tmp_path / "small")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after two attempts and without waiting, so that refusals come soon."""
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 2)
    monkeypatch.setenv(storage.TIMEOUT_VARIABLE, "0")


def objects(place: str) -> list[str]:
    return storage.files_below(*storage.resolve(place))


def same_patches(one: CohortStore, other: CohortStore) -> None:
    for slide_id in other.slides["slide_id"].to_pylist():
        np.testing.assert_array_equal(one.read_bag(slide_id), other.read_bag(slide_id))
        np.testing.assert_array_equal(one.read_coords(slide_id), other.read_coords(slide_id))


# the store itself


def test_the_store_is_the_one_a_disk_would_hold(uri: str, local: CohortStore, s3_env: S3Server) -> None:
    store = CohortStore.open(uri)
    assert (store.fingerprint, store.path) == (local.fingerprint, uri)
    same_patches(store, local)
    cases = store.cases["case_id"].to_pylist()
    np.testing.assert_array_equal(store.read_genes(cases), local.read_genes(cases))
    assert store.split("kfold", 2) == local.split("kfold", 2)
    report = check_store(uri, deep=True)
    assert report.ok and not [finding for finding in report.findings if finding.level == WARN], str(report)


def test_an_epoch_of_windows_read_by_threads_is_the_local_one(uri: str, local: CohortStore, s3_env: S3Server) -> None:
    store = CohortStore.open(uri)
    index = index_cases(store, store.cases["case_id"].to_pylist())
    plan = Plan(1, 1, index, Batching(classes=2, cases_per_class=2, window=600))
    for step in range(plan.positions):
        row = plan.row(step, 0, 1)
        np.testing.assert_array_equal(
            read_windows(store, index, row, 600, threads=4), read_windows(local, index, row, 600)
        )


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"compression": "zstd"}], ids=str)
def test_other_formats_are_read_back_as_well(small: Sources, bucket: str, options: dict[str, Any]) -> None:
    ingest(small, f"{bucket}/st", **options)
    ingest(small, small.out, **options)
    store, local = CohortStore.open(f"{bucket}/st"), CohortStore.open(small.out)
    assert store.fingerprint == local.fingerprint
    same_patches(store, local)


def test_slides_are_added_to_a_store_there(small: Sources, bucket: str) -> None:
    rows = small.rows
    for place in (f"{bucket}/st", small.out):
        small.rows = rows[:2] + rows[3:5]
        small.write_cases()
        ingest(small, place)
        small.rows = rows
        small.write_cases()
        ingest(small, place)
    store, local = CohortStore.open(f"{bucket}/st"), CohortStore.open(small.out)
    assert (store.manifest.revision, store.manifest.num_slides) == (2, 6)
    assert store.fingerprint == local.fingerprint
    same_patches(store, local)
    assert check_store(f"{bucket}/st", deep=True).ok


def test_a_pickled_store_opens_in_another_process(uri: str, local: CohortStore, s3_env: S3Server) -> None:
    words = (
        "import hashlib, pickle, sys; store = pickle.load(sys.stdin.buffer);"
        f"print(hashlib.sha256(store.read_window({LARGE!r}, 5, 6000).tobytes()).hexdigest())"
    )
    text = pickle.dumps(CohortStore.open(uri))
    assert b"not-a-secret" not in text, "credentials stay in the environment"
    done = subprocess.run([sys.executable, "-c", words], input=text, capture_output=True, cwd=ROOT, check=True)
    expected = hashlib.sha256(local.read_window(LARGE, 5, 6000).tobytes()).hexdigest()
    assert done.stdout.decode().strip() == expected


# bytes and requests


@pytest.mark.parametrize("length", [512, 1000, 6000])
def test_a_window_is_one_request_of_hardly_more_than_its_bytes(
    uri: str, local: CohortStore, s3_proxy: FaultProxy, length: int
) -> None:
    store = CohortStore.open(uri)
    store.read_window(LARGE, 0, 1)  # the footer
    for start in (0, 777, 8000 - length):
        s3_proxy.forget()
        np.testing.assert_array_equal(store.read_window(LARGE, start, length), local.read_window(LARGE, start, length))
        assert s3_proxy.count() == 1
        assert length * DIM * 2 <= s3_proxy.bytes_read() <= 1.15 * length * DIM * 2


def test_footers_are_fetched_once_a_worker(uri: str, s3_proxy: FaultProxy) -> None:
    store = CohortStore.open(uri)
    s3_proxy.forget()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda start: store.read_window(LARGE, start, 512), range(0, 7000, 500)))
    assert s3_proxy.count("GET", PART) == 14 + 1
    assert s3_proxy.bytes_read(PART) <= 1.15 * 14 * 512 * DIM * 2 + (1 << 16)


def test_a_slide_is_verified_in_a_few_requests(small: Sources, bucket: str, s3_proxy: FaultProxy) -> None:
    ingest(small, f"{bucket}/st")
    # a request a slide, and the footer for reading back and for the check
    assert s3_proxy.count("GET", PART) <= 6 + 2


# one ingest at a time, whole or not at all


def test_of_two_ingests_at_once_one_is_refused(small: Sources, bucket: str) -> None:
    refused: list[InputError] = []

    def meanwhile(_: object) -> None:
        with pytest.raises(InputError, match="another ingest is writing this store") as caught:
            ingest(small, f"{bucket}/st")
        refused.append(caught.value)

    ingest_cohort(
        patches=small.patches,
        genes=small.genes,
        cases=small.cases,
        out=f"{bucket}/st",
        options=IngestOptions(workers=1, progress=False),
        on_plan=meanwhile,
    )
    assert f"process {os.getpid()} on this machine" in (refused[0].found or "")
    assert f"remove {bucket}/st/.ingest.lock" in (refused[0].fix or "")
    assert check_store(f"{bucket}/st").ok
    assert ".ingest.lock" not in objects(f"{bucket}/st")


def test_the_lock_of_another_machine_is_respected(small: Sources, bucket: str) -> None:
    lock = {"host": "elsewhere", "pid": 1, "started": 0.0, "since": "yesterday"}
    assert storage.create(f"{bucket}/st/.ingest.lock", json.dumps(lock).encode())
    with pytest.raises(InputError, match="another ingest is writing") as caught:
        ingest(small, f"{bucket}/st")
    assert caught.value.found == "process 1 on elsewhere, since yesterday"
    assert objects(f"{bucket}/st") == [".ingest.lock"]


def test_a_lock_whose_answer_was_lost_is_still_ones_own(small: Sources, bucket: str, s3_proxy: FaultProxy) -> None:
    rule = s3_proxy.fault("lost", "PUT", "ingest.lock", last=1)
    ingest(small, f"{bucket}/st")
    assert rule.done == 1
    assert check_store(f"{bucket}/st").ok


def test_a_killed_ingest_leaves_no_store_and_the_next_one_takes_over(small: Sources, bucket: str) -> None:
    words = f"""
import os, signal
from gimp_ray.ingest.patches import write
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.store.part_writer import PartWriter
write.SMALLEST_PART_BYTES = 1  # a part file a slide
write, done = PartWriter._write_row_group, []
def killed(self, *row_group):
    write(self, *row_group)
    done.append(1)
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
PartWriter._write_row_group = killed
ingest_cohort(patches={str(small.patches)!r}, genes={str(small.genes)!r}, cases={str(small.cases)!r},
              out={f"{bucket}/st"!r}, options=IngestOptions(workers=1, progress=False))
"""
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    left = objects(f"{bucket}/st")
    assert ".ingest.lock" in left and "patches/part-00001.parquet" in left and "manifest.json" not in left
    with pytest.raises(InputError, match="not a cohort store"):
        CohortStore.open(f"{bucket}/st")
    ingest(small, f"{bucket}/st")
    ingest(small, small.out)
    assert CohortStore.open(f"{bucket}/st").fingerprint == CohortStore.open(small.out).fingerprint
    assert [name for name in objects(f"{bucket}/st") if "part-" in name or "lock" in name] == [
        "patches/part-00000.parquet"
    ]


def test_what_is_no_store_is_not_written_over(small: Sources, bucket: str) -> None:
    storage.create(f"{bucket}/st/notes.txt", b"mine")
    with pytest.raises(InputError, match="exists already and is no store"):
        ingest(small, f"{bucket}/st")
    assert objects(f"{bucket}/st") == ["notes.txt"]


def test_a_part_file_that_reads_back_wrong_is_not_published(
    small: Sources, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PartWriter._table

    def forgetful(self: PartWriter, embeddings: np.ndarray, coords: np.ndarray) -> object:
        return write(self, embeddings, coords + 1)

    monkeypatch.setattr(PartWriter, "_table", forgetful)
    with pytest.raises(InputError, match="does not hold what was written") as caught:
        ingest(small, f"{bucket}/st")
    assert caught.value.file == f"{bucket}/st/patches/part-00000.parquet"
    assert objects(f"{bucket}/st") == []


# faults


@pytest.mark.parametrize("kind, times", [("slow_down", 2), ("reset", 1), ("truncate", 1), ("latency", 8)])
def test_windows_are_the_same_through_faults_that_pass(
    uri: str, local: CohortStore, s3_proxy: FaultProxy, kind: str, times: int
) -> None:
    store = CohortStore.open(uri)
    store.read_window(LARGE, 0, 1)
    starts = range(0, 8)
    s3_proxy.forget()
    rule = s3_proxy.fault(kind, "GET", PART, first=2, last=1 + times, seconds=0.2)  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as threads:
        windows = list(threads.map(lambda start: store.read_window(LARGE, start, 3000), starts))
    assert rule.done >= times - 1
    for start, window in zip(starts, windows, strict=True):
        np.testing.assert_array_equal(window, local.read_window(LARGE, start, 3000))
    assert s3_proxy.count("GET", PART) == 8 + (0 if kind == "latency" else times), "every refused one was asked again"


def test_requests_are_tried_again_with_pauses_between(uri: str, s3_proxy: FaultProxy) -> None:
    store = CohortStore.open(uri)
    store.read_window(LARGE, 0, 1)
    s3_proxy.forget()
    s3_proxy.fault("slow_down", "GET", PART, last=3)  # the second time is at once
    started = time.perf_counter()
    store.read_window(LARGE, 0, 512)
    paused = time.perf_counter() - started - sum(request.seconds for request in s3_proxy.requests("GET", PART))
    assert s3_proxy.count("GET", PART) == 4
    assert paused > 0.1


@pytest.mark.parametrize("kind", ["slow_down", "reset"])
def test_a_storage_that_stays_away_is_a_refusal_with_the_object_and_what_to_do(
    uri: str, s3_proxy: FaultProxy, quick: None, kind: str
) -> None:
    store = CohortStore.open(uri)
    store.read_window(LARGE, 0, 1)
    rule = s3_proxy.fault(kind, "GET", PART)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="part file of the store cannot be read") as caught:
        store.read_window(LARGE, 0, 512)
    assert caught.value.file == f"{uri}/patches/part-00000.parquet"
    assert "in 2 attempts" in (caught.value.fix or "") and "AWS_ENDPOINT_URL" in (caught.value.fix or "")
    assert rule.done == 2
    s3_proxy.heal()
    assert store.read_window(LARGE, 0, 512).shape == (512, DIM), "the store goes on when the storage does"


def test_a_storage_that_comes_back_is_waited_for(
    uri: str,
    local: CohortStore,
    s3_proxy: FaultProxy,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(storage.TIMEOUT_VARIABLE, "60")
    monkeypatch.setattr(storage, "PAUSE_S", 0.05)
    # the footer of a part file is waited for as well; five refusals are more than the client's two attempts
    for _ in range(2):
        rule = s3_proxy.fault("slow_down", "GET", PART, last=5)
        window = CohortStore.open(uri).read_window(LARGE, 0, 512)
        np.testing.assert_array_equal(window, local.read_window(LARGE, 0, 512))
        said = capsys.readouterr().out.splitlines()
        assert rule.done == 5 and len(said) == 2, "it is said once that it waits, and once that it goes on"
        assert f"{uri}/patches/part-00000.parquet cannot be used now; waiting for it, 60 s at most" in said[0]
        s3_proxy.heal()


def test_the_clients_attempts_do_not_run_out_in_an_outage(uri: str, s3_proxy: FaultProxy, quick: None) -> None:
    """Arrow's standard strategy has none left after a hundred retries that failed."""
    store = CohortStore.open(uri)
    store.read_window(LARGE, 0, 1)
    s3_proxy.forget()
    s3_proxy.fault("slow_down", "GET", PART)
    for _ in range(120):
        with pytest.raises(InputError, match="cannot be read"):
            store.read_window(LARGE, 0, 1)
    assert s3_proxy.count("GET", PART) == 240


def test_a_server_that_is_gone_is_a_refusal(
    uri: str, s3_env: S3Server, quick: None, monkeypatch: pytest.MonkeyPatch, small: Sources
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for ask in (lambda: CohortStore.open(uri), lambda: ingest(small, f"{uri}-2")):
        with pytest.raises(InputError) as caught:
            ask()
        assert "did not answer" in (caught.value.fix or ""), str(caught.value)
        assert (caught.value.file or "").startswith(uri)


def test_an_ingest_goes_on_through_faults(small: Sources, bucket: str, s3_proxy: FaultProxy) -> None:
    rules = [
        s3_proxy.fault("slow_down", "PUT", "part-", last=1),
        s3_proxy.fault("reset", "PUT", "slides", last=1),
        s3_proxy.fault("truncate", "GET", "part-", last=1),
        s3_proxy.fault("slow_down", "POST", "manifest", last=1),
    ]
    ingest(small, f"{bucket}/st")
    assert [rule.done for rule in rules] == [1, 1, 1, 1]
    ingest(small, small.out)
    assert CohortStore.open(f"{bucket}/st").fingerprint == CohortStore.open(small.out).fingerprint
    assert check_store(f"{bucket}/st", deep=True).ok


def test_an_ingest_into_a_storage_that_stops_writing_leaves_no_store(
    small: Sources, bucket: str, s3_proxy: FaultProxy, quick: None
) -> None:
    s3_proxy.fault("slow_down", "PUT", "genes")
    with pytest.raises(InputError, match="cannot be written") as caught:
        ingest(small, f"{bucket}/st")
    assert "SLOW_DOWN" in (caught.value.found or "")
    assert objects(f"{bucket}/st") == []


@pytest.mark.parametrize(
    "changed", [{"AWS_SECRET_ACCESS_KEY": "another"}, {"AWS_ACCESS_KEY_ID": "nobody"}], ids=["secret", "key"]
)
def test_wrong_credentials_are_a_clear_refusal(
    uri: str, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, small: Sources, changed: dict[str, str]
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    for ask in (lambda: CohortStore.open(uri), lambda: ingest(small, f"{uri}-2")):
        with pytest.raises(InputError) as caught:
            ask()
        assert (caught.value.fix or "").startswith("check the credentials"), str(caught.value)
        assert (caught.value.file or "").startswith(uri)


def test_a_missing_bucket_is_a_clear_refusal(s3_env: S3Server, small: Sources) -> None:
    with pytest.raises(InputError, match="not a cohort store") as caught:
        CohortStore.open("s3://no-such-bucket/st")
    assert caught.value.found == "no bucket of the name no-such-bucket"
    with pytest.raises(InputError, match="cannot be written") as caught:
        ingest(small, "s3://no-such-bucket/st")
    assert caught.value.fix == "make the bucket, or correct its name"


def test_the_endpoint_may_stand_in_the_uri(
    uri: str, local: CohortStore, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, small: Sources, bucket: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    query = f"?endpoint_override=127.0.0.1:{s3_env.port}&scheme=http&region=us-east-1"
    assert CohortStore.open(uri + query).fingerprint == local.fingerprint
    ingest(small, f"{bucket}/st{query}")
    assert check_store(f"{bucket}/st{query}").ok
    assert ".ingest.lock" not in objects(f"{bucket}/st{query}")
