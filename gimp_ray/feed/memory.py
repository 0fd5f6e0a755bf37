"""How much memory a worker's cache of bags may take.

Host memory is what psutil calls available, or what the process's cgroup (a container's limit) leaves where that is
less, shared by the workers of the host; device memory is what is free of the GPU beyond a reserve. Left out: what fills
it (`cache.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

# of a GPU's free memory, for libraries that load late and for fragments
DEVICE_RESERVE = 2 * 10**9
SHARE = 0.5


def cache_budget(gigabytes: float | None, device: torch.device | None) -> int:
    """Bytes a worker's cache may take.

    Args:
        gigabytes: what the config says, in 10^9 bytes; None for half of the memory that is free now.
        device: where the cache is; None for host memory.
    """
    if gigabytes is not None:
        return int(gigabytes * 1e9)
    if device is not None and device.type == "cuda":
        torch.cuda.empty_cache()  # what a stage before had is free, and must count as such
        return int(SHARE * max(0, torch.cuda.mem_get_info(device)[0] - DEVICE_RESERVE))
    return int(SHARE * free_host_memory() / workers_here())


def workers_here() -> int:
    """Workers of the run on this host; Ray Train and torchrun say it in the environment."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def free_host_memory() -> int:
    """Bytes this process could still take without swapping or being ended."""
    available = int(psutil.virtual_memory().available)
    return min([available, *cgroup_room()])


def cgroup_room(mounted: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes left below each memory limit that holds for this process, its group's and those above; none where there
    is no limit. File pages the kernel would drop count as free.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:
            yield from _limits(mounted, path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits(mounted / "memory", path, names)


def _limits(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    limit_file, usage_file, droppable = names
    group = root / path.lstrip("/")
    # in a container the path may be the host's, and its own group is mounted as the root
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        limit, used = _number(folder / limit_file), _number(folder / usage_file)
        if limit is not None and used is not None:
            yield max(0, limit - max(0, used - _statistic(folder / "memory.stat", droppable)))


def _number(file: Path) -> int | None:
    """A file's number; None where it is not there, or says `max`."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _statistic(file: Path, name: str) -> int:
    try:
        rows = dict(line.split(None, 1) for line in file.read_text(encoding="utf-8").splitlines())
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0
