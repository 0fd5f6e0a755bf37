"""Where a file is (a local path or a URI), and the clients, timeouts and retries with which object storage is used.

Stores are read and written through Arrow's file systems; `s3://`, `gs://`, `hdfs://` and `file://` are Arrow's own, any
other protocol is fsspec's (`memory://`, `abfs://`, ...). Run folders and lock files need what Arrow does not offer, the
tag of each object in a listing and a write that must be the first, and use fsspec. Credentials, region and endpoint
come from the usual environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).

A request is tried for about a minute, with back-off, by its client; after that, reads that training depends on and
transfers of a run folder are repeated until the storage timeout is over (`retry`).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from gimp_ray.errors import GimpError, InputError
from gimp_ray.io.files import whole_file

Answer = TypeVar("Answer")

# tries of one request; with 0 + 0.05 + 0.1 + 0.2 + ... s between them Arrow's last 51 s
S3_ATTEMPTS = 12
# of a run folder's files: 0.5 + 1 + 2 + ... s on average and 20 s at most between them, about a minute
FOLDER_ATTEMPTS = 10
FOLDER_CONNECT_TIMEOUT_S = 10.0
# s3fs asks this often again for a throttled request or a body that broke off, on top of that
BODY_ATTEMPTS = 3
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0
# how long a storage that does not answer is waited for where a run would end without it, unless the environment says
TIMEOUT_S = 600.0
TIMEOUT_VARIABLE = "GIMP_RAY_STORAGE_PATIENCE"
PAUSE_S = 2.0

_ADVICE = tuple(
    (re.compile(pattern, re.IGNORECASE), fix)
    for pattern, fix in (
        (
            r"access.?denied|forbidden|permission|invalid.?access.?key|signature|credentials|expired.?token",
            "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role) and what they "
            "may read and write",
        ),
        (r"no.?such.?bucket|bucket does not exist", "make the bucket, or correct its name"),
        (
            r"network.?connection|slow.?down|service.?unavailable|internal.?(failure|error)|time.?out|could not connect"
            r"|request.?throttled|throttling|connection|curlcode",
            "the storage did not answer as it should in {attempts} attempts: check the network and the endpoint "
            "(AWS_ENDPOINT_URL), and start again when it is up",
        ),
    )
)
# errors that credentials, names or the file itself make, and not the storage's state
_LASTING = _ADVICE[:2]
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_ARROW_SCHEMES = ("file", "gs", "gcs", "hdfs", "viewfs", "mock")
_making_client = threading.Lock()
_timeout: contextvars.ContextVar[float] = contextvars.ContextVar("timeout", default=0.0)


class StorageError(GimpError):
    """The storage did not do what was asked of it, however often it was asked."""


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a URI such as `s3://bucket/store`, and not a local path."""
    return "://" in os.fspath(path)


def as_location(path: str | os.PathLike[str]) -> str:
    """A path or URI as a string, whole again where a `Path` took a slash from a URI; `file://` is a local path."""
    text = os.fspath(path)
    if isinstance(path, PurePath):
        text = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", text)
    text = text.removeprefix("file://") if text.startswith("file:///") else text
    return text.rstrip("/") if is_uri(text) else str(Path(text))


def absolute(path: str | os.PathLike[str]) -> str:
    """The location as a string that means the same in another process: a URI as it is, a local path made absolute."""
    text = os.fspath(path)
    # not resolve(), which would follow a symlink
    return text.rstrip("/") if is_uri(text) else os.path.abspath(text)  # noqa: PTH100


def join(location: str, name: str) -> str:
    """`name` below `location`, both with slashes; an absolute name or a URI stays as it is."""
    if is_uri(name) or name.startswith("/"):
        return name
    if is_uri(location):
        scheme, _, rest = location.partition("://")
        rest, mark, query = rest.partition("?")
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, name))}{mark}{query}"
    return posixpath.normpath(posixpath.join(location, name))


def display_uri(filesystem: pafs.FileSystem, path: str) -> str:
    """What to call a path on a file system in a message: as a URI, where it is in S3."""
    return f"s3://{path}" if filesystem.type_name == "s3" else path


# clients


def resolve(path: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """Arrow's file system of a local path or URI, and the path on it without a trailing slash.

    Raises:
        InputError: an unknown protocol, or a location that is no URI of its protocol.
    """
    text = os.fspath(path)
    if not is_uri(text):
        return pafs.LocalFileSystem(), str(Path(text).absolute())
    try:
        scheme = urlsplit(text).scheme
        if scheme == "s3":
            filesystem, root = _s3(text)
        elif scheme in _ARROW_SCHEMES:
            filesystem, root = pafs.FileSystem.from_uri(text)
        else:
            import fsspec

            handler, root = fsspec.core.url_to_fs(text)
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(handler))
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        fix = "give a local path or a URI such as s3://bucket/store, and check credentials and endpoint"
        raise InputError("this place cannot be used", file=text, found=str(error)[:300], fix=fix) from error
    return filesystem, str(root).rstrip("/")


