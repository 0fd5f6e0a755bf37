"""A Ray head of its own with the dashboard, and jobs submitted to it with Ray's command line, as people do.

Everything of Ray runs in processes of its own, so the cluster that other tests share is not met: this process imports
no Ray, and RAY_ADDRESS is nowhere set. The head has its own ports, its own folder, and ends with what it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
ADDRESS = "ray_current_cluster"
PATIENCE_S = 400  # of a job of some 30 s, where others use the machine too


class Head:
    """A running head: submits jobs, stops them, and knows how they ended."""

    def __init__(self, port: int, folder: Path, environment: dict[str, str]) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.folder = folder
        self.environment = environment

    def submit(self, name: str, script: str, *options: object, env: dict[str, str] | None = None) -> None:
        """`ray job submit` of a file of `jobs/`, with this checkout as the job's working folder."""
        called = self._submit(name, script, options, env, "--no-wait")
        assert called.returncode == 0, called.stdout

    def waited_for(self, name: str, script: str, *options: object) -> tuple[int, str]:
        """The same, waiting for the job's end: the exit code and all that was printed."""
        called = self._submit(name, script, options)
        return called.returncode, called.stdout

    def stop(self, name: str) -> None:
        """`ray job stop`, which waits for the end."""
        called = self._ray_job("stop", "--address", self.address, name)
        assert called.returncode == 0, called.stdout

    def kill(self, name: str) -> None:
        """What `ray job stop` asks of the head, without the seconds that the command itself takes."""
        asked = urllib.request.Request(f"{self.address}/api/jobs/{name}/stop", method="POST")
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert json.loads(answer.read())["stopped"]

    def _submit(
        self, name: str, script: str, options: Iterable[object], env: dict[str, str] | None = None, *how: str
    ) -> subprocess.CompletedProcess[str]:
        surroundings = ["--runtime-env-json", json.dumps({"env_vars": env})] if env else []
        return self._ray_job(
            *("submit", "--address", self.address, "--submission-id", name, "--working-dir", ".", *how, *surroundings),
            *("--", "python", f"jobs/{script}", *map(str, options)),
        )

    def _ray_job(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), "job", *words],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def job(self, name: str) -> dict[str, Any]:
        """A job as the head describes it: `status`, `message`, `driver_exit_code`, ..."""
        return dict(json.loads(self._get(f"/api/jobs/{name}")))

    def logs(self, name: str) -> str:
        """What a job printed."""
        return str(json.loads(self._get(f"/api/jobs/{name}/logs"))["logs"])

    def ended(self, name: str) -> dict[str, Any]:
        """A job once it has ended, however it did."""
        until = time.monotonic() + PATIENCE_S
        while (job := self.job(name))["status"] not in ENDED:
            assert time.monotonic() < until, f"{name} is {job['status']}\n{self.logs(name)}"
            time.sleep(0.2)
        return job

    def succeeded(self, name: str) -> str:
        """What a job printed that must end well."""
        job = self.ended(name)
        printed = self.logs(name)
        assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0), printed
        return printed

    def gcs(self) -> str:
        """HOST:PORT by which nodes and drivers join the cluster."""
        return (self.folder / ADDRESS).read_text().strip()

    def nodes(self) -> set[str]:
        """The nodes that are up, by id."""
        return {node["node_id"] for node in self._listed("nodes") if node["state"] == "ALIVE"}

    def nodes_of(self, actor: str) -> list[str]:
        """On which node each actor of a class was, those that have ended included."""
        return [one["node_id"] for one in self._listed("actors") if one["class_name"] == actor]

    def wait_for_workers_to_go(self) -> None:
        """Those of a killed job work on for the moments until the cluster has noticed."""
        until = time.monotonic() + 120
        while any(one["class_name"] == "RayTrainWorker" and one["state"] != "DEAD" for one in self._listed("actors")):
            assert time.monotonic() < until
            time.sleep(0.2)

    def _listed(self, what: str) -> list[dict[str, Any]]:
        answer = json.loads(self._get(f"/api/v0/{what}?limit=1000&detail=true"))
        return list(answer["data"]["result"]["result"])

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return bytes(answer.read())


@contextlib.contextmanager
def head_started(cpus: int = 6, **variables: str) -> Iterator[Head]:
    """A head with its dashboard.

    Args:
        cpus: logical CPUs, whatever the machine has; Ray Data must always find one free.
        variables: of its environment, which every job inherits.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        # `python` of a job is the one on the head's path
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",  # on both sides; it listens on this machine alone
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    # a short path: Ray's sockets are in it
    folder = Path(tempfile.mkdtemp(prefix="gj-", dir="/tmp"))
    port, dashboard, client = _free_ports(3)
    head = Head(dashboard, folder, environment)
    where = ("--head", "--port", str(port), "--ray-client-server-port", str(client), "--temp-dir", str(folder))
    seen = ("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard))
    try:
        with _started(head, cpus, *where, *seen) as process:
            # its last step is to write its address down
            _wait(process, head, lambda: (folder / ADDRESS).exists() and bool(head._get("/api/jobs/")))
            yield head
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def node_started(head: Head, cpus: int) -> Iterator[str]:
    """A further node of a head's cluster on this machine; gives its id."""
    before = head.nodes()
    with _started(head, cpus, "--address", head.gcs()) as process:
        _wait(process, head, lambda: bool(head.nodes() - before))
        (node,) = head.nodes() - before
        yield node


@contextlib.contextmanager
def _started(head: Head, cpus: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start`, ended with all that it started."""
    with (head.folder / "ray-start.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options),
                *("--dashboard-agent-listen-port", str(_free_ports(1)[0])),
                *("--min-worker-port", "0", "--max-worker-port", "0", "--num-cpus", str(cpus), "--num-gpus", "0"),
                *("--object-store-memory", "200000000"),
            ],
            env=head.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], head: Head, there: Callable[[], bool]) -> None:
    until = time.monotonic() + 180
    while True:
        with contextlib.suppress(OSError):
            if there():
                return
        assert process.poll() is None and time.monotonic() < until, (head.folder / "ray-start.log").read_text()
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The head and all that it started, by their process ids."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    process.kill()
    process.wait()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _free_ports(count: int) -> list[int]:
    """Ports above Ray's own range and below those the system gives out."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
