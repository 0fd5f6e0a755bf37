"""The metrics log of a stage: running means over ranks, one JSON line at a time, with TensorBoard, trackers and the
progress line beside it.

Only rank 0 writes. When a run resumes, lines past the checkpoint are dropped, so the log reads as if nothing had
happened.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gimp_ray.engine.progress import ProgressLine
from gimp_ray.engine.protocol import World
from gimp_ray.engine.trackers import Sender, open_trackers, require_trackers, send
from gimp_ray.io.files import read_lines, write_text


def weigh(figures: dict[str, Tensor], weight: float = 1.0) -> dict[str, Tensor]:
    """Each figure times its weight, beside the weight, (2,) float64; once for all meters that get it.

    NaN counts as not known: a mini-batch without triplets has no distances.
    """
    weighed = {}
    for name, value in figures.items():
        figure = value.detach().to(torch.float64)
        known = ~figure.isnan()
        weighed[name] = torch.stack([figure.where(known, 0.0), known.to(torch.float64)]) * weight
    return weighed


class Meter:
    """Running means of named figures, kept on the device until they are asked for.

    Args:
        state: what `state` gave, to go on from a checkpoint.
        rank: of this worker; the first one goes on with what all had.
    """

    def __init__(self, state: dict[str, list[float]] | None = None, rank: int = 0) -> None:
        # a figure's weighted sum and its weight
        self._sums = {
            name: torch.tensor(pair if rank == 0 else [0.0, 0.0], dtype=torch.float64)
            for name, pair in (state or {}).items()
        }

    def add(self, weighed: dict[str, Tensor]) -> None:
        """Add what `weigh` gave."""
        for name, pair in weighed.items():
            self._sums[name] = self._sums[name].to(pair.device) + pair if name in self._sums else pair

    def state(self, world: World) -> dict[str, list[float]]:
        """Sum and weight of each figure over all ranks. Every rank calls it; the first goes on from there."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        pairs = torch.stack([self._sums[name].to(world.device) for name in names])
        if world.size > 1:
            dist.all_reduce(pairs)
        found: dict[str, list[float]] = dict(zip(names, pairs.cpu().tolist(), strict=True))
        self._sums = Meter(found, world.rank)._sums
        return found

    def means(self, world: World) -> dict[str, float]:
        """Means over what was added on all ranks; figures that were never known are left out. Every rank calls it."""
        return {name: total / weight for name, (total, weight) in self.state(world).items() if weight > 0}


class MetricsLog:
    """Writes a stage's lines; a no-op on ranks other than 0. As a context it closes, and tells trackers of a failure.

    Args:
        folder: the stage's folder.
        stage: its name.
        step: lines after this optimiser step are dropped (0 starts the log anew).
        active: whether this rank writes.
        steps: optimiser steps the stage is to have, noted in every line as its epochs are; None to leave it out.
        settings: the stage's settings; their `log`, where they have one, says which trackers get the figures and
            whether a progress line is shown.
        run: the run as the user named it, for the trackers.

    Raises:
        ConfigError: the package of a tracker is not installed; on every rank.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        step: int,
        active: bool,
        steps: int | None = None,
        settings: Any = None,
        run: str = "run",
    ) -> None:
        self._stage = stage
        self._active = active
        # what a reader needs to say how far the stage is
        self._whole = {"steps": steps, "epochs": getattr(settings, "epochs", None)}
        self._whole = {name: count for name, count in self._whole.items() if count is not None}
        self._file = folder / "metrics.jsonl"
        self._senders: list[Sender] = []
        log = getattr(settings, "log", None)
        require_trackers(log)
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(self._file) if line["step"] <= step]
        write_text(self._file, "".join(json.dumps(line) + "\n" for line in kept))
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._senders = open_trackers(log, settings, run, stage, folder, anew=step == 0)
        shown = steps is not None and bool(getattr(log, "progress", False))
        self._line = ProgressLine(stage, getattr(settings, "epochs", 0), steps or 0, shown)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def write(self, kind: str, epoch: int, step: int, figures: dict[str, Any]) -> None:
        """One line of kind `step`, `epoch` or `validation`."""
        if not self._active:
            return
        line = {
            "time": round(time.time(), 3),
            "stage": self._stage,
            "epoch": epoch,
            "step": step,
            **self._whole,
            "kind": kind,
            **figures,
        }
        with self._file.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)
        send(self._senders, kind, step, figures)
        if kind == "step":
            self._line.update(epoch, step, figures)

    def close(self, failed: bool = False) -> None:
        """Close TensorBoard, the trackers and the progress line."""
        if self._active:
            self._line.close()
            self._board.close()
            for sender in self._senders:
                sender.close(failed)
