"""Trials an hour of a sweep: two single-core trials at a time against one at a time.

    python -m benchmarks.sweeps [--trials 6] [--epochs 80] [--rounds 1] [--out FILE.json]

A synthetic cohort is ingested once; each sweep pre-trains `--trials` trials of one CPU and one torch thread on a local
Ray that is up already, and measures each once by its probe. What is timed is the whole sweep, with the start of the
trials' processes and the report. Rounds alternate (1, 2, 2, 1, ...), so that a machine that slows down is fair to both.
Prints a Markdown table, with the load of the machine before and after each sweep.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

# trials share the machine by cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from benchmarks.common import Found, machine, make_store, parser, table, write_json
from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.engine.launch import Workers, start_ray
from gimp_ray.experiments.search import search
from gimp_ray.experiments.sweep import build_sweep
from gimp_ray.synth.cohort import SynthOptions, write_synthetic_cohort

TARGET = 1.7


def main() -> None:
    asks = parser(__doc__, "rounds", "out")
    asks.set_defaults(rounds=1)
    asks.add_argument("--trials", type=int, default=6)
    asks.add_argument("--epochs", type=int, default=80)
    options = asks.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(_config(Path(name), options.epochs), Path(name), options.trials, options.rounds)
    median = {
        kind: statistics.median(row["trials_per_hour"] for row in rows if row["concurrent"] == kind) for kind in (1, 2)
    }
    ratio = median[2] / median[1]
    if options.out:
        asked = {"machine": machine(), "trials": options.trials, "epochs": options.epochs}
        write_json(options.out, asked | {"rows": rows, "ratio": ratio, "target": TARGET})
    head = ["trials at a time", "seconds", "trials an hour", "load before", "load after"]
    print(table(head, [[row["concurrent"], *(f"{value:.1f}" for value in list(row.values())[1:])] for row in rows]))
    print(f"\nTwo at a time: {ratio:.2f} times the trials an hour of one at a time (target {TARGET}).")


def measure(base: Config, folder: Path, trials: int, rounds: int) -> list[Found]:
    """Seconds of each sweep, in the order they ran."""
    start_ray(Workers(count=0, num_cpus=2))
    rows = []
    for number, concurrent in enumerate(([1, 2, 2, 1] * rounds)[: 2 * rounds]):
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
        row = {"concurrent": concurrent, "seconds": seconds, "trials_per_hour": 3600 * trials / seconds}
        rows.append(row | {"load_before": load, "load_after": os.getloadavg()[0]})
    return rows


def _config(folder: Path, epochs: int) -> Config:
    cohort = folder / "cohort"
    sizes = SynthOptions(cases=40, genes=200, dim=256, min_patches=300, median_patches=600, max_patches=1200, seed=1)
    write_synthetic_cohort(cohort, sizes)
    store = make_store(cohort, folder / "store", cohort / "genes.tsv", strict=True, gene_unit="FPKM", workers=1)
    tree: Found = {
        "store": store.path,
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
