"""One thing at a time done in a thread while training goes on, such as writing and uploading a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Background:
    """Runs functions in a thread, one after another; an error is raised at the next call. As a context it waits at the
    end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gimp-background")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the work before, raise what it failed with, else begin this."""
        self.wait()
        self._running = self._thread.submit(work)

    def wait(self) -> None:
        """Wait until the work is done, and raise what it failed with."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def check(self) -> None:
        """Raise what the work has failed with by now, without waiting."""
        if self._running is not None and self._running.done():
            self.wait()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.wait()
        except BaseException:
            if error is None:  # the first failure is what the user must see
                raise
        finally:
            self._thread.shutdown()
