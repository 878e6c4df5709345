"""Parts of a file, one after the other as if they were a file of their own."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple


class Range(NamedTuple):
    """A part of a file: where it begins, and how many bytes it has."""

    start: int
    length: int


def complement(ranges: Iterable[Range], length: int) -> list[Range]:
    """Return what of a file of `length` bytes is in none of `ranges`, which may overlap."""
    rest, at = [], 0
    for start, size in sorted(ranges):
        if start > at:
            rest.append(Range(at, start - at))
        at = max(at, start + size)
    if length > at:
        rest.append(Range(at, length - at))
    return rest


class Parts:
    """Ranges of an open file, read and written by their place among themselves.

    Attributes:
        length: Bytes of all of them.
    """

    def __init__(self, descriptor: int, ranges: Iterable[Range]) -> None:
        self._descriptor = descriptor
        self._ranges = [r for r in ranges if r.length]
        self._begins = [0, *accumulate(r.length for r in self._ranges)]
        self.length = self._begins[-1]

    def read(self, at: int, length: int) -> bytes:
        """Return `length` bytes from place `at`; fewer where the file was cut meanwhile.

        Raises:
            ValueError: They are not all within the parts.
            OSError: As reading raises it.
        """
        return b"".join(os.pread(self._descriptor, r.length, r.start) for r in self._split(at, length))

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at place `at`.

        Raises:
            ValueError: It is not all within the parts.
            OSError: As writing raises it.
        """
        view, done = memoryview(data), 0
        for start, length in self._split(at, len(view)):
            piece = view[done : done + length]
            while piece:
                written = os.pwrite(self._descriptor, piece, start + length - len(piece))
                piece = piece[written:]
            done += length

    def _split(self, at: int, length: int) -> Iterator[Range]:
        if at < 0 or length < 0 or at + length > self.length:
            raise ValueError(f"bytes {at} to {at + length} of {self.length}")
        i = bisect_right(self._begins, at) - 1
        while length:
            within = at - self._begins[i]
            size = min(length, self._ranges[i].length - within)
            yield Range(self._ranges[i].start + within, size)
            at, length, i = at + size, length - size, i + 1
