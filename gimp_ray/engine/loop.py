"""The training loop: one stage of a run on one rank, from its last checkpoint to its final model. No Ray in here.

Everything random in a step is seeded from (seed, step, rank), the learning rate is a function of the step and batches
come from a pure plan, so a run that was stopped and one that was not go through the same states. A step counts
mini-batches of a rank over all epochs; an optimiser step takes `accumulate` of them. At each optimiser step the
ranks agree on whether one of them met a bad batch, was asked to end, or finds a checkpoint due by the clock.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gimp_ray.engine import stopping
from gimp_ray.engine.checkpoint import (
    checkpoint_folders,
    latest_checkpoint,
    load_checkpoint,
    remove_stale,
    save_checkpoint,
)
from gimp_ray.engine.compiling import compile_model
from gimp_ray.engine.log import Meter, MetricsLog
from gimp_ray.engine.progress import Pace
from gimp_ray.engine.protocol import Record, Settings, Tensors, TrainTask, World
from gimp_ray.errors import GimpError
from gimp_ray.feed.plan import Row
from gimp_ray.feed.windows import Arrays
from gimp_ray.run_folder import RunFolder, read_json, unwritable, write_json
from gimp_ray.weights import load_weights, save_weights

MEMORY_FIX = (
    "lower the mini-batch and raise `accumulate` (batch.cases_per_class, finetune.batch_size, genes.batch_size), lower "
    "window.length, or use train.precision: bf16; once a stage has a checkpoint, that takes a new run folder"
)
Feed = Generator[tuple[Row, Arrays], None, None]
Batches = Callable[[int], Feed]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written: every so many optimiser steps, epochs or minutes; the newest `keep` are kept."""

    every_steps: int | None = None
    every_epochs: int = 1
    keep: int = 2
    every_minutes: float | None = None


@dataclass(frozen=True)
class Start:
    """Where a stage goes on: the step, and the checkpoint it comes from."""

    step: int = 0
    path: Path | None = None
    state: dict[str, Any] | None = None


class _Stage:
    """What the loop carries from step to step on one rank."""

    def __init__(self, task: TrainTask, world: World, run: RunFolder, saving: Saving) -> None:
        self.task, self.world, self.run, self.saving = task, world, run, saving
        self.settings = task.settings
        self.steps_per_epoch = task.plan.steps_per_epoch(world.size)
        self.model = task.build(world.device)
        self.optimizer = _adamw(self.model, self.settings)
        self.start = _agreed_start(task, run, world)
        state = self.start.state or {}
        if self.start.path is not None:
            load_checkpoint(self.start.path, self.model, self.optimizer)
        if self.settings.compile:
            compile_model(self.model)
        self.wrapped = _distribute(self.model, world)
        self.since_log = Meter(state.get("since_log"))
        self.since_epoch = Meter(state.get("since_epoch"))
        self.skipped: int = state.get("skipped", 0)
        # of the optimiser step in the making: figures of its mini-batches, and what was not finite in them
        self.figures: list[dict[str, Tensor]] = []
        self.bad: list[int] = []
        self.stop = self.overdue = False
        self.saved_at = time.monotonic()
        self.best: list[float] | None = state.get("best")
        self.best_epoch: int | None = state.get("best_epoch")
        # lines are numbered by the number of ranks that wrote them
        logged = state.get("step", 0) // self.settings.accumulate
        steps = task.plan.total_steps(world.size) // self.settings.accumulate
        self.log = MetricsLog(
            run.stage(task.name), task.name, logged, world.rank == 0, steps, settings=self.settings, run=run.place
        )
        whole = (self.settings.stop_after or self.settings.epochs) * self.steps_per_epoch
        self.pace = Pace(self.start.step, whole, world.size)

    def best_file(self, epoch: int) -> Path:
        """Weights of a best epoch; named by the epoch, so that a checkpoint and the weights it means stay together."""
        return self.run.stage(self.task.name) / f"best-epoch-{epoch:04d}.safetensors"


def train(
    task: TrainTask, world: World, run: RunFolder, saving: Saving, batches: Batches, report: Report | None = None
) -> str:
    """Train a stage to its end, or to `stop_after`.

    Args:
        task: what is trained.
        world: where this worker stands; with more than one rank a process group is already up.
        run: the run folder, the same for all ranks.
        saving: when to write checkpoints.
        batches: gives this rank's batches from a step on.
        report: called by every rank with an epoch's figures, for a search that stops bad runs.

    Returns:
        `done`, `stopped` where `stop_after` ended it, or `preempted` where the process was asked to end; it is then
        saved.

    Raises:
        GimpError: the loss is not finite (names stage, epoch, step and cases), memory ran out, or the run folder
            cannot be written to.
    """
    with _memory(task.name), unwritable(run.place):
        return _train(task, world, run, saving, batches, report)


