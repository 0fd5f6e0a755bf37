"""How fast a stage goes, and a line that shows it on a terminal.

`Pace` counts on every rank; only rank 0's counts are written. `ProgressLine` is one live line on stderr; where stderr
is no terminal (a job's log, a worker of Ray) it shows nothing, and the loop's line an epoch is all. Left out: bars of
ingests (`cohort/progress.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

# what the line shows of a log line, and how
_SHOWN = {"loss": ".4g", "loss_rec": ".3g", "loss_tri": ".3g", "active_triplets": ".0%", "accuracy": ".0%"}


class Pace:
    """Seconds, waits and cases since the last line of the log, and what is left.

    Args:
        start: mini-batches of a worker that were done before this attempt.
        limit: mini-batches after which the stage ends, or is stopped.
        workers: number of workers; each is taken to have as many cases as this one.
        clock: seconds, from any start.
    """

    def __init__(self, start: int, limit: int, workers: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit, self._workers, self._clock = limit, workers, clock
        self._first = self._done = start
        self._began = self._since = clock()
        self._waited = 0.0
        self._cases = 0

    def batch(self, cases: int, waited: float) -> None:
        """A mini-batch arrived, after so many seconds of waiting for it."""
        if self._done == self._first:
            # the first comes after the feed was started, which happens once
            self._began = self._clock()
        self._done += 1
        self._cases += cases * self._workers
        self._waited += waited

    def figures(self) -> dict[str, float]:
        """`seconds`, `data_wait` and `cases_per_s` since the last call, and `eta`, the seconds to the stage's end."""
        now = self._clock()
        seconds = now - self._since
        found = {
            "seconds": round(seconds, 3),
            "data_wait": round(self._waited, 3),
            "cases_per_s": round(self._cases / seconds, 3) if seconds > 0 else 0.0,
            "eta": round((now - self._began) / max(1, self._done - self._first) * (self._limit - self._done), 3),
        }
        self._since, self._waited, self._cases = now, 0.0, 0
        return found


class ProgressLine:
    """A live line with epoch, step, loss parts, cases/s, data wait and time left; nothing where stderr is no terminal.

    Args:
        stage: the stage's name.
        epochs: it is to have.
        steps: optimiser steps it is to have.
        shown: whether it is wanted; False on ranks other than 0.
        console: stderr, but for tests.
    """

    def __init__(self, stage: str, epochs: int, steps: int, shown: bool, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._stage, self._epochs = stage, epochs
        self._bar: Progress | None = None
        if not (shown and console.is_terminal):
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        # what is printed goes above the line, but a stdout that is a file stays one
        self._bar = Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty(), transient=True)
        self._task = self._bar.add_task(stage, total=steps, figures="")
        self._bar.start()

    def update(self, epoch: int, step: int, figures: dict[str, Any]) -> None:
        """Show a line of the log, of an epoch counted from 0 and an optimiser step."""
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=f"{self._stage} epoch {epoch + 1}/{self._epochs}",
                completed=step,
                figures=shown_figures(figures),
            )

    def close(self) -> None:
        """Take the line away and give the terminal back; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def shown_figures(figures: dict[str, Any]) -> str:
    """A log line's figures as the progress line shows them."""
    words = [f"{name} {figures[name]:{form}}" for name, form in _SHOWN.items() if name in figures]
    if "cases_per_s" in figures:
        words.append(f"{figures['cases_per_s']:.3g} cases/s")
    if figures.get("seconds"):
        words.append(f"data wait {figures.get('data_wait', 0.0) / figures['seconds']:.0%}")
    if "eta" in figures:
        words.append(f"{duration(figures['eta'])} left")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """`75` -> `1 min 15 s`, `7500` -> `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
