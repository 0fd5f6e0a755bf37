"""What to expect of pre-training on more GPUs and more slides: `python benchmarks/scaling.py`.

Pure functions of a few constants, and the tables of docs/scaling.md (`--docs` writes them there). Every constant says
where it comes from: measured, published by a vendor, read off the code, assumed, or an estimate. Nothing here is a
measurement of a GPU: none was made. Left out for want of a figure: GPU memory, the copy to the GPU, what overlaps with
what, and the overhead of a step.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
SLIDES = (1_000, 11_000, 100_000)
GPUS = (1, 8, 64)
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Constant:
    """A figure, its unit, and why to believe it."""

    value: float
    unit: str
    what: str
    kind: str
    source: str


TWO_CORES = "2 busy CPU cores, page cache warm"
CONSTANTS = {
    "patches": Constant(
        15_000, "patches", "mean bag", "assumed", "946 TCGA lung slides are about 29 GB; bags have 485 to 148,569"
    ),
    "dim": Constant(1024, "values", "width of an embedding", "assumed", "UNI's; encoders in use have 512 to 2,560"),
    "window": Constant(6000, "patches", "`window.length`", "code", "the default, from the paper"),
    "cases": Constant(
        8, "windows", "a worker's mini-batch", "code", "the defaults of `batch.classes` and `batch.cases_per_class`"
    ),
    "ahead": Constant(2, "mini-batches", "`feed.ahead`", "code", "the default"),
    "rows_a_task": Constant(
        16, "mini-batches", "rows of a task of Ray Data that reads windows", "code", "`gimp_ray/feed/batches.py`"
    ),
    "read_ms": Constant(
        2.0, "ms/window", "reading a window of 6,000 x 1,024, 1 thread", "measured", f"docs/performance.md; {TWO_CORES}"
    ),
    "carried_cpu_low": Constant(2.2, "CPU-s/GB", "CPU of carrying them, lowest", "measured", TWO_CORES),
    "carried_cpu_high": Constant(4.6, "CPU-s/GB", "CPU of carrying them, highest", "measured", TWO_CORES),
    "zstd_ms": Constant(
        23.2, "ms/window", "the same from a zstd store, 1 thread", "measured", f"docs/performance.md; {TWO_CORES}"
    ),
    "zstd_saves": Constant(
        0.41,
        "",
        "share of the bytes that zstd saves on ReLU features",
        "measured",
        "features that are half zeros; others may save little",
    ),
    "cpu_window": Constant(
        3.0,
        "s/window",
        "a training step's share, 2 CPU cores (2 to 4)",
        "measured",
        "0.2 TFLOP, forward and backward, d = 512",
    ),
    "gpu_3090": Constant(
        0.006,
        "s/window",
        "the same on an RTX 3090",
        "estimate",
        "0.2 TFLOP at about the card's peak in float32; no GPU was run",
    ),
    "gpu_h200": Constant(
        0.001,
        "s/window",
        "the same on an H200",
        "estimate",
        "0.2 TFLOP at a fifth of the card's peak in bf16; no GPU was run",
    ),
    "trained": Constant(
        3_153_936, "parameters", "trained in pre-training (D = 1,024, defaults)", "code", "a test counts them"
    ),
    "frozen": Constant(
        4_748_288, "parameters", "frozen gene encoder (25,223 genes, defaults)", "code", "a test counts them"
    ),
    "upload_low": Constant(
        0.029, "GB/s", "checkpoint to S3, slowest", "measured", "20 MB in 0.3 to 0.7 s, a server on the same machine"
    ),
    "upload_high": Constant(0.067, "GB/s", "checkpoint to S3, fastest", "measured", "the same"),
    "start_low": Constant(
        18, "s", "start of a worker group, fastest", "measured", "one or two workers on 2 busy cores"
    ),
    "start_high": Constant(42, "s", "start of a worker group, slowest", "measured", "the same"),
    "s3_stream": Constant(
        0.085,
        "GB/s",
        "what one request to S3 brings",
        "published",
        "Amazon's advice for S3 (85 to 90 MB/s); not measured",
    ),
    "s3_gets": Constant(
        5_500, "requests/s", "GETs that S3 answers below one prefix", "published", "Amazon's documentation"
    ),
}


def constant(name: str) -> float:
    """The value of a constant."""
    return CONSTANTS[name].value


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


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in [head, *rows]]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def _figure(value: float) -> str:
    """A number with two or three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _size(gb: float) -> str:
    return f"{_figure(gb / 1000)} TB" if gb >= 1000 else f"{_figure(gb)} GB" if gb >= 1 else f"{_figure(gb * 1000)} MB"


def constants_table() -> str:
    rows = [[c.what, f"{c.value:,.15g} {c.unit}".strip(), c.kind, c.source] for c in CONSTANTS.values()]
    return _table(["constant", "value", "kind", "where from"], rows)


