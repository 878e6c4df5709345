"""What a long run has finished, on disk, so that a killed run goes on where it was.

A journal is a file of lines: first what the run is of, then one line per finished row, in any order. A line
is written whole by one call, so that a process that is killed loses the rows it was at and nothing else; a
machine that loses power loses what was not synced yet, about a second. A torn last line is cut off when the
journal is opened again.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgec.errors import OutputError

_FORMAT = "edgec run journal 1"
_SYNC_S = 1.0


class Journal:
    """The finished rows of a run; use ``with``.

    Attributes:
        done: Names of the rows that are in it, by their numbers.
        resumed: How many were when it was opened.
    """

    done: dict[int, str]
    resumed: int

    def __init__(
        self, path: Path, identity: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open a journal, or begin one.

        Args:
            path: Of the journal.
            identity: What the run is of, as JSON has it.
            clock: Monotonic, in seconds.

        Raises:
            OutputError: It cannot be written, or is of another run.
        """
        self._path = path
        self._clock = clock
        self.done = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as e:
            raise OutputError(f"cannot write {path}: {e.strerror}") from e
        try:
            self._recover(dict(identity))
        except BaseException:
            os.close(self._file)
            raise
        self.resumed = len(self.done)
        self._synced = clock()

    def append(self, index: int, name: str, values: Mapping[str, Any]) -> None:
        """Note a finished row.

        Raises:
            OutputError: The disk is full; the rows before are safe.
        """
        self._write({"index": index, "name": name, "values": _pack(dict(values))})
        self.done[index] = name
        if self._clock() - self._synced >= _SYNC_S:
            os.fsync(self._file)
            self._synced = self._clock()

    def rows(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield number, name and values of each finished row, in the order of their numbers."""
        places: dict[int, int] = {}
        with self._path.open("rb") as file:
            offset = len(file.readline())
            for line in file:
                places[json.loads(line)["index"]] = offset
                offset += len(line)
            for index in sorted(places):
                file.seek(places[index])
                row = json.loads(file.readline())
                yield index, row["name"], _unpack(row["values"])

    def remove(self) -> None:
        """Delete it: the run is over, and its results are elsewhere."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)

    def _recover(self, identity: dict[str, Any]) -> None:
        size = os.fstat(self._file).st_size
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                self._read(number, line, identity)
                end += len(line)
        if end < size:
            os.ftruncate(self._file, end)
        if end == 0:
            self._write({"format": _FORMAT, **identity})

    def _read(self, number: int, line: bytes, identity: dict[str, Any]) -> None:
        try:
            row = json.loads(line)
            if number:
                self.done[int(row["index"])] = str(row["name"])
                return
        except (ValueError, KeyError, TypeError) as e:
            raise OutputError(f"{self._path} is no journal of edgec run: move it away, or delete it") from e
        if row != {"format": _FORMAT, **identity}:
            raise OutputError(
                f"{self._path} is the journal of another run, with another artifact, input or option: finish "
                "that one with the command it was begun with, or delete the journal"
            )

    def _write(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as e:
            raise OutputError(f"cannot write {self._path}: {e.strerror}") from e
        if written != len(line):
            raise OutputError(f"cannot write {self._path}: the disk is full")


def _pack(value: Any) -> Any:
    """Return a value as JSON has it, arrays with their type and to the last bit."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":  # texts
            return {"$list": array.tolist()}
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        return {"$array": [array.dtype.str, list(array.shape), data]}
    if isinstance(value, Mapping):
        return {str(key): _pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item) for item in value]
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$array"}:
            kind, shape, data = value["$array"]
            return np.frombuffer(base64.b64decode(data), np.dtype(kind)).reshape(shape)
        if set(value) == {"$list"}:
            return np.asarray(value["$list"], np.str_)
        return {key: _unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    return value
