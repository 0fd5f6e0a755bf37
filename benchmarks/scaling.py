"""What to expect of pre-training on more GPUs and more slides: `python -m benchmarks.scaling`.

Pure functions of the constants in scaling.csv, and the tables of docs/scaling.md (`--docs` writes them there). Every
constant says where it comes from: measured, published by a vendor, read off the code, assumed, or an estimate. Nothing
here is a measurement of a GPU: none was made. GPU memory, copies to a GPU and the overhead of a step are not estimated.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, parser, publish, table

DOCS = ROOT / "docs" / "scaling.md"
SLIDES = (1_000, 11_000, 100_000)
GPUS = (1, 8, 64)
GPUS_A_NODE = 8
Rows = Iterator[list[object]]


with Path(__file__).with_suffix(".csv").open(encoding="utf-8") as _file:
    CONSTANTS = {row["name"]: row for row in csv.DictReader(_file)}


def constant(name: str) -> float:
    """The value of a constant."""
    return float(CONSTANTS[name]["value"])


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: for people.
        window_s: seconds of forward and backward for one window; an estimate.
    """

    name: str
    window_s: float


@dataclass(frozen=True)
class Storage:
    """Where windows come from.

    Attributes:
        name: for people.
        node_gb_s: GB/s that a node gets from it, shared by the node's workers; None where it is the node's own memory.
        stream_gb_s: GB/s that one request brings; None where one is as good as many.
    """

    name: str
    node_gb_s: float | None = None
    stream_gb_s: float | None = None


RTX_3090 = Gpu("RTX 3090", constant("gpu_3090"))
H200 = Gpu("H200", constant("gpu_h200"))
PAGE_CACHE = Storage("page cache")
LINK_25 = Storage("25 Gbit/s", 25 / 8)
LINK_100 = Storage("100 Gbit/s", 100 / 8)
S3 = Storage("S3, 2 threads", 100 / 8, constant("s3_stream"))
STORAGES = (PAGE_CACHE, LINK_100, LINK_25, S3)


def store_gb(slides: int, patches: float = constant("patches"), dim: float = constant("dim"), width: int = 2) -> float:
    """GB of the embeddings of a store; `width` is 2 for float16 and bfloat16, 4 for float32."""
    return slides * patches * dim * width / 1e9


def window_gb(length: float = constant("window"), dim: float = constant("dim"), width: int = 2) -> float:
    """GB that one window reads: no more than its own patches, however long the bag."""
    return length * dim * width / 1e9


def batch_gb(cases: float = constant("cases")) -> float:
    """GB of a worker's mini-batch."""
    return cases * window_gb()


def steps_an_epoch(slides: int, workers: int, cases: float = constant("cases")) -> int:
    """Steps of an epoch with one slide a case and classes of one size: every step takes `cases` windows a worker."""
    return math.ceil(slides / (workers * cases))


def memory_gb_s() -> float:
    """GB/s of a worker that reads what is in the page cache, with one thread."""
    return window_gb() * 1000 / constant("read_ms")


def feed_s(storage: Storage, workers_on_node: int, threads: int = 2) -> float:
    """Seconds between two windows of a worker, all the node's workers reading at once.

    Threads are not taken to read memory faster than one does: several on one memory bus were not measured.

    A window is one request, and threads share the windows of one mini-batch: more of them than its windows wait.
    """
    rate = memory_gb_s()
    if storage.node_gb_s is not None:
        rate = min(rate, storage.node_gb_s / workers_on_node)
    if storage.stream_gb_s is not None:
        rate = min(rate, storage.stream_gb_s * min(threads, constant("cases")))
    return window_gb() / rate


def zstd_feed_s(storage: Storage, workers_on_node: int, threads: int = 2) -> float:
    """The same from a zstd store: fewer bytes over the link, more work a window. Threads are taken to add up."""
    over_link = 0.0
    if storage.node_gb_s is not None:
        over_link = (1 - constant("zstd_saves")) * window_gb() / (storage.node_gb_s / workers_on_node)
    return max(over_link, constant("zstd_ms") / 1000 / threads)


