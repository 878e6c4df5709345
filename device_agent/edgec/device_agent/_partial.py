"""A file that is coming in: which of its chunks are here, through kills and power cuts.

Beside ``NAME`` lie ``.NAME.part``, as long as the whole file, and ``.NAME.progress``: a line of JSON that
says which file it is, and one for each chunk that was on disk before the line was, with its digest. Nothing
in it is believed: a chunk counts if its bytes on disk have that digest, or the map's where there is one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgec.delta._chunk_map import DIGEST_BYTES, ChunkMap, chunk_digest
from edgec.device_agent._disk import Disk, disk_error
from edgec.errors import TransferError

_PIECE = 2**20
_LINE_BYTES = 400  # a line of the journal is shorter


def leftovers(path: Path) -> tuple[Path, Path]:
    """Return the two files that are there while `path` is not."""
    return path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.progress")


class Partial:
    """See the module; used by one thread, and by one process at a time.

    Attributes:
        path: Of the file when it is whole.
        length: Its bytes.
        chunk_bytes: Of each chunk but the last.
    """

    def __init__(
        self,
        path: Path,
        *,
        length: int,
        digest: str,
        chunk_bytes: int,
        chunks: ChunkMap | None,
        disk: Disk,
        sync_bytes: int,
    ) -> None:
        """Open what there is, or begin.

        Raises:
            TransferError: The disk is full, or another process has the file.
        """
        self.path, self.length, self.chunk_bytes = path, length, chunk_bytes
        self._digest, self._map, self._disk, self._sync_bytes = digest, chunks, disk, sync_bytes
        self._part, self._journal = leftovers(path)
        self._have = bytearray(-(-length // chunk_bytes))
        self._validators: dict[str, str] = {}
        self._unsynced: list[tuple[int, bytes]] = []
        self._descriptors: list[int] = []
        with self._translated():
            # The journal's lock is that of both files.
            self._descriptors.append(disk.open(self._journal))
            self._lock()
            self._descriptors.append(disk.open(self._part))
            self._end = self._resume()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            self.close()
            raise TransferError(f"{self.path} is being fetched by another process", "busy") from e

    def close(self) -> None:
        """Keep what is here for later."""
        self._unsynced = []
        while self._descriptors:
            os.close(self._descriptors.pop())

    def discard(self) -> None:
        """Remove what is here."""
        self.close()
        for path in (self._part, self._journal):
            with suppress(OSError):
                path.unlink()

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield first byte and end of each run of chunks that are not here."""
        index = self._have.find(0)
        while index >= 0:
            stop = self._have.find(1, index)
            stop = len(self._have) if stop < 0 else stop
            yield index * self.chunk_bytes, min(stop * self.chunk_bytes, self.length)
            index = self._have.find(0, stop)

    def missing_bytes(self) -> int:
        """Return how many bytes are not here."""
        return sum(stop - first for first, stop in self.missing())

    def size_of(self, index: int) -> int:
        """Return the bytes of a chunk."""
        return min(self.chunk_bytes, self.length - index * self.chunk_bytes)

    def put(self, index: int, data: bytes | bytearray) -> bool:
        """Take a chunk; return whether it is what the map says.

        Raises:
            TransferError: The disk is full.
        """
        digest = chunk_digest(data)
        if self._map is not None and not self._map.holds(index, digest):
            return False
        with self._translated():
            self._disk.write(self._descriptors[1], data, index * self.chunk_bytes)
            self._have[index] = 1
            self._unsynced.append((index, digest))
            if len(self._unsynced) * self.chunk_bytes >= self._sync_bytes:
                self.sync()
        return True

    def sync(self) -> None:
        """Make what is here durable; only then does the journal speak of it.

        Raises:
            TransferError: The disk is full.
        """
        if self._unsynced:
            with self._translated():
                self._disk.sync(self._descriptors[1])
                self._append([{"chunk": i, "sha256": digest.hex()} for i, digest in self._unsynced])
                self._unsynced = []

    def validator(self, source: str) -> str | None:
        """Return what a source last said of the content it has."""
        return self._validators.get(_key(source))

    def set_validator(self, source: str, validator: str) -> None:
        """Remember what a source says of the content it has.

        Raises:
            TransferError: The disk is full.
        """
        if self._validators.get(_key(source)) != validator:
            self._validators[_key(source)] = validator
            with self._translated():
                self._append([{"source": _key(source), "validator": validator}])

    def reset(self) -> None:
        """Forget all chunks: they do not belong together.

        Raises:
            TransferError: The disk is full.
        """
        self._have = bytearray(len(self._have))
        self._unsynced, self._validators = [], {}
        with self._translated():
            self._begin()

    def publish(self) -> bool:
        """Rename the whole file to its name, if it has the promised digest; return whether it has.

        Raises:
            TransferError: The disk fails.
        """
        with self._translated():
            if self._digest_on_disk() != self._digest:
                return False
            self._disk.truncate(self._descriptors[1], self.length)
            self._disk.sync(self._descriptors[1])
            self._disk.replace(self._part, self.path)
        with suppress(OSError):
            self._journal.unlink()
        self.close()
        return True

    def _digest_on_disk(self) -> str:
        digest = sha256()
        for at in range(0, self.length, _PIECE):
            digest.update(os.pread(self._descriptors[1], min(_PIECE, self.length - at), at))
        return digest.hexdigest()

    def _append(self, lines: list[dict[str, Any]]) -> None:
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self._disk.write(self._descriptors[0], data, self._end)
        self._disk.sync(self._descriptors[0])
        self._end += len(data)

    def _head(self) -> dict[str, Any]:
        return {"file": self._digest, "length": self.length, "chunk_bytes": self.chunk_bytes}

    def _begin(self) -> int:
        self._disk.truncate(self._descriptors[0], 0)
        self._end = 0
        self._append([self._head()])
        self._disk.sync_directory(self.path.parent)
        return self._end

    def _resume(self) -> int:
        """Take over the chunks that are on disk; return where the journal goes on."""
        self._end = 0
        most = _LINE_BYTES * (len(self._have) + 1000)
        raw = os.pread(self._descriptors[0], most, 0)
        whole = raw.rfind(b"\n") + 1  # a power cut leaves half a line
        lines = [_object(line) for line in raw[:whole].splitlines()]
        known = bool(lines) and lines[0] == self._head()
        size = os.fstat(self._descriptors[1]).st_size
        if not known or size > self.length or len(raw) == most:
            self._disk.truncate(self._descriptors[1], 0)
            lines = []
        self._disk.reserve(self._descriptors[1], self.length)
        for line in lines[1:]:
            self._take(line)
        return whole if lines else self._begin()

    def _take(self, line: dict[str, Any]) -> None:
        index, digest, validator = line.get("chunk"), line.get("sha256"), line.get("validator")
        if isinstance(index, int) and 0 <= index < len(self._have) and not self._have[index]:
            data = os.pread(self._descriptors[1], self.size_of(index), index * self.chunk_bytes)
            found = chunk_digest(data)
            right = self._map.holds(index, found) if self._map is not None else digest == found.hex()
            self._have[index] = int(right and len(digest or "") == 2 * DIGEST_BYTES)
        if isinstance(validator, str) and isinstance(line.get("source"), str):
            self._validators[line["source"]] = validator

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            error = disk_error(self.path, e)
            if error.reason == "disk_full":
                self.discard()
            else:
                self.close()
            raise error from e


def _key(source: str) -> str:
    """Return what stands for a source in the journal: a URL may be long, or hold a secret."""
    return sha256(source.encode()).hexdigest()[:32]


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