def _train(
    task: TrainTask, world: World, run: RunFolder, saving: Saving, batches: Batches, report: Report | None
) -> str:
    stage = _Stage(task, world, run, saving)
    total = task.plan.total_steps(world.size)
    limit = min(total, (stage.settings.stop_after or stage.settings.epochs) * stage.steps_per_epoch)
    if stage.start.step < limit:
        with stage.log, contextlib.closing(batches(stage.start.step)) as feed, stopping.deferred():
            _steps(stage, feed, limit, report)
    else:
        stage.log.close()
    if stage.stop:
        return "preempted"
    if limit < total:
        if world.rank == 0:
            run.push_stage(task.name)
        return "stopped"
    _finish(stage)
    return "done"


def _steps(stage: _Stage, feed: Feed, limit: int, report: Report | None) -> None:
    """All the steps up to `limit`, or until it is to end, with what an epoch's end asks for."""
    epoch_started = waiting_since = time.perf_counter()
    waited = 0.0
    for step, (row, arrays) in enumerate(feed, start=stage.start.step):
        waited += (waiting := time.perf_counter() - waiting_since)
        stage.pace.batch(len(row.case), waiting)
        _one_step(stage, step, row, arrays)
        if (step + 1) % stage.steps_per_epoch == 0:
            seconds = time.perf_counter() - epoch_started
            _end_epoch(stage, step, {"seconds": round(seconds, 3), "data_wait": round(waited, 3)}, report)
            epoch_started, waited = time.perf_counter(), 0.0
        elif _due(stage, step):
            _save(stage, step)
        if step + 1 >= limit or stage.stop:
            return
        waiting_since = time.perf_counter()


def _agreed_start(task: TrainTask, run: RunFolder, world: World) -> Start:
    """Where all ranks go on: rank 0 looks, and says."""
    agreed: list[Start | None] = [None]
    if world.rank == 0:
        run.pull_stage(task.name)
        remove_stale(run.checkpoints(task.name))
        agreed = [find_start(task, run, world.size, set_aside=True)]
    if world.size > 1:
        dist.broadcast_object_list(agreed, device=world.device if world.device.type == "cuda" else None)
    start = agreed[0]
    assert start is not None
    if start.path is not None and world.rank != 0:
        # of a run in object storage each machine has a copy of its own
        run.pull_checkpoint(task.name, start.path.name)
        start = replace(start, path=run.checkpoints(task.name) / start.path.name)
    return start


def find_start(task: TrainTask, run: RunFolder, world_size: int, set_aside: bool = False) -> Start:
    """The step a stage goes on from; a checkpoint of another number of ranks is taken at the same mini-batch of the
    epoch.
    """
    found = latest_checkpoint(run.checkpoints(task.name), set_aside)
    if found is None:
        return Start()
    path, state = found
    step = state["step"]
    if state["world_size"] != world_size:
        epoch, inside = divmod(step, state["steps_per_epoch"])
        accumulate = task.settings.accumulate
        inside = inside * state["world_size"] // world_size // accumulate * accumulate
        step = epoch * task.plan.steps_per_epoch(world_size) + inside
    return Start(step, path, state)


def learning_rate(settings: Settings, update: int, updates: int) -> float:
    """Linear warm-up, then cosine to zero, for optimiser step `update` of `updates`."""
    warm = int(settings.warmup * updates)
    if update < warm:
        return settings.lr * (update + 1) / warm
    done = (update - warm) / max(1, updates - warm)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def to_device(arrays: Arrays, device: torch.device) -> Tensors:
    """Arrays as tensors on a device, through pinned memory where that is a GPU."""
    tensors = {}
    for name, array in arrays.items():
        # arrays carried by Ray are read-only views of its object store
        tensor = torch.from_numpy(array if array.flags.writeable else np.array(array))
        tensors[name] = tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
    return tensors


def gather_records(records: list[Record], world: World) -> list[Record]:
    """All ranks' records, on every rank."""
    if world.size == 1:
        return records
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, records)
    return [record for part in gathered for record in part]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one rank (dropout and the like)."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _one_step(stage: _Stage, step: int, row: Row, arrays: Arrays) -> None:
    settings, world = stage.settings, stage.world
    seed_step(stage.task.seed, step, world.rank)
    stage.model.train()
    last = (step + 1) % settings.accumulate == 0
    holding = isinstance(stage.wrapped, DistributedDataParallel) and not last
    with stage.wrapped.no_sync() if holding else contextlib.nullcontext():  # type: ignore[operator, union-attr]
        with autocast(settings.precision, world.device):
            loss, parts = stage.task.loss(stage.wrapped, to_device(arrays, world.device))
        (loss / settings.accumulate).backward()
    figures = {"loss": loss, **parts}
    if not bool(torch.isfinite(loss)):
        if not settings.skip_bad_batches:
            _refuse(stage, "the loss", step, _cases(row, arrays))
        stage.bad += _cases(row, arrays)
    stage.figures.append(figures)
    if last:
        figures["grad_norm"] = norm = _clip(stage)
        _end_update(stage, step, norm, _cases(row, arrays))


