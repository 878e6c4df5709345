"""Calls that nobody waits for any more are stopped, where the engine can do that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class _Here(threading.local):
    # Of the class, so that a thread without one finds it at once: every call asks.
    interrupt: Interrupt | None = None


_here = _Here()


class Interrupt:
    """Stops the call that runs within it; use ``with`` in the thread that calls, `ask` in any.

    What runs the call attaches how it is stopped. An engine that cannot be stopped attaches nothing, and the
    call ends as it would have.

    Attributes:
        asked: Whether the call is to stop.
        was_begun: Whether an engine worked on it.
    """

    def __init__(self) -> None:
        """Stop nothing yet."""
        self.asked = False
        self.was_begun = True
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None

    def ask(self) -> None:
        """Stop the call as soon as it can be; one that has ended is left alone."""
        with self._lock:
            self.asked = True
            stop = self._stop
        if stop is not None:
            stop()

    def attach(self, stop: Callable[[], object] | None) -> None:
        """Take how the call is stopped, None for not at all; it is called at once where that was asked."""
        with self._lock:
            self._stop = stop
            asked = self.asked
        if asked and stop is not None:
            stop()

    def __enter__(self) -> Interrupt:
        _here.interrupt = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _here.interrupt = None
        self.attach(None)


def interrupt_here() -> Interrupt | None:
    """Return what may stop calls of the present thread; None where nothing does."""
    return _here.interrupt
