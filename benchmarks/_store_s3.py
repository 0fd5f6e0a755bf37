"""Windows from a store in object storage, a real S3 server on this machine: rate beside plain requests, and bytes.

Left out: networks. A server on loopback has no latency and takes its share of the same processor.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.compute as pc
from _store_files import Scale, make_store
from _store_timing import alternate, environment, ratios, spread

from gimp_ray.io import storage
from gimp_ray.store import CohortStore

IN_FLIGHT = 8
STORE, ARROW, PLAIN = "this store", "Arrow's S3 client, the same bytes", "http.client, the same bytes"


def measure(cohort: Path, folder: Path, scale: Scale) -> dict[str, Any] | None:
    """Windows a second with eight in flight, and what they fetch; None where there is no S3 server to start."""
    try:
        from tests.object_storage.proxy import FaultProxy
        from tests.object_storage.server import S3Server, weed_binary
    except ImportError:
        return None
    if weed_binary() is None:
        return None
    with S3Server(folder / "s3") as server, environment(server.environment()):
        place = f"{server.make_bucket('benchmark')}/store"
        make_store(cohort, place)
        rates = _rates(place, server.endpoint, scale)
        with FaultProxy(server.port) as proxy, environment({"AWS_ENDPOINT_URL": proxy.endpoint}):
            return {"in_flight": IN_FLIGHT, "rates": rates, "bytes": _bytes(place, proxy, scale)}


def _rates(place: str, endpoint: str, scale: Scale) -> list[dict[str, Any]]:
    """The same windows by the store and the same ranges of bytes by plain clients, in turns."""
    store = CohortStore.open(place)
    filesystem, root = storage.resolve(place)
    part = store.slides["file"][0].as_py()
    slides = store.slides.filter(pc.field("file") == part)["slide_id"].to_pylist()
    windows = _windows(slides, scale, scale.s3_windows)
    source = filesystem.open_input_file(f"{root}/{part}")
    size = scale.length * scale.dim * 2
    # about where the windows lie: the footer would tell exactly
    ranges = [((slides.index(s) * scale.patches + start) * scale.dim * 2, size) for s, start in windows]
    plain = _Plain(_signed(endpoint, f"{root}/{part}"))

    with ThreadPoolExecutor(IN_FLIGHT) as threads:

        def all_at_once(read: Callable[[tuple[Any, ...]], Sized], jobs: list[tuple[Any, ...]]) -> Callable[[int], None]:
            def run(_: int) -> None:
                # what was read is dropped at once, as a step that is done with it does
                for _ in threads.map(lambda job: len(read(job)), jobs):
                    pass

            return run

        seconds = alternate(
            {
                STORE: all_at_once(lambda w: store.read_window(w[0], w[1], scale.length), windows),
                ARROW: all_at_once(lambda r: source.read_at(r[1], r[0]), ranges),
                PLAIN: all_at_once(lambda r: plain.get(*r), ranges),
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


def _bytes(place: str, proxy: Any, scale: Scale) -> list[dict[str, Any]]:
    """Requests and bytes of windows of a new worker, counted by a proxy between."""
    rows = []
    for length in scale.lengths:
        store = CohortStore.open(place)
        proxy.forget()
        store.read_window("S0", 0, 1)
        footer, one = proxy.bytes_read("part-"), [0, 0]
        for slide, start in _windows([f"S{i}" for i in range(scale.slides)], scale, 8):
            proxy.forget()
            store.read_window(slide, start, length)
            one = [one[0] + proxy.count("GET"), one[1] + proxy.bytes_read()]
        needed = 8 * length * scale.dim * 2
        rows.append(
            {
                "length": length,
                "requests": one[0] / 8,
                "fetched_over_needed": one[1] / needed,
                "footer_kb": footer / 1e3,
            }
        )
    return rows


def _windows(slides: list[str], scale: Scale, count: int) -> list[tuple[str, int]]:
    generator = np.random.default_rng(2)
    starts = generator.integers(0, scale.patches - scale.length + 1, count)
    return [(slides[i % len(slides)], int(start)) for i, start in enumerate(starts)]


def _signed(endpoint: str, path: str) -> str:
    """A URL by which anyone may read the object for an hour."""
    from tests.object_storage.server import s3_client

    bucket, _, key = path.partition("/")
    client = s3_client(endpoint)
    return str(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=3600))


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
