"""Is this machine, or cluster, fit? Every check says PASS, WARN or FAIL, what was found, and what to do about it.

A check never raises and never takes another down with it: whatever goes wrong inside becomes its own FAIL. FAIL means
that `gimp run` would not work here; WARN that it would, but slower, smaller or without a feature. Ray is imported only
to read its version. A cluster is asked only where one is named, and then each of its nodes for what is installed there.
Left out: repairs, and speed (`benchmarks/`).
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gimp_ray.io.net import is_port_open

Status = Literal["PASS", "WARN", "FAIL"]
Finding = tuple[Status, str, str]

OLDEST_PYTHON = (3, 11)
OLDEST_RAY = (2, 60)
OLDEST_TORCH = (2, 4)
LIBRARIES = {"pyarrow": (17,), "h5py": (3, 10), "safetensors": (0, 4, 3), "numpy": (1, 26), "sklearn": (1, 4)}
LOW_MEMORY_GIB, LOW_SHM_GIB, LOW_DISK_GIB = 4.0, 1.0, 10.0
NEEDED_MEMORY_GIB, NEEDED_DISK_GIB = 1.0, 0.5
GIB = 2**30
# what all nodes must have in the same version
PACKAGES = ("gimp-ray", "torch", "pyarrow", "numpy")
NODE_PATIENCE_S = 60
# seconds a run may need to save itself (docs/clusters.md)
SAVING_S = 60


@dataclass(frozen=True)
class Check:
    """One finding about the machine."""

    name: str
    status: Status
    found: str
    fix: str
    """what to do; empty where nothing is to be done"""


@dataclass(frozen=True)
class Node:
    """What a node of a cluster says of itself."""

    name: str
    versions: dict[str, str] = field(default_factory=dict)
    """of `PACKAGES`, those that are installed"""
    stop_wait_s: int | None = None
    """of the head: seconds that `ray job stop` gives a job; None elsewhere"""
    answered: bool = True


def run_checks(store: str | None = None, address: str | None = None, start_ray: bool = False) -> list[Check]:
    """Check this machine.

    Args:
        store: a cohort store to open as well, a path or s3://...
        address: a Ray cluster to ask for its resources (`auto` finds a running one).
        start_ray: start a local Ray where no address is given, and ask that one; takes seconds.

    Returns:
        One `Check` a subject, in the order in which a user would repair them.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("PyTorch", _torch),
        ("CUDA", _cuda),
        ("libraries", _libraries),
        ("Ray", _ray),
        ("CPUs", _cpus),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        ("disk", _disk),
        ("S3", lambda: _s3(store)),
    ]
    if address is not None or start_ray:
        checks.append(("Ray cluster", lambda: _cluster(address)))
    if store is not None:
        checks.append(("store", lambda: _store(store)))
    return [_isolated(name, check) for name, check in checks]


