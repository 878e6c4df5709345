"""The end of logs, fit to be sent: bounded, and clean whatever was logged."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from threading import Lock

from edgec.protocol._window import clean_text

_MOST_LINE = 2000


class LogMemory(logging.Handler):
    """Keeps the last lines that were logged, in bounded memory.

    Args:
        most_bytes: Of all lines together.
    """

    def __init__(self, most_bytes: int = 128 * 1024) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._most = most_bytes
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._guard = Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        try:
            # The beginning of megabytes is all that is looked at.
            line = clean_text(self.format(record)[:_MOST_LINE])
        except Exception:  # noqa: BLE001 - as of every handler: arguments may fail in any way
            self.handleError(record)
            return
        with self._guard:
            self._lines.append(line)
            self._bytes += len(line.encode()) + 1
            while self._bytes > self._most and len(self._lines) > 1:
                self._bytes -= len(self._lines.popleft().encode()) + 1

    def tail(self, most_bytes: int) -> bytes:
        """Return the last lines."""
        with self._guard:
            return "\n".join(self._lines).encode()[-most_bytes:]


def tail_of(path: Path, most_bytes: int) -> bytes:
    """Return the end of a file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - most_bytes, 0))
        return file.read(most_bytes)


def clean_tail(raw: bytes, *, lines: int, most_bytes: int) -> tuple[str, bool]:
    """Return the last lines of a log as text that any reader takes.

    Bytes that are no UTF-8 become U+FFFD, and control characters too; very long lines are cut in front.

    Args:
        raw: The end of a log, which may hold anything.
        lines: At most so many.
        most_bytes: At most so many of the text in UTF-8.

    Returns:
        The text, and whether something is missing in front.
    """
    text = clean_text(raw[-most_bytes:])
    there = text.removesuffix("\n").split("\n") if text else []
    kept = there[-lines:] if lines else []
    data = "\n".join(kept).encode()[-most_bytes:]
    # A character that was cut in two is left out.
    whole = data.decode(errors="ignore")
    return whole, len(kept) < len(there) or len(raw) > most_bytes or len(data) < len(raw)
