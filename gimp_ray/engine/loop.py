"""The training loop: one stage of a run on one rank, from its last checkpoint to its final model. No Ray in here.

Everything random in a mini-batch is seeded from (seed, epoch, its number in the epoch), the learning rate is a function
of the position in the stage and batches come from a pure plan, so a run that was stopped and one that was not go
through the same states. A position counts mini-batches of all ranks over all epochs; a step is one mini-batch of every
rank, and an optimiser step takes `accumulate` of them. At each optimiser step the ranks agree on whether one of them
met a bad batch, was asked to end, or finds a checkpoint due by the clock. Left out: where a stage goes on
and what a checkpoint is (`checkpoint.py`), the optimiser and its rate (`optimizing.py`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gimp_ray.engine import stopping
from gimp_ray.engine.background import Background
from gimp_ray.engine.checkpoint import (
    agreed_start,
    best_file,
    checkpoint_folders,
    load_checkpoint,
    read_state,
    save_checkpoint,
    snapshot,
)
from gimp_ray.engine.compiling import compile_model
from gimp_ray.engine.log import Meter, MetricsLog, weigh
from gimp_ray.engine.optimizing import learning_rate, make_optimizer
from gimp_ray.engine.progress import Pace
from gimp_ray.engine.protocol import Record, Tensors, TrainTask, World
from gimp_ray.engine.transfer import on_device
from gimp_ray.errors import GimpError
from gimp_ray.feed.plan import Row
from gimp_ray.feed.windows import Arrays
from gimp_ray.io.storage import StorageError, timeout_s, waiting_for_storage
from gimp_ray.runs.folder import RunFolder, unwritable
from gimp_ray.runs.model import digest_of, load_weights, save_model, save_weights

MEMORY_FIX = (
    "lower the mini-batch and raise `accumulate` (batch.cases_per_class, finetune.batch_size, genes.batch_size), lower "
    "window.length, or use train.precision: bf16; once a stage has a checkpoint, that takes a new run folder. "
    "model.activation_checkpointing and a smaller feed.cache_gb do not"
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


class _Stage:
    """What the loop carries from step to step on one rank."""

    def __init__(self, task: TrainTask, world: World, run: RunFolder, saving: Saving) -> None:
        self.task, self.world, self.run, self.saving = task, world, run, saving
        self.settings, self.plan = task.settings, task.plan
        self.model = task.build(world.device)
        self.optimizer = make_optimizer(self.model, self.settings)
        start = agreed_start(task, run, world)
        state = start.state
        if start.path is not None:
            load_checkpoint(start.path, state, self.model, self.optimizer)
        if self.settings.compile:
            compile_model(self.model)
        self.wrapped = _distribute(self.model, world, task.in_turn)
        # mini-batches and optimiser steps that are done, and where this attempt is to end
        self.position, self.step = start.position, start.step
        self.limit = min(self.settings.stop_after or self.settings.epochs, self.settings.epochs)
        self.limit *= self.plan.mini_batches
        self.since_log = Meter(state.get("since_log"), world.rank)
        self.since_epoch = Meter(state.get("since_epoch"), world.rank)
        # seconds of the epoch, and those of them that were spent waiting for data, before this attempt
        self.clock: dict[str, float] = state.get("clock", {"seconds": 0.0, "data_wait": 0.0})
        self.skipped: int = state.get("skipped", 0)
        # of the optimiser step in the making: figures of its mini-batches, and what was not finite in them
        self.figures: list[tuple[dict[str, Tensor], float]] = []
        self.bad: list[int] = []
        self.stop = self.overdue = False
        self.saved_at = time.monotonic()
        self.best: list[float] | None = state.get("best")
        self.best_epoch: int | None = state.get("best_epoch")
        self.best_sha256: str | None = state.get("best_sha256")
        steps = self.step + self.plan.updates(self.position, self.plan.positions, world.size)
        self.log = MetricsLog(
            run.stage(task.name), task.name, self.step, world.rank == 0, steps, settings=self.settings, run=run.place
        )
        self.pace = Pace(0, self.plan.steps(self.position, max(self.limit, self.position), world.size), world.size)
        self.background = Background()
        if self.in_vain:
            self.limit = self.position
        self.behind = False  # whether the run's folder, in object storage, lacks what is here

    def best_file(self, epoch: int) -> Path:
        return best_file(self.run.stage(self.task.name), epoch)

    @property
    def epochs_done(self) -> int:
        return self.position // self.plan.mini_batches

    @property
    def in_vain(self) -> bool:
        """Whether the last `patience` epochs were none better on validation, the same on all ranks."""
        patience, done = self.settings.patience, self.epochs_done
        if not patience or self.best_epoch is None or done < self.settings.min_epochs:
            return False
        return done - 1 - self.best_epoch >= patience


def train(
    task: TrainTask, world: World, run: RunFolder, saving: Saving, batches: Batches, report: Report | None = None
) -> str:
    """Train a stage to its end, which `patience` may bring early, or to `stop_after`.

    Args:
        task: what is trained.
        world: where this worker stands; with more than one rank a process group is already up.
        run: the run folder, the same for all ranks.
        saving: when to write checkpoints.
        batches: gives this rank's batches from a position on.
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
    if stage.position < stage.limit:
        with (
            stage.log,
            stage.background,
            contextlib.closing(on_device(batches(stage.position), world.device)) as feed,
            stopping.deferred(),
        ):
            _steps(stage, feed, report)
    else:
        stage.log.close()
    if stage.stop:
        if world.rank == 0 and stage.behind:
            _bring(stage)
        return "preempted"
    if stage.position < task.plan.positions and not stage.in_vain:
        if world.rank == 0:
            _bring(stage)
        return "stopped"
    _finish(stage)
    return "done"


