"""What `feed.cache` brings: `python -m benchmarks.feed_cache [--quick] [--out FILE] [--docs]`.

Mini-batches of windows (pre-training) and of whole bags (fine-tuning), read without a cache, with an empty host cache
(the first epoch) and with a full one (later epochs), from stores of the same bags: on the local disk as they are,
compressed, and in object storage, on loopback and with answers that come 30 ms late. All of them take turns in one run.
Training, and a cache on a GPU, are not measured.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    Found,
    alternate,
    changed_environment,
    heading,
    make_store,
    parser,
    publish,
    ratios,
    span,
    spread,
    table,
    write_json,
)
from benchmarks.store import bag, write_cohort
from gimp_ray.feed.cache import HostCache
from gimp_ray.feed.plan import Batching, Plan, index_cases
from gimp_ray.feed.windows import read_bags, read_windows
from gimp_ray.store import CohortStore

THREADS = 2  # the default of feed.threads
LATE = 0.03
WAYS = ("without", "first", "later")


@dataclass(frozen=True)
class Scale:
    """How large everything is: `slides` bags of `patches` x `dim`, windows of `length`, `rounds` repeats."""

    slides: int = 8
    patches: int = 15_000
    dim: int = 1024
    length: int = 6000
    rounds: int = 9


QUICK = Scale(4, 1000, 64, 500, 1)


def run(scale: Scale, folder: Path) -> Found:
    """All measurements, made in `folder`."""
    bags = {f"S{n}": lambda n=n: np.maximum(bag(n, scale.patches, scale.dim), 0) for n in range(scale.slides)}  # type: ignore[misc]
    cohort = write_cohort(folder / "cohort", bags, None)
    with _in_s3(cohort, folder / "s3") as in_s3:
        stores = {
            "local disk": make_store(cohort, folder / "plain", workers=1),
            "local disk, zstd": make_store(cohort, folder / "zstd", workers=1, compression="zstd"),
        } | in_s3
        contestants: dict[str, Callable[[int], object]] = {}
        for place, store in stores.items():
            size = scale.slides * scale.patches * scale.dim * 2
            full, empty = HostCache(store, size), lambda store=store, size=size: HostCache(store, size)  # type: ignore[misc]
            for what, read in _reads(store, scale).items():
                contestants |= {
                    f"{place}/{what}/without": lambda epoch, read=read: read(epoch, None),  # type: ignore[misc]
                    f"{place}/{what}/first": lambda epoch, read=read, empty=empty: read(epoch, empty()),  # type: ignore[misc]
                    f"{place}/{what}/later": lambda epoch, read=read, full=full: read(epoch, full),  # type: ignore[misc]
                }
        seconds = alternate(contestants, scale.rounds)
    rows = []
    for what, count in (("windows", scale.slides), ("bags", scale.slides // 2)):
        for place in stores:
            taken = {way: seconds[f"{place}/{what}/{way}"] for way in WAYS}
            row = {way: spread(values, 1000 / count) for way, values in taken.items()}
            row |= {"cost": ratios(taken["first"], taken["without"]), "gain": ratios(taken["without"], taken["later"])}
            rows.append({"what": what, "store": place} | row)
    return heading(asdict(scale)) | {"rows": rows}


def section(result: Found) -> str:
    """The results as Markdown, with how they came about."""
    scale, host = result["scale"], result["machine"]
    head = ["read", "store", "without, ms", "first epoch, ms", "later, ms", "first / without", "without / later"]
    rows = [
        [row["what"], row["store"], *(span(row[name], ".1f") for name in (*WAYS, "cost", "gain"))]
        for row in result["rows"]
    ]
    return (
        f"{scale['slides']} bags of {scale['patches']:,} x {scale['dim']:,} float16, ReLU features; windows of "
        f"{scale['length']:,}; {THREADS} threads; a window or bag of a mini-batch.\n\n{table(head, rows)}\n\n"
        f"`python -m benchmarks.feed_cache` on {host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB, "
        f"{result['date']}, load {host['load_before']} before; medians of {scale['rounds']} rounds, least and most in "
        "brackets. Everything is in the page cache; the S3 server runs on the same cores."
    )


@contextmanager
def _in_s3(cohort: Path, folder: Path) -> Iterator[dict[str, CohortStore]]:
    """The cohort's store in a bucket, opened as it is and through a proxy that answers late; none without a server."""
    from tests.object_storage.proxy import FaultProxy
    from tests.object_storage.server import S3Server, weed_binary

    if weed_binary() is None:
        yield {}
        return
    with S3Server(folder) as server, changed_environment(server.environment()), FaultProxy(server.port) as proxy:
        place = f"{server.make_bucket('benchmark')}/store"
        near = make_store(cohort, place, workers=1)
        proxy.fault("latency", "GET", "part-", seconds=LATE)
        with changed_environment({"AWS_ENDPOINT_URL": proxy.endpoint}):
            far = CohortStore.open(place)
        yield {"S3 on loopback": near, "S3, 30 ms late, through a proxy": far}


def _reads(store: CohortStore, scale: Scale) -> dict[str, Callable[[int, Any], object]]:
    """A mini-batch of every slide, of windows and of whole bags, by the number of the epoch and the cache."""
    index = index_cases(store, store.cases["case_id"].to_pylist())
    plan = Plan(1, scale.rounds, index, Batching(cases_per_class=scale.slides // 2, window=scale.length))
    cases = np.arange(scale.slides // 2)  # half of them: a mini-batch of bags is large
    return {
        "windows": lambda epoch, cache: read_windows(store, index, plan.row(epoch, 0, 1), scale.length, THREADS, cache),
        "bags": lambda epoch, cache: read_bags(store, index, cases, THREADS, cache),
    }


def main() -> None:
    options = parser(__doc__, "quick", "out", "docs").parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-benchmark-") as folder:
        result = run(QUICK if options.quick else Scale(), Path(folder))
    if options.out:
        write_json(options.out, result)
    publish({"feed-cache": section(result)}, options.docs)


if __name__ == "__main__":
    main()