def store_table() -> str:
    rows = [
        [
            f"{slides:,}",
            _size(store_gb(slides)),
            _size(store_gb(slides, width=4)),
            _size(store_gb(slides) * (1 - constant("zstd_saves"))),
            f"{math.ceil(store_gb(slides) / 0.256):,}",
            _size(slides * window_gb()),
            _size(slides * 32 / 1e9),
        ]
        for slides in SLIDES
    ]
    head = [
        "slides",
        "float16",
        "float32",
        "float16, zstd",
        "part files of 256 MB",
        "read an epoch",
        "plan of an epoch",
    ]
    return _table(head, rows)


def demand_table() -> str:
    """What a node must deliver for its GPUs never to wait."""
    rows = []
    for gpu in (RTX_3090, H200):
        for gpus in (1, GPUS_A_NODE):
            windows = gpus / gpu.window_s
            gb_s = windows * window_gb()
            carried = [gb_s * constant(name) for name in ("carried_cpu_low", "carried_cpu_high")]
            rows.append(
                [
                    gpu.name,
                    str(gpus),
                    _figure(windows),
                    _figure(gb_s),
                    _figure(gb_s / memory_gb_s()),
                    f"{_figure(carried[0])} to {_figure(carried[1])}",
                ]
            )
    head = [
        "GPU",
        "GPUs a node",
        "windows/s (= requests/s)",
        "GB/s",
        "cores to read",
        "cores with `feed.read_in: ray_data`",
    ]
    return _table(head, rows)


def epoch_table(gpu: Gpu) -> str:
    rows = []
    for slides in SLIDES:
        for gpus in GPUS:
            found = [epoch(slides, gpus, gpu, storage) for storage in STORAGES]
            cells = [f"{_figure(one.seconds)} s ({one.limit}, {one.busy:.0%})" for one in found]
            rows.append([f"{slides:,}", str(gpus), f"{found[0].steps:,}", *cells])
    return _table(["slides", "GPUs", "steps an epoch", *(storage.name for storage in STORAGES)], rows)


def node_table() -> str:
    rows = [
        [
            str(gpus),
            str(math.ceil(gpus / GPUS_A_NODE)),
            _size(host_gb(on_node)),
            _size(object_store_gb(on_node)),
            _size(gradient_gb(gpus)) if gpus > 1 else "0",
            f"{_figure(requests_s(gpus, LINK_25))} / {_figure(requests_s(gpus, LINK_100))}",
        ]
        for gpus in GPUS
        for on_node in [min(gpus, GPUS_A_NODE)]
    ]
    head = [
        "GPUs",
        "nodes",
        "mini-batches in a node's memory",
        "object store a node, `ray_data`",
        "gradients a worker sends a step",
        "requests/s over 25 / 100 Gbit/s",
    ]
    return _table(head, rows)


def zstd_table() -> str:
    rows = []
    for storage in (PAGE_CACHE, LINK_100, LINK_25):
        for workers in (1, GPUS_A_NODE):
            plain, packed = feed_s(storage, workers), zstd_feed_s(storage, workers)
            better = "zstd" if packed < plain else "none"
            rows.append(
                [storage.name, str(workers), f"{_figure(plain * 1e3)} ms", f"{_figure(packed * 1e3)} ms", better]
            )
    return _table(["storage of a node", "workers on it", "none", "zstd", "faster"], rows)


def threads_table() -> str:
    """What threads do for a worker that reads from S3, in a node behind 100 Gbit/s."""
    rows = []
    for threads in (1, 2, 4, 8, 16):
        seconds = feed_s(S3, GPUS_A_NODE, threads)
        busy = [min(1.0, gpu.window_s / seconds) for gpu in (RTX_3090, H200)]
        gbit_s = GPUS_A_NODE * window_gb() * 8 / seconds
        rows.append([str(threads), f"{seconds * 1e3:.0f} ms", _figure(gbit_s), *(f"{share:.0%}" for share in busy)])
    return _table(["`feed.threads`", "a window", "Gbit/s of 8 workers", "RTX 3090 busy", "H200 busy"], rows)


def fixed_table() -> str:
    low, high = checkpoint_s()
    rows = [
        ["checkpoint of pre-training", _size(checkpoint_gb())],
        ["training waits for it, to S3", f"{_figure(low)} to {_figure(high)} s"],
        [
            "start of a worker group, and again after a failure",
            f"{constant('start_low'):.0f} to {constant('start_high'):.0f} s",
        ],
        ["a GPU node that is not up yet", "minutes (not measured)"],
    ]
    return _table(["what", "how much"], rows)


def sections() -> dict[str, str]:
    """Section of docs/scaling.md -> its Markdown."""
    return {
        "scaling-constants": constants_table(),
        "scaling-store": store_table(),
        "scaling-demand": demand_table(),
        "scaling-epoch-3090": epoch_table(RTX_3090),
        "scaling-epoch-h200": epoch_table(H200),
        "scaling-node": node_table(),
        "scaling-s3": threads_table(),
        "scaling-zstd": zstd_table(),
        "scaling-fixed": fixed_table(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/scaling.md")
    options = parser.parse_args()
    for name, text in sections().items():
        print(f"\n## {name}\n\n{text}")
        if options.docs:
            from _tables import replace_section

            replace_section(DOCS, name, text)


if __name__ == "__main__":
    main()
