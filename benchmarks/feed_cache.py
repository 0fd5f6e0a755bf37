"""What `feed.cache` brings: `python -m benchmarks.feed_cache [--quick] [--out FILE] [--docs]`.

Mini-batches of windows (pre-training) and of whole bags (fine-tuning), read without a cache, with an empty host cache
(the first epoch) and with a full one (later epochs), from stores of the same bags: on the local disk as they are,
compressed, and in object storage, on loopback and with answers that come 30 ms late. All of them take turns in one run.
Left out: training, and a cache on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from _store_files import bag, make_store, write_cases, write_h5
from _store_timing import environment, machine, ratios, spread
from _tables import replace_section, write_json

from gimp_ray.feed.cache import HostCache
from gimp_ray.feed.plan import Batching, Plan, index_cases
from gimp_ray.feed.windows import read_bags, read_windows
from gimp_ray.store import CohortStore

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
THREADS = 2  # the default of feed.threads
LATE = 0.03
PLAIN, ZSTD, LOOPBACK, FAR = "local disk", "local disk, zstd", "S3 on loopback", "S3, 30 ms late, through a proxy"
Read = Callable[[int], object]


@dataclass(frozen=True)
class Scale:
    """How large everything is: `slides` bags of `patches` x `dim`, windows of `length`, `rounds` repeats."""

    slides: int
    patches: int
    dim: int
    length: int
    rounds: int


FULL = Scale(8, 15_000, 1024, 6000, 9)
QUICK = Scale(4, 3000, 64, 1000, 3)


def run(scale: Scale, folder: Path) -> dict[str, Any]:
    """All measurements, made in `folder`."""
    cohort = _cohort(folder / "cohort", scale)
    with ExitStack() as stack:
        stores = {
            PLAIN: make_store(cohort, folder / "plain"),
            ZSTD: make_store(cohort, folder / "zstd", compression="zstd"),
        }
        stores |= stack.enter_context(_in_s3(cohort, folder / "s3"))
        contestants: dict[str, Read] = {}
        for place, store in stores.items():
            full = HostCache(store, _size(scale))
            for what, read in _reads(store, scale).items():
                ways = _ways(store, scale, read, full)
                contestants |= {f"{place}/{what}/{way}": work for way, work in ways.items()}
        seconds = _in_turns(contestants, scale.rounds)
    rows = [_row(seconds, place, what, scale) for what in ("windows", "bags") for place in stores]
    return {"date": datetime.date.today().isoformat(), "machine": machine(), "scale": asdict(scale), "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The results as Markdown, with how they came about."""
    scale, host = result["scale"], result["machine"]
    head = "| read | store | without, ms | first epoch, ms | later, ms | first / without | without / later |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        shown = [_spread(row[name], 1) for name in ("without", "first", "later")]
        shown += [_spread(row[name], 1) for name in ("cost", "gain")]
        lines.append(" | ".join([f"| {row['what']}", row["store"], *shown]) + " |")
    return (
        f"{scale['slides']} bags of {scale['patches']:,} x {scale['dim']:,} float16, ReLU features; windows of "
        f"{scale['length']:,}; {THREADS} threads; a window or bag of a mini-batch.\n\n" + "\n".join(lines) + "\n\n"
        f"`python -m benchmarks.feed_cache` on {host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB, "
        f"{result['date']}, load {host['load_before']} before; medians of {scale['rounds']} rounds, least and most in "
        "brackets. Everything is in the page cache; the S3 server runs on the same cores."
    )


def _cohort(folder: Path, scale: Scale) -> Path:
    slides = [f"S{number}" for number in range(scale.slides)]
    for number, slide in enumerate(slides):
        values = np.maximum(bag(number, scale.patches, scale.dim), 0)
        write_h5(folder / "patches" / f"{slide}.h5", values, None)
    write_cases(folder, slides)
    return folder


@contextmanager
def _in_s3(cohort: Path, folder: Path) -> Iterator[dict[str, CohortStore]]:
    """The cohort's store in a bucket, opened as it is and through a proxy that answers late; none without a server."""
    from tests.object_storage.proxy import FaultProxy
    from tests.object_storage.server import S3Server, weed_binary

    if weed_binary() is None:
        yield {}
        return
    with S3Server(folder) as server, environment(server.environment()), FaultProxy(server.port) as proxy:
        place = f"{server.make_bucket('benchmark')}/store"
        near = make_store(cohort, place)
        proxy.fault("latency", "GET", "part-", seconds=LATE)
        with environment({"AWS_ENDPOINT_URL": proxy.endpoint}):
            far = CohortStore.open(place)
        yield {LOOPBACK: near, FAR: far}


def _reads(store: CohortStore, scale: Scale) -> dict[str, Callable[[int, Any], object]]:
    """A mini-batch of every slide, of windows and of whole bags, by the number of the epoch and the cache."""
    index = index_cases(store, store.cases["case_id"].to_pylist())
    batching = Batching(cases_per_class=scale.slides // 2, window=scale.length)
    plan = Plan(1, scale.rounds, index, batching)
    cases = np.arange(scale.slides // 2)  # half of them: a mini-batch of bags is large
    return {
        "windows": lambda epoch, cache: read_windows(store, index, plan.row(epoch, 0, 1), scale.length, THREADS, cache),
        "bags": lambda epoch, cache: read_bags(store, index, cases, THREADS, cache),
    }


def _size(scale: Scale) -> int:
    """Bytes of all bags."""
    return scale.slides * scale.patches * scale.dim * 2


def _ways(store: CohortStore, scale: Scale, read: Callable[[int, Any], object], full: HostCache) -> dict[str, Read]:
    return {
        "without": lambda epoch: read(epoch, None),
        "first": lambda epoch: (cache := HostCache(store, _size(scale)), read(epoch, cache)),
        "later": lambda epoch: read(epoch, full),
    }


def _in_turns(contestants: dict[str, Read], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after one that is not counted; giving memory back is not counted."""
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            started = time.perf_counter()
            read = contestants[name](max(number, 0))
            taken = time.perf_counter() - started
            del read
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def _row(seconds: dict[str, list[float]], place: str, what: str, scale: Scale) -> dict[str, Any]:
    count = scale.slides if what == "windows" else scale.slides // 2
    taken = {way: seconds[f"{place}/{what}/{way}"] for way in ("without", "first", "later")}
    return {way: spread(values, 1000 / count) for way, values in taken.items()} | {
        "what": what,
        "store": place,
        "cost": ratios(taken["first"], taken["without"]),
        "gain": ratios(taken["without"], taken["later"]),
    }


def _spread(value: dict[str, float], digits: int) -> str:
    return f"{value['median']:.{digits}f} ({value['min']:.{digits}f} to {value['max']:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and soon done: shows that it works, not how fast")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-benchmark-") as folder:
        result = run(QUICK if options.quick else FULL, Path(folder))
    if options.out is not None:
        write_json(options.out, result)
    print(table(result))
    if options.docs:
        replace_section(DOCS, "feed-cache", table(result))


if __name__ == "__main__":
    main()
