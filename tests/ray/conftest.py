"""One local Ray cluster for all the tests of the slow tier."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gimp_ray.engine.launch import Workers, start_ray


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Six logical CPUs, whatever the machine has: Ray Data must always find one free."""
    settings = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_AUTH_MODE": "disabled",
        "RAY_metrics_report_interval_ms": "500",  # for the gauges, which end with their worker
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ.pop("RAY_ADDRESS", None)
    start_ray(Workers(count=2, num_cpus=6))
    yield
    import ray

    ray.shutdown()
