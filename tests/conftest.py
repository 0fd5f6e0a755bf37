"""What the tests share: a small synthetic cohort, ingested once, and settings that train in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import settings

# before torch is imported anywhere: two test machines' worth of threads help nothing on small tensors
os.environ.setdefault("OMP_NUM_THREADS", "1")

from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.ingest.ingest import IngestOptions, ingest_cohort
from gimp_ray.io.files import read_json, write_json
from gimp_ray.runs.model import with_checksum
from gimp_ray.synth.cohort import SynthOptions, write_synthetic_cohort

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

TINY: dict[str, Any] = {
    "train": {"epochs": 3, "workers": 0, "lr": 1e-3, "log_every": 1, "threads": 1},
    "window": {"length": 48},
    "batch": {"classes": 2, "cases_per_class": 2},
    "model": {"dim": 16, "heads": 2, "dim_head": 8, "landmarks": 8, "residual_kernel": 5, "dropout": 0.1},
    "genes": {"fragments": 20, "groups": 4, "heads": 2, "batch_size": 4, "train": {"epochs": 3, "lr": 1e-3}},
    "finetune": {"batch_size": 3, "hidden": 8, "train": {"epochs": 3, "lr": 1e-3}},
    "feed": {"ahead": 1, "threads": 1},
}


# how fast a machine is must not fail a test
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# left out of `make test-fast`: real servers, killed processes, hundreds of inputs
SLOW = (
    "object_storage",
    "bad_inputs",
    "cohort/test_merge.py",
    "cohort/test_million.py",
    "cohort/test_synth_difficulty.py",
    "engine/test_resume.py",
    "engine/test_compile.py",
    "feed/test_cache.py",
    "nn/test_long_bags.py",
    "test_locks.py",
)


# modules whose tests share no costly fixture, so that each may run in another process; the others stay together
SPREAD = (
    "ray/test_sweeps.py",
    "faults/test_kills.py",
    "faults/test_kills_on_ray.py",
    "faults/test_sigterm.py",
    "faults/test_storage_away.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        module = item.path.relative_to(here).as_posix()
        if module.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if module not in SPREAD:
            item.add_marker(pytest.mark.xdist_group(module))


@pytest.fixture(scope="session")
def cohort_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic cohort as other tools' files: 20 cases, some with two slides, 40 to 160 patches of width 24, 100
    genes.
    """
    out = tmp_path_factory.mktemp("sources") / "cohort"
    options = SynthOptions(
        cases=20, genes=100, dim=24, min_patches=40, median_patches=80, max_patches=160, second_slide=0.3, seed=1
    )
    write_synthetic_cohort(out, options)
    return out


@pytest.fixture(scope="session")
def store_path(cohort_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort's store; tests only read it."""
    out = tmp_path_factory.mktemp("store") / "store"
    ingest_cohort(
        patches=cohort_sources / "patches",
        genes=cohort_sources / "genes.tsv",
        cases=cohort_sources / "cases.csv",
        out=out,
        options=IngestOptions(strict=True, gene_unit="FPKM", workers=1, progress=False),
    )
    return out


@pytest.fixture
def tiny(store_path: Path, tmp_path: Path) -> Config:
    """A config that trains every stage in seconds, without Ray."""
    return load_config(None, {"store": str(store_path), "run": str(tmp_path / "run")}, base=TINY)


@pytest.fixture
def there() -> Iterator[fsspec.AbstractFileSystem]:
    """The storage of `memory://`, empty."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]  # else `put` copies into a folder that another test left
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def changed(config: Config, **overrides: Any) -> Config:
    """The config with dotted keys changed; `__` stands for the dot."""
    return load_config(
        None, {key.replace("__", "."): value for key, value in overrides.items()}, base=config.model_dump()
    )


def change_card(model: Path, **changes: Any) -> None:
    """Make a model's card say something else, as if it had been written so."""
    card = read_json(model.with_suffix(".json")) | changes
    del card["checksum"]
    write_json(model.with_suffix(".json"), with_checksum(card))