def _steps(stage: _Stage, feed: Iterator[tuple[Row, Tensors]], report: Report | None) -> None:
    """All the steps up to the limit, or until it is to end, with what an epoch's end asks for."""
    since = time.perf_counter()
    for row, batch in feed:
        waited = time.perf_counter() - since
        stage.pace.batch(len(row.case), waited)
        _one_step(stage, row, batch)
        del batch  # or it would be in memory beside the next ones
        ended = stage.position % stage.plan.mini_batches == 0
        if row.closes and not ended and _due(stage):
            _save(stage)
        now = time.perf_counter()
        stage.clock["seconds"] += now - since
        stage.clock["data_wait"] += waited
        since = now
        if ended:
            _end_epoch(stage, report)
            since = time.perf_counter()
        if stage.position >= stage.limit or (stage.stop and row.closes):
            return


def gather_records(records: list[Record], world: World) -> list[Record]:
    """All ranks' records, on every rank."""
    if world.size == 1:
        return records
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, records)
    return [record for part in gathered for record in part]


def seed_mini_batch(seed: int, epoch: int, number: int) -> None:
    """Seed torch for one mini-batch (dropout and the like), whichever rank has it."""
    key = np.random.SeedSequence((seed, epoch, number))
    drawn = int(key.generate_state(1, np.uint64)[0] >> np.uint64(1))
    # torch.manual_seed formats a stack trace for each device that is not in use, which takes longer than a small step
    torch.default_generator.manual_seed(drawn)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(drawn)


def _one_step(stage: _Stage, row: Row, batch: Tensors) -> None:
    settings, world = stage.settings, stage.world
    seed_mini_batch(stage.task.seed, row.epoch, row.mini_batch)
    stage.model.train()
    holding = isinstance(stage.wrapped, DistributedDataParallel) and not row.closes
    with stage.wrapped.no_sync() if holding else contextlib.nullcontext():  # type: ignore[operator, union-attr]
        with autocast(settings.precision, world.device):
            loss, parts = stage.task.loss(stage.wrapped, batch)
        (loss * row.share).backward()
    if not bool(torch.isfinite(loss)):
        if not settings.skip_bad_batches:
            _refuse(stage, "the loss", row.case.tolist())
        stage.bad += row.case.tolist()
    stage.figures.append(({"loss": loss, **parts}, row.share))
    if row.closes:
        _end_update(stage, row, _clip(stage), row.case.tolist())
    stage.position = row.end


def _end_update(stage: _Stage, row: Row, norm: Tensor, cases: list[int]) -> None:
    """The optimiser's step, or that it is skipped; all ranks do the same."""
    settings = stage.settings
    stage.background.check()
    finite = bool(torch.isfinite(norm))
    # the norm is of all ranks' gradients, so all of them refuse, before the weights are touched
    if not finite and not settings.skip_bad_batches:
        _refuse(stage, "the gradient", cases)
    bad, stage.stop, stage.overdue = agreed(
        stage.world, [bool(stage.bad) or not finite, stopping.asked(), _late(stage)]
    )
    stage.step += 1
    if bad:
        _skip(stage, row, stage.bad or cases)
    else:
        _update(stage, row)
        for weighed in [*(weigh(*figures) for figures in stage.figures), weigh({"grad_norm": norm})]:
            stage.since_log.add(weighed)
            stage.since_epoch.add(weighed)
    stage.figures, stage.bad = [], []
    if stage.step % settings.log_every == 0:
        _log_steps(stage, row.epoch, row.end)


