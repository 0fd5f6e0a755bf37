"""Locks of other machines in a bucket."""

from __future__ import annotations

import pytest

from tests.test_locks import a_living_holder_is_respected, a_lock_that_stands_still_is_taken_over, quick

__all__ = ["quick"]  # a fixture for all tests here


def test_a_lock_that_stands_still_is_taken_over(bucket: str) -> None:
    a_lock_that_stands_still_is_taken_over(f"{bucket}/lock")


def test_a_living_holder_is_respected(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a_living_holder_is_respected(f"{bucket}/lock", monkeypatch)
