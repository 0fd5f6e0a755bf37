"""The bench itself: signatures are checked, requests are counted, faults are what they say, an outage ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from tests.object_storage.proxy import FaultProxy
from tests.object_storage.server import S3Server, s3_client

BODY = os.urandom(300_000)
ONCE = {"retries": {"total_max_attempts": 1}, "read_timeout": 5}


def test_a_wrong_key_and_no_key_are_refused(s3_env: S3Server, bucket: str) -> None:
    s3fs.S3FileSystem().pipe_file(f"{bucket}/x", b"1")
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem(key="gimp-tests", secret="another").cat(f"{bucket}/x")
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem(anon=True).cat(f"{bucket}/x")


def test_the_proxy_counts_requests_and_bytes_by_range(bucket: str, s3_proxy: FaultProxy) -> None:
    name = f"{bucket.removeprefix('s3://')}/a b+c"
    s3fs.S3FileSystem().pipe_file(name, BODY)
    fs, path = pafs.FileSystem.from_uri(f"{bucket}/a b+c".replace(" ", "%20"))
    s3_proxy.forget()
    with fs.open_input_file(path) as file:
        assert file.read_at(100, 1000) == BODY[1000:1100]
    assert s3_proxy.by_range("GET") == {("GET", f"/{name}", "bytes=1000-1099"): [1, 100]}
    assert (s3_proxy.count("HEAD"), s3_proxy.bytes_read(), s3_proxy.bytes_written()) == (1, 100, 0)


def test_a_write_that_must_be_new_is_refused_over_another(bucket: str, s3_proxy: FaultProxy) -> None:
    fs = s3fs.S3FileSystem()
    fs.pipe_file(f"{bucket}/x", b"first", mode="create")
    with pytest.raises(OSError):
        fs.pipe_file(f"{bucket}/x", b"second", mode="create")
    assert fs.cat(f"{bucket}/x") == b"first"


@pytest.mark.parametrize(
    "kind, raised", [("slow_down", ClientError), ("reset", BotoCoreError), ("truncate", BotoCoreError)]
)
def test_a_fault_of_a_read_reaches_a_client_that_does_not_try_again(
    bucket: str, s3_proxy: FaultProxy, kind: str, raised: type[Exception]
) -> None:
    s3fs.S3FileSystem().pipe_file(f"{bucket}/x", BODY)
    client = s3_client(s3_proxy.endpoint, **ONCE)
    rule = s3_proxy.fault(kind, "GET", "/x$", first=2, last=2)  # type: ignore[arg-type]
    where = {"Bucket": bucket.removeprefix("s3://"), "Key": "x"}
    assert client.get_object(**where)["Body"].read() == BODY
    with pytest.raises(raised):
        client.get_object(**where)["Body"].read()
    assert client.get_object(**where)["Body"].read() == BODY
    assert (rule.matched, rule.done) == (3, 1)


@pytest.mark.parametrize("kind", ["slow_down", "reset", "truncate"])
def test_a_fault_of_a_write_leaves_the_object_as_it_was(bucket: str, s3_proxy: FaultProxy, kind: str) -> None:
    client = s3_client(s3_proxy.endpoint, **ONCE)
    where = {"Bucket": bucket.removeprefix("s3://"), "Key": "x"}
    client.put_object(**where, Body=b"before")
    s3_proxy.fault(kind, "PUT", "/x$")  # type: ignore[arg-type]
    with pytest.raises((ClientError, BotoCoreError)):
        client.put_object(**where, Body=BODY)
    assert client.get_object(**where)["Body"].read() == b"before"
    s3_proxy.heal()
    client.put_object(**where, Body=BODY)
    assert client.get_object(**where)["Body"].read() == BODY


def test_a_lost_answer_comes_after_the_write_and_latency_before_it(bucket: str, s3_proxy: FaultProxy) -> None:
    client = s3_client(s3_proxy.endpoint, **ONCE)
    where = {"Bucket": bucket.removeprefix("s3://"), "Key": "x"}
    s3_proxy.fault("lost", "PUT")
    with pytest.raises(BotoCoreError):
        client.put_object(**where, Body=b"1")
    s3_proxy.fault("latency", "GET", seconds=0.3)
    started = time.perf_counter()
    assert client.get_object(**where)["Body"].read() == b"1"
    assert time.perf_counter() - started >= 0.3


@pytest.mark.parametrize("kind", ["slow_down", "reset", "truncate"])
def test_arrow_gives_whole_bytes_or_an_error_never_short_ones(bucket: str, s3_proxy: FaultProxy, kind: str) -> None:
    s3fs.S3FileSystem().pipe_file(f"{bucket}/x", BODY)
    fs, path = pafs.FileSystem.from_uri(f"{bucket}/x")
    rule = s3_proxy.fault(kind, "GET", first=1, last=1)  # type: ignore[arg-type]
    for read in (lambda f: f.read(), lambda f: f.read_at(200_000, 50_000)):
        try:
            with fs.open_input_file(path) as file:
                got = read(file)
        except OSError:
            continue
        assert got in (BODY, BODY[50_000:250_000])
    assert rule.done == 1


def test_the_server_comes_back_with_its_data_and_its_port(s3_env: S3Server, bucket: str) -> None:
    client = s3_client(s3_env.endpoint, **ONCE)
    where = {"Bucket": bucket.removeprefix("s3://"), "Key": "x"}
    client.put_object(**where, Body=b"1")
    endpoint = s3_env.endpoint
    s3_env.stop()
    try:
        with pytest.raises(BotoCoreError):
            client.get_object(**where)
    finally:
        s3_env.start()
    assert s3_env.endpoint == endpoint
    assert client.get_object(**where)["Body"].read() == b"1"


def test_a_server_goes_when_its_starter_is_killed() -> None:
    words = (
        "import subprocess, time; from tests.object_storage.server import _kill_with_me;"
        "server = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL);"
        "watch = _kill_with_me(server.pid); print(server.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    starter = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, cwd=root)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    assert alive(pid)
    starter.kill()
    starter.wait()
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody asked about does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")
