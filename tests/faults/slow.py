"""A command whose pre-training is slow while a file lies beside its run folder, so that a test can act in its middle.

    python -c 'from tests.faults.slow import main; main()' pretrain --config run.yaml

Only the reading of mini-batches waits: what is trained, and in which order, is the same.
"""

from __future__ import annotations

import time
from pathlib import Path

from gimp_ray import cli, pipeline
from gimp_ray.feed.plan import Row
from gimp_ray.feed.windows import Arrays
from gimp_ray.run_folder import RunFolder
from gimp_ray.tasks import GimpPretraining

SECONDS = 0.5  # a mini-batch


class SlowPretraining(GimpPretraining):
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
    pipeline.TASKS["pretrain"] = SlowPretraining
    cli.main()
