"""Sweeps whose trials really train and are measured by a script, so that a test knows who wins.

    python -c 'from tests.sweeps.scripted import main; main()' sweep --config sweep.yaml

A trial's figure is its masking ratio. While a file lies beside its run folder, its training waits before the epoch and
mini-batch that the file names.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gimp_ray import pipeline
from gimp_ray.cli import commands as cli
from gimp_ray.config import Config
from gimp_ray.evaluation import METRICS
from gimp_ray.experiments import trial, tune
from gimp_ray.feed.plan import Row
from gimp_ray.feed.windows import Arrays
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.runs.folder import RunFolder

real = tune._trainable


def held(run: RunFolder) -> Path:
    """The file that makes a run wait, with `EPOCH MINI_BATCH` in it, both from 0."""
    return run.path.with_name(f"{run.path.name}.held")


class Waiting(Pretraining):
    """Pre-training that waits where it is told to."""

    def read(self, row: Row) -> Arrays:
        while (file := held(self.run)).exists() and [row.epoch, row.mini_batch] >= [
            *map(int, file.read_text().split())
        ]:
            time.sleep(0.05)
        return super().read(row)


def metrics_of(config: Config, run: RunFolder, stage: str, probe: str, resamples: int) -> dict[str, Any]:
    """Instead of a probe: the masking ratio."""
    return {name: {"value": config.mask.ratio, "low": None, "high": None} for name in METRICS["class"]}


def trainable(setting: trial.Setting, config: dict[str, Any]) -> None:
    """What Tune runs in a trial's process, with that process patched."""
    trial.metrics_of = metrics_of  # type: ignore[assignment]
    task_of = pipeline.task_of
    pipeline.task_of = lambda stage, config: Waiting if stage == "pretrain" else task_of(stage, config)
    real(setting, config)


def main() -> None:
    """The command line, with such trials."""
    tune._trainable = trainable
    cli.main()