def zstd_pays_below_gbit_s(threads: int = 2) -> float:
    """Gbit/s of a worker's share of a link below which a zstd store is read faster than one without."""
    return window_gb() * 8 / (constant("zstd_ms") / 1000 / threads)


@dataclass(frozen=True)
class Epoch:
    """What an epoch takes, and what holds it up.

    Attributes:
        steps: optimiser steps.
        seconds: without checkpoint.
        limit: `GPU` or `reading`.
        busy: share of the time that the GPUs compute.
    """

    steps: int
    seconds: float
    limit: str
    busy: float


def epoch(slides: int, gpus: int, gpu: Gpu, storage: Storage) -> Epoch:
    """An epoch of pre-training, one worker a GPU: reading and computing overlap, and the slower one counts."""
    steps = steps_an_epoch(slides, gpus)
    reading = feed_s(storage, min(gpus, GPUS_A_NODE))
    slower = max(gpu.window_s, reading)
    return Epoch(
        steps=steps,
        seconds=steps * constant("cases") * slower,
        limit="GPU" if gpu.window_s >= reading else "reading",
        busy=gpu.window_s / slower,
    )


def requests_s(gpus: int, storage: Storage) -> float:
    """Ranged reads a second of all workers while reading is the limit: one a window."""
    return gpus / feed_s(storage, min(gpus, GPUS_A_NODE))


def checkpoint_gb() -> float:
    """GB of a checkpoint of pre-training: model, gene encoder, and two moments of what is trained, in float32."""
    return 4 * (3 * constant("trained") + constant("frozen")) / 1e9


def checkpoint_s() -> tuple[float, float]:
    """Seconds that training waits for a checkpoint to S3, fastest and slowest."""
    return checkpoint_gb() / constant("upload_high"), checkpoint_gb() / constant("upload_low")


def gradient_gb(workers: int) -> float:
    """GB that each worker sends in a step to average gradients in a ring."""
    return 2 * (workers - 1) / workers * 4 * constant("trained") / 1e9


def host_gb(workers: int, ahead: float = constant("ahead")) -> float:
    """GB of mini-batches in a node's memory: waiting, being read, being trained on, and its pinned copy."""
    return workers * (ahead + 3) * batch_gb()


def object_store_gb(workers: int) -> float:
    """GB at least in a node's object store with `feed.read_in: ray_data`: a task's rows and those fetched ahead."""
    return workers * (constant("rows_a_task") + max(1, constant("ahead"))) * batch_gb()


