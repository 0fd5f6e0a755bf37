"""SIGKILL on Ray: a training worker, a task of Ray Data, the command itself, a whole node. The run goes on by itself or
with the same command, and ends in the bits of one that was not disturbed.

One start of workers costs 20 s and more, so one run meets several faults.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from gimp_ray.config import Config
from gimp_ray.config_files import load_config
from gimp_ray.engine.checkpoint import checkpoint_folders
from gimp_ray.io.files import read_lines
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.status import run_status
from tests.conftest import TINY, changed
from tests.engine.test_resume import metrics, same_weights
from tests.engine.test_two_workers import run_on_two_ranks
from tests.faults.running import DATA_TASK, TRAIN_WORKER, beside, doing, gone, kill, steps_logged
from tests.faults.slow import held
from tests.jobs.head import ADDRESS, Head, head_started, node_started

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]

EPOCHS = 60
# of a node's three CPUs a worker takes two: one worker a node, and a CPU for Ray Data
CPUS, CPUS_PER_WORKER = 3, 2


@pytest.fixture(scope="module")
def config(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Pre-training of 180 mini-batches on two workers, three mini-batches an epoch, a checkpoint every five steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    base = load_config(None, {"store": str(store_path), "run": str(folder / "run")}, base=TINY)
    return changed(
        base,
        genes__encoder="none",
        train__workers=2,
        train__use_gpu=False,
        train__epochs=EPOCHS,
        checkpoint__every_epochs=EPOCHS,
        checkpoint__every_steps=5,
    )


@pytest.fixture(scope="module")
def undisturbed(config: Config) -> RunFolder:
    """The same on two ranks without Ray."""
    return run_on_two_ranks(config, ["pretrain"])


def at_step(run: RunFolder, step: int) -> bool:
    return steps_logged(run, "pretrain") >= step


def restarts(run: RunFolder) -> list[dict]:
    return run.record()["attempts"][-1].get("restarts", [])


def step_lines(run: RunFolder) -> list[dict]:
    return [line for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]


def seconds_to_next_step(run: RunFolder, since: float) -> float:
    """From a kill to the first step after it; lines after the checkpoint that was gone on from are new ones."""
    return min(line["time"] for line in step_lines(run) if line["time"] > since) - since


def test_a_data_task_a_worker_and_the_command_killed(config: Config, undisturbed: RunFolder, tmp_path: Path) -> None:
    config = changed(config, run=str(tmp_path / "run"), feed__read_in="ray_data")
    run = RunFolder(config.run or "")
    held(run).touch()
    with beside(config, tmp_path) as command:
        command.until(lambda: at_step(run, 6))
        # a task of Ray Data: tried again by Ray, and the training does not notice
        command.until(lambda: bool(doing(command.below(), DATA_TASK)))
        kill(doing(command.below(), DATA_TASK))
        at = steps_logged(run, "pretrain")
        command.until(lambda: at_step(run, at + 6))
        assert restarts(run) == []
        # a worker: the group starts again from the last checkpoint
        kill(doing(command.below(), TRAIN_WORKER)[:1])
        killed = time.time()
        command.until(lambda: bool(restarts(run)) and "workers" in restarts(run)[-1])
        command.until(lambda: any(line["time"] > killed for line in step_lines(run)))
        print(f"a worker killed: {seconds_to_next_step(run, killed):.1f} s to the next step")
        (restart,) = restarts(run)
        assert restart["workers"] == 2 and "\n" not in restart["reason"] and restart["reason"]
        (told,) = run_status(str(run.path)).restarts
        assert (told["attempt"], told["workers"]) == (1, 2)
        # the command itself: the same command goes on
        at = steps_logged(run, "pretrain")
        command.until(lambda: at_step(run, at + 6))
        below = command.below()
        command.process.kill()
        command.process.wait()
    assert not run.stage_done("pretrain")
    assert checkpoint_folders(run.checkpoints("pretrain"))
    held(run).unlink()
    with beside(config, tmp_path, "second") as command:
        command.succeeded()
    left = gone(below, patience=180)  # two agents of Ray's look for their head for a minute
    kill(left)
    assert not left, "Ray ends by itself with the command that started it"
    assert [attempt["status"] for attempt in run.record()["attempts"]] == ["running", "done"]
    assert metrics(run, "pretrain") == metrics(undisturbed, "pretrain")
    assert same_weights(run.model_file("pretrain"), undisturbed.model_file("pretrain"))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with room for one worker, which soon finds out that a node is gone."""
    health = {"period_ms": "500", "failure_threshold": "4", "initial_delay_ms": "1000"}
    with head_started(CPUS, **{f"RAY_health_check_{key}": value for key, value in health.items()}) as head:
        yield head