def agreed(world: World, flags: list[bool]) -> list[bool]:
    """Each flag as it is on any rank."""
    if world.size == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32, device=world.device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def _skip(stage: _Stage, row: Row, cases: list[int]) -> None:
    """Leave an optimiser step out; the learning rate goes on as if it had been taken."""
    if stage.skipped >= stage.settings.skip_bad_batches:
        _refuse(stage, "the loss or gradient", cases, stage.step)
    stage.skipped += 1
    stage.optimizer.zero_grad(set_to_none=True)
    stage.log.write("skipped", row.epoch, stage.step, {"skipped": stage.skipped, "cases": sorted(set(cases))})
    if stage.world.rank == 0:
        print(f"note: {stage.task.name} step {stage.step} was skipped: its loss or gradient is not finite", flush=True)


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


def _update(stage: _Stage, row: Row) -> None:
    rate = learning_rate(stage.settings, row.before, row.after)
    for group in stage.optimizer.param_groups:
        group["lr"] = rate
    stage.optimizer.step()
    stage.optimizer.zero_grad(set_to_none=True)


def _log_steps(stage: _Stage, epoch: int, position: int) -> None:
    means = stage.since_log.means(stage.world)
    if means:
        figures = means | {"lr": stage.optimizer.param_groups[0]["lr"], "mini_batches": position}
        stage.log.write("step", epoch, stage.step, figures | stage.pace.figures())
    stage.since_log = Meter()


def _end_epoch(stage: _Stage, report: Report | None) -> None:
    epoch = stage.epochs_done - 1
    _log_steps(stage, epoch, stage.position)
    means = stage.since_epoch.means(stage.world)
    timing = {name: round(value, 3) for name, value in stage.clock.items()}
    stage.since_epoch, stage.clock = Meter(), dict.fromkeys(stage.clock, 0.0)
    stage.log.write("epoch", epoch, stage.step, means | timing)
    figures = _validate(stage, epoch)
    if stage.world.rank == 0:
        shown = {name: round(value, 4) for name, value in (means | figures).items()}
        print(f"{stage.task.name} epoch {epoch + 1}/{stage.settings.epochs} {shown} {timing}", flush=True)
    if stage.in_vain:
        stage.limit = stage.position
    if stage.position >= stage.limit or (epoch + 1) % stage.saving.every_epochs == 0 or _due(stage):
        _save(stage)
    elif stage.world.rank == 0:
        stage.background.start(functools.partial(_try_to_bring, stage))
    if report is not None:
        report({"stage": stage.task.name, "epoch": epoch + 1, "step": stage.step, **means, **figures})


def _validate(stage: _Stage, epoch: int) -> dict[str, float]:
    """Validation figures of the epoch; the best epoch's weights are kept."""
    stage.model.eval()
    with torch.no_grad(), autocast(stage.settings.precision, stage.world.device):
        records = stage.task.validate(stage.model, stage.world)
    if records is None:
        return {}
    figures, score = stage.task.score(gather_records(records, stage.world))
    stage.log.write("validation", epoch, stage.step, figures)
    if stage.best is None or score > stage.best:
        stage.background.wait()  # it removes the weights of epochs that it does not know as best
        stage.best, stage.best_epoch = score, epoch
        if stage.world.rank == 0:
            stage.best_sha256 = save_weights(stage.best_file(epoch), stage.model.state_dict())
    return figures


def _due(stage: _Stage) -> bool:
    every = stage.saving.every_steps
    return stage.stop or stage.overdue or (every is not None and stage.step % every == 0)


def _save(stage: _Stage) -> None:
    """Copy what a checkpoint holds, and write it while training goes on."""
    state = {
        "position": stage.position,
        "world_size": stage.world.size,
        "epoch": stage.epochs_done,
        "mini_batches": stage.plan.mini_batches,
        "since_log": stage.since_log.state(stage.world),
        "since_epoch": stage.since_epoch.state(stage.world),
        "clock": dict(stage.clock),
        "best": stage.best,
        "best_epoch": stage.best_epoch,
        "best_sha256": stage.best_sha256,
        "skipped": stage.skipped,
    }
    stage.saved_at, stage.overdue = time.monotonic(), False
    if stage.world.rank == 0:
        stage.background.wait()  # so that no more than one copy is in memory
        tensors = snapshot(stage.model, stage.optimizer)
        state["inputs"] = stage.task.inputs
        stage.background.start(functools.partial(_write, stage, stage.step, tensors, state))


