"""Where a store or a file is: a local path or a URI, and the pyarrow file system that reads and writes there.

`s3://` is read through Arrow's own S3 client with back-off on every error that may pass; credentials, region and
endpoint come from the usual environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...). `gs://`, `hdfs://` and `file://`
are Arrow's too; any other protocol is fsspec's (`memory://`, `abfs://`, ...). What training must not fail on is asked
for again until the storage is back (`awaited`). Left out: mirrors of whole folders.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from gimp_ray.errors import InputError

Answer = TypeVar("Answer")

# with 0 + 0.05 + 0.1 + 0.2 + ... s between them, 51 s in all: a storage that is down for half a minute is waited for
S3_ATTEMPTS = 12
# how long a storage that does not answer is waited for where a run would end without it, unless the environment says
PATIENCE_S = 600.0
PATIENCE = "GIMP_RAY_STORAGE_PATIENCE"
PAUSE_S = 2.0
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0

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

_making_client = threading.Lock()

_ARROW_SCHEMES = ("file", "gs", "gcs", "hdfs", "viewfs", "mock")


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a URI such as `s3://bucket/store`, and not a local path."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """The place as a string that means the same in another process: a URI as it is, a local path made absolute."""
    text = os.fspath(path)
    # not resolve(), which would follow a symlink
    return text.rstrip("/") if is_uri(text) else os.path.abspath(text)  # noqa: PTH100


def resolve(path: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URI, and the path on it without a trailing slash.

    Raises:
        InputError: an unknown protocol, or a place that is no URI of its protocol.
    """
    text = os.fspath(path)
    if not is_uri(text):
        return pafs.LocalFileSystem(), str(Path(text).absolute())
    try:
        filesystem, root = _of_uri(text)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        fix = "give a local path or a URI such as s3://bucket/store, and check credentials and endpoint"
        raise InputError("this place cannot be used", file=text, found=str(error)[:300], fix=fix) from error
    return filesystem, root.rstrip("/")


def is_local(filesystem: pafs.FileSystem) -> bool:
    """Whether files of the file system can be memory-mapped, renamed and synced here."""
    return isinstance(filesystem, pafs.LocalFileSystem)


def join(place: str, name: str) -> str:
    """`name` below `place`, both with slashes; an absolute name or a URI stays as it is."""
    if is_uri(name) or name.startswith("/"):
        return name
    if is_uri(place):
        scheme, _, rest = place.partition("://")
        rest, mark, query = rest.partition("?")
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, name))}{mark}{query}"
    return posixpath.normpath(posixpath.join(place, name))


def named(filesystem: pafs.FileSystem, path: str) -> str:
    """What to call a path on a file system in a message: as a URI, where it is in S3."""
    return f"s3://{path}" if filesystem.type_name == "s3" else path


def advice(filesystem: pafs.FileSystem, error: BaseException) -> str | None:
    """What to do about an error of an object storage that refuses, lacks the bucket or does not answer.

    None where it is none such, and on a local disk.
    """
    text = f"{type(error).__name__} {error}"
    for pattern, fix in () if is_local(filesystem) else _ADVICE:
        if pattern.search(text):
            return fix.format(attempts=S3_ATTEMPTS)
    return None


def patience() -> float:
    """Seconds for which a storage that does not answer is waited for: `GIMP_RAY_STORAGE_PATIENCE`, or ten minutes."""
    try:
        return float(os.environ.get(PATIENCE) or PATIENCE_S)
    except ValueError:
        raise InputError(
            f"the environment variable {PATIENCE} is no number",
            expected="seconds",
            found=os.environ[PATIENCE],
            fix="correct it, or leave it out",
        ) from None


