"""Commands that are slow where a test wants to act in the middle: what they do is the same.

    python -c 'from tests.faults.slow import main; main()' pretrain --config run.yaml
    python -c 'from tests.faults.slow import slow_writes; slow_writes()' pretrain --config run.yaml

With `main` the reading of pre-training's mini-batches waits while a file lies beside the run folder. With `slow_writes`
the weights of a checkpoint take their time on the way to the disk.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from safetensors.torch import save

from gimp_ray import pipeline
from gimp_ray.cli import commands as cli
from gimp_ray.engine import checkpoint
from gimp_ray.feed.plan import Row
from gimp_ray.feed.windows import Arrays
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.runs.folder import RunFolder

SECONDS = 0.5  # a mini-batch


class SlowPretraining(Pretraining):
    """Pre-training that takes its time over a mini-batch while it is held."""

    def read(self, row: Row) -> Arrays:
        if held(self.run).exists():
            time.sleep(SECONDS)
        return super().read(row)


def held(run: RunFolder) -> Path:
    """The file that makes a run slow."""
    return run.path.with_name(f"{run.path.name}.slow")


def main() -> None:
    """The command line, with pre-training that can be held."""
    task_of = pipeline.task_of
    pipeline.task_of = lambda stage, config: SlowPretraining if stage == "pretrain" else task_of(stage, config)
    cli.main()


def slow_writes() -> None:
    """The command line, with checkpoints written in ten pieces, and a while before they are said to be whole."""

    def save_slowly(tensors: dict[str, Any], file: Path) -> None:
        data = save(tensors)
        piece = -(-len(data) // 10)
        with file.open("wb") as stream:
            for at in range(0, len(data), piece):
                time.sleep(SECONDS / 10)
                stream.write(data[at : at + piece])
                stream.flush()
        time.sleep(SECONDS)

    checkpoint.save_file = save_slowly  # type: ignore[assignment]
    cli.main()
