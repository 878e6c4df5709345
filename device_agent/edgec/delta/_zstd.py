"""Zstandard streams of known size: within bounds on the way in, exact on the way out."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from edgec.delta._format import WINDOW_LOG
from edgec.errors import DeltaError
from edgec.errors.extras import needs_extra


def zstandard() -> ModuleType:
    """Return the package.

    Raises:
        MissingExtraError: It is not installed.
    """
    with needs_extra("a patch between artifacts", "agent"):
        import zstandard as module
    loaded: ModuleType = module
    return loaded


class Packer:
    """Compresses what it is fed into one frame, in memory."""

    def __init__(self, level: int) -> None:
        module = zstandard()
        params = module.ZstdCompressionParameters.from_level(level, window_log=WINDOW_LOG)
        self._stream: Any = module.ZstdCompressor(compression_params=params).compressobj()
        self._parts: list[bytes] = []
        self.unpacked = 0

    def feed(self, data: bytes) -> None:
        """Add bytes to the stream."""
        self.unpacked += len(data)
        self._parts.append(self._stream.compress(data))

    def finish(self) -> bytes:
        """Return the frame."""
        self._parts.append(self._stream.flush())
        return b"".join(self._parts)


def pack(data: bytes, level: int) -> bytes:
    """Return `data` as one frame."""
    packer = Packer(level)
    packer.feed(data)
    return packer.finish()


class _Window:
    """A part of an open file, as a file that is read from its beginning."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor, self._at, self._end = descriptor, start, start + length

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`."""
        left = self._end - self._at
        data = os.pread(self._descriptor, left if size < 0 else min(size, left), self._at)
        self._at += len(data)
        return data


class Unpacker:
    """Unpacks one frame that lies in a file, within bounded memory.

    Attributes:
        left: Bytes it still has, by the header.
    """

    def __init__(self, descriptor: int, start: int, packed: int, unpacked: int) -> None:
        self._error = zstandard().ZstdError
        self._source = _Window(descriptor, start, packed)
        decompressor = zstandard().ZstdDecompressor(max_window_size=2**WINDOW_LOG)
        self._stream: Any = decompressor.stream_reader(self._source, read_size=65536)
        self.left = unpacked

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            DeltaError: There are fewer, or they are damaged.
        """
        if size > self.left:
            raise DeltaError(f"a stream of the patch has {self.left} bytes left where {size} are needed")
        self.left -= size
        parts = []
        while size:
            part = self._some(size)
            if not part:
                raise DeltaError("a stream of the patch ends early: get it again, or the full file")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Do nothing if the stream ended here.

        Raises:
            DeltaError: It goes on.
        """
        if self.left or self._some(1):
            raise DeltaError("a stream of the patch is longer than what it is for")

    def _some(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except self._error as e:
            raise DeltaError(f"a stream of the patch is damaged ({e}): get it again, or the full file") from e
        return data
