"""The metrics log of a stage: running means over ranks, one JSON line at a time, and TensorBoard beside it.

Only rank 0 writes. When a run resumes, lines past the checkpoint are dropped, so the log reads as if nothing had
happened.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gimp_ray.engine.protocol import World
from gimp_ray.run_folder import write_text


class Meter:
    """Running means of named figures, kept on the device until they are asked for."""

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0) -> None:
        self._sums: dict[str, Tensor] = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in (sums or {}).items()
        }
        self._count = count

    def add(self, figures: dict[str, Tensor]) -> None:
        for name, value in figures.items():
            figure = value.detach().to(torch.float64)
            self._sums[name] = self._sums[name].to(figure.device) + figure if name in self._sums else figure
        self._count += 1

    def state(self, world: World) -> tuple[dict[str, float], int]:
        """Sums, averaged over ranks, and the count. Every rank calls it, and goes on from the average."""
        if not self._sums:
            return {}, self._count
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].to(world.device) for name in names])
        if world.size > 1:
            dist.all_reduce(sums)
            sums /= world.size
        values = sums.cpu()
        self._sums = {name: values[i] for i, name in enumerate(names)}
        return {name: float(values[i]) for i, name in enumerate(names)}, self._count

    def means(self, world: World) -> dict[str, float]:
        """Means over steps and ranks. Every rank calls it."""
        sums, count = self.state(world)
        return {name: value / count for name, value in sums.items()} if count else {}


class MetricsLog:
    """Writes a stage's lines; a no-op on ranks other than 0.

    Args:
        folder: the stage's folder.
        stage: its name.
        step: lines after this optimiser step are dropped (0 starts the log anew).
        active: whether this rank writes.
    """

    def __init__(self, folder: Path, stage: str, step: int, active: bool) -> None:
        self._stage = stage
        self._active = active
        self._file = folder / "metrics.jsonl"
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(self._file) if line["step"] <= step]
        write_text(self._file, "".join(json.dumps(line) + "\n" for line in kept))
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, kind: str, epoch: int, step: int, figures: dict[str, Any]) -> None:
        """One line of kind `step`, `epoch` or `validation`."""
        if not self._active:
            return
        line = {
            "time": round(time.time(), 3),
            "stage": self._stage,
            "epoch": epoch,
            "step": step,
            "kind": kind,
            **figures,
        }
        with self._file.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._active:
            self._board.close()


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Lines of a metrics log; a torn last line is left out."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