def _write(stage: _Stage, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
    folder = stage.run.checkpoints(stage.task.name)
    save_checkpoint(folder, step, tensors, state, stage.saving.keep)
    best = _prune_best(stage, folder, state["best_epoch"])
    _try_to_bring(stage, [*checkpoint_folders(folder), *best])


def _try_to_bring(stage: _Stage, kept: list[Path] | None = None) -> None:
    """Bring what is here to a run in object storage; where that fails training goes on, and the next time brings it."""
    try:
        with waiting_for_storage(0):
            stage.run.push_stage(stage.task.name, kept)
    except StorageError as error:
        if not stage.behind:
            found = str(error.found).splitlines()[0]
            print(
                f"note: {error.file} could not be brought to the storage; it is in {stage.run.path}, and will be "
                f"tried again with the next checkpoint, training goes on meanwhile: {found}",
                flush=True,
            )
        stage.behind = True
    else:
        if stage.behind:
            print(f"note: {stage.run.place} has all of stage '{stage.task.name}' again", flush=True)
        stage.behind = False


def _bring(stage: _Stage) -> None:
    """The same where nothing comes after it: the storage is waited for.

    Raises:
        StorageError: it did not take what is here for as long as `places.patience` says.
    """
    name, run = stage.task.name, stage.run
    kept = [*checkpoint_folders(run.checkpoints(name)), *run.stage(name).glob("best-epoch-*")]
    try:
        with waiting_for_storage():
            run.push_stage(name, kept if stage.behind else None)
    except StorageError as error:
        raise StorageError(
            f"what stage '{name}' wrote could not be brought to the storage",
            file=error.file,
            expected=f"that the storage takes it within {timeout_s():.0f} s",
            found=error.found,
            fix=f"it is in {run.path} on this machine; see that the storage answers and that the credentials may write "
            "there, and give the same command, which goes on from what is in the bucket",
        ) from error


def _prune_best(stage: _Stage, folder: Path, best_epoch: int | None) -> set[Path]:
    """Remove the weights of best epochs that neither this process nor a kept checkpoint means; gives those it left."""
    meant = {best_epoch}
    for kept in checkpoint_folders(folder):
        with contextlib.suppress(GimpError, OSError):  # one that is damaged is set aside when it is needed
            meant.add(read_state(kept)["best_epoch"])
    files = {stage.best_file(epoch) for epoch in meant if epoch is not None}
    for file in stage.run.stage(stage.task.name).glob("best-epoch-*.safetensors"):
        if file not in files:
            file.unlink()
    return files


def _finish(stage: _Stage) -> None:
    """Write the final model, the best epoch's where there is validation; the card first, so that weights mean done."""
    if stage.world.rank == 0:
        if stage.best_epoch is not None:
            stage.model.load_state_dict(load_weights(stage.best_file(stage.best_epoch), stage.best_sha256))
        weights, card = stage.task.export(stage.model)
        card |= {"stage": stage.task.name, "epochs": stage.settings.epochs, "best_epoch": stage.best_epoch}
        card |= {"inputs": stage.task.inputs, "digest": digest_of(stage.task.inputs)}
        if stage.skipped:
            card["skipped_batches"] = stage.skipped
        if stage.position < stage.plan.positions:
            card["ended_after"] = stage.epochs_done
            _say_ended(stage)
        save_model(stage.run.model_file(stage.task.name), weights, card)
        _bring(stage)
    if stage.world.size > 1:
        dist.barrier()


def _say_ended(stage: _Stage) -> None:
    assert stage.best_epoch is not None
    print(
        f"note: {stage.task.name} ended after {stage.epochs_done} of {stage.settings.epochs} epochs: none of the last "
        f"{stage.epochs_done - 1 - stage.best_epoch} was better on validation than epoch {stage.best_epoch + 1} "
        "(train.patience)",
        flush=True,
    )


def _distribute(model: nn.Module, world: World, in_turn: bool) -> nn.Module:
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    # no layer here has batch statistics, so buffers are the same on every rank and stay so
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # of parameters that a step leaves out the gradient stays unset, so that the optimiser leaves them alone
    options: dict[str, Any] = {"device_ids": devices, "find_unused_parameters": in_turn}
    # `broadcast_buffers` is its name before torch 2.13
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    return DistributedDataParallel(model, **options)


def _refuse(stage: _Stage, what: str, cases: list[int], step: int | None = None) -> None:
    step = stage.step + 1 if step is None else step
    skipped = f", after {stage.skipped} skipped before it" if stage.skipped else ""
    raise GimpError(
        f"{what} is not finite in stage '{stage.task.name}', epoch {stage.epochs_done + 1}, step {step}, "
        f"rank {stage.world.rank}",
        found=f"case numbers {cases} in the mini-batch{skipped}",
        fix="lower train.lr, set train.clip_norm, or use train.precision: fp32; train.skip_bad_batches leaves some "
        "out; the last checkpoint is intact",
    )
