"""How fast a stage goes, and a line that shows it on a terminal.

`Pace` counts on every rank; only rank 0's counts are written. `ProgressLine` is one live line on stderr; where stderr
is no terminal (a job's log, a worker of Ray) it shows nothing, and the loop's line an epoch is all. `following` shows
the same line for training in other processes, from the end of its log. Left out: bars of ingests
(`cohort/progress.py`).
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyarrow import fs as pafs
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from gimp_ray.io.storage import is_uri, resolve
from gimp_ray.runs.folder import RunFolder

# seconds between two looks at a log, here and in object storage, and how long the end waits for a look that hangs
POLL_S = 0.5
REMOTE_POLL_S = 15.0
CLOSE_S = 2.0
# the newest line of a log stands in its last bytes
TAIL = 1 << 16
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

    On a terminal that is too narrow the figures stand below the bar.

    Args:
        stage: the stage's name.
        epochs: it is to have; 0 where that is not known.
        steps: optimiser steps it is to have; 0 where that is not known.
        shown: whether it is wanted; False on ranks other than 0.
        console: stderr, but for tests.
    """

    def __init__(self, stage: str, epochs: int, steps: int, shown: bool, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._stage, self._epochs, self._steps = stage, epochs, steps
        self._bar: Progress | None = None
        if not (shown and console.is_terminal):
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
        # what is printed goes above the line, but a stdout that is a file stays one
        self._bar = _Rows(
            *columns, console=console, redirect_stdout=sys.stdout.isatty(), transient=True, refresh_per_second=4
        )
        self._task = self._bar.add_task(stage, total=steps or None, figures="")
        self._bar.start()

    def update(self, epoch: int, step: int, figures: dict[str, Any]) -> None:
        """Show a line of the log, of an epoch counted from 0 and an optimiser step.

        What `figures` says of `epochs` and `steps` replaces what the line began with: with another number of workers
        a stage has another number of steps.
        """
        self._epochs = figures.get("epochs") or self._epochs
        self._steps = figures.get("steps") or self._steps
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=f"{self._stage} epoch {epoch + 1}{f'/{self._epochs}' if self._epochs else ''}",
                completed=step,
                total=self._steps or None,
                figures=shown_figures(figures),
            )

    def close(self) -> None:
        """Take the line away and give the terminal back; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Rows(Progress):
    """A bar with its figures beside it, or below where both do not fit in a row."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            bar, figures = self.make_tasks_table([task]), Text(task.fields["figures"])
            both = Table.grid(padding=(0, 1))
            both.add_row(bar, figures)
            wanted = self.console.measure(both, options=self.console.options.update(max_width=1000)).maximum
            if wanted <= self.console.width:
                yield both
            else:
                yield bar
                yield figures


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


@contextmanager
def following(
    run: RunFolder, stages: Sequence[str], shown: bool = True, console: Console | None = None
) -> Iterator[None]:
    """For the command while its workers train: show the line of the stage they are in, from the stage's log.

    A thread looks at the end of each log; what a log held before the block is not shown. A log that is cut back, since
    the workers go on from a checkpoint, is simply read as it then is. Of a run in object storage the object is looked
    at too, four times a minute, which changes with each checkpoint and epoch: the worker that writes the log may be on
    another machine. Where stderr is no terminal, nothing is started. Nothing raises into the block.

    Args:
        run: the run folder.
        stages: those to be trained, in their order.
        shown: whether the line is wanted.
        console: stderr, but for tests.
    """
    console = console or Console(stderr=True)
    if not (shown and stages and console.is_terminal):
        yield
        return
    with contextlib.ExitStack() as stack:
        with _noted():
            stack.enter_context(_Follower([_logs_of(run, stage) for stage in stages], console))
        yield