def _end_update(stage: _Stage, step: int, norm: Tensor, cases: list[int]) -> None:
    """The optimiser's step, or that it is skipped; all ranks do the same."""
    settings = stage.settings
    finite = bool(torch.isfinite(norm))
    # the norm is of all ranks' gradients, so all of them refuse, before the weights are touched
    if not finite and not settings.skip_bad_batches:
        _refuse(stage, "the gradient", step, cases)
    bad, stage.stop, stage.overdue = agreed(
        stage.world, [bool(stage.bad) or not finite, stopping.asked(), _late(stage)]
    )
    if bad:
        _skip(stage, step, stage.bad or cases)
    else:
        _update(stage, step)
        for figures in stage.figures:
            stage.since_log.add(figures)
            stage.since_epoch.add(figures)
    stage.figures, stage.bad = [], []
    if (step + 1) // settings.accumulate % settings.log_every == 0:
        _log_steps(stage, step)


def agreed(world: World, flags: list[bool]) -> list[bool]:
    """Each flag as it is on any rank."""
    if world.size == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32, device=world.device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def _skip(stage: _Stage, step: int, cases: list[int]) -> None:
    """Leave an optimiser step out; the learning rate goes on as if it had been taken."""
    if stage.skipped >= stage.settings.skip_bad_batches:
        _refuse(stage, "the loss or gradient", step, cases)
    stage.skipped += 1
    stage.optimizer.zero_grad(set_to_none=True)
    epoch, update = step // stage.steps_per_epoch, (step + 1) // stage.settings.accumulate
    stage.log.write("skipped", epoch, update, {"skipped": stage.skipped, "cases": sorted(set(cases))})
    if stage.world.rank == 0:
        print(f"note: {stage.task.name} step {update} was skipped: its loss or gradient is not finite", flush=True)


def _late(stage: _Stage) -> bool:
    """Whether a checkpoint is due by the first rank's clock."""
    minutes = stage.saving.every_minutes
    return stage.world.rank == 0 and minutes is not None and time.monotonic() - stage.saved_at >= 60 * minutes


@contextlib.contextmanager
def _memory(stage: str) -> Iterator[None]:
    """Turn running out of a GPU's or the host's memory into a refusal that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own error is a RuntimeError
        text = str(error)
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
        if not known:
            raise
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        raise GimpError(
            f"{where} has not enough memory for stage '{stage}'",
            found=text.splitlines()[0] if text else type(error).__name__,
            fix=MEMORY_FIX,
        ) from error


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def _clip(stage: _Stage) -> Tensor:
    """Clip the gradients in place; their norm before that."""
    parameters = [p for p in stage.model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, stage.settings.clip_norm or math.inf)


def _update(stage: _Stage, step: int) -> None:
    settings = stage.settings
    updates = stage.task.plan.total_steps(stage.world.size) // settings.accumulate
    rate = learning_rate(settings, step // settings.accumulate, updates)
    for group in stage.optimizer.param_groups:
        group["lr"] = rate
    stage.optimizer.step()
    stage.optimizer.zero_grad(set_to_none=True)


def _log_steps(stage: _Stage, step: int) -> None:
    means = stage.since_log.means(stage.world)
    if means:
        figures = means | {"lr": stage.optimizer.param_groups[0]["lr"]} | stage.pace.figures()
        stage.log.write("step", step // stage.steps_per_epoch, (step + 1) // stage.settings.accumulate, figures)
    stage.since_log = Meter()


def _end_epoch(stage: _Stage, step: int, timing: dict[str, float], report: Report | None) -> None:
    epoch, update = step // stage.steps_per_epoch, (step + 1) // stage.settings.accumulate
    _log_steps(stage, step)
    means = stage.since_epoch.means(stage.world)
    stage.since_epoch = Meter()
    stage.log.write("epoch", epoch, update, means | timing)
    figures = _validate(stage, epoch, update)
    if stage.world.rank == 0:
        shown = {name: round(value, 4) for name, value in (means | figures).items()}
        print(f"{stage.task.name} epoch {epoch + 1}/{stage.settings.epochs} {shown} {timing}", flush=True)
    last = (epoch + 1) in (stage.settings.stop_after, stage.settings.epochs)
    if last or (epoch + 1) % stage.saving.every_epochs == 0 or _due(stage, step):
        _save(stage, step)
    elif stage.world.rank == 0:
        stage.run.push_stage(stage.task.name)
    if report is not None:
        report({"stage": stage.task.name, "epoch": epoch + 1, "step": update, **means, **figures})


def _validate(stage: _Stage, epoch: int, update: int) -> dict[str, float]:
    """Validation figures of the epoch; the best epoch's weights are kept."""
    stage.model.eval()
    with torch.no_grad(), autocast(stage.settings.precision, stage.world.device):
        records = stage.task.validate(stage.model, stage.world)
    if records is None:
        return {}
    figures, score = stage.task.score(gather_records(records, stage.world))
    stage.log.write("validation", epoch, update, figures)
    if stage.best is None or score > stage.best:
        stage.best, stage.best_epoch = score, epoch
        if stage.world.rank == 0:
            save_weights(stage.best_file(epoch), stage.model.state_dict())
    return figures


