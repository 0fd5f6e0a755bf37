"""Trials an hour of a sweep: two single-core trials at a time against one at a time.

    python -m benchmarks.sweeps [--trials 6] [--epochs 80] [--rounds 1] [--out FILE.json]

A synthetic cohort is ingested once; each sweep pre-trains `--trials` trials of one CPU and one torch thread on a local
Ray that is up already, and measures each once by its probe. What is timed is the whole sweep, with the start of the
trials' processes and the report. Rounds alternate (1, 2, 2, 1, ...), so that a machine that slows down is fair to both.
Prints JSON, then a Markdown table. The load of the machine before and after stands beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
# trials share the machine by cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from _store_timing import machine
from _tables import write_json

from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.experiments.search import search
from gimp_ray.experiments.sweep import build_sweep
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.synth.cohort import SynthOptions, write_synthetic_cohort

TARGET = 1.7


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1, help="sweeps of each kind")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = _base(_store(folder, options.cases), options.epochs)
        rows = measure(base, folder, options.trials, options.rounds)
    result = {"machine": machine(), "trials": options.trials, "epochs": options.epochs, "rows": rows, **ratio(rows)}
    if options.out:
        write_json(options.out, result)
    print(json.dumps(result, indent=1))
    print(table(result))


def measure(base: Config, folder: Path, trials: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of each sweep, in the order they ran."""
    from gimp_ray.engine.launch import Workers, start_ray

    start_ray(Workers(count=0, num_cpus=2))
    order = [1, 2, 2, 1] * ((rounds + 1) // 2)
    rows = []
    for number, concurrent in enumerate(order[: 2 * rounds]):
        sweep = build_sweep(
            {
                "space": {"mask.ratio": {"uniform": [0.25, 0.75]}, "train.lr": {"loguniform": [1e-4, 1e-2]}},
                "trials": trials,
                "concurrent": concurrent,
                "metric": "accuracy",
            }
        )
        load, began = os.getloadavg()[0], time.perf_counter()
        search(base.model_copy(update={"run": str(folder / f"sweep-{number}")}), sweep)
        seconds = time.perf_counter() - began
        rows.append(
            {
                "concurrent": concurrent,
                "seconds": round(seconds, 1),
                "trials_per_hour": round(3600 * trials / seconds, 1),
                "load_before": round(load, 1),
                "load_after": round(os.getloadavg()[0], 1),
            }
        )
    return rows


def ratio(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median trials an hour of each kind, and how many times more two at a time are."""
    median = {
        kind: statistics.median(row["trials_per_hour"] for row in rows if row["concurrent"] == kind) for kind in (1, 2)
    }
    return {"one": median[1], "two": median[2], "ratio": round(median[2] / median[1], 2), "target": TARGET}


def table(result: dict[str, Any]) -> str:
    """The sweeps as Markdown."""
    lines = ["| trials at a time | seconds | trials an hour | load before, after |", "|---|---|---|---|"]
    lines += [
        f"| {row['concurrent']} | {row['seconds']} | {row['trials_per_hour']} | {row['load_before']}, "
        f"{row['load_after']} |"
        for row in result["rows"]
    ]
    words = f"Two at a time: {result['ratio']} times the trials an hour of one at a time (target {result['target']})."
    return "\n".join([*lines, "", words])


def _store(folder: Path, cases: int) -> Path:
    write_synthetic_cohort(
        folder / "cohort",
        SynthOptions(cases=cases, genes=200, dim=256, min_patches=300, median_patches=600, max_patches=1200, seed=1),
    )
    cohort, out = folder / "cohort", folder / "store"
    ingest_cohort(
        patches=cohort / "patches",
        genes=cohort / "genes.tsv",
        cases=cohort / "cases.csv",
        out=out,
        options=IngestOptions(strict=True, gene_unit="FPKM", workers=1, progress=False),
    )
    return out


def _base(store: Path, epochs: int) -> Config:
    tree: dict[str, Any] = {
        "store": str(store),
        "train": {"epochs": epochs, "workers": 0, "threads": 1, "use_gpu": False},
        "window": {"length": 512},
        "model": {"dim": 128, "heads": 4, "dim_head": 32, "landmarks": 32},
        "genes": {"encoder": "none"},
        "checkpoint": {"every_epochs": epochs},
        "log": {"progress": False},
    }
    return load_config(None, base=tree)


if __name__ == "__main__":
    main()
