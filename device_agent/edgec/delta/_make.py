"""Trying the ways from one file to the next, and keeping the shortest."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from edgec.artifact import atomic_write
from edgec.delta._apply import prefix_range
from edgec.delta._format import (
    BLOCK,
    CONTROL,
    DIFF,
    EXTRA,
    MAX_SEGMENTS,
    PIECE,
    PLANES,
    PREFIX,
    SUBTRACT,
    TABLE,
    WIDTHS,
    XOR,
    Header,
    Stream,
)
from edgec.delta._planes import to_planes
from edgec.delta._ranges import Parts, Range, complement
from edgec.delta._tensors import Pair, pairs
from edgec.delta._zstd import Packer, pack, zstandard
from edgec.errors import DeltaError
from edgec.errors.extras import needs_extra
from edgec.sketch._bytes import pack_numbers

_TRIAL = 4 * 2**20  # bytes of numbers by which the operation is chosen
Packed = tuple[Stream, bytes]


@dataclass(frozen=True, kw_only=True)
class DeltaInfo:
    """A patch that was made.

    Attributes:
        method: The one that won: ``tensors+bsdiff``, ``tensors+prefix``, ``bsdiff`` or ``prefix``.
        size: Bytes of the patch.
        sha256: Of the patch, in hex.
        old_length, old_sha256: Of the file it begins at.
        new_length, new_sha256: Of the file it leads to.
        tried: Bytes by method, of those that were tried.
    """

    method: str
    size: int
    sha256: str
    old_length: int
    old_sha256: str
    new_length: int
    new_sha256: str
    tried: dict[str, int]


def make_delta(
    old: str | Path,
    new: str | Path,
    out: str | Path,
    *,
    worth: float = 0.7,
    level: int = 19,
    bsdiff_limit: int = 16 * 2**20,
) -> DeltaInfo | None:
    """Write a patch that leads from `old` to `new`, if one is worth it.

    Tensors that both artifacts have are compared number by number, by planes of bytes; what is left, or all
    where there are none, by bsdiff (Percival 2003) and by zstd with the old bytes as its dictionary. The
    smallest is kept. The same files and versions of the libraries give the same patch.

    Args:
        old, new: Artifacts; other files are patched as bytes.
        out: Where the patch goes.
        worth: Largest size of a patch, as a share of the new file; larger ones are not written.
        level: Of zstd, 1 to 22.
        bsdiff_limit: Bytes up to which bsdiff is tried. It takes some ten times as much memory, and 2 to 5
            seconds per MB.

    Returns:
        What was written; None where nothing was, because the full file is as good.

    Raises:
        DeltaError: A file cannot be read.
        OutputError: The patch cannot be written.
        MissingExtraError: A package of the extra ``agent`` is not installed.
    """
    with ExitStack() as stack:
        before, after = (_File(stack, Path(path)) for path in (old, new))
        ends = before.identity(), after.identity()
        candidates = dict(_candidates(before, after, level, bsdiff_limit))
        sizes = {
            method: _header(ends, streams).size + _size(streams) for method, streams in candidates.items()
        }
    if not sizes:
        return None
    method = min(sizes, key=lambda name: sizes[name])
    if sizes[method] > worth * ends[1][0]:
        return None
    header = _header(ends, candidates[method])
    parts = [header.to_bytes(), *(data for _, data in candidates[method])]
    digest = sha256()
    with atomic_write(out) as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    return DeltaInfo(
        method=method,
        size=sizes[method],
        sha256=digest.hexdigest(),
        old_length=header.old_length,
        old_sha256=header.old_sha256,
        new_length=header.new_length,
        new_sha256=header.new_sha256,
        tried=sizes,
    )


class _File:
    """A file that is patched from or to."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise DeltaError(f"cannot read {path}: {e.strerror or e}") from e
        stack.callback(os.close, self.descriptor)
        self.path = path
        self.length = os.fstat(self.descriptor).st_size

    def identity(self) -> tuple[int, str]:
        """Return length and digest."""
        if not self.length:
            return 0, sha256().hexdigest()
        with closing(mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)) as data:
            return self.length, sha256(data).hexdigest()


def _header(ends: tuple[tuple[int, str], tuple[int, str]], streams: Sequence[Packed]) -> Header:
    (old_length, old_digest), (new_length, new_digest) = ends
    return Header(
        old_length=old_length,
        old_sha256=old_digest,
        new_length=new_length,
        new_sha256=new_digest,
        streams=tuple(stream for stream, _ in streams),
    )


def _size(streams: Sequence[Packed]) -> int:
    return sum(len(data) for _, data in streams)


def _candidates(old: _File, new: _File, level: int, limit: int) -> Iterator[tuple[str, list[Packed]]]:
    found = pairs(old.path, new.path)[:MAX_SEGMENTS]
    floats = sum(pair.length for pair in found if pair.width > 1)
    if found:
        numbers = [_table(found, level), *_planes(old, new, found, level)]
        for method, rest in _rests(old, new, found, level, limit):
            yield f"tensors+{method}", [*numbers, *rest]
    # What is mostly floats is never smaller by bytes: see benchmarks/results/deltas.json.
    if 2 * floats < new.length:
        yield from _rests(old, new, [], level, limit)


