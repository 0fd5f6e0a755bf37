"""A run folder in object storage: its copy on this machine, and the transfer of files between the two.

The bucket is the run, the copy a cache: `pull` makes files here what they are there, `push` uploads what changed here.
An object appears whole or not at all, and the file that says that others are whole (a checkpoint's state, a stage's
weights) goes last. Which files are transferred when is decided in `gimp_ray/runs/folder.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gimp_ray.errors import GimpError, InputError
from gimp_ray.io.files import whole_file, write_json
from gimp_ray.io.storage import StorageError, as_location, fsspec_of, is_uri, retry

Match = Callable[[str], bool]
Index = dict[str, tuple[str, list[int]]]

# what a kept checkpoint's folder is whole by, and a stage's end; written last, removed first
MARKER = "state.json"
_CHECKPOINT = re.compile(r"(^|/)checkpoints/step-[^/]*/")
# Ray's bookkeeping, what is half-written, and a checkpoint that this machine found damaged
_OWN = re.compile(r"^(ray|tune)/|(^|/)\.|(^|/)damaged-")
# written by one process for people alone, and never read again: not worth bringing back
_ONE_WAY = re.compile(r"(^|/)tensorboard/")


class RunMirror:
    """A folder of object storage and its copy in the cache. Making one asks nothing of the storage.

    Args:
        uri: of the folder, `s3://bucket/runs/a`; any protocol of fsspec's.

    Raises:
        InputError: a URI with a query, which would name another object.
    """

    def __init__(self, uri: str) -> None:
        if "?" in uri or "#" in uri:
            raise InputError(
                "a run's URI cannot have a query",
                file=uri,
                expected="s3://bucket/folder",
                fix="give the endpoint as AWS_ENDPOINT_URL, and the rest by the usual environment",
            )
        self.uri = uri
        name = f"{PurePosixPath(uri).name}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"
        self.folder = cache_folder() / "runs" / name

    def pull(self, wanted: Match) -> set[str]:
        """Make the wanted files here what they are there: fetch what differs, remove what is not there.

        Returns:
            All names there, a checkpoint that did not arrive whole left out.

        Raises:
            StorageError: the storage could not be listed or read.
        """
        return retry(lambda: self._pull(wanted), self.uri)

    def _pull(self, wanted: Match) -> set[str]:
        with self._held() as index:
            there = _without_torn(self._list())
            for name, info in there.items():
                if wanted(name) and not _ONE_WAY.search(name) and not self._is_here(index, name, info):
                    self._fetch(index, name, info)
            for name in [name for name in self._local() if wanted(name) and name not in there]:
                # of what is never fetched, only what was there once
                if name in index or not _ONE_WAY.search(name):
                    (self.folder / name).unlink(missing_ok=True)
                    self._forget_folders(name)
            for name in [name for name in index if name not in there]:
                del index[name]
            return set(there)

    def push(self, wanted: Match) -> None:
        """Bring the wanted files there that are new or changed here since they were last brought or fetched.

        Raises:
            StorageError: an object could not be written.
        """
        retry(lambda: self._push(wanted), self.uri)

    def _push(self, wanted: Match) -> None:
        with self._held() as index:
            changed = {
                name
                for name in self._local()
                if wanted(name) and (name not in index or index[name][1] != _signature(self.folder / name))
            }
            for marker in {marker for marker in map(_marker_of, changed) if marker in index}:
                # its folder is not whole from now until the marker is written again
                self._remove(index, marker)
                changed.add(marker)
            for name in sorted(changed, key=_order):
                self._send(index, name)

    def remove(self, unwanted: Match) -> None:
        """Remove objects there.

        Raises:
            StorageError: the storage could not be listed, or an object not removed.
        """
        retry(lambda: self._remove_all(unwanted), self.uri)

    def _remove_all(self, unwanted: Match) -> None:
        with self._held() as index:
            for name in sorted(filter(unwanted, self._list()), key=_order, reverse=True):
                self._remove(index, name)

    @contextlib.contextmanager
    def _held(self) -> Iterator[Index]:
        """What is known of both sides, for one process of this machine at a time: they share the copy."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "the copy of a run in object storage cannot be kept here",
                file=self.folder.parent,
                found=str(error),
                fix="name a folder that can be written to by the environment variable GIMP_RAY_CACHE",
            ) from None
        file = self.folder.with_name(f"{self.folder.name}.index")
        with self.folder.with_name(f"{self.folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            index = _read_index(file)
            before = dict(index)
            try:
                yield index
            finally:
                if index != before:
                    write_json(file, index)

    def _list(self) -> dict[str, dict[str, Any]]:
        """What is there, by name relative to the folder."""
        filesystem, root = self._remote
        with _asked("the run's folder cannot be listed", self.uri):
            try:
                found = filesystem.find(root, detail=True)
            except FileNotFoundError:
                found = {}
        start = root.rstrip("/") + "/"
        names = {path.removeprefix(start): info for path, info in found.items() if len(path) > len(start)}
        return {name: info for name, info in names.items() if not name.endswith("/") and not _OWN.search(name)}

    def _local(self) -> list[str]:
        """Files of the copy, by name relative to it."""
        names = (str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file())
        return sorted(name for name in names if not _OWN.search(name))

    def _is_here(self, index: Index, name: str, info: dict[str, Any]) -> bool:
        file = self.folder / name
        return name in index and index[name][0] == _tag(info) and file.exists() and index[name][1] == _signature(file)

    def _fetch(self, index: Index, name: str, info: dict[str, Any]) -> None:
        filesystem, root = self._remote
        target = self.folder / name
        with whole_file(target) as aside:
            with _asked("an object cannot be read", f"{self.uri}/{name}"):
                filesystem.get_file(f"{root}/{name}", str(aside))
            found = aside.stat().st_size
            if found != info["size"]:
                raise StorageError(
                    "an object changed while it was read",
                    file=f"{self.uri}/{name}",
                    expected=f"{info['size']} bytes",
                    found=f"{found} bytes",
                    fix="see that one command at a time works on the run, and give it again",
                )
        index[name] = (_tag(info), _signature(target))

    def _send(self, index: Index, name: str) -> None:
        filesystem, root = self._remote
        file = self.folder / name
        # taken before: what is appended meanwhile is then a change
        signature = _signature(file)
        with _asked("an object cannot be written", f"{self.uri}/{name}"):
            filesystem.put_file(str(file), f"{root}/{name}")
            index[name] = (_tag(filesystem.info(f"{root}/{name}")), signature)

    def _remove(self, index: Index, name: str) -> None:
        filesystem, root = self._remote
        with _asked("an object cannot be removed", f"{self.uri}/{name}"), contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(f"{root}/{name}")
        index.pop(name, None)

    def _forget_folders(self, name: str) -> None:
        """Remove the folders a file stood in, as far as they are empty."""
        with contextlib.suppress(OSError):
            for folder in (self.folder / name).parents:
                if folder == self.folder:
                    return
                folder.rmdir()

    @functools.cached_property
    def _remote(self) -> tuple[Any, str]:
        return fsspec_of(self.uri)


def cache_folder() -> Path:
    """Where copies are kept: `$GIMP_RAY_CACHE`, or `~/.cache/gimp_ray`. May be removed when nothing runs."""
    named = os.environ.get("GIMP_RAY_CACHE")
    return Path(named).expanduser().resolve() if named else Path.home() / ".cache" / "gimp_ray"


def local_file(place: str | Path) -> Path:
    """A file as a local path; one in object storage is fetched into the cache, a model with the card beside it.

    Raises:
        InputError: there is no such object.
        StorageError: it could not be read.
    """
    place = as_location(place)
    if not is_uri(place):
        return Path(place)
    folder, _, name = place.rpartition("/")
    mirror = RunMirror(folder)
    card = str(PurePosixPath(name).with_suffix(".json"))
    if name not in mirror.pull(lambda there: there in (name, card)):
        raise InputError("the file does not exist", file=place, fix="correct the path, or run what writes it first")
    return mirror.folder / name


@contextlib.contextmanager
def new_file(place: str | Path) -> Iterator[Path]:
    """A path aside to write to; it becomes `place`, here or in object storage, when the block ends well.

    Raises:
        StorageError: the object could not be written.
    """
    place = as_location(place)
    if not is_uri(place):
        with whole_file(Path(place)) as aside:
            yield aside
        return
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / PurePosixPath(place).name
        yield aside
        filesystem, path = fsspec_of(place)
        with _asked("an object cannot be written", place):
            filesystem.put_file(str(aside), path)


@contextlib.contextmanager
def _asked(what: str, place: str) -> Iterator[None]:
    """Whatever a storage's client raises, once it has given up, as one error that names the object."""
    try:
        yield
    except GimpError:
        raise
    except Exception as error:  # each protocol has its own
        fix = (
            "check the name of the bucket and of the folder"
            if isinstance(error, FileNotFoundError)
            else "check that the storage answers and that the credentials may list, read, write and delete there; "
            "the same command then goes on from what is in the bucket"
        )
        raise StorageError(what, file=place, found=f"{type(error).__name__}: {str(error)[:300]}", fix=fix) from error


def _order(name: str) -> tuple[int, str]:
    """Plain files first, then checkpoints' markers, then stages' cards, then their weights, which mean done."""
    if "/" not in name:
        return ({".json": 2, ".safetensors": 3}.get(PurePosixPath(name).suffix, 0), name)
    return (int(_marker_of(name) == name), name)


def _marker_of(name: str) -> str | None:
    """The marker of the folder a file stands in, where that is a checkpoint."""
    found = _CHECKPOINT.search(name)
    return name[: found.end()] + MARKER if found else None


def _without_torn(there: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without checkpoints whose marker never arrived."""
    return {name: info for name, info in there.items() if (_marker_of(name) or name) in there}


def _tag(info: dict[str, Any]) -> str:
    """What tells one version of an object from the next."""
    names = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
    version = next((str(info[name]) for name in names if info.get(name) is not None), "")
    return f"{info['size']} {version}"


def _signature(file: Path) -> list[int]:
    """What changes whenever a file is written."""
    state = file.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ino]


def _read_index(file: Path) -> Index:
    """An index that is damaged is none: everything is then fetched again."""
    try:
        tree = json.loads(file.read_text())
        return {str(name): (str(tag), [int(part) for part in signature]) for name, (tag, signature) in tree.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
