"""Whole epochs with reading, and phases of a step: every contestant in a process of its own, which
prints what it found: `python -m benchmarks._speed_processes '{"what": "epoch", "who": "gimp_ray", ...}'`.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from benchmarks._reference_bags import BagWindows, windows
from benchmarks._reference_model import reference_loss
from benchmarks._speed_models import (
    Batch,
    Sizes,
    Where,
    our_loss,
    pretraining,
    stepping,
    their_loss,
)
from benchmarks.common import Found
from gimp_ray.config_files import build_config
from gimp_ray.engine import loop
from gimp_ray.engine.protocol import World
from gimp_ray.feed.batches import direct_batches
from gimp_ray.io.files import read_lines
from gimp_ray.learn.pretrain import Pretraining
from gimp_ray.learn.stage import open_store
from gimp_ray.runs.folder import RunFolder
from gimp_ray.runs.model import save_weights

PHASES = ("read", "collate", "to device", "forward", "backward", "optimiser", "checkpoint")


def epoch(who: str, config: Found, bags: str, loader: int, switch: str) -> Found:
    """Seconds of an epoch, the first batch's reading included, and how many steps it had.

    Args:
        who: `gimp_ray` or `reference`.
        config: of the run; the reference takes its sizes, batch and window.
        bags: folder of the reference's `.pt` files.
        loader: processes of the reference's DataLoader.
        switch: `all`; `skip-train-step`, reading alone; `in-memory`, one batch again and again.
    """
    seconds, steps = _our_epoch(config, switch) if who == "gimp_ray" else _their_epoch(config, bags, loader, switch)
    return {"seconds": seconds, "steps": steps}


def _our_epoch(tree: Found, switch: str) -> tuple[float, int]:
    config: Any = build_config(tree)
    task: Any = Pretraining(tree, str(config.run))
    if switch == "skip-train-step":
        task.preflight()
        started = time.perf_counter()
        steps = sum(1 for _ in direct_batches(task, 0, 0, 1, config.feed.ahead))
        return time.perf_counter() - started, steps

    arrays = task.read(task.plan.row(0, 0, 1, 0)) if switch == "in-memory" else None

    def batches(start: int) -> Any:
        if arrays is None:
            return direct_batches(task, start, 0, 1, config.feed.ahead)
        return ((task.plan.row(n, 0, 1, start), arrays) for n in range(task.plan.steps(start, task.plan.positions, 1)))

    run = RunFolder(config.run or "")
    loop.train(task, World(), run, loop.Saving(every_epochs=1000), batches)
    lines = [line for line in read_lines(run.metrics_log("pretrain")) if line["kind"] == "step"]
    return sum(line["seconds"] for line in lines), len(lines)


def _their_epoch(tree: Found, bags: str, loader: int, switch: str) -> tuple[float, int]:
    config: Any = build_config(tree)
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    where = Where(device, config.train.precision == "bf16")
    files = sorted(Path(bags).glob("*.pt"))
    labels = [number % 2 for number in range(len(files))]
    size = config.batch.classes * config.batch.cases_per_class
    _, model = pretraining(_sizes_of(config), where)
    cls_ge = torch.randn(size, config.model.dim, device=device)
    now: list[Any] = []

    def loss() -> Any:
        x_BLE, masked_BL, labels_B = now
        cls_pat_BF, reconstruction_BLE = model(x_BLE, masked_BL, cls_ge)
        return reference_loss(cls_pat_BF, reconstruction_BLE, x_BLE, masked_BL, labels_B)

    step, steps = stepping(model, loss, where), 0

    def read(processes: int) -> Iterator[Any]:
        return windows(files, labels, config.window.length, size, processes, config.mask.ratio)

    def batches() -> Iterator[Any]:
        if first is None:
            yield from read(loader)
        else:
            yield from (first for _ in range(len(files) // size))

    first = next(read(0)) if switch == "in-memory" else None
    started = time.perf_counter()
    for batch in batches():
        steps += 1
        if switch != "skip-train-step":
            now[:] = [part.to(device, non_blocking=True) for part in batch]
            step(0)
    return time.perf_counter() - started, steps


def phases(who: str, config: Found, bags: str, steps: int) -> Found:
    """Median seconds of the phases of a step, one after another, nothing ahead."""
    built: Any = build_config(config)
    device = torch.device("cuda" if built.train.use_gpu else "cpu")
    where = Where(device, built.train.precision == "bf16")
    models = pretraining(_sizes_of(built), where)
    model: Any = models[0] if who == "gimp_ray" else models[1]
    optimizer = torch.optim.AdamW(model.parameters())
    seconds: dict[str, list[float]] = {name: [] for name in PHASES}
    clock = [time.perf_counter()]

    def lap(name: str) -> None:
        where.wait()
        now = time.perf_counter()
        seconds[name].append(now - clock[0])
        clock[0] = now

    read = _our_reads(built, config, lap) if who == "gimp_ray" else _their_reads(built, bags, lap)
    saved = Path(built.run or "") / "phases"
    saved.mkdir(parents=True, exist_ok=True)
    for _ in range(steps + 1):
        clock[0] = time.perf_counter()
        patches, masked, labels = (part.to(device) for part in next(read))
        lap("to device")
        cls_ge = torch.zeros(len(labels), built.model.dim, device=device)
        batch = Batch(patches, patches, masked, masked, cls_ge, labels)
        with where.autocast():
            value = (our_loss if who == "gimp_ray" else their_loss)(model, batch)
        lap("forward")
        value.backward()
        lap("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap("optimiser")
        if who == "gimp_ray":  # each in its own way, in the foreground
            save_weights(saved / "model.safetensors", dict(model.state_dict()))
            torch.save(optimizer.state_dict(), saved / "optimizer.pt")
        else:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved / "checkpoint.pt")
        lap("checkpoint")
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first step warms up


def _our_reads(config: Any, tree: Found, lap: Any) -> Iterator[Any]:
    task: Any = Pretraining(tree, str(config.run))
    number = 0
    while True:
        arrays = task.read(task.plan.row(number % task.plan.steps(0, task.plan.positions, 1), 0, 1, 0))
        lap("read")
        found = [torch.from_numpy(arrays[name]) for name in ("patches", "masked", "label")]
        lap("collate")
        yield found
        number += 1


def _their_reads(config: Any, bags: str, lap: Any) -> Iterator[Any]:
    files = sorted(Path(bags).glob("*.pt"))
    data = BagWindows(files, [number % 2 for number in range(len(files))], config.window.length, config.mask.ratio)
    size, number = config.batch.classes * config.batch.cases_per_class, 0
    while True:
        read = [data[(number + at) % len(data)] for at in range(size)]
        lap("read")
        found = default_collate(read)
        lap("collate")
        yield found
        number += size


def _sizes_of(config: Any) -> Any:
    model = config.model
    dim = open_store(config).dim
    return Sizes(dim or 0, model.dim, model.heads, model.landmarks, model.residual_kernel, model.layers)


def measure(what: str, **task: Any) -> Found:
    """One contestant's measurement: `epoch` or `phases`."""
    return (epoch if what == "epoch" else phases)(**task)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
