"""What carries out the work of an update: the seam between the state machine and the world."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from edgec.device_agent._events import Work
from edgec.device_agent._state import Report
from edgec.errors import AgentError


class WorkFailedError(AgentError):
    """A piece of work has failed.

    Attributes:
        reason: For programs, a word: ``digest``, ``hardware``, ``golden`` ...
        passing: Whether it may succeed later as it is.
    """

    def __init__(self, reason: str, detail: str, *, passing: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.passing = passing


class PostponedError(AgentError):
    """Now is not the time; nothing has failed.

    Attributes:
        reason: For programs, a word: ``power``, ``window``, ``metered`` ...
        retry_s: When to ask again, in seconds from now.
    """

    def __init__(self, reason: str, detail: str, *, retry_s: float = 900.0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_s = retry_s


class CancelledError(AgentError):
    """The result of this piece of work is not wanted any more."""


class Context:
    """What a piece of work has around it: whether it is still wanted, and who hears how far it is."""

    def __init__(self, progress: Callable[[int, int], None] | None = None) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.RLock()
        self._progress = progress

    @property
    def cancelled(self) -> bool:
        """Whether the work should stop; to be looked at at least once a second."""
        return self._cancelled.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than the work is wanted.

        Raises:
            CancelledError: It is not wanted any more.
        """
        if self._cancelled.wait(seconds):
            raise CancelledError("the work was cancelled")

    def check(self) -> None:
        """Go on only while the work is wanted.

        Raises:
            CancelledError: It is not wanted any more.
        """
        if self._cancelled.is_set():
            raise CancelledError("the work was cancelled")

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Do what cannot be taken back, such as the switch: a cancel comes before it or after it.

        Raises:
            CancelledError: The work is not wanted any more; the block was not run.
        """
        with self._lock:
            self.check()
            yield

    def progress(self, done: int, total: int) -> None:
        """Say how many bytes of how many are there."""
        if self._progress is not None:
            self._progress(done, total)

    def cancel(self) -> None:
        """Ask the work to stop."""
        with self._lock:
            self._cancelled.set()


class Actions(Protocol):
    """The work of updates, by `Work.name`, and the way to the fleet.

    Every method may be called again for work that was done, half done, or cut off by a loss of power, and
    then leads to the same end. Each returns when its work is done, or raises `WorkFailedError`,
    `PostponedError` or `CancelledError`; an `OSError`, a `TransferError` or another `EdgecError` is a failure
    too. They run in a thread of their own, one at a time per model.
    """

    def admit(self, work: Work, context: Context) -> None:
        """Check hardware class, version, power, link and window; nothing is written."""

    def reserve(self, work: Work, context: Context) -> None:
        """Make sure of the space for download and slot."""

    def fetch(self, work: Work, context: Context) -> None:
        """Bring the artifact to this device, going on where an earlier call stopped."""

    def verify(self, work: Work, context: Context) -> None:
        """Check length, digest and manifest of what was fetched."""

    def stage(self, work: Work, context: Context) -> None:
        """Put it into `work.slot`, durably; with `work.reuse`, check that it is there."""

    def confirm(self, work: Work, context: Context) -> None:
        """Check, after what may have been days, that it is still trusted and may be installed now."""

    def self_test(self, work: Work, context: Context) -> None:
        """Run the health gate over the slot's artifact, in a process of its own."""

    def shadow(self, work: Work, context: Context) -> None:
        """Run it beside the active one for `work.wanted.shadow_s`, and judge."""

    def switch(self, work: Work, context: Context) -> None:
        """Make `work.slot` current, within `context.deciding()`, and let sessions follow."""

    def watch(self, work: Work, context: Context) -> None:
        """Observe the probation; return when it is passed, raise when it is not. Cancelling ends it."""

    def commit(self, work: Work, context: Context) -> None:
        """Mark the active one as proven."""

    def clean(self, work: Work, context: Context) -> None:
        """Remove downloads, reservations and everything else of this model whose digest is not in `keep`."""

    def roll_back(self, work: Work, context: Context) -> None:
        """Make `work.fallback` current again, or nothing where that is None, and let sessions follow."""

    def remove(self, work: Work, context: Context) -> None:
        """Take the model out of service and off the disk."""

    def report(self, model: str, report: Report) -> None:
        """Put a report where it is not lost, by model and `seq`; called again for the same one."""
