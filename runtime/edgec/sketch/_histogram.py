"""Counts of values between fixed edges, for comparing distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.sketch._bytes import MOST_COUNT, pack_numbers, unpack_numbers

_MOST_EDGES = 1024
_VERSION = 1


class Histogram:
    """How many values lie below, between and above fixed edges; histograms with the same edges add up.

    Attributes:
        edges: Increasing; float64[n].
        counts: Values below the first edge, from each edge up to the next, and from the last on;
            int64[n + 1].
        invalid: Values that are NaN.
    """

    __slots__ = ("counts", "edges", "invalid")

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    invalid: int

    def __init__(self, edges: Sequence[float] | NDArray[np.float64]) -> None:
        """Make one that is empty.

        Raises:
            ValueError: There are no edges or more than 1024, or they are not finite and increasing.
        """
        self.edges = np.array(edges, np.float64)
        fit = self.edges.ndim == 1 and 1 <= len(self.edges) <= _MOST_EDGES and np.isfinite(self.edges).all()
        if not fit or (np.diff(self.edges) <= 0).any():
            raise ValueError(f"expected 1 to {_MOST_EDGES} finite, increasing edges, got {edges!r}")
        self.counts = np.zeros(len(self.edges) + 1, np.int64)
        self.invalid = 0

    @property
    def count(self) -> int:
        """Values that were added, without those that are NaN."""
        return int(self.counts.sum())

    def add(self, value: float) -> None:
        """Add one value."""
        if math.isnan(value):
            self.invalid += 1
        else:
            self.counts[self.edges.searchsorted(value, side="right")] += 1

    def add_many(self, values: NDArray[np.floating] | NDArray[np.integer] | Sequence[float]) -> None:
        """Add every value of an array."""
        array = np.asarray(values, np.float64).ravel()
        known = array[~np.isnan(array)]
        self.invalid += len(array) - len(known)
        places = np.searchsorted(self.edges, known, side="right")
        self.counts += np.bincount(places, minlength=len(self.counts))

    def merge(self, other: Histogram) -> None:
        """Add every value that was added to another; a count that reaches 2**40 stays there.

        Raises:
            ValueError: It has other edges.
        """
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("histograms with different edges do not add up")
        self.counts = np.minimum(self.counts + other.counts, MOST_COUNT)
        self.invalid = min(self.invalid + other.invalid, MOST_COUNT)

    def to_bytes(self) -> bytes:
        """Return the histogram as bytes, its edges included; `from_bytes` reads them."""
        head = bytes([_VERSION]) + len(self.edges).to_bytes(2, "little")
        numbers = [min(number, MOST_COUNT) for number in (self.invalid, *self.counts.tolist())]
        return head + self.edges.astype("<f8").tobytes() + pack_numbers(numbers)

    @classmethod
    def from_bytes(cls, data: bytes) -> Histogram:
        """Return a histogram that was made bytes.

        Raises:
            ValueError: The bytes are no histogram, or one of another version.
        """
        size = int.from_bytes(data[1:3], "little")
        end = 3 + 8 * size
        if not 1 <= size <= _MOST_EDGES or len(data) <= end or data[0] != _VERSION:
            raise ValueError("expected the bytes of a histogram, version 1")
        histogram = cls(np.frombuffer(data[3:end], "<f8"))
        numbers = list(unpack_numbers(data[end:]))
        if len(numbers) != size + 2 or min(numbers) < 0 or max(numbers) > MOST_COUNT:
            raise ValueError("the bytes of the histogram are damaged")
        histogram.invalid = numbers[0]
        histogram.counts[:] = numbers[1:]
        return histogram
