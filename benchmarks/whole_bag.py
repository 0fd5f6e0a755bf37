"""Whole bags through the fine-tuning model: peak memory over the model's and the bag's, and seconds, by length.

    python -m benchmarks.whole_bag [--lengths 6000 148569] [--models this package] [--before REVISION] [--out FILE.json]

Each measurement is a process of its own (`_whole_bag`), a forward pass in evaluation mode or a forward and a backward
pass, one bag, float32, on one thread. `--before` measures an earlier revision of the package too, taken from git. A
measurement that needs more than `--limit` bytes is reported as such. Prints JSON, then a Markdown table.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _store_timing import machine
from _tables import write_json

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"this": "this package", "before": "before", "package": "`nystrom-attention`"}


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[6000, 15_000, 50_000, 148_569])
    parser.add_argument("--models", nargs="+", choices=["this", "package"], default=["this", "package"])
    parser.add_argument("--before", help="a git revision to measure as well")
    parser.add_argument("--passes", nargs="+", choices=["forward", "both"], default=["forward", "both"])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--in-dim", type=int, default=1024)
    parser.add_argument("--limit", type=float, default=9e9, help="bytes a measurement may have over model and bag")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as folder:
        places = dict.fromkeys(options.models, ROOT)
        if options.before:
            places["before"] = _checkout(options.before, Path(folder))
        rows = [
            {"model": name, "patches": patches, "passes": passes}
            | _measured(place, name, patches, passes == "both", options)
            for patches in options.lengths
            for passes in options.passes
            for name, place in places.items()
        ]
    result = {"machine": machine(), "before": options.before, "rows": rows}
    if options.out:
        write_json(options.out, result)
    print(json.dumps(result, indent=1))
    print(table(rows, options.limit))


def table(rows: Sequence[dict[str, Any]], limit: float) -> str:
    """The measurements as Markdown, a line for each length and kind of pass."""
    names = [name for name in NAMES if any(row["model"] == name for row in rows)]
    head = ["patches", "bag, MB", "passes"]
    head += [f"{NAMES[name]}, MB" for name in names] + [f"{NAMES[name]}, CPU s" for name in names]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for patches, passes in dict.fromkeys((row["patches"], row["passes"]) for row in rows):
        of = {row["model"]: row for row in rows if (row["patches"], row["passes"]) == (patches, passes)}
        bag = next((f"{row['bag_bytes'] / 1e6:,.0f}" for row in of.values() if "bag_bytes" in row), "")
        words = "forward" if passes == "forward" else "forward, backward"
        memory = [f"{of[n]['bytes'] / 1e6:,.0f}" if "bytes" in of[n] else f"over {limit / 1e6:,.0f}" for n in names]
        seconds = [f"{of[n]['cpu_seconds']:.1f}" if "bytes" in of[n] else "" for n in names]
        lines.append("| " + " | ".join([f"{patches:,}", bag, words, *memory, *seconds]) + " |")
    return "\n".join(lines)


def _measured(place: Path, name: str, patches: int, backward: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One process on the package in `place`; the meter is always this checkout's."""
    wanted = {
        "model": "package" if name == "package" else "this",
        "patches": patches,
        "backward": backward,
        "in_dim": options.in_dim,
        "dim": options.dim,
        "limit": int(options.limit),
    }
    code = f"import sys; sys.path[:0] = [{str(place)!r}, {str(ROOT)!r}]; import runpy; "
    code += f"runpy.run_path({str(ROOT / 'benchmarks' / '_whole_bag.py')!r}, run_name='__main__')"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(wanted)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {patches:,} {'both' if backward else 'forward'}: {found}", file=sys.stderr, flush=True)
    return found


def _checkout(revision: str, folder: Path) -> Path:
    archive = subprocess.run(["git", "archive", revision, "gimp_ray"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


if __name__ == "__main__":
    main()