def _table(found: Sequence[Pair], level: int) -> Packed:
    numbers: list[int] = []
    old_at = new_at = 0
    for pair in found:
        numbers += [pair.new - new_at, pair.old - old_at, pair.length * 16 + pair.width]
        old_at, new_at = pair.old + pair.length, pair.new + pair.length
    return _packed(TABLE, pack_numbers(numbers), level)


def _packed(kind: int, data: bytes, level: int) -> Packed:
    packed = pack(data, level)
    return Stream(kind, 0, 0, len(packed), len(data)), packed


def _planes(old: _File, new: _File, found: Sequence[Pair], level: int) -> Iterator[Packed]:
    for width in WIDTHS:
        mine = [pair for pair in found if pair.width == width]
        if not mine:
            continue
        before = Parts(old.descriptor, [Range(pair.old, pair.length) for pair in mine])
        after = Parts(new.descriptor, [Range(pair.new, pair.length) for pair in mine])
        trials = {
            operation: len(_pack_planes(before, after, width, operation, 1, _TRIAL))
            for operation in (XOR, SUBTRACT)
        }
        operation = min(trials, key=lambda one: trials[one])
        packed = _pack_planes(before, after, width, operation, level, after.length)
        yield Stream(PLANES, width, operation, len(packed), after.length), packed


def _pack_planes(old: Parts, new: Parts, width: int, operation: int, level: int, most: int) -> bytes:
    packer = Packer(level)
    for at in range(0, min(most, new.length), BLOCK):
        size = min(BLOCK, new.length - at)
        packer.feed(to_planes(old.read(at, size), new.read(at, size), width, operation))
    return packer.finish()


def _rests(
    old: _File, new: _File, found: Sequence[Pair], level: int, limit: int
) -> Iterator[tuple[str, list[Packed]]]:
    before = Parts(old.descriptor, complement((Range(p.old, p.length) for p in found), old.length))
    after = Parts(new.descriptor, complement((Range(p.new, p.length) for p in found), new.length))
    yield "prefix", [_pack_pieces(before, after, level)]
    if max(before.length, after.length) <= limit:
        steps, added, inserted = _bsdiff(before.read(0, before.length), after.read(0, after.length))
        streams = ((CONTROL, steps), (DIFF, added), (EXTRA, inserted))
        yield "bsdiff", [_packed(kind, data, level) for kind, data in streams]


def _pack_pieces(old: Parts, new: Parts, level: int) -> Packed:
    module = zstandard()
    frames: list[bytes] = []
    for start in range(0, new.length, PIECE):
        piece = new.read(start, min(PIECE, new.length - start))
        around = old.read(*prefix_range(start, old.length))
        options: dict[str, Any] = {}
        if around:
            options["dict_data"] = module.ZstdCompressionDict(around, dict_type=module.DICT_TYPE_RAWCONTENT)
        # The window spans dictionary and piece.
        params = module.ZstdCompressionParameters.from_level(
            level, source_size=len(piece), dict_size=len(around), window_log=24
        )
        frame = module.ZstdCompressor(compression_params=params, **options).compress(piece)
        frames += [len(frame).to_bytes(4, "little"), frame]
    data = b"".join(frames)
    return Stream(PREFIX, 0, 0, len(data), new.length), data


def _bsdiff(old: bytes, new: bytes) -> tuple[bytes, bytes, bytes]:
    """Return steps, what is added and what is inserted, as numbers and bytes.

    detools finds them; its own container is not kept, because devices would need it to apply the patch.
    """
    if not new:
        return b"", b"", b""
    if not old:
        return pack_numbers([0, len(new), 0]), b"", new
    with needs_extra("to make a patch by bsdiff", "agent"):
        import detools
    made = BytesIO()
    detools.create_patch(BytesIO(old), BytesIO(new), made, compression="none", use_mmap=False)
    patch = made.getbuffer()
    at = 1  # patch type and compression
    _, at = _detools_size(patch, at)  # of the new file
    _, at = _detools_size(patch, at)  # of what a data format would need
    steps: list[int] = []
    added, inserted = bytearray(), bytearray()
    while at < len(patch):
        change, at = _detools_size(patch, at)
        added += patch[at : at + change]
        insert, at = _detools_size(patch, at + change)
        inserted += patch[at : at + insert]
        skip, at = _detools_size(patch, at + insert)
        if change + insert or not steps:
            steps += [change, insert, skip]
        else:
            steps[-1] += skip
    return pack_numbers(steps), bytes(added), bytes(inserted)


def _detools_size(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of detools' format, and where the next byte is: sign and six bits, then seven each."""
    byte = data[at]
    at += 1
    negative, value, shift = byte & 0x40, byte & 0x3F, 6
    while byte & 0x80:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return -value if negative else value, at
