"""The digests of a file's chunks, by which a damaged chunk is found before the file is whole."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from edgec.errors import TransferError

CHUNK_BYTES = 112 * 1024  # with its frame it fits into an MQTT message of 128 KiB
DIGEST_BYTES = 16
_HEAD = struct.Struct("<8sIQ")
_MAGIC = b"edgecmap"
_SMALLEST, _LARGEST = 4096, 16 * 2**20
_MOST_CHUNKS = 2**20


def chunk_digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return what a chunk is known by: the first 16 bytes of its SHA-256."""
    return sha256(data).digest()[:DIGEST_BYTES]


@dataclass(frozen=True, kw_only=True)
class ChunkMap:
    """What each chunk of a file must be.

    It is a file of its own, whose length and digest signed metadata promises. Whether the whole file is the
    one promised is decided by that file's own digest all the same.

    Attributes:
        length: Bytes of the whole file.
        chunk_bytes: Of each chunk but the last.
        digests: 16 bytes per chunk, as `chunk_digest` gives them.
    """

    length: int
    digests: bytes
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if not _SMALLEST <= self.chunk_bytes <= _LARGEST:
            raise ValueError(f"chunks have {_SMALLEST} to {_LARGEST} bytes, not {self.chunk_bytes}")
        count = -(-self.length // self.chunk_bytes)
        if not 0 <= count <= _MOST_CHUNKS or len(self.digests) != count * DIGEST_BYTES:
            raise ValueError(f"{count} chunks need {count * DIGEST_BYTES} bytes of digests")

    @classmethod
    def of_file(cls, path: str | Path, *, chunk_bytes: int = CHUNK_BYTES) -> ChunkMap:
        """Return the map of a file.

        Raises:
            OSError: It cannot be read.
        """
        digests, length = bytearray(), 0
        with open(path, "rb") as file:
            while data := file.read(chunk_bytes):
                digests += chunk_digest(data)
                length += len(data)
        return cls(length=length, digests=bytes(digests), chunk_bytes=chunk_bytes)

    def to_bytes(self) -> bytes:
        """Return the map as a file."""
        return _HEAD.pack(_MAGIC, self.chunk_bytes, self.length) + self.digests

    @classmethod
    def from_bytes(cls, data: bytes, *, length: int) -> ChunkMap:
        """Read a map of a file of `length` bytes.

        Raises:
            TransferError: It is no map, or of another file.
        """
        if len(data) < _HEAD.size or data[:8] != _MAGIC:
            raise TransferError("a map of chunks was expected: publish the target again", "digest")
        _, chunk_bytes, said = _HEAD.unpack_from(data)
        if said != length:
            raise TransferError(f"the map of chunks is of a file of {said} bytes, not {length}", "digest")
        try:
            return cls(length=length, digests=data[_HEAD.size :], chunk_bytes=chunk_bytes)
        except ValueError as e:
            raise TransferError(f"the map of chunks is malformed: {e}", "digest") from e

    def holds(self, index: int, digest: bytes) -> bool:
        """Return whether chunk `index` has this digest."""
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] == digest