@dataclass
class Node:
    """A further node on this machine.

    Attributes:
        name: its id.
        process: that all others of it are below.
    """

    name: str
    process: psutil.Process

    def kill(self) -> None:
        """The whole node at once."""
        kill([self.process, *self.process.children(recursive=True)])


@contextlib.contextmanager
def node(head: Head) -> Iterator[Node]:
    before = psutil.Process().children()
    with node_started(head, CPUS) as name:
        (process,) = [child for child in psutil.Process().children() if child not in before]
        yield Node(name, process)


def on_nodes(head: Head, config: Config, folder: Path):
    """The command on the head's cluster."""
    address = (head.folder / ADDRESS).read_text().strip()
    return beside(changed(config, run=str(folder / "run")), folder, RAY_ADDRESS=address)


def test_a_node_killed_that_comes_back(head: Head, config: Config, undisturbed: RunFolder, tmp_path: Path) -> None:
    config = changed(config, train__cpus_per_worker=CPUS_PER_WORKER)
    run = RunFolder(tmp_path / "run")
    held(run).touch()
    with contextlib.ExitStack() as stack:
        second = stack.enter_context(node(head))
        command = stack.enter_context(on_nodes(head, config, tmp_path))
        command.until(lambda: at_step(run, 6))
        assert second.name in head.nodes_of(TRAIN_WORKER)
        second.kill()
        killed = time.time()
        command.until(lambda: second.name not in head.nodes())
        third = stack.enter_context(node(head))
        held(run).unlink()
        command.succeeded()
        print(f"a node killed and replaced: {seconds_to_next_step(run, killed):.1f} s to the next step")
        assert third.name in head.nodes_of(TRAIN_WORKER)
    assert [restart["workers"] for restart in restarts(run)] == [2]
    assert metrics(run, "pretrain") == metrics(undisturbed, "pretrain")
    assert same_weights(run.model_file("pretrain"), undisturbed.model_file("pretrain"))


def test_elastic_workers_go_on_with_what_is_left(head: Head, config: Config, tmp_path: Path) -> None:
    config = changed(config, train__workers=[1, 2], train__cpus_per_worker=CPUS_PER_WORKER, cluster__resize_seconds=5.0)
    run = RunFolder(tmp_path / "run")
    held(run).touch()
    with contextlib.ExitStack() as stack:
        second = stack.enter_context(node(head))
        command = stack.enter_context(on_nodes(head, config, tmp_path))
        command.until(lambda: at_step(run, 6))
        second.kill()
        killed = time.time()
        # a slow machine may have begun with one worker, or given up a start
        command.until(lambda: [restart.get("workers") for restart in restarts(run)][-1:] == [1])
        command.until(lambda: any(line["time"] > killed for line in step_lines(run)))
        print(f"a node killed, on with one worker: {seconds_to_next_step(run, killed):.1f} s to the next step")
        at = steps_logged(run, "pretrain")
        command.until(lambda: at_step(run, at + 6))
        stack.enter_context(node(head))
        command.until(lambda: [restart.get("workers") for restart in restarts(run)][-2:] == [1, 2])
        held(run).unlink()
        command.succeeded()
    assert run.record()["attempts"][-1]["status"] == "done"
    # every mini-batch was trained on once: each step begins where the one before it ended, from the first to the last
    ends = [line["mini_batches"] for line in step_lines(run)]
    taken = [end - begin for begin, end in pairwise([0, *ends])]
    assert ends[-1] == 3 * EPOCHS and set(taken) == {1, 2}
    # of an epoch's three mini-batches two workers take two and one, and one worker takes each by itself
    phases = "".join(map(str, taken)).replace("21", "w")
    assert "www" in phases and "111111" in phases and phases.index("w") < phases.index("111") < phases.rindex("w")
