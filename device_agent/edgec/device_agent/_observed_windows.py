"""What applications have observed, until telemetry and judges take it: of installed files only."""

from __future__ import annotations

import logging
from threading import Lock

from edgec.artifact import Artifact
from edgec.errors import ArtifactError, ProtocolError
from edgec.runtime import Window
from edgec.runtime._link_figures import window_from_plain
from edgec.runtime._link_messages import Observed
from edgec.runtime._model_directory import ModelDirectory

_log = logging.getLogger(__name__)
_SLOTS = ("a/model.edgec", "b/model.edgec")
_MOST_KNOWN = 256


class ObservedWindows:
    """Windows by model and artifact, those of several applications as one. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._windows: dict[str, dict[str, Window]] = {}
        # Of files by model and digest, the digest of their content, by which windows name them.
        self._contents: dict[tuple[str, str], str] = {}

    def put(self, model: str, there: ModelDirectory, message: Observed) -> None:
        """Keep a window of a file that is installed; any other is left out.

        Args:
            model: Its name.
            there: Its directory.
            message: Of an application.

        Raises:
            ProtocolError: It is no window.
        """
        window = window_from_plain(message.window)
        content = self._content(model, there, message.digest)
        if content is None:
            _log.info("%s: a window of %.12s, which is not installed any more", model, message.digest)
            return
        if content != window.artifact:
            raise ProtocolError(
                f"the window is of {window.artifact}, and the file {message.digest} of {content}"
            )
        if window.is_empty:
            return
        with self._lock:
            of_model = self._windows.setdefault(model, {})
            before = of_model.get(content)
            try:
                of_model[content] = window if before is None else before.merge(window)
            except ValueError as e:
                raise ProtocolError(f"the window does not add up with those before: {e}") from e

    def take(self, model: str) -> list[Window]:
        """Return what has come since the last time, the longest known artifact first."""
        with self._lock:
            return list(self._windows.pop(model, {}).values())

    def _content(self, model: str, there: ModelDirectory, digest: str) -> str | None:
        known = self._contents.get((model, digest))
        if known is not None:
            return known
        known = next((content for file in _SLOTS if (content := _content_of(there, file, digest))), None)
        if known is not None:
            if len(self._contents) >= _MOST_KNOWN:
                self._contents.clear()
            self._contents[model, digest] = known
        return known


def _content_of(there: ModelDirectory, file: str, digest: str) -> str | None:
    try:
        installed = there.slot(file)
        if installed.digest != digest:
            return None
        with Artifact.open(installed.path) as artifact:
            return artifact.content_digest
    except ArtifactError:
        return None
