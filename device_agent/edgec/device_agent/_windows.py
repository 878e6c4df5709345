"""What was observed of a model, taken once and seen twice: by telemetry, and by who judges a probation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from edgec.artifact import Artifact
from edgec.device_agent._slots import SLOTS, Slots
from edgec.errors import ArtifactError
from edgec.runtime import Window

if TYPE_CHECKING:
    from pathlib import Path

# Beyond this, what a model did long ago says little of what it does now.
_LONGEST_S = 7 * 86_400.0
_MOST_ARTIFACTS = 4
_MOST_KNOWN = 256


class WindowTap:
    """Windows of one model, of all applications that use it. Safe from several threads.

    Args:
        take: Returns what was observed since the last time.
        file: Returns the digest of the file that has a content; None where that is not known.
    """

    def __init__(
        self, take: Callable[[], list[Window]], file: Callable[[str], str | None] = lambda content: None
    ) -> None:
        self._take = take
        self._file = file
        self._lock = Lock()
        self._waiting: list[Window] = []
        self._seen: dict[str, Window] = {}

    def take_all(self) -> list[Window]:
        """Return what telemetry has not had yet; see `edgec.device_agent.Telemetry`.

        A session names its artifact by its content; what leaves the device names the file, as assignments do.
        """
        with self._lock:
            self._collect()
            windows, self._waiting = self._waiting, []
        return [
            window if (file := self._file(window.artifact)) is None else replace(window, artifact=file)
            for window in windows
        ]

    def seen(self) -> Mapping[str, Window]:
        """Return all calls since `forget`, telemetry's or not, by digest of the artifact's content."""
        with self._lock:
            self._collect()
            return dict(self._seen)

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


class FileDigests:
    """Which file in the slots has which content.

    Args:
        models: Directory of all models.
    """

    def __init__(self, models: Path) -> None:
        self._models = models
        self._contents: dict[tuple[str, str], str] = {}

    def of(self, model: str, content: str) -> str | None:
        """Return the digest of the file, ``sha256:5e8f...``; None where no file here has or had this content.

        Args:
            model: Its name.
            content: Digest of the content, likewise.
        """
        slots = Slots(self._models, model)
        current = slots.current()
        for slot in sorted(SLOTS, key=lambda slot: slot != current):
            installed = slots.installed(slot)
            if (
                installed is not None
                and self._content(slots.artifact(slot), model, installed.digest) == content
            ):
                return f"sha256:{installed.digest}"
        # Replaced meanwhile.
        gone = (file for (name, file), known in self._contents.items() if (name, known) == (model, content))
        return next((f"sha256:{file}" for file in gone), None)

    def _content(self, path: Path, model: str, digest: str) -> str:
        if (model, digest) not in self._contents:
            try:
                with Artifact.open(path) as artifact:
                    content = artifact.content_digest
            except (ArtifactError, OSError):
                return ""
            if len(self._contents) >= _MOST_KNOWN:
                self._contents.clear()
            self._contents[model, digest] = content
        return self._contents[model, digest]


def _added(windows: list[Window], window: Window) -> list[Window]:
    """Return windows with one more, merged with that of the same artifact where they add up."""
    for i, other in enumerate(windows):
        if other.artifact == window.artifact:
            try:
                return [*windows[:i], other.merge(window), *windows[i + 1 :]]
            except ValueError:  # observed with other options: each stays on its own
                continue
    return [*windows, window]
