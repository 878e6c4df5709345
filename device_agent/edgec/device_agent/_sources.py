"""Where a file comes from: a directory, or a broker chunk by chunk; `_http` has web servers."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from edgec.delta._chunk_map import CHUNK_BYTES
from edgec.device_agent._line import Failure, Line
from edgec.errors import LinkError, TransferError

_PIECE = 65536
_SLICE_S = 0.25


class Reader(Protocol):
    """Bytes of a file from the place that was asked for.

    Attributes:
        validator: What tells this content of the file from another; None where nothing does.
    """

    validator: str | None

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes; none at the end.

        Raises:
            Failure: The source does not give them.
            TransferError: The transfer is over.
        """
        ...


class Source(Protocol):
    """A place that has a file.

    Attributes:
        name: For messages and the journal: a URL, a path.
    """

    name: str

    def open(
        self, first: int, stop: int, total: int, validator: str | None, line: Line
    ) -> AbstractContextManager[Reader]:
        """Ask for bytes `first` to `stop` of a file of `total` bytes.

        Raises:
            Failure: The source does not have them.
            TransferError: The transfer is over.
        """
        ...


class DirectorySource:
    """A file below a directory, such as a USB stick.

    Args:
        directory: Never left, through links either.
        path: Of the file in it, parts joined by ``/``.
    """

    def __init__(self, directory: str | Path, path: str) -> None:
        self.name = f"{directory}: {path}"
        self._directory, self._path = Path(directory), path

    @contextmanager
    def open(self, first: int, stop: int, total: int, validator: str | None, line: Line) -> Iterator[Reader]:
        """Open the file; see `Source`."""
        del validator
        line.request()
        try:
            place = self._place()
            if not stat.S_ISREG(place.stat().st_mode):
                raise Failure(f"{self.name} is no file", "gone", "not_found")
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise _unreadable(self.name, e) from e
        try:
            size = os.fstat(descriptor).st_size
            if size != total:
                raise Failure(f"{self.name} has {size} bytes, not {total}", "gone", "length")
            yield _FileReader(descriptor, first, stop, self.name, line)
        finally:
            os.close(descriptor)

    def _place(self) -> Path:
        parts = PurePosixPath(self._path)
        # Not Path.resolve, which raises RuntimeError for links that form a loop.
        root = Path(os.path.realpath(self._directory))
        place = Path(os.path.realpath(root / parts, strict=True))
        if parts.is_absolute() or not place.is_relative_to(root):
            raise Failure(f"{self._path!r} leads out of {self._directory}", "gone", "refused")
        return place


class _FileReader:
    validator: str | None = None

    def __init__(self, descriptor: int, first: int, stop: int, name: str, line: Line) -> None:
        self._descriptor, self._at, self._stop = descriptor, first, stop
        self._name, self._line = name, line

    def read(self, size: int) -> bytes:
        self._line.check()
        try:
            data = os.pread(self._descriptor, min(size, _PIECE, self._stop - self._at), self._at)
        except OSError as e:
            raise _unreadable(self._name, e) from e
        self._at += len(data)
        self._line.count(len(data))
        return data


def _unreadable(name: str, e: OSError) -> Failure:
    if e.errno in (errno.ENOENT, errno.ENOTDIR):
        return Failure(f"{name} is not there", "gone", "not_found")
    if e.errno in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG):
        return Failure(f"{name} cannot be read: {e.strerror}", "gone", "refused")
    return Failure(f"{name} cannot be read: {e.strerror or e}", "later", "link")


class ChunkSource:
    """A file that is asked for chunk by chunk, several at a time: over MQTT, where only that is reachable.

    Args:
        name: Of the file, for messages.
        request: Called with the place of the first byte and a number of bytes, from several threads; returns
            exactly that many. It has a time limit of its own. It raises TransferError, with the reason
            ``not_found`` where there is no use in asking again, or LinkError.
        window: Requests under way at a time.
        chunk_bytes: Of one request; a message is at most 128 KiB.
    """

    def __init__(
        self,
        name: str,
        request: Callable[[int, int], bytes],
        *,
        window: int = 4,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.name = name
        self._request, self._window, self._chunk_bytes = request, window, chunk_bytes

    @contextmanager
    def open(self, first: int, stop: int, total: int, validator: str | None, line: Line) -> Iterator[Reader]:
        """Begin to ask; see `Source`."""
        del validator, total
        executor = ThreadPoolExecutor(self._window, thread_name_prefix="edgec-chunks")
        try:
            yield _ChunkReader(self, executor, first, stop, line)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def ask(self, at: int, size: int) -> bytes:
        """Return `size` bytes from `at` on.

        Raises:
            Failure: They are not to be had now, or never.
        """
        try:
            data = self._request(at, size)
        except TransferError as e:
            kind = "gone" if e.reason in ("not_found", "refused", "range") else "later"
            raise Failure(f"{self.name}: {e}", kind, e.reason) from e
        except LinkError as e:
            raise Failure(f"{self.name}: {e}", "later", "link") from e
        if len(data) != size:
            raise Failure(f"{self.name}: {len(data)} bytes came where {size} were asked for", "lie", "length")
        return data

    def parts(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield place and size of each request."""
        while first < stop:
            size = min(self._chunk_bytes - first % self._chunk_bytes, stop - first)
            yield first, size
            first += size

    @property
    def window(self) -> int:
        """Requests under way at a time."""
        return self._window


class _ChunkReader:
    validator: str | None = None

    def __init__(
        self, source: ChunkSource, executor: ThreadPoolExecutor, first: int, stop: int, line: Line
    ) -> None:
        self._source, self._executor, self._line = source, executor, line
        self._parts = source.parts(first, stop)
        self._waiting: deque[Future[bytes]] = deque()
        self._left = b""

    def read(self, size: int) -> bytes:
        if not self._left:
            self._left = self._next()
        data, self._left = self._left[:size], self._left[size:]
        return data

    def _next(self) -> bytes:
        while len(self._waiting) < self._source.window and (part := next(self._parts, None)) is not None:
            self._line.request()
            self._waiting.append(self._executor.submit(self._source.ask, *part))
        if not self._waiting:
            return b""
        future = self._waiting.popleft()
        while True:
            self._line.check()
            try:
                data = future.result(timeout=_SLICE_S)
            except NotYet:
                continue
            self._line.count(len(data))
            return data
