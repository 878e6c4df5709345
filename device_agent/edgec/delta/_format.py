"""The container of a patch: what leads from one file to another, and how large each part of it is.

All numbers are little-endian. ``[n]`` is a field of n bytes.

::

    [8] "edgecdlt"   [2] version, 1   [2] number of streams
    [8] length of the old file   [32] its SHA-256
    [8] length of the new file   [32] its SHA-256
    per stream:  [1] kind   [1] width   [1] operation   [1] 0   [8] bytes here   [8] bytes unpacked
    the streams, one after the other, to the end of the file

=========  ================================================================================================
TABLE      numbers, three per *segment*: bytes since the end of the segment before it in the new file, where
           it begins in the old file less where the one before ended there, its length x 16 + its width
PLANES     of all segments of one width, one after the other: what changed in their numbers, in blocks
CONTROL    numbers, three per step: bytes to change, bytes to insert, bytes to skip in the old file
DIFF       what is added to the bytes to change, modulo 256
EXTRA      the bytes to insert
PREFIX     pieces of 4 MiB: [4] size of a zstd frame whose dictionary lies around the same place of the old
           file, and the frame
=========  ================================================================================================

Segments are tensors that both files have. What is in no segment, all of it in the order of the file, is the
*rest* of a file. The new one's is made of the old one's, either by CONTROL, DIFF and EXTRA (bsdiff) or by
PREFIX. Numbers are those of `edgec.sketch`: seven bits at a time, signs folded in. Every stream but PREFIX is
one zstd frame with a window of at most 4 MiB.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from edgec.errors import DeltaError

MAGIC = b"edgecdlt"
VERSION = 1
TABLE, PLANES, CONTROL, DIFF, EXTRA, PREFIX = range(1, 7)
WIDTHS = (1, 2, 4, 8)
XOR, SUBTRACT = 0, 1

WINDOW_LOG = 22
BLOCK = 2**20
PIECE = 4 * 2**20  # of PREFIX
AROUND = 4 * 2**20  # of the old file before and after a piece
MAX_SEGMENTS = 65536
MAX_LENGTH = 2**40
_MOST_STREAMS = 1 + len(WIDTHS) + 3
_MAX_NUMBERS = 8 * 2**20  # bytes of TABLE or CONTROL

_HEAD = struct.Struct("<8sHHQ32sQ32s")
_STREAM = struct.Struct("<BBBBQQ")


@dataclass(frozen=True)
class Stream:
    """One part of a patch.

    Attributes:
        kind: ``TABLE`` ... ``PREFIX``.
        width: Bytes per number, of PLANES; else 0.
        operation: ``XOR`` or ``SUBTRACT``, of PLANES; else 0.
        packed: Its size in the patch.
        unpacked: What it unpacks to.
    """

    kind: int
    width: int
    operation: int
    packed: int
    unpacked: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a patch says of itself; nothing of it is to be believed.

    Attributes:
        old_length, new_length: Bytes of the files it leads from and to.
        old_sha256, new_sha256: Their digests, in hex.
        streams: In the order in which they follow.
    """

    old_length: int
    old_sha256: str
    new_length: int
    new_sha256: str
    streams: tuple[Stream, ...]

    @property
    def size(self) -> int:
        """Bytes before the first stream."""
        return _HEAD.size + _STREAM.size * len(self.streams)

    def to_bytes(self) -> bytes:
        """Return it as a patch begins."""
        old, new = bytes.fromhex(self.old_sha256), bytes.fromhex(self.new_sha256)
        head = _HEAD.pack(MAGIC, VERSION, len(self.streams), self.old_length, old, self.new_length, new)
        return head + b"".join(
            _STREAM.pack(s.kind, s.width, s.operation, 0, s.packed, s.unpacked) for s in self.streams
        )


def read_header(file: BinaryIO, size: int) -> Header:
    """Read the header of a patch of `size` bytes.

    Raises:
        DeltaError: It is no patch, of a newer version, cut, or its sizes do not add up.
    """
    raw = file.read(_HEAD.size)
    if len(raw) < _HEAD.size or raw[:8] != MAGIC:
        raise DeltaError("not a patch of edgec, or not a whole one: get it again, or the full file")
    _, version, count, old_length, old, new_length, new = _HEAD.unpack(raw)
    if version != VERSION:
        raise DeltaError(f"the patch has version {version}, this edgec reads {VERSION}: get the full file")
    if count > _MOST_STREAMS:
        raise DeltaError(f"the patch has {count} streams; at most {_MOST_STREAMS} are allowed")
    raw = file.read(_STREAM.size * count)
    if len(raw) < _STREAM.size * count:
        raise DeltaError("the patch is cut in its header: get it again")
    if max(old_length, new_length) > MAX_LENGTH:
        raise DeltaError(f"the patch is of a file of more than {MAX_LENGTH} bytes")
    streams = tuple(_read_stream(fields) for fields in _STREAM.iter_unpack(raw))
    header = Header(
        old_length=old_length,
        old_sha256=old.hex(),
        new_length=new_length,
        new_sha256=new.hex(),
        streams=streams,
    )
    _check(header, size)
    return header


def _read_stream(fields: tuple[int, ...]) -> Stream:
    kind, width, operation, reserved, packed, unpacked = fields
    planes = kind == PLANES and width in WIDTHS and operation in (XOR, SUBTRACT)
    other = kind in (TABLE, CONTROL, DIFF, EXTRA, PREFIX) and width == 0 and operation == 0
    if reserved or not (planes or other):
        raise DeltaError(f"the patch has a stream of kind {kind}, width {width}, operation {operation}")
    if kind in (TABLE, CONTROL) and unpacked > _MAX_NUMBERS:
        raise DeltaError(
            f"the patch has {unpacked} bytes of numbers in one stream; at most {_MAX_NUMBERS} are read"
        )
    return Stream(kind, width, operation, packed, unpacked)


def _check(header: Header, size: int) -> None:
    keys = [(s.kind, s.width) for s in header.streams]
    if keys != sorted(set(keys)):
        raise DeltaError("the streams of the patch are out of order, or there twice")
    kinds = {s.kind for s in header.streams} - {TABLE, PLANES}
    if kinds not in ({PREFIX}, {CONTROL, DIFF, EXTRA}):
        raise DeltaError("the patch lacks streams, or has some of two methods")
    total = header.size + sum(s.packed for s in header.streams)
    if total != size:
        raise DeltaError(f"the patch has {size} bytes, and its header speaks of {total}: get it again")
    produced = sum(s.unpacked for s in header.streams if s.kind in (PLANES, DIFF, EXTRA, PREFIX))
    if produced != header.new_length:
        raise DeltaError(f"the patch makes {produced} bytes of a file of {header.new_length}")
