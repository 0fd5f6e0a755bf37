"""Commands in processes of their own, for tests that stop and kill them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gimp_ray.config import Config
from gimp_ray.config_files import to_yaml
from gimp_ray.run_folder import RunFolder, read_lines

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def started(verb: str, config: Config, file: Path) -> Iterator[subprocess.Popen[str]]:
    """`gimp VERB` on a config, killed at the end of the block where it still runs."""
    file.write_text(to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "gimp_ray.cli", verb, "--config", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def steps_logged(run: RunFolder, stage: str) -> int:
    """Optimiser steps of a stage that stand in its log."""
    return sum(line["kind"] == "step" for line in read_lines(run.metrics_log(stage)))


def wait_for_steps(process: subprocess.Popen[str], run: RunFolder, stage: str, steps: int) -> None:
    """Until the log has so many steps; the process must still run then."""
    until = time.monotonic() + 120
    while steps_logged(run, stage) < steps:
        assert process.poll() is None and time.monotonic() < until, process.stdout and process.stdout.read()
        time.sleep(0.005)