def fsspec_of(uri: str) -> tuple[Any, str]:
    """fsspec's file system of a URI, and the path on it. It keeps no listings: other machines write there too.

    Raises:
        InputError: an unknown protocol, or no URI of it.
    """
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    s3 = uri.startswith(("s3://", "s3a://"))
    if s3:
        # AWS_RETRY_MODE and AWS_MAX_ATTEMPTS are the user's, and botocore reads them where nothing is given here
        retries: dict[str, Any] = {} if os.environ.get("AWS_RETRY_MODE") else {"mode": "standard"}
        retries |= {} if os.environ.get("AWS_MAX_ATTEMPTS") else {"total_max_attempts": FOLDER_ATTEMPTS}
        options["config_kwargs"] = {"retries": retries, "connect_timeout": FOLDER_CONNECT_TIMEOUT_S}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except (ImportError, ValueError) as error:
        raise InputError(
            "this place cannot be used",
            file=uri,
            found=str(error),
            fix="give a local path or s3://bucket/folder, or install the package that reads this protocol",
        ) from None
    if s3:
        filesystem.retries = BODY_ATTEMPTS
    return filesystem, str(path)


def is_local(filesystem: pafs.FileSystem) -> bool:
    """Whether files of the file system can be memory-mapped, renamed and synced here."""
    return isinstance(filesystem, pafs.LocalFileSystem)


@functools.cache
def _region_of(bucket: str) -> str:
    return str(pafs.resolve_s3_region(bucket))


def _s3(uri: str) -> tuple[pafs.FileSystem, str]:
    parts = urlsplit(uri)
    endpoint, region = _s3_server(uri)
    options: dict[str, object] = {"region": region or _region_of(parts.netloc)}
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        options |= {"endpoint_override": host, "scheme": scheme}
    with _no_checksums_of_parts():
        filesystem = pafs.S3FileSystem(
            # not the standard strategy: it has a hundred attempts to give away until something succeeds, for all
            # threads together, and in an outage requests fail at once after that
            retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS - 1),
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=REQUEST_TIMEOUT_S,
            **options,
        )
    return filesystem, parts.netloc + parts.path


@contextlib.contextmanager
def _no_checksums_of_parts() -> Iterator[None]:
    """Make the S3 client of the block without the checksums it would compute of whatever it is given.

    They take half its time, and a checksum of the object says nothing about a range of it. What the user sets in the
    environment stays.
    """
    name = "AWS_RESPONSE_CHECKSUM_VALIDATION"
    with _making_client:
        if name in os.environ:
            yield
            return
        os.environ[name] = "when_required"  # read when the client is made, and by nothing else before it is gone
        try:
            yield
        finally:
            del os.environ[name]


def _s3_server(uri: str) -> tuple[str | None, str | None]:
    """The endpoint (with its scheme) and the region: from the URI, where they stand as Arrow knows them
    (`?endpoint_override=HOST&scheme=http&region=...`), else from the environment; None for those of AWS.
    """
    given = {key: values[-1] for key, values in parse_qs(urlsplit(uri).query).items()}
    endpoint = given.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not endpoint:
        return None, region
    scheme, _, host = endpoint.rpartition("://")
    return f"{given.get('scheme') or scheme or 'https'}://{host.rstrip('/')}", region or "us-east-1"


# retries


def timeout_s() -> float:
    """Seconds for which a storage that does not answer is waited for: `GIMP_RAY_STORAGE_PATIENCE`, or ten minutes.

    Raises:
        InputError: the variable is not a number.
    """
    try:
        return float(os.environ.get(TIMEOUT_VARIABLE) or TIMEOUT_S)
    except ValueError:
        raise InputError(
            f"the environment variable {TIMEOUT_VARIABLE} is no number",
            expected="seconds",
            found=os.environ[TIMEOUT_VARIABLE],
            fix="correct it, or leave it out",
        ) from None


@contextlib.contextmanager
def waiting_for_storage(seconds: float | None = None) -> Iterator[None]:
    """In the block, transfers of a run folder wait for a storage that does not answer: so long, or `timeout_s()`.

    It holds for this thread. Without it a failure is raised when the storage's client gives up, after about a minute.
    """
    before = _timeout.set(timeout_s() if seconds is None else seconds)
    try:
        yield
    finally:
        _timeout.reset(before)


