"""A log of what was ordered on this device that can be added to, but not changed unnoticed.

Each line is an object of JSON. `hash` is the SHA-256 of the line without it, with sorted keys and no white
space, and `before` the `hash` of the line before: whoever changes, removes or inserts a line has to make all
later ones anew, and that shows where the last hash is known elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from edgec.artifact import sync_directory
from edgec.device_agent._durable import make_directory
from edgec.errors import OutputError

FIRST = "0" * 64
_MOST_LINE = 16 * 1024
_MOST_FIELD = 1000


@dataclass(frozen=True, kw_only=True)
class AuditCheck:
    """Whether a log is whole.

    Attributes:
        lines: That were read.
        problem: The first thing that is wrong, in a sentence; empty where nothing is.
        head: Hash of the last line.
    """

    lines: int
    problem: str
    head: str


class AuditLog:
    """The log in a file, and the one before it, beside: `NAME.1`. Safe from several threads.

    Args:
        path: Of the file; its directory is made.
        most_bytes: Of it; then it takes the place of the one before.
    """

    def __init__(self, path: Path, *, most_bytes: int = 256 * 1024) -> None:
        self._path, self._most = path, most_bytes
        self._old = path.with_name(path.name + ".1")
        self._lock = Lock()
        self._head: str | None = None

    def append(self, entry: Mapping[str, Any]) -> str:
        """Add a line; durable when this returns.

        Args:
            entry: What JSON can hold; long texts are cut.

        Returns:
            Its hash.

        Raises:
            OutputError: It cannot be written.
        """
        with self._lock:
            try:
                return self._append(entry)
            except OSError as e:
                self._head = None
                raise OutputError(f"the audit cannot be written to {self._path}: {e}") from e

    def check(self) -> AuditCheck:
        """Read all lines, and compare each hash.

        Raises:
            OSError: A file cannot be read.
        """
        with self._lock:
            before: str | None = None
            number = 0
            for path in (self._old, self._path):
                for line in _lines(path):
                    number += 1
                    entry = _parsed(line)
                    if entry is None or entry["hash"] != _hash(entry):
                        problem = f"line {number} was changed, or is damaged"
                        return AuditCheck(lines=number, problem=problem, head=before or FIRST)
                    if before is not None and entry["before"] != before:
                        problem = f"before line {number}, lines are missing"
                        return AuditCheck(lines=number, problem=problem, head=before)
                    before = entry["hash"]
            return AuditCheck(lines=number, problem="", head=before or FIRST)

    def last(self, most: int = 100) -> list[dict[str, Any]]:
        """Return the last lines, oldest first; what is damaged is left out.

        Raises:
            OSError: A file cannot be read.
        """
        with self._lock:
            lines = [*_lines(self._old), *_lines(self._path)][-most:]
        return [entry for line in lines if (entry := _parsed(line)) is not None]

    def _append(self, entry: Mapping[str, Any]) -> str:
        make_directory(self._path.parent)
        before = self._find_head()
        plain = {
            key: value[:_MOST_FIELD] if isinstance(value, str) else value for key, value in entry.items()
        }
        whole = {**plain, "before": before}
        whole["hash"] = _hash(whole)
        line = _canonical(whole) + b"\n"
        if len(line) > _MOST_LINE:
            raise OutputError(f"a line of the audit has {len(line)} bytes; {_MOST_LINE} are allowed")
        size = self._path.stat().st_size if self._path.exists() else 0
        if size and size + len(line) > self._most:
            os.replace(self._path, self._old)
            size = 0
        with self._path.open("ab") as file:
            if size and not _ends_whole(self._path):
                # A loss of power cut the last line: it stays, for all to see, and the chain goes on.
                file.write(b"\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self._path.parent)
        self._head = str(whole["hash"])
        return self._head

    def _find_head(self) -> str:
        """Return the hash of the last whole line."""
        if self._head is None:
            whole = [e for path in (self._old, self._path) for line in _lines(path) if (e := _parsed(line))]
            self._head = str(whole[-1]["hash"]) if whole else FIRST
        return self._head


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(_MOST_LINE + 1):
                yield line.rstrip(b"\n")
    except FileNotFoundError:
        return


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("hash", "before"))
    return entry if whole else None


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _hash(entry: Mapping[str, Any]) -> str:
    try:
        return hashlib.sha256(_canonical({k: v for k, v in entry.items() if k != "hash"})).hexdigest()
    except ValueError:  # a number that is none, in a line that somebody wrote
        return ""


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
