"""A progress bar on stderr, or none."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """One bar at a time: `start` a phase, `advance` it. Shows nothing when not `shown`."""

    def __init__(self, shown: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=Console(stderr=True), disable=not shown)
        self._task = None if not shown else self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def start(self, phase: str, total: int) -> None:
        """Begin a phase of `total` units."""
        if self._task is not None:
            self._bar.reset(self._task, description=phase, total=total, visible=True)

    def advance(self, done: int) -> None:
        """`done` more units are done."""
        if self._task is not None:
            self._bar.advance(self._task, done)