def awaited(filesystem: pafs.FileSystem, path: str, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives; where an object storage does not answer it is asked again until `patience()` is over.

    Args:
        filesystem: of the object.
        path: of the object, for the note that is printed when the storage's own client has given up a first time.
        ask: reads, and may be called again.

    Raises:
        OSError: whatever `ask` raised, where waiting does not help or took too long.
    """
    if is_local(filesystem):
        return ask()
    return asked_again(ask, functools.partial(_may_pass, filesystem), named(filesystem, path), patience())


def asked_again(ask: Callable[[], Answer], may_pass: Callable[[Exception], bool], what: str, seconds: float) -> Answer:
    """What `ask` gives, tried again for some seconds while its error may pass; says once that it waits, and its end."""
    began, said = time.monotonic(), False
    while True:
        try:
            answer = ask()
        except Exception as error:
            waited = time.monotonic() - began
            if waited >= seconds or not may_pass(error):
                raise
            if not said:
                reason = str(getattr(error, "found", None) or error).splitlines()[0][:200]
                print(f"note: {what} cannot be used now; waiting for it, {seconds:.0f} s at most: {reason}", flush=True)
            said = True
            time.sleep(min(PAUSE_S, max(0.0, seconds - waited)))
        else:
            if said:
                print(f"note: {what} can be used again after {time.monotonic() - began:.0f} s", flush=True)
            return answer


def _may_pass(filesystem: pafs.FileSystem, error: Exception) -> bool:
    """Whether an error says that the storage does not answer, and not that it refuses."""
    text = f"{type(error).__name__} {error}"
    if not isinstance(error, OSError) or any(pattern.search(text) for pattern, _ in _LASTING):
        return False
    return advice(filesystem, error) is not None


def read_bytes(filesystem: pafs.FileSystem, path: str) -> bytes:
    """A whole file."""
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write a file so that it appears whole or not at all: an object store does so by itself."""
    if not is_local(filesystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    aside = f"{path}.tmp-{os.getpid()}"
    try:
        with open(aside, "wb") as stream:  # noqa: PTH123 - the path is a string on a file system
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)  # noqa: PTH108
        raise


def files_below(filesystem: pafs.FileSystem, root: str) -> list[str]:
    """All files below a folder, relative to it, sorted; none where there is no such folder."""
    found = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
    start = root.lstrip("/") + "/"
    return sorted(i.path.lstrip("/").removeprefix(start) for i in found if i.type == pafs.FileType.File)


def create(place: str, data: bytes) -> bool:
    """Write a file only if there is none, in one step; False when there is one. `place` is a path or URI.

    On S3 by a conditional PUT; other object stores are asked first, which two writers in the same instant can pass.
    """
    if not is_uri(place):
        try:
            stream = open(place, "xb")  # noqa: PTH123, SIM115
        except FileExistsError:
            return False
        try:
            with stream:
                stream.write(data)
        except BaseException:  # a full disk: half a file would stand in everybody's way
            with contextlib.suppress(OSError):
                os.unlink(place)  # noqa: PTH108
            raise
        return True
    filesystem, path = resolve(place)
    if place.startswith("s3://"):
        # the answer to a PUT that was done may be lost, and its repetition is then refused: what is there tells
        return _create_s3(place, data) or _holds(filesystem, path, data)
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        return False
    write_bytes(filesystem, path, data)
    return True


def _holds(filesystem: pafs.FileSystem, path: str, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        return read_bytes(filesystem, path) == data
    return False


def _create_s3(place: str, data: bytes) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError
    from s3fs import S3FileSystem

    endpoint, region = _s3_server(place)
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
        client.pipe_file(place.removeprefix("s3://").partition("?")[0], data, mode="create")
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


_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


def _of_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    scheme = urlsplit(uri).scheme
    if scheme == "s3":
        return _s3(uri)
    if scheme in _ARROW_SCHEMES:
        filesystem, root = pafs.FileSystem.from_uri(uri)
        return filesystem, str(root)
    import fsspec

    handler, root = fsspec.core.url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(handler)), str(root)


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

    They take half its time, and a checksum of the object says nothing about a range of it. What the user says in the
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
    said = {key: values[-1] for key, values in parse_qs(urlsplit(uri).query).items()}
    endpoint = said.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    region = said.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not endpoint:
        return None, region
    scheme, _, host = endpoint.rpartition("://")
    return f"{said.get('scheme') or scheme or 'https'}://{host.rstrip('/')}", region or "us-east-1"
