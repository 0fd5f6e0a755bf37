"""The demo: a small synthetic cohort through the real ingest and every stage, on a local Ray.

It shows that everything works on this machine. Its cohort is made up, so its figures say nothing about medicine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gimp_ray import pipeline
from gimp_ray.config_files import load_config
from gimp_ray.errors import ConfigError
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.runs.folder import RunFolder
from gimp_ray.synth.cohort import SynthOptions, write_synthetic_cohort

COHORT = SynthOptions(
    cases=120, genes=2000, dim=256, min_patches=300, median_patches=1200, max_patches=6000, second_slide=0.15
)
SETTINGS: dict[str, Any] = {
    "train": {"epochs": 12, "workers": 2, "lr": 5e-4},
    "window": {"length": 1024},
    "batch": {"classes": 2, "cases_per_class": 3},
    "model": {"dim": 128, "heads": 4, "dim_head": 32, "landmarks": 64},
    "genes": {"fragments": 120, "groups": 12, "heads": 4, "batch_size": 4, "train": {"epochs": 20, "lr": 3e-3}},
    "finetune": {"batch_size": 4, "train": {"epochs": 12, "lr": 5e-4}},
    "checkpoint": {"every_epochs": 5},
}
SHORT_COHORT = SynthOptions(cases=24, genes=400, dim=64, min_patches=80, median_patches=200, max_patches=600)
SHORT_SETTINGS: dict[str, Any] = SETTINGS | {
    "train": {"epochs": 2, "workers": 2, "lr": 5e-4},
    "window": {"length": 128},
    "model": {"dim": 32, "heads": 2, "dim_head": 16, "landmarks": 16},
    "genes": {"fragments": 40, "groups": 4, "heads": 2, "batch_size": 4, "train": {"epochs": 3, "lr": 3e-3}},
    "finetune": {"batch_size": 4, "train": {"epochs": 2, "lr": 5e-4}},
}


def run_demo(
    out: Path, short: bool = False, file: Path | None = None, overrides: dict[str, Any] | None = None
) -> RunFolder:
    """Make the cohort, the store and the run under `out`; what is already there is used again.

    Args:
        out: a folder of the demo's own.
        short: a smaller cohort and fewer epochs.
        file: YAML with config keys to change.
        overrides: dotted config keys to change.
    """
    if "://" in str(out) or str(out).startswith("s3:"):
        raise ConfigError(
            "the demo is made on a disk", expected="a local folder", found=str(out), fix="give --out a local folder"
        )
    cohort = SHORT_COHORT if short else COHORT
    sources, store = out / "cohort", out / "store"
    if not sources.exists():
        write_synthetic_cohort(sources, cohort)
    if not store.exists():
        report = ingest_cohort(
            patches=sources / "patches",
            genes=sources / "genes.tsv",
            cases=sources / "cases.csv",
            out=store,
            options=IngestOptions(gene_unit="FPKM", strict=True),
        )
        print(report, flush=True)
    places = {"store": str(store), "run": str(out / "run")}
    config = load_config(file, (overrides or {}) | places, base=SHORT_SETTINGS if short else SETTINGS)
    return pipeline.run_all(config)