def _due(stage: _Stage, step: int) -> bool:
    if stage.stop or stage.overdue:
        return (step + 1) % stage.settings.accumulate == 0
    every = stage.saving.every_steps
    update, inside = divmod(step + 1, stage.settings.accumulate)
    return every is not None and inside == 0 and update % every == 0


def _save(stage: _Stage, step: int) -> None:
    state = {
        "world_size": stage.world.size,
        "steps_per_epoch": stage.steps_per_epoch,
        "epoch": (step + 1) // stage.steps_per_epoch,
        "since_log": stage.since_log.state(stage.world),
        "since_epoch": stage.since_epoch.state(stage.world),
        "best": stage.best,
        "best_epoch": stage.best_epoch,
        "skipped": stage.skipped,
    }
    stage.saved_at, stage.overdue = time.monotonic(), False
    if stage.world.rank == 0:
        folder = stage.run.checkpoints(stage.task.name)
        save_checkpoint(folder, step + 1, stage.model, stage.optimizer, state, stage.saving.keep)
        best = _prune_best(stage, folder)
        stage.run.push_stage(stage.task.name, [*checkpoint_folders(folder), *best])


def _prune_best(stage: _Stage, folder: Path) -> set[Path]:
    """Remove the weights of best epochs that neither this process nor a kept checkpoint means; gives those it left."""
    meant = {read_json(kept / "state.json")["best_epoch"] for kept in checkpoint_folders(folder)} | {stage.best_epoch}
    files = {stage.best_file(epoch) for epoch in meant if epoch is not None}
    for file in stage.run.stage(stage.task.name).glob("best-epoch-*.safetensors"):
        if file not in files:
            file.unlink()
    return files


def _finish(stage: _Stage) -> None:
    """Write the final model, the best epoch's where there is validation; the card first, so that weights mean done."""
    if stage.world.rank == 0:
        if stage.best_epoch is not None:
            stage.model.load_state_dict(load_weights(stage.best_file(stage.best_epoch)))
        weights, card = stage.task.export(stage.model)
        card |= {"stage": stage.task.name, "epochs": stage.settings.epochs, "best_epoch": stage.best_epoch}
        if stage.skipped:
            card["skipped_batches"] = stage.skipped
        write_json(stage.run.model_card(stage.task.name), card)
        save_weights(stage.run.model_file(stage.task.name), weights)
        stage.run.push_stage(stage.task.name)
    if stage.world.size > 1:
        dist.barrier()


def _adamw(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW over what is trained; decay on matrices alone, not on biases, norms and tokens."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (matrices if sum(size > 1 for size in parameter.shape) >= 2 else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr)


def _distribute(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    # no layer here has batch statistics, so buffers are the same on every rank and stay so
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def _cases(row: Row, arrays: Arrays) -> list[int]:
    return [int(case) for case in np.asarray(arrays.get("case", row.case)).ravel()]


def _refuse(stage: _Stage, what: str, step: int, cases: list[int]) -> None:
    epoch = step // stage.steps_per_epoch + 1
    skipped = f", after {stage.skipped} skipped before it" if stage.skipped else ""
    raise GimpError(
        f"{what} is not finite in stage '{stage.task.name}', epoch {epoch}, step {step + 1}, rank {stage.world.rank}",
        found=f"case numbers {cases} in the mini-batch{skipped}",
        fix="lower train.lr, set train.clip_norm, or use train.precision: fp32; train.skip_bad_batches leaves some "
        "out; the last checkpoint is intact",
    )