def retry_read(filesystem: pafs.FileSystem, path: str, read: Callable[[], Answer]) -> Answer:
    """What `read` gives; from object storage it is tried again until `timeout_s()` is over.

    Args:
        filesystem: of the object.
        path: of the object, for the note that is printed when the storage's own client has given up a first time.
        read: may be called again.

    Raises:
        OSError: whatever `read` raised, where waiting does not help or took too long.
    """
    return read() if is_local(filesystem) else retry(read, display_uri(filesystem, path), timeout_s())


def retry(work: Callable[[], Answer], what: str, seconds: float | None = None) -> Answer:
    """What `work` gives, tried again while the storage does not answer; a note is printed when that begins and ends.

    Args:
        work: may be called again.
        what: is used, for the note.
        seconds: until its last error is raised; as `waiting_for_storage` set it for this thread, without it.
    """
    seconds = _timeout.get() if seconds is None else seconds
    began, noted = time.monotonic(), False
    while True:
        try:
            answer = work()
        except Exception as error:
            waited = time.monotonic() - began
            if waited >= seconds or not _may_pass(error):
                raise
            if not noted:
                reason = str(getattr(error, "found", None) or error).splitlines()[0][:200]
                print(f"note: {what} cannot be used now; waiting for it, {seconds:.0f} s at most: {reason}", flush=True)
            noted = True
            time.sleep(min(PAUSE_S, max(0.0, seconds - waited)))
        else:
            if noted:
                print(f"note: {what} can be used again after {time.monotonic() - began:.0f} s", flush=True)
            return answer


def _may_pass(error: Exception) -> bool:
    """Whether the storage may later do what it did not do now: it did not answer, rather than refuse."""
    if isinstance(error, StorageError):
        cause = error.__cause__
        lasting = cause is None or isinstance(cause, FileNotFoundError | PermissionError)
        return not lasting and "Credential" not in type(cause).__name__
    text = f"{type(error).__name__} {error}"
    if not isinstance(error, OSError) or any(pattern.search(text) for pattern, _ in _LASTING):
        return False
    return bool(_ADVICE[-1][0].search(text))


def advice(filesystem: pafs.FileSystem, error: BaseException) -> str | None:
    """What to do about an error of an object storage that refuses, lacks the bucket or does not answer.

    None where it is none such, and on a local disk.
    """
    text = f"{type(error).__name__} {error}"
    for pattern, fix in () if is_local(filesystem) else _ADVICE:
        if pattern.search(text):
            return fix.format(attempts=S3_ATTEMPTS)
    return None


# files


def read_bytes(filesystem: pafs.FileSystem, path: str) -> bytes:
    """A whole file."""
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write a file so that it appears whole or not at all: an object store does so by itself."""
    if is_local(filesystem):
        with whole_file(Path(path)) as aside:
            aside.write_bytes(data)
    else:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)


def files_below(filesystem: pafs.FileSystem, root: str) -> list[str]:
    """All files below a folder, relative to it, sorted; none where there is no such folder."""
    found = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
    start = root.lstrip("/") + "/"
    return sorted(i.path.lstrip("/").removeprefix(start) for i in found if i.type == pafs.FileType.File)


def create(location: str, data: bytes) -> bool:
    """Write a file only if there is none, in one step; False when there is one. `location` is a path or URI.

    On S3 by a conditional PUT; other object stores are asked first, which two writers in the same instant can pass.
    """
    if not is_uri(location):
        try:
            stream = open(location, "xb")  # noqa: PTH123, SIM115
        except FileExistsError:
            return False
        try:
            with stream:
                stream.write(data)
        except BaseException:  # a full disk: half a file would block everybody
            Path(location).unlink(missing_ok=True)
            raise
        return True
    filesystem, path = resolve(location)
    if location.startswith("s3://"):
        # the answer to a PUT that was done may be lost, and its repetition is then refused: what is there tells
        return _create_s3(location, data) or _holds(filesystem, path, data)
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        return False
    write_bytes(filesystem, path, data)
    return True


def _holds(filesystem: pafs.FileSystem, path: str, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        return read_bytes(filesystem, path) == data
    return False


def _create_s3(uri: str, data: bytes) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError
    from s3fs import S3FileSystem

    endpoint, region = _s3_server(uri)
    # s3fs keeps its clients by their arguments: without these, one would go on with the credentials it was made with
    client = S3FileSystem(
        key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        token=os.environ.get("AWS_SESSION_TOKEN"),
        endpoint_url=endpoint,
        client_kwargs={"region_name": region},
        config_kwargs={
            "retries": {"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": REQUEST_TIMEOUT_S,
        },
    )
    client.retries = 1  # botocore's are enough
    try:
        client.pipe_file(uri.removeprefix("s3://").partition("?")[0], data, mode="create")
    except FileExistsError:
        return False
    except BotoCoreError as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    except OSError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response.get("Error", {}).get("Code") in _TAKEN:
            return False
        raise
    return True
