"""One thing at a time done in a thread while training goes on, such as writing and uploading a checkpoint.

An error comes out at the next call, where the one who asked can still act on it. Left out: more than one thing at a
time, and results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class Background:
    """Does what it is given in a thread, one thing after another. As a context it waits at the end."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for what was given before, then begin this.

        Raises:
            BaseException: what the work before failed with.
        """
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised again by the one who waits
                self._error = error

        self._thread = threading.Thread(target=run, name="gimp-background")
        self._thread.start()

    def wait(self) -> None:
        """Until what was given is done.

        Raises:
            BaseException: what it failed with.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what the work has failed with by now, without waiting.

        Raises:
            BaseException: that.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.wait()
        except BaseException:
            if error is None:  # the first failure is what the user must see
                raise
