"""What was observed of a model, taken once and seen twice: by telemetry, and by who judges a probation."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from edgec.runtime import Window

# Beyond this, what a model did long ago says little of what it does now.
_LONGEST_S = 7 * 86_400.0
_MOST_ARTIFACTS = 4


class WindowTap:
    """Windows of one model, of all applications that use it. Safe from several threads.

    Args:
        take: Returns what was observed since the last time.
    """

    def __init__(self, take: Callable[[], list[Window]]) -> None:
        self._take = take
        self._lock = Lock()
        self._waiting: list[Window] = []
        self._seen: dict[str, Window] = {}

    def take_all(self) -> list[Window]:
        """Return what telemetry has not had yet; see `edgec.device_agent.Telemetry`."""
        with self._lock:
            self._collect()
            windows, self._waiting = self._waiting, []
            return windows

    def seen(self, artifact: str) -> Window | None:
        """Return all calls of an artifact since `forget`, telemetry's or not; None where there were none.

        Args:
            artifact: Digest of its content: ``sha256:5e8f...``.
        """
        with self._lock:
            self._collect()
            return self._seen.get(artifact)

    def forget(self, artifact: str) -> None:
        """Let `seen` begin anew."""
        with self._lock:
            self._collect()
            self._seen.pop(artifact, None)

    def _collect(self) -> None:
        for window in self._take():
            if window.is_empty:
                continue
            self._waiting = _added(self._waiting, window)
            before = self._seen.pop(window.artifact, None)
            if before is not None and before.seconds < _LONGEST_S:
                (window,) = _added([before], window)[-1:]
            self._seen[window.artifact] = window
            while len(self._seen) > _MOST_ARTIFACTS:
                self._seen.pop(next(iter(self._seen)))


def _added(windows: list[Window], window: Window) -> list[Window]:
    """Return windows with one more, merged with that of the same artifact where they add up."""
    for i, other in enumerate(windows):
        if other.artifact == window.artifact:
            try:
                return [*windows[:i], other.merge(window), *windows[i + 1 :]]
            except ValueError:  # observed with other options: each stays on its own
                continue
    return [*windows, window]
