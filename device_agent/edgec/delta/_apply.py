"""Making the new file from the old one and a patch that may be anything."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgec.artifact import atomic_write
from edgec.delta._format import (
    AROUND,
    BLOCK,
    CONTROL,
    DIFF,
    EXTRA,
    MAX_SEGMENTS,
    PIECE,
    PLANES,
    PREFIX,
    TABLE,
    WIDTHS,
    Header,
    Stream,
    read_header,
)
from edgec.delta._planes import from_planes
from edgec.delta._ranges import Parts, Range, complement
from edgec.delta._zstd import Unpacker, zstandard
from edgec.errors import DeltaError
from edgec.sketch._bytes import unpack_numbers

_CHUNK = 2**18
_LARGEST_FRAME = PIECE + PIECE // 64 + 1024


def apply_delta(
    old: str | Path,
    patch: str | Path,
    out: str | Path,
    *,
    length: int,
    sha256: str,
    aside: str | Path | None = None,
) -> None:
    """Write to `out` what `patch` makes of `old`, if it is the file that was promised.

    The patch is not trusted: `length` and `sha256` come from signed metadata. The process stays below 80 MB
    of memory whatever the sizes of the files. The bytes go aside and are read back; only if they have the
    promised digest are they renamed to `out`, which may be `old` itself. When this raises, `out` is
    untouched.

    Args:
        old: The file at hand.
        patch: As `make_delta` wrote it.
        out: Where the new file goes.
        length: Bytes of the new file.
        sha256: Its digest, 64 hex digits.
        aside: Where the bytes go before; a hidden file beside `out` by default. A file that a killed
            process left there is replaced.

    Raises:
        DeltaError: The patch is damaged, malformed, does not fit `old`, or leads to another file.
        OutputError: The new file cannot be written: the disk is full, for example.
        MissingExtraError: The package `zstandard` is not installed.
    """
    with (
        _reading(Path(old), "the old file") as (before, size),
        _reading(Path(patch), "the patch") as (file, n),
    ):
        header = read_header(file, n)
        if (header.new_length, header.new_sha256) != (length, sha256.lower()):
            raise DeltaError("the patch leads to another file than the one promised: get the full file")
        if header.old_length != size or _digest(before.fileno(), size) != header.old_sha256:
            raise DeltaError(f"the patch begins at another file than {old}: get the full file")
        with atomic_write(out, aside=aside) as after:
            _reserve(after, length)
            _write(header, file.fileno(), before.fileno(), after.fileno())
            if _digest(after.fileno(), length) != sha256.lower():
                raise DeltaError("the patch gives other bytes than those promised: get the full file")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[tuple[BinaryIO, int]]:
    try:
        # Asked first: to open a pipe waits for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DeltaError(f"{what} {path} is no file")
        file = open(path, "rb")  # noqa: SIM115
    except OSError as e:
        raise DeltaError(f"cannot read {what} {path}: {e.strerror or e}") from e
    with file:
        yield file, os.fstat(file.fileno()).st_size


def _reserve(file: BinaryIO, length: int) -> None:
    """Take the space now rather than run out of it halfway."""
    if length:
        try:
            os.posix_fallocate(file.fileno(), 0, length)
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot
                raise


def _digest(descriptor: int, length: int) -> str:
    digest, at = new_sha256(), 0
    while at < length:
        data = os.pread(descriptor, min(BLOCK, length - at), at)
        if not data:
            break
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


class _Places:
    """Where the streams of a patch lie, unpacked when they are asked for."""

    def __init__(self, header: Header, patch: int) -> None:
        self._patch = patch
        self._at: dict[tuple[int, int], tuple[int, Stream]] = {}
        at = header.size
        for stream in header.streams:
            self._at[stream.kind, stream.width] = (at, stream)
            at += stream.packed

    def find(self, kind: int, width: int = 0) -> tuple[int, Stream] | None:
        return self._at.get((kind, width))

    def open(self, kind: int, width: int = 0) -> Unpacker:
        at, stream = self._at[kind, width]
        return Unpacker(self._patch, at, stream.packed, stream.unpacked)

    def numbers(self, kind: int) -> Iterator[int]:
        """Yield the numbers of a stream, checked by three."""
        if self.find(kind) is None:
            return
        unpacker = self.open(kind)
        data = unpacker.read(unpacker.left)
        unpacker.finish()
        try:
            yield from unpack_numbers(data)
        except ValueError as e:
            raise DeltaError(f"the numbers of the patch are malformed: {e}") from e


def _triples(numbers: Iterator[int]) -> Iterator[tuple[int, int, int]]:
    for first in numbers:
        second, third = next(numbers, None), next(numbers, None)
        if second is None or third is None:
            raise DeltaError("the numbers of the patch end too early")
        yield first, second, third


def _write(header: Header, patch: int, old: int, new: int) -> None:
    places = _Places(header, patch)
    segments = list(_segments(header, places))
    for width in WIDTHS:
        found = places.find(PLANES, width)
        mine = [(a, b) for a, b, w in segments if w == width]
        if sum(b.length for _, b in mine) != (found[1].unpacked if found else 0):
            raise DeltaError(f"the planes of width {width} are not as long as the segments they are for")
        if found:
            before, after = Parts(old, [a for a, _ in mine]), Parts(new, [b for _, b in mine])
            _write_planes(before, after, places.open(PLANES, width), found[1])
    rest_old = Parts(old, complement([a for a, _, _ in segments], header.old_length))
    rest_new = Parts(new, complement([b for _, b, _ in segments], header.new_length))
    if (at := places.find(PREFIX)) is not None:
        _write_pieces(rest_old, rest_new, patch, *at)
    else:
        _write_steps(rest_old, rest_new, places)


def _segments(header: Header, places: _Places) -> Iterator[tuple[Range, Range, int]]:
    """Yield where each segment lies in the old and in the new file, and its width."""
    old_at = new_at = 0
    for i, (gap, shift, size) in enumerate(_triples(places.numbers(TABLE))):
        length, width = size >> 4, size & 15
        old_start, new_start = old_at + shift, new_at + gap
        if i >= MAX_SEGMENTS or width not in WIDTHS or length <= 0 or length % width:
            raise DeltaError("the patch has a segment of a strange size, or too many of them")
        if gap < 0 or new_start + length > header.new_length:
            raise DeltaError("the patch has a segment outside of the new file")
        if old_start < 0 or old_start + length > header.old_length:
            raise DeltaError("the patch has a segment outside of the old file")
        old_at, new_at = old_start + length, new_start + length
        yield Range(old_start, length), Range(new_start, length), width


def _write_planes(old: Parts, new: Parts, planes: Unpacker, stream: Stream) -> None:
    for at in range(0, stream.unpacked, BLOCK):
        size = min(BLOCK, stream.unpacked - at)
        before = _read(old, at, size)
        new.write(at, from_planes(before, planes.read(size), stream.width, stream.operation))
    planes.finish()


def _read(parts: Parts, at: int, size: int) -> bytes:
    data = parts.read(at, size)
    if len(data) != size:
        raise DeltaError("the old file was cut while it was read")
    return data


class _Appender:
    """Writes parts from their beginning, small pieces together."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._at, self._waiting = parts, 0, bytearray()

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return self._parts.length - self._at - len(self._waiting)

    def write(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        self._parts.write(self._at, self._waiting)
        self._at += len(self._waiting)
        self._waiting = bytearray()


def _write_steps(old: Parts, new: Parts, places: _Places) -> None:
    """Percival's bsdiff: change bytes of the old file, insert others, go on elsewhere."""
    diff, extra, out, at = places.open(DIFF), places.open(EXTRA), _Appender(new), 0
    for i, (change, insert, skip) in enumerate(_triples(places.numbers(CONTROL))):
        # The first step may do no more than skip.
        if change < 0 or insert < 0 or (i and change + insert == 0) or change + insert > out.left:
            raise DeltaError("the patch has a step of a strange size")
        if at < 0 or at + change > old.length:
            raise DeltaError("the patch reads outside of the old file")
        for size in _cut(change):
            added = np.frombuffer(diff.read(size), np.uint8)
            out.write((np.frombuffer(_read(old, at, size), np.uint8) + added).tobytes())
            at += size
        for size in _cut(insert):
            out.write(extra.read(size))
        at += skip
    if out.left:
        raise DeltaError(f"the patch leaves {out.left} bytes of the new file open")
    diff.finish()
    extra.finish()
    out.flush()


def _cut(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, _CHUNK)
        size -= _CHUNK


def _write_pieces(old: Parts, new: Parts, patch: int, at: int, stream: Stream) -> None:
    end = at + stream.packed
    if stream.unpacked != new.length:
        raise DeltaError("the pieces of the patch are not as long as what they are for")
    for start in range(0, new.length, PIECE):
        size = int.from_bytes(os.pread(patch, 4, at), "little")
        if not 0 < size <= min(_LARGEST_FRAME, end - at - 4):
            raise DeltaError(f"the patch has a piece of {size} bytes")
        frame = os.pread(patch, size, at + 4)
        at += 4 + size
        around = prefix_range(start, old.length)
        new.write(start, _unpack_piece(frame, _read(old, *around), min(PIECE, new.length - start)))
    if at != end:
        raise DeltaError("the patch goes on after its last piece")


def prefix_range(start: int, old_length: int) -> Range:
    """Return what of the old rest is the dictionary of the piece that begins at `start` in the new one."""
    first = min(max(0, start - AROUND), old_length)
    return Range(first, min(start + PIECE + AROUND, old_length) - first)


def _unpack_piece(frame: bytes, around: bytes, size: int) -> bytes:
    module = zstandard()
    options: dict[str, object] = {}
    if around:
        options["dict_data"] = module.ZstdCompressionDict(around, dict_type=module.DICT_TYPE_RAWCONTENT)
    try:
        # A frame that says how large it is makes the library allocate as much.
        said = module.get_frame_parameters(frame).content_size
        if said != size:
            raise DeltaError(f"the patch has a piece that unpacks to {said} bytes, not {size}")
        data: bytes = module.ZstdDecompressor(max_window_size=2**25, **options).decompress(
            frame, max_output_size=size, allow_extra_data=False
        )
    except module.ZstdError as e:
        raise DeltaError(f"a piece of the patch is damaged ({e}): get it again, or the full file") from e
    if len(data) != size:
        raise DeltaError("a piece of the patch is damaged: get it again, or the full file")
    return data


def header_of(patch: str | Path) -> Header:
    """Return what a patch says of itself, of which nothing is checked but its form.

    Raises:
        DeltaError: It is no patch.
    """
    with _reading(Path(patch), "the patch") as (file, size):
        return read_header(file, size)
