"""Windows from a store in object storage, a real S3 server on this machine: rate beside plain requests, and bytes.

A server on loopback has no latency and takes its share of the same processor.
"""

import http.client
import threading
from collections.abc import Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.compute as pc

from benchmarks.common import Found, alternate, changed_environment, make_store, ratios, spread
from benchmarks.store import Scale
from gimp_ray.io import storage
from gimp_ray.store import CohortStore

IN_FLIGHT = 8
STORE, ARROW, PLAIN = "this store", "Arrow's S3 client, the same bytes", "http.client, the same bytes"


def measure(cohort: Path, folder: Path, scale: Scale) -> Found | None:
    """Windows a second with eight in flight, and what they fetch; None where there is no S3 server to start."""
    from tests.object_storage.proxy import FaultProxy
    from tests.object_storage.server import S3Server, weed_binary

    if weed_binary() is None:
        return None
    with S3Server(folder / "s3") as server, changed_environment(server.environment()):
        place = f"{server.make_bucket('benchmark')}/store"
        make_store(cohort, place, workers=1)
        rates = _rates(place, server.endpoint, scale)
        with FaultProxy(server.port) as proxy, changed_environment({"AWS_ENDPOINT_URL": proxy.endpoint}):
            counted = [_bytes(place, proxy, scale, length) for length in scale.lengths]
        return {"in_flight": IN_FLIGHT, "rates": rates, "bytes": counted}


def _rates(place: str, endpoint: str, scale: Scale) -> list[Found]:
    """The same windows by the store and the same ranges of bytes by plain clients, in turns."""
    from tests.object_storage.server import s3_client

    store = CohortStore.open(place)
    filesystem, root = storage.resolve(place)
    part = store.slides["file"][0].as_py()
    slides = store.slides.filter(pc.field("file") == part)["slide_id"].to_pylist()
    windows = _windows(slides, scale, scale.s3_windows)
    source = filesystem.open_input_file(f"{root}/{part}")
    size = scale.length * scale.dim * 2
    # about where the windows lie: the footer would tell exactly
    ranges = [((slides.index(s) * scale.patches + start) * scale.dim * 2, size) for s, start in windows]
    bucket, _, key = f"{root}/{part}".partition("/")
    asked = {"Bucket": bucket, "Key": key}
    plain = _Plain(s3_client(endpoint).generate_presigned_url("get_object", Params=asked, ExpiresIn=3600))

    with ThreadPoolExecutor(IN_FLIGHT) as threads:

        def all_at_once(read: Callable[..., Sized], jobs: list[Any]) -> Callable[[int], None]:
            def run(_: int) -> None:
                # what was read is dropped at once, as a step that is done with it does
                for _ in threads.map(lambda job: len(read(*job)), jobs):
                    pass

            return run

        seconds = alternate(
            {
                STORE: all_at_once(lambda slide, start: store.read_window(slide, start, scale.length), windows),
                ARROW: all_at_once(lambda offset, length: source.read_at(length, offset), ranges),
                PLAIN: all_at_once(plain.get, ranges),
            },
            scale.rounds,
        )
    megabytes = sum(length for _, length in ranges) / 1e6
    return [
        {
            "reader": name,
            "windows_s": spread([len(windows) / s for s in taken]),
            "mb_s": spread([megabytes / s for s in taken]),
            "share_of_plain": ratios(seconds[PLAIN], taken),
        }
        for name, taken in seconds.items()
    ]


def _bytes(place: str, proxy: Any, scale: Scale, length: int) -> Found:
    """Requests and bytes of eight windows of a new worker, counted by a proxy between."""
    store = CohortStore.open(place)
    proxy.forget()
    store.read_window("S0", 0, 1)
    footer = proxy.bytes_read("part-")
    proxy.forget()
    for slide, start in _windows([f"S{i}" for i in range(scale.slides)], scale, 8):
        store.read_window(slide, start, length)
    return {
        "length": length,
        "requests": proxy.count("GET") / 8,
        "fetched_over_needed": proxy.bytes_read() / (8 * length * scale.dim * 2),
        "footer_kb": footer / 1e3,
    }


def _windows(slides: list[str], scale: Scale, count: int) -> list[tuple[str, int]]:
    starts = np.random.default_rng(2).integers(0, scale.patches - scale.length + 1, count)
    return [(slides[i % len(slides)], int(start)) for i, start in enumerate(starts)]


class _Plain:
    """Ranged GETs of one URL, a connection a thread that stays open."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._target = parts.netloc, f"{parts.path}?{parts.query}"
        self._local = threading.local()

    def get(self, offset: int, length: int) -> bytearray:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(self._host)
        connection = self._local.connection
        connection.request("GET", self._target, headers={"Range": f"bytes={offset}-{offset + length - 1}"})
        answer = connection.getresponse()
        if answer.status != http.client.PARTIAL_CONTENT:
            raise OSError(f"{answer.status} {answer.reason}")
        body, done = bytearray(length), 0
        while done < length:
            got = answer.readinto(memoryview(body)[done:])
            if not got:
                raise OSError(f"{done} of {length} bytes")
            done += got
        answer.read()
        return body
