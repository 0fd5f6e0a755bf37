"""Order, concurrency, one more try, and what becomes of runs whose encoder could not be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from gimp_ray.config_files import load_config
from gimp_ray.errors import ConfigError, GimpError, InputError
from gimp_ray.experiments.grid import (
    Failure,
    Resources,
    check_resources,
    failure_of,
    fitted_config,
    fitted_resources,
    run_in_order,
)
from gimp_ray.experiments.runs import Step


def step(name: str, *needs: Step) -> Step:
    return Step(name, "run", load_config(None, {"run": f"/{name}"}), needs)


class Runner:
    """Runs steps one after another; `fails` says with what, try by try."""

    def __init__(self, fails: dict[str, list[Failure]] | None = None) -> None:
        self.fails = fails or {}
        self.started: list[str] = []
        self.most = 0

    def start(self, step: Step) -> tuple[str, int]:
        self.started.append(step.name)
        return step.name, len(self.started)

    def wait(self, tasks: list[tuple[str, int]]) -> tuple[tuple[str, int], Failure | None]:
        self.most = max(self.most, len(tasks))
        left = self.fails.get(tasks[0][0], [])
        return tasks[0], left.pop(0) if left else None

    def run(self, steps: list[Step], concurrent: int | None = None) -> dict[str, str]:
        return run_in_order(steps, self.start, self.wait, concurrent)


CRASH, REFUSAL = Failure("gone", again=True), Failure("no such file", again=False)


def test_what_is_needed_comes_first_and_what_is_not_listed_is_done() -> None:
    runner = Runner()
    a = step("a")
    b = step("b", a, step("elsewhere"))
    assert runner.run([b, step("c", b), a]) == {}
    assert runner.started == ["a", "b", "c"]


def test_no_more_at_a_time_than_asked_for() -> None:
    steps = [step(name) for name in "abcde"]
    free, bound = Runner(), Runner()
    free.run(steps)
    bound.run(steps, concurrent=2)
    assert (free.most, bound.most) == (5, 2) and sorted(bound.started) == list("abcde")


def test_a_failed_run_is_tried_once_more(capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner({"a": [CRASH], "b": [CRASH, CRASH]})
    assert runner.run([step("a"), step("b")]) == {"/b": "gone"}
    assert sorted(runner.started) == ["a", "a", "b", "b"]
    printed = capsys.readouterr().out
    assert "a: failed, tried again: gone" in printed and "[2/2] b: failed: gone" in printed


def test_a_refusal_is_not_tried_again_and_ends_what_needs_it() -> None:
    runner = Runner({"genes": [REFUSAL]})
    genes = step("genes")
    cell = step("cell", genes)
    failed = runner.run([genes, cell, step("after", cell), step("other")])
    assert runner.started == ["genes", "other"]
    assert failed["/cell"] == "it needs genes, which failed: no such file"
    assert failed["/after"].startswith("it needs cell, which failed: it needs genes")


def test_refusals_and_other_failures_are_told_apart() -> None:
    refusal = InputError("no such file", file=Path("x"), found="nothing")
    assert failure_of(refusal) == Failure("no such file (found: nothing)", again=False)
    assert failure_of(GimpError("a worker ran out of memory")).again
    assert failure_of(ValueError("first\nsecond")) == Failure("ValueError: first second", again=True)


@pytest.mark.parametrize("room", [Resources(concurrent=0), Resources(cpus=0), Resources(gpus=-1), Resources(gpus=1.5)])
def test_an_impossible_room_is_refused(room: Resources) -> None:
    with pytest.raises(ConfigError, match="--"):
        check_resources(room)


def test_a_run_takes_a_gpu_where_there_is_one_and_waits_for_none_that_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config(None, {})
    there = {"CPU": 4.0, "GPU": 1.0}
    assert (
        fitted_resources(Resources(), config, there).gpus == 1
        and fitted_resources(Resources(), config, {"CPU": 4.0}).gpus == 0
    )
    assert fitted_resources(Resources(gpus=0.25), config, there).gpus == 0.25
    assert fitted_resources(Resources(), load_config(None, {"train.use_gpu": False}), there).gpus == 0
    for room, says in ((Resources(cpus=8), "--cpus_per_run 8"), (Resources(gpus=2), "--gpus_per_run 2")):
        with pytest.raises(ConfigError, match=says):
            fitted_resources(room, config, there)
    # nodes with more may come
    assert fitted_resources(Resources(cpus=8), load_config(None, {"cluster.address": "head:6379"}), there).cpus == 8


def test_a_run_uses_the_threads_and_gpus_of_its_task() -> None:
    alone = load_config(None, {"train.workers": 0})
    fitted = fitted_config(alone, Resources(cpus=2, gpus=0)).train
    assert (fitted.threads, fitted.use_gpu) == (2, False)
    assert fitted_config(alone, Resources(cpus=0.5, gpus=0.25)).train.use_gpu is None
    told = load_config(None, {"train.workers": 0, "train.threads": 3})
    assert fitted_config(told, Resources(cpus=1, gpus=1)).train.threads == 3
    # workers have their own
    beside = fitted_config(load_config(None, {"train.workers": 2}), Resources(cpus=2, gpus=0)).train
    assert (beside.threads, beside.use_gpu) == (0, None)