def format_checks(checks: Iterable[Check]) -> str:
    """Checks as text, one a line, the fix below where there is one."""
    rows = list(checks)
    width = max((len(check.name) for check in rows), default=0)
    lines = []
    for check in rows:
        lines.append(f"{check.status}  {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"      {'':<{width}}  -> {check.fix}")
    counts = {status: sum(check.status == status for check in rows) for status in ("PASS", "WARN", "FAIL")}
    verdict = "not fit: mend what FAILs first" if counts["FAIL"] else "fit"
    lines.append(f"\n{counts['PASS']} PASS, {counts['WARN']} WARN, {counts['FAIL']} FAIL: {verdict}")
    return "\n".join(lines)


def _isolated(name: str, check: Callable[[], Finding]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # a doctor that falls ill itself helps nobody
        return Check(
            name,
            "FAIL",
            f"the check itself failed: {type(error).__name__}: {_first_line(error)}",
            "see the error; reinstall if in doubt",
        )


def _python() -> Finding:
    found = platform.python_version()
    if sys.version_info[:2] < OLDEST_PYTHON:
        return "FAIL", found, f"use Python {_dotted(OLDEST_PYTHON)} or newer"
    return "PASS", found, ""


def _torch() -> Finding:
    return _version_finding("torch", OLDEST_TORCH, "pip install 'torch>=2.4'")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build of PyTorch"
        fix = "training will use CPUs; for a GPU install its driver and a CUDA build of PyTorch"
        return "WARN", f"no GPU visible ({build})", fix
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if not torch.cuda.is_bf16_supported():
        return "WARN", f"{', '.join(names)}; no bf16", "keep train.precision at fp32 on this GPU"
    return "PASS", f"{', '.join(names)}; bf16", ""


def _libraries() -> Finding:
    found, wrong = [], []
    for name, oldest in LIBRARIES.items():
        status, version, _ = _version_finding(name, oldest, "")
        found.append(f"{name} {version}")
        if status != "PASS":
            wrong.append(f"{'scikit-learn' if name == 'sklearn' else name}>={_dotted(oldest)}")
    if wrong:
        return "FAIL", ", ".join(found), "pip install " + " ".join(f"'{one}'" for one in wrong)
    return "PASS", ", ".join(found), ""


def _ray() -> Finding:
    return _version_finding("ray", OLDEST_RAY, "pip install 'ray[data,default,train,tune]>=2.60,<3'")


def _cpus() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if usable < 2:
        fix = "a worker takes one and Ray Data needs one: use train.workers: 0 (no Ray), or declare cluster.num_cpus: 2"
        return "WARN", f"{usable} logical CPU", fix
    return "PASS", f"{usable} logical CPUs; keep one free for Ray Data (at most {usable - 1} one-CPU workers)", ""


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    free, found = memory.available / GIB, f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if free < NEEDED_MEMORY_GIB:
        return "FAIL", found, "close other programs, or use a larger machine"
    if free < LOW_MEMORY_GIB:
        return "WARN", found, "keep window.length, batch.cases_per_class and train.workers small"
    return "PASS", found, ""


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    if not folder.is_dir():
        return "WARN", "no /dev/shm", "Ray will keep its objects on disk, which is slow"
    size = shutil.disk_usage(folder)
    found = f"{size.free / GIB:.1f} of {size.total / GIB:.1f} GiB free in {folder}"
    if size.free < LOW_SHM_GIB * GIB:
        return "WARN", found, "in a container start it with --shm-size=4g or more; Ray keeps its objects there"
    return "PASS", found, ""


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    found = f"{free:.1f} GiB free in the working folder"
    if free < NEEDED_DISK_GIB:
        return "FAIL", found, "free some space: checkpoints could not be written"
    if free < LOW_DISK_GIB:
        return (
            "WARN",
            found,
            "a store takes 2 bytes a value (about 30 MB a slide of 15,000 patches); checkpoint.keep: 1 saves space",
        )
    return "PASS", found, ""


def _s3(store: str | None) -> Finding:
    source = _s3_credentials()
    wanted = store is not None and store.startswith("s3://")
    if not wanted:
        if source is None:
            return (
                "WARN",
                "no credentials found",
                "only needed for stores on S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        return "PASS", source, ""
    import s3fs

    fix = "check the address, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, off AWS, AWS_ENDPOINT_URL"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # a doctor must answer: no long retries against an endpoint that is not there
    patience = {"connect_timeout": 3, "read_timeout": 5, "retries": {"max_attempts": 1}}
    try:
        listed = s3fs.S3FileSystem(anon=source is None, endpoint_url=endpoint, config_kwargs=patience).ls(str(store))
    except Exception as error:
        return "FAIL", f"{store} cannot be listed: {type(error).__name__}", fix
    return "PASS", f"{store} has {len(listed)} entries ({source or 'anonymous'})", ""


def _s3_credentials() -> str | None:
    """Where credentials come from, never what they are."""
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return "credentials in the environment"
    for name in ("AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        if os.environ.get(name):
            return f"credentials by {name}"
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    return f"credentials in {file}" if file.is_file() else None


def _cluster(address: str | None) -> Finding:
    import ray

    if address is not None and not is_port_open(address):
        return (
            "FAIL",
            f"nobody listens at {address}",
            "check the address, the firewall, and `ray status` on the head node",
        )
    mine = not ray.is_initialized()
    try:
        if mine:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
        nodes = _ask_nodes()
    except Exception as error:
        fix = "check the address; a cluster with authentication needs RAY_AUTH_MODE and RAY_AUTH_TOKEN set"
        return "FAIL", f"cannot be joined: {_first_line(error)}", fix
    finally:
        if mine:
            ray.shutdown()
    found = f"{len(nodes)} node(s), {cpus:g} CPUs, {gpus:g} GPUs"
    troubles = node_troubles(nodes, takes_jobs=address is not None)
    if cpus < 2:
        fix = "a worker takes one CPU and Ray Data needs one: add a node, or declare more CPUs"
        troubles.insert(0, ("too few CPUs", fix))
    if troubles:
        return "WARN", "; ".join([found, *(what for what, _ in troubles)]), "; ".join(fix for _, fix in troubles)
    return "PASS", found, ""


def _ask_nodes() -> list[Node]:
    """Every node of the cluster that this process is connected to, asked on the node itself."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    packages = PACKAGES

    # inside, so that it travels as it is: a node may not have this package
    def look() -> tuple[dict[str, str], int]:
        import importlib.metadata
        import os

        versions = {}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return versions, int(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3"))

    asked = {}
    for node in ray.nodes():
        if node.get("Alive"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeID"]] = (node, ray.remote(num_cpus=0)(look).options(scheduling_strategy=there).remote())
    ray.wait([answer for _, answer in asked.values()], num_returns=len(asked), timeout=NODE_PATIENCE_S)
    nodes = []
    for node, answer in asked.values():
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            versions, wait_s = ray.get(answer, timeout=0)
        except Exception:  # lost or silent: named among the troubles
            nodes.append(Node(name, answered=False))
            continue
        nodes.append(Node(name, versions, wait_s if "node:__internal_head__" in node["Resources"] else None))
    return nodes


def node_troubles(nodes: list[Node], takes_jobs: bool) -> list[tuple[str, str]]:
    """What differs or lacks on a cluster's nodes.

    Args:
        nodes: what they said.
        takes_jobs: whether jobs are submitted to the cluster.

    Returns:
        (what was found, what to do) of each trouble.
    """
    troubles = []
    silent = [node.name for node in nodes if not node.answered]
    if silent:
        fix = "see `ray status` and the logs of the node"
        troubles.append((f"no answer within {NODE_PATIENCE_S} s from {', '.join(silent)}", fix))
    heard = [node for node in nodes if node.answered]
    for name in PACKAGES:
        versions = {node.versions.get(name, "none") for node in heard}
        if versions == {"none"} or len(versions) > 1:
            places = (
                f"{one} on {', '.join(n.name for n in heard if n.versions.get(name, 'none') == one)}"
                for one in sorted(versions)
            )
            fix = f"install the same {name} everywhere"
            if name == "gimp-ray":
                fix += ", or submit jobs with --working-dir and this checkout"
            troubles.append((f"{name}: {'; '.join(places)}", fix))
    for node in heard:
        if takes_jobs and node.stop_wait_s is not None and node.stop_wait_s < SAVING_S:
            fix = "set RAY_JOB_STOP_WAIT_TIME_S=240 where the head is started, or stopped jobs lose steps"
            troubles.append((f"`ray job stop` kills after {node.stop_wait_s} s", fix))
    return troubles


def _store(address: str) -> Finding:
    from gimp_ray.store import CohortStore

    try:
        store = CohortStore.open(address)
        manifest = store.manifest
    except Exception as error:
        return "FAIL", _first_line(error), "check the path; `gimp check` says more, `gimp ingest` writes a store"
    found = (
        f"{manifest.num_cases} cases, {manifest.num_slides} slides, {manifest.num_patches:,} patches, width {store.dim}"
    )
    return "PASS", found, ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _version_finding(module: str, oldest: tuple[int, ...], fix: str) -> Finding:
    try:
        version = str(importlib.import_module(module).__version__)
    except ImportError as error:
        return "FAIL", f"cannot be imported: {error}", fix
    if _numbers(version)[: len(oldest)] < oldest:
        return "FAIL", version, fix or f"at least {_dotted(oldest)} is needed"
    return "PASS", version, ""


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0); stops at the first part that is no number."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