class _Log:
    """A stage's log as it was when it was last looked at.

    Args:
        stage: its stage.
        filesystem: where it is.
        path: of it there.
        every: seconds between two looks.
    """

    def __init__(self, stage: str, filesystem: pafs.FileSystem, path: str, every: float) -> None:
        self.stage, self._filesystem, self._path, self._every = stage, filesystem, path, every
        self.newest: dict[str, Any] | None = None
        self._known: tuple[Any, ...] | None = None
        self._next = 0.0

    def look(self, now: float) -> bool:
        """Read the newest step line where the log changed since the last look; whether it did. The first look only
        sees what there is.
        """
        if now < self._next:
            return False
        self._next = now + self._every
        info = self._filesystem.get_file_info(self._path)
        found = (info.type, info.size, info.mtime_ns)
        if self._known in (None, found) or info.type != pafs.FileType.File:
            self._known = found
            return False
        with self._filesystem.open_input_file(self._path) as file:
            size = file.size()
            start = max(0, size - TAIL)
            self.newest = _newest_step(file.read_at(size - start, start))
        self._known = found
        return True


class _Follower:
    """The thread behind `following`, and the line it shows."""

    def __init__(self, logs: list[list[_Log]], console: Console) -> None:
        self._logs, self._console = logs, console
        self._stage = -1
        self._line: ProgressLine | None = None
        self._finished = False
        self._over, self._turn = threading.Event(), threading.Lock()
        # before anything is written; a look into object storage may take long, and is the thread's
        for here, *_ in logs:
            here.look(time.monotonic())
        self._thread = threading.Thread(target=self._follow, name="progress line", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(CLOSE_S)
        with self._turn, _noted():
            self._close()

    def _follow(self) -> None:
        with _noted(self._over):
            while not self._over.wait(POLL_S):
                for number, logs in enumerate(self._logs):
                    # every log is asked, so no short cut
                    changed = [_looked(log) for log in logs]
                    if number >= self._stage:
                        self._show(number, logs, any(changed))

    def _show(self, number: int, logs: list[_Log], changed: bool) -> None:
        newest = max((log.newest for log in logs if log.newest), key=_written, default=None)
        with self._turn:
            if self._over.is_set() or newest is None:
                return
            if not changed:
                if number == self._stage and self._finished:
                    self._close()
                return
            if number != self._stage:
                self._close()
                self._stage = number
            if self._line is None:
                self._line = ProgressLine(logs[0].stage, 0, newest.get("steps", 0), True, self._console)
            self._line.update(newest.get("epoch", 0), newest["step"], newest)
            self._finished = newest["step"] >= newest.get("steps", float("inf"))

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


def _logs_of(run: RunFolder, stage: str) -> list[_Log]:
    """Where a stage's log may be seen to grow: on this machine first."""
    here, path = resolve(str(run.metrics_log(stage).resolve()))
    logs = [_Log(stage, here, path, POLL_S)]
    if is_uri(run.place):
        there, path = resolve(f"{run.place}/{stage}/metrics.jsonl")
        logs.append(_Log(stage, there, path, REMOTE_POLL_S))
    return logs


def _looked(log: _Log) -> bool:
    try:
        return log.look(time.monotonic())
    except OSError:  # a log that cannot be read now may be so later
        return False


def _newest_step(tail: bytes) -> dict[str, Any] | None:
    """The last whole line of kind `step` in the last bytes of a log."""
    for text in reversed(tail.split(b"\n")):
        try:
            line = json.loads(text)
        except ValueError:  # torn at either end
            continue
        if isinstance(line, dict) and line.get("kind") == "step" and isinstance(line.get("step"), int):
            return line
    return None


def _written(line: dict[str, Any]) -> float:
    return float(line.get("time", 0.0))


@contextmanager
def _noted(over: threading.Event | None = None) -> Iterator[None]:
    """Whatever is wrong with a line on a terminal is no reason to end a training, and after it nobody's business."""
    try:
        yield
    except Exception as error:
        if over is None or not over.is_set():
            print(f"note: no progress line from here on: {type(error).__name__}: {str(error)[:200]}", flush=True)
