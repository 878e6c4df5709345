"""Quantiles within one percent of their value, from counts of values in bins that grow geometrically."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from edgec.sketch._bytes import MOST_COUNT, pack_numbers, unpack_numbers

ACCURACY = 0.01
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_PER_LOG = 1 / math.log(_GAMMA)
_MOST_BINS = 2048
# What a float64 that is not zero can be at the least and at the most, in numbers of bins.
_LEAST_BIN, _LAST_BIN = -37_300, 35_500
_VERSION = 1


class QuantileSketch:
    """A DDSketch (Masson, Rim, Lee, VLDB 2019) with a relative accuracy of 1 %.

    Any quantile is within 1 % of the value that has this rank, however values are distributed. Sketches of
    parts, merged, are the sketch of the whole. There are at most 2048 bins for each sign, enough for values
    over 17 orders of magnitude; of values over more, those next to zero lose their accuracy first. Not safe
    from several threads.

    Attributes:
        count: Values that were added, without those that are not finite.
        invalid: Values that are not finite.
        zeros: Values that are zero.
        minimum: The least value; infinity where there is none.
        maximum: The greatest; minus infinity where there is none.
        total: Sum of the values.
    """

    __slots__ = ("_negative", "_positive", "count", "invalid", "maximum", "minimum", "total", "zeros")

    def __init__(self) -> None:
        """Make one that is empty."""
        self._positive: Counter[int] = Counter()
        self._negative: Counter[int] = Counter()
        self.count = self.invalid = self.zeros = 0
        self.minimum, self.maximum, self.total = math.inf, -math.inf, 0.0

    def add(self, value: float) -> None:
        """Add one value."""
        if value > 0.0 and value != math.inf:
            bins = self._positive
            bins[math.ceil(math.log(value) * _PER_LOG)] += 1
        elif value == 0.0:
            self.zeros += 1
            bins = self._positive
        elif value < 0.0 and value != -math.inf:
            bins = self._negative
            bins[math.ceil(math.log(-value) * _PER_LOG)] += 1
        else:
            self.invalid += 1
            return
        self.count += 1
        self.total += value
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value
        if len(bins) > _MOST_BINS:
            _collapse(bins)

    def add_many(self, values: NDArray[np.floating] | NDArray[np.integer]) -> None:
        """Add every value of an array."""
        array = np.asarray(values, np.float64).ravel()
        finite = array[np.isfinite(array)]
        self.invalid += len(array) - len(finite)
        if not len(finite):
            return
        self.count += len(finite)
        self.zeros += int((finite == 0).sum())
        self.total += float(finite.sum())
        least = float(finite.min())
        self.minimum = min(self.minimum, least)
        self.maximum = max(self.maximum, float(finite.max()))
        parts = [(self._positive, finite)]
        if least <= 0:
            parts = [(self._positive, finite[finite > 0]), (self._negative, -finite[finite < 0])]
        for bins, part in parts:
            keys, counts = np.unique(np.ceil(np.log(part) * _PER_LOG).astype(np.int64), return_counts=True)
            bins.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
            _collapse(bins)

    def merge(self, other: QuantileSketch) -> None:
        """Add every value that was added to another; a count of a bin that reaches 2**40 stays there."""
        for mine, theirs in ((self._positive, other._positive), (self._negative, other._negative)):
            for key, count in theirs.items():
                mine[key] = min(mine[key] + count, MOST_COUNT)
            _collapse(mine)
        self.invalid = min(self.invalid + other.invalid, MOST_COUNT)
        self.zeros = min(self.zeros + other.zeros, MOST_COUNT)
        self.count = self.zeros + sum(self._positive.values()) + sum(self._negative.values())
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def coarsened(self, joined: int) -> QuantileSketch:
        """Return a copy where each `joined` neighbouring bins are one: smaller, within `joined` + 1 percent.

        Raises:
            ValueError: `joined` is below 1.
        """
        if joined < 1:
            raise ValueError(f"expected at least 1 bin to a new one, got {joined}")
        copy = QuantileSketch()
        copy.merge(self)
        for bins, mine in ((copy._positive, self._positive), (copy._negative, self._negative)):
            bins.clear()
            for key, count in mine.items():
                bins[-(-key // joined) * joined - (joined - 1) // 2] += count
        return copy

    def quantile(self, q: float) -> float:
        """Return the value of rank ``floor(q * (count - 1))``, within 1 %; NaN where there are no values.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"expected a quantile between 0 and 1, got {q}")
        if not self.count:
            return math.nan
        left = math.floor(q * (self.count - 1)) + 1
        for key in sorted(self._negative, reverse=True):
            left -= self._negative[key]
            if left <= 0:
                return self._within(-_middle(key))
        left -= self.zeros
        if left <= 0:
            return 0.0
        for key in sorted(self._positive):
            left -= self._positive[key]
            if left <= 0:
                return self._within(_middle(key))
        return self.maximum

    def count_below(self, value: float) -> int:
        """Return how many values are at most `value`, give or take those within 2 % of it."""
        if value < self.minimum:
            return 0
        if value >= self.maximum:
            return self.count
        if value < 0:
            first = math.ceil(math.log(-value) * _PER_LOG)
            return sum(n for key, n in self._negative.items() if key >= first)
        below = sum(self._negative.values()) + self.zeros
        if value == 0:
            return below
        last = math.ceil(math.log(value) * _PER_LOG)
        return below + sum(n for key, n in self._positive.items() if key <= last)

    def to_bytes(self) -> bytes:
        """Return the sketch as bytes, some two per bin; `from_bytes` reads them."""
        limits = np.array([self.minimum, self.maximum, self.total], "<f8").tobytes()
        numbers = [min(self.invalid, MOST_COUNT), min(self.zeros, MOST_COUNT)]
        for bins in (self._positive, self._negative):
            numbers.append(len(bins))
            last = 0
            for key in sorted(bins):
                numbers += [key - last, min(bins[key], MOST_COUNT)]
                last = key
        return bytes([_VERSION]) + limits + pack_numbers(numbers)

    @classmethod
    def from_bytes(cls, data: bytes) -> QuantileSketch:
        """Return a sketch that was made bytes.

        Raises:
            ValueError: The bytes are no sketch, or one of another version.
        """
        if len(data) < 25 or data[0] != _VERSION:
            raise ValueError("expected the bytes of a quantile sketch, version 1")
        sketch = cls()
        numbers = list(unpack_numbers(data[25:]))
        sketch.minimum, sketch.maximum, sketch.total = np.frombuffer(data[1:25], "<f8").tolist()
        try:
            sketch.invalid, sketch.zeros, place = numbers[0], numbers[1], 2
            for bins in (sketch._positive, sketch._negative):
                place = _read_bins(numbers, place, bins)
        except IndexError as e:
            raise ValueError("the bytes of the quantile sketch end too early") from e
        if place != len(numbers) or not all(0 <= number <= MOST_COUNT for number in numbers[:2]):
            raise ValueError("the bytes of the quantile sketch are damaged")
        sketch.count = sketch.zeros + sum(sketch._positive.values()) + sum(sketch._negative.values())
        return sketch

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantileSketch) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<QuantileSketch of {self.count} values>"

    def _within(self, value: float) -> float:
        return min(max(value, self.minimum), self.maximum)


def _middle(key: int) -> float:
    """Return the value that is within 1 % of every value of a bin."""
    # In two factors, because the end of the last bins is beyond what a float can be.
    return math.exp((key - 1) / _PER_LOG) * (2 * _GAMMA / (_GAMMA + 1))


def _collapse(bins: Counter[int]) -> None:
    """Put the bins next to zero together where there are too many."""
    if len(bins) > _MOST_BINS:
        keys = sorted(bins)
        kept = keys[len(keys) - _MOST_BINS]
        for key in keys[: len(keys) - _MOST_BINS]:
            bins[kept] += bins.pop(key)


def _read_bins(numbers: list[int], place: int, bins: Counter[int]) -> int:
    size, place, key = numbers[place], place + 1, 0
    if not 0 <= size <= _MOST_BINS:
        raise ValueError(f"expected at most {_MOST_BINS} bins, got {size}")
    for i in range(size):
        step, count = numbers[place], numbers[place + 1]
        key, place = key + step, place + 2
        if (i and step <= 0) or not 0 < count <= MOST_COUNT or not _LEAST_BIN <= key <= _LAST_BIN:
            raise ValueError("the bins of the quantile sketch are damaged")
        bins[key] = count
    return place
