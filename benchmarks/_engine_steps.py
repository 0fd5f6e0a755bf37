"""Steps of pre-training with the real feed, with a batch that is in memory, on one core and on two, and what a
checkpoint holds up. Every measurement is a process of its own, so that its memory and its cores are its own.

Run as a program it does one of them and prints what it found; its arguments are KIND CONFIG.json RANK WORLD PORT.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.common import ROOT, Found, memory_of


def measure(
    kind: str,
    config: Found,
    cores: list[list[int]],
    threads: int,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[Found]:
    """Train a stage in as many processes as there are lists of cores; what each of them found.

    Args:
        kind: `feed`, or `memory` for one batch again and again.
        config: of the run, as plain data; its run folder must be new.
        cores: of each rank.
        threads: torch's threads of a rank.
        environment: variables besides this process's own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "benchmarks._engine_steps",
                    kind,
                    file.name,
                    *map(str, (rank, len(cores), port)),
                ],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ
                | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "CORES": json.dumps(own)}
                | dict(environment),
            )
            for rank, own in enumerate(cores)
        ]
        printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("a measured process failed")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def _rows_only(task: Any, start: int, rank: int, world: int) -> Iterator[Any]:
    plan = task.plan
    arrays = task.read(plan.row(0, rank, world, start))
    for step in range(plan.steps(start, plan.positions, world)):
        yield plan.row(step, rank, world, start), arrays


def _main(kind: str, file: str, rank: int, world: int, port: int) -> Found:
    os.sched_setaffinity(0, json.loads(os.environ["CORES"]))  # before torch starts its threads
    import torch
    import torch.distributed as dist

    from gimp_ray.config_files import build_config
    from gimp_ray.engine import loop
    from gimp_ray.engine.protocol import World
    from gimp_ray.feed.batches import direct_batches
    from gimp_ray.io.files import read_lines
    from gimp_ray.learn.pretrain import Pretraining
    from gimp_ray.runs.folder import RunFolder

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if world > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    tree = json.loads(Path(file).read_text())
    config: Any = build_config(tree)
    run = RunFolder(config.run or "")
    task = Pretraining(tree, str(run.path))
    blocked, written = _timed(loop, "_save", time.perf_counter), _timed(loop, "_write", time.thread_time)
    every = loop.Saving(every_epochs=config.checkpoint.every_epochs)

    def batches(start: int) -> Any:
        if kind == "feed":
            return direct_batches(task, start, rank, world, config.feed.ahead)
        return _rows_only(task, start, rank, world)

    with peak_memory() as peak:
        loop.train(task, World(rank, world), run, every, batches)
    lines = [line for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]
    cases = config.batch.classes * config.batch.cases_per_class * world
    seconds = [line["seconds"] for line in lines[2:]]  # the first two warm up
    return {
        "seconds_a_step": seconds,
        "data_wait": [line["data_wait"] for line in lines[2:]],
        "cases_per_s": cases * len(seconds) / sum(seconds) if seconds else None,
        "peak_mb": max(peak),
        "blocked": blocked,
        "written": written,
    }


@contextlib.contextmanager
def peak_memory(every: float = 0.01) -> Iterator[list[float]]:
    """This process's own memory while the block runs, one value each so many seconds."""
    seen, over = [memory_of("RssAnon") / 1e6], threading.Event()

    def look() -> None:
        while not over.wait(every):
            seen.append(memory_of("RssAnon") / 1e6)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _timed(module: Any, name: str, clock: Any) -> list[float]:
    """Seconds of every call of a function, by a clock."""
    found: list[float] = []
    function = getattr(module, name)

    def timed(*args: Any, **more: Any) -> Any:
        started = clock()
        try:
            return function(*args, **more)
        finally:
            found.append(clock() - started)

    setattr(module, name, timed)
    return found


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:]))))
