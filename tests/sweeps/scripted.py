"""Sweeps whose trials really train and are measured by a script, so that a test knows who wins.

    python -c 'from tests.sweeps.scripted import main; main()' sweep --config sweep.yaml

A trial's figure is its masking ratio. Its training waits over each mini-batch while a file lies beside its run folder
(`tests/faults/slow.py`).
"""

from __future__ import annotations

from typing import Any

from gimp_ray import cli, pipeline
from gimp_ray.config import Config
from gimp_ray.run_folder import RunFolder
from gimp_ray.sweeps import on_tune, trial
from gimp_ray.sweeps.measure import METRICS
from tests.faults.slow import SlowPretraining

real = on_tune._trainable


def figures_of(config: Config, run: RunFolder, stage: str, probe: str, resamples: int) -> dict[str, Any]:
    """Instead of a probe: the masking ratio."""
    return {name: {"value": config.mask.ratio, "low": None, "high": None} for name in METRICS}


def trainable(setting: trial.Setting, config: dict[str, Any]) -> None:
    """What Tune runs in a trial's process, with that process patched."""
    trial.figures_of = figures_of  # type: ignore[assignment]
    pipeline.TASKS["pretrain"] = SlowPretraining
    real(setting, config)


def main() -> None:
    """The command line, with such trials."""
    on_tune._trainable = trainable
    cli.main()