def _figure(value: float) -> str:
    """A number with two or three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _size(gb: float) -> str:
    return f"{_figure(gb / 1000)} TB" if gb >= 1000 else f"{_figure(gb)} GB" if gb >= 1 else f"{_figure(gb * 1000)} MB"


def _store_rows() -> Rows:
    for slides in SLIDES:
        gb = store_gb(slides)
        sizes = [_size(gb), _size(store_gb(slides, width=4)), _size(gb * (1 - constant("zstd_saves")))]
        files = f"{math.ceil(gb / 0.256):,}"
        yield [f"{slides:,}", *sizes, files, _size(slides * window_gb()), _size(slides * 32 / 1e9)]


def _demand_rows() -> Rows:
    """What a node must deliver for its GPUs never to wait."""
    for gpu in (RTX_3090, H200):
        for gpus in (1, GPUS_A_NODE):
            gb_s = gpus / gpu.window_s * window_gb()
            low, high = (_figure(gb_s * constant(name)) for name in ("carried_cpu_low", "carried_cpu_high"))
            figures = [_figure(value) for value in (gpus / gpu.window_s, gb_s, gb_s / memory_gb_s())]
            yield [gpu.name, gpus, *figures, f"{low} to {high}"]


def _epoch_rows(gpu: Gpu) -> Rows:
    for slides in SLIDES:
        for gpus in GPUS:
            found = [epoch(slides, gpus, gpu, storage) for storage in STORAGES]
            cells = [f"{_figure(one.seconds)} s ({one.limit}, {one.busy:.0%})" for one in found]
            yield [f"{slides:,}", gpus, f"{found[0].steps:,}", *cells]


def _node_rows() -> Rows:
    for gpus in GPUS:
        here = min(gpus, GPUS_A_NODE)
        requests = " / ".join(_figure(requests_s(gpus, link)) for link in (LINK_25, LINK_100))
        sent = _size(gradient_gb(gpus)) if gpus > 1 else "0"
        yield [gpus, math.ceil(gpus / GPUS_A_NODE), _size(host_gb(here)), _size(object_store_gb(here)), sent, requests]


def _thread_rows() -> Rows:
    """What threads do for a worker that reads from S3, in a node behind 100 Gbit/s."""
    for threads in (1, 2, 4, 8, 16):
        seconds = feed_s(S3, GPUS_A_NODE, threads)
        busy = [f"{min(1.0, gpu.window_s / seconds):.0%}" for gpu in (RTX_3090, H200)]
        yield [threads, f"{seconds * 1e3:.0f} ms", _figure(GPUS_A_NODE * window_gb() * 8 / seconds), *busy]


def _zstd_rows() -> Rows:
    for storage in (PAGE_CACHE, LINK_100, LINK_25):
        for workers in (1, GPUS_A_NODE):
            plain, packed = feed_s(storage, workers), zstd_feed_s(storage, workers)
            milliseconds = [f"{_figure(seconds * 1e3)} ms" for seconds in (plain, packed)]
            yield [storage.name, workers, *milliseconds, "zstd" if packed < plain else "none"]


def _fixed_rows() -> Rows:
    low, high = checkpoint_s()
    yield ["checkpoint of pre-training", _size(checkpoint_gb())]
    yield ["training waits for it, to S3", f"{_figure(low)} to {_figure(high)} s"]
    start = f"{constant('start_low'):.0f} to {constant('start_high'):.0f} s"
    yield ["start of a worker group, and again after a failure", start]
    yield ["a GPU node that is not up yet", "minutes (not measured)"]


def _constant_rows() -> Rows:
    for row in CONSTANTS.values():
        yield [row["what"], f"{float(row['value']):,.15g} {row['unit']}".strip(), row["kind"], row["source"]]


def sections() -> dict[str, str]:
    """Section of docs/scaling.md -> its Markdown."""
    epochs = "slides | GPUs | steps an epoch | " + " | ".join(storage.name for storage in STORAGES)
    made = {
        "constants": ("constant | value | kind | where from", _constant_rows()),
        "store": (
            "slides | float16 | float32 | float16, zstd | part files of 256 MB | read an epoch | plan of an epoch",
            _store_rows(),
        ),
        "demand": (
            "GPU | GPUs a node | windows/s (= requests/s) | GB/s | cores to read | cores with `feed.read_in: ray_data`",
            _demand_rows(),
        ),
        "epoch-3090": (epochs, _epoch_rows(RTX_3090)),
        "epoch-h200": (epochs, _epoch_rows(H200)),
        "node": (
            "GPUs | nodes | mini-batches in a node's memory | object store a node, `ray_data` | "
            "gradients a worker sends a step | requests/s over 25 / 100 Gbit/s",
            _node_rows(),
        ),
        "s3": ("`feed.threads` | a window | Gbit/s of 8 workers | RTX 3090 busy | H200 busy", _thread_rows()),
        "zstd": ("storage of a node | workers on it | none | zstd | faster", _zstd_rows()),
        "fixed": ("what | how much", _fixed_rows()),
    }
    return {f"scaling-{name}": table(head.split(" | "), list(rows)) for name, (head, rows) in made.items()}


if __name__ == "__main__":
    publish(sections(), parser(__doc__, "docs").parse_args().docs, DOCS)
