"""The run folder: where a run's files are, and how they appear whole or not at all.

A run folder holds the resolved config, the environment, the state of each stage, checkpoints, final models,
predictions, figures and `summary.md`. This file knows names, atomic writes and the run's record (`run.json`); what is
inside a checkpoint is the engine's business, what is inside a figure the reports'.

A run folder may be in object storage. Its files are then read and written in a copy on this machine, and this file says
which of them travel when; how they travel is `gimp_ray/io/mirror.py`'s business. For a local folder none of this does
anything.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gimp_ray.errors import GimpError, InputError
from gimp_ray.io import locks
from gimp_ray.io.files import read_json, write_json
from gimp_ray.io.mirror import RunMirror
from gimp_ray.io.storage import as_location, is_uri

LOCK = ".run.lock"
STAGES = ("genes", "pretrain", "finetune")
LIBRARIES = (
    "gimp-ray",
    "torch",
    "ray",
    "numpy",
    "pyarrow",
    "h5py",
    "safetensors",
    "scikit-learn",
    "pandas",
    "pydantic",
)


class RunFolder:
    """Names of a run folder's files and the run's record.

    Args:
        path: the folder, or a URI such as `s3://bucket/runs/a`; made on first write.

    Attributes:
        place: the folder as the user named it.
        path: where its files are on this machine: the folder itself, or the copy of one in object storage.
    """

    def __init__(self, path: str | Path) -> None:
        self.place = as_location(path)
        self._mirror: RunMirror | None = None
        if is_uri(self.place):
            self._mirror = RunMirror(self.place)
        self.path = Path(self.place) if self._mirror is None else self._mirror.folder

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record_file(self) -> Path:
        return self.path / "run.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def stage(self, name: str) -> Path:
        """Folder of a stage's log and checkpoints."""
        return self.path / name

    def checkpoints(self, name: str) -> Path:
        return self.path / name / "checkpoints"

    def model_file(self, name: str) -> Path:
        """The stage's final model."""
        return self.path / f"{name}.safetensors"

    def model_card(self, name: str) -> Path:
        """What is needed to use the stage's final model: widths, gene list, config."""
        return self.path / f"{name}.json"

    def metrics_log(self, name: str) -> Path:
        return self.path / name / "metrics.jsonl"

    def record(self) -> dict[str, Any]:
        """The run's record, empty before the first attempt."""
        return read_json(self.record_file) if self.record_file.exists() else {}

    def update(self, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Change the record in place and write it whole."""
        # the command and the first worker both change it, perhaps on two machines
        self._pull(_is_record)
        record = self.record()
        change(record)
        write_json(self.record_file, record)
        self._push(_is_record)
        return record

    def stage_done(self, name: str) -> bool:
        """Whether the stage's final model is there (it is written last)."""
        return self.model_file(name).exists() and self.model_card(name).exists()

    def place_of(self, file: Path) -> str:
        """A file of the folder as the user would name it."""
        return str(file) if self._mirror is None else f"{self.place}/{file.relative_to(self.path).as_posix()}"

    @contextmanager
    def one_command(self) -> Iterator[None]:
        """Keep other commands away from the run while the block runs; who only reads needs no lock.

        Raises:
            InputError: another command is at work on it, or a lock cannot be written there.
        """
        remote = self._mirror is not None
        place = f"{self.place}/{LOCK}" if remote else str(self.path / LOCK)
        with contextlib.ExitStack() as stack:
            with unwritable(self.place):
                if not remote:
                    stack.enter_context(locks.folder_made(self.path))
                create = locks.creating(self.place, "the run folder cannot be written")
                stack.enter_context(locks.held(place, functools.partial(_busy, self.place, place), create))
            yield

    # What travels, for a run in object storage. Each raises a StorageError where the storage cannot be used.

    def pull(self) -> None:
        """Bring all here but weights that only training needs: of a checkpoint its state, which says what the stage was
        made from. For the command, while nothing trains.
        """
        self._pull(lambda name: not _is_inside(name) or name.endswith("/state.json"))

    def pull_models(self) -> None:
        """Bring the stages' final models here: what every worker needs before a stage."""
        self._pull(_is_model)

    def pull_stage(self, name: str) -> None:
        """Bring the log, checkpoints and best epochs of a stage here: what the worker that writes them goes on from."""
        self._pull(lambda there: there.startswith(f"{name}/"))

    def pull_checkpoint(self, name: str, checkpoint: str) -> None:
        """Bring one checkpoint of a stage here."""
        self._pull(lambda there: there.startswith(f"{name}/checkpoints/{checkpoint}/"))

    def push(self) -> None:
        """Bring what the command wrote there: all that no stage wrote."""
        self._push(lambda name: not _is_of_stage(name))

    def push_stage(self, name: str, kept: Iterable[Path] | None = None) -> None:
        """Bring what a stage wrote there.

        Args:
            name: of the stage.
            kept: its checkpoints' folders and best epochs' files that are still meant; others are removed there.
        """
        self._push(lambda here: here.startswith((f"{name}/", f"{name}.")))
        if kept is None or self._mirror is None:
            return
        meant = tuple(f"{file.relative_to(self.path).as_posix()}" for file in kept)
        self._mirror.remove(
            lambda there: there.startswith(f"{name}/") and _is_inside(there) and not there.startswith(meant)
        )

    def _pull(self, wanted: Callable[[str], bool]) -> None:
        if self._mirror is not None:
            self._mirror.pull(wanted)

    def _push(self, wanted: Callable[[str], bool]) -> None:
        if self._mirror is not None:
            self._mirror.push(wanted)


def _busy(run: str, place: str, found: str) -> InputError:
    return InputError(
        "another command is at work on this run",
        file=run,
        expected="one command at a time",
        found=found,
        fix=f"wait until it is done, or give another run folder; if it is certainly dead, remove {place}",
    )


@contextmanager
def unwritable(place: str | Path) -> Iterator[None]:
    """Turn what a full disk, a quota or missing rights do to the block into a refusal that names the run.

    Raises:
        InputError: the disk is full, a file is too large for it, or this user may not write there.
    """
    try:
        yield
    except GimpError:
        raise
    except Exception as error:  # safetensors and torch have errors of their own, with the system's number in the text
        fix = _disk_advice(error, as_location(place))
        if fix is None:
            raise
        raise InputError(
            "the run folder cannot be written", file=as_location(place), found=str(error).splitlines()[0], fix=fix
        ) from error


def _disk_advice(error: BaseException, place: str) -> str | None:
    said = re.search(r"\bos error (\d+)\b", str(error))
    number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free space on the disk, then give the same command; it goes on from the last checkpoint, which is whole"
    concerned = str(getattr(error, "filename", None) or "")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) and concerned.startswith(place):
        return "check who may write to the folder, or give another run folder"
    return None


def _is_record(name: str) -> bool:
    return name == "run.json"


def _is_model(name: str) -> bool:
    return name in {f"{stage}{ending}" for stage in STAGES for ending in (".safetensors", ".json")}


def _is_of_stage(name: str) -> bool:
    return _is_model(name) or name.partition("/")[0] in STAGES


def _is_inside(name: str) -> bool:
    """Whether a file matters only while its stage trains."""
    _, _, rest = name.partition("/")
    return rest.startswith(("checkpoints/", "best-epoch-"))


def environment() -> dict[str, Any]:
    """Versions, machine and git revision, for `environment.json`."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "git_revision": git_revision(),
    }


def attempt(stages: list[str]) -> dict[str, Any]:
    """A fresh entry for the record's list of attempts."""
    return {
        "started": timestamp(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "host": socket.gethostname(),
        "stages": stages,
        "status": "running",
    }


def timestamp() -> str:
    """Now, as the record writes times."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def git_revision() -> str | None:
    """Revision of the source tree the package runs from, with `-dirty` when it was changed; None outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    if shutil.which("git") is None or not (here.parent / ".git").exists():
        return None  # installed, perhaps inside somebody else's checkout
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
