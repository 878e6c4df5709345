"""What calibration keeps of a tensor, and the quantization ranges that follow from it.

The statistics are neutral: no dtype, scheme or engine is in them. Every range below is derived
from the same histogram, so that one pass over the data serves every target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

METHODS = ("minmax", "percentile", "mse", "entropy")
BINS = 4096  # over [-limit, limit]; a multiple of four, so that doubling `limit` merges pairs of bins
_BLOCK = 1 << 16  # elements binned at a time: bounds the temporaries and stays in the cache
_LEVELS = 256  # of eight bits
_PERCENTILE = 99.999
_TINY = 1e-30  # values below count as zero: a finer histogram would overflow float32


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """What was seen of one float tensor over all samples.

    Attributes:
        minimum: Smallest finite value.
        maximum: Largest finite value.
        limit: The histogram spans ``[-limit, limit]`` in `BINS` equal bins; 0.0 where every value was 0.
        first_bin: Index of the first bin that is kept; those before it are empty.
        counts: Values per bin from `first_bin` on; bins after the last are empty.
        elements: Finite values seen.
        nonfinite: NaN and infinite values seen.
        floor: Values below it change nothing that the model gives, and need no levels; None where all
            values matter, as far as is known. See `edgec.compiler.residuals`.
    """

    minimum: float
    maximum: float
    limit: float
    first_bin: int
    counts: tuple[int, ...]
    elements: int
    nonfinite: int = 0
    floor: float | None = None
    _known: dict[tuple[str, bool], tuple[float, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the centres of the kept bins and the values counted in each, as ``float64[n]``."""
        width = 2.0 * self.limit / BINS
        index = np.arange(self.first_bin, self.first_bin + len(self.counts), dtype=np.float64)
        return (index + 0.5) * width - self.limit, np.asarray(self.counts, np.float64)

    def range(self, method: str = "minmax", *, symmetric: bool = False) -> tuple[float, float]:
        """Return the range to quantize, ``(low, high)`` with ``low <= 0 <= high``.

        Args:
            method: ``minmax``: all that was seen, whatever the floor. ``percentile``: the middle 99.999 %
                of the values.
                ``mse``: the range with the least mean squared error of eight bits, clipping
                included. ``entropy``: the threshold whose eight-bit histogram has the least
                Kullback-Leibler divergence from the full one (Migacz, "8-bit inference with
                TensorRT", GTC 2017).
            symmetric: Whether the range must be ``(-high, high)``.

        Raises:
            ValueError: No such method.
        """
        # A repair quantizes a model dozens of times over the same ranges, which take far longer to find.
        if (method, symmetric) not in self._known:
            self._known[method, symmetric] = self._range(method, symmetric)
        return self._known[method, symmetric]

    def _range(self, method: str, symmetric: bool) -> tuple[float, float]:
        low, high = min(0.0, self.minimum), max(0.0, self.maximum)
        floor = -np.inf if self.floor is None or method == "minmax" else self.floor
        match method:
            case "minmax":
                pass
            case "percentile":
                low, high = self._percentile(low, high)
            case "mse":
                low, high = self._least_squares(max(low, floor), high, symmetric)
            case "entropy":
                threshold = self._entropy_threshold(low, high)
                low, high = max(low, -threshold), min(high, threshold)
            case _:
                raise ValueError(f"unknown range method {method!r}; there are: {', '.join(METHODS)}")
        low = max(low, floor)
        if symmetric:
            high = max(-low, high)
            low = -high
        return low, high

    def _percentile(self, low: float, high: float) -> tuple[float, float]:
        if self.limit == 0.0:
            return low, high
        centres, counts = self.histogram()
        share = np.cumsum(counts) / counts.sum()
        tail = (1.0 - _PERCENTILE / 100.0) / 2.0
        half = self.limit / BINS
        left = centres[int(np.searchsorted(share, tail))] - half
        right = centres[min(int(np.searchsorted(share, 1.0 - tail)), len(centres) - 1)] + half
        return max(low, min(0.0, float(left))), min(high, max(0.0, float(right)))

    def _least_squares(self, low: float, high: float, symmetric: bool) -> tuple[float, float]:
        if self.limit == 0.0:
            return low, high
        centres, counts = self.histogram()
        if self.floor is not None:
            counts = np.where(centres < self.floor, 0.0, counts)
        shrink = np.linspace(1.0, 0.1, 91)
        if symmetric:
            bound = max(-low, high)
            errors = [_squared_error(centres, counts, -bound * s, bound * s) for s in shrink]
            bound *= float(shrink[int(np.argmin(errors))])
            return -bound, bound
        # The two ends move one after the other, the one with the longer tail first.
        for end in ("high", "low") if high >= -low else ("low", "high"):
            if end == "high":
                errors = [_squared_error(centres, counts, low, high * s) for s in shrink]
                high *= float(shrink[int(np.argmin(errors))])
            else:
                errors = [_squared_error(centres, counts, low * s, high) for s in shrink]
                low *= float(shrink[int(np.argmin(errors))])
        return low, high

    def _entropy_threshold(self, low: float, high: float) -> float:
        if self.limit == 0.0:
            return max(-low, high)
        full = np.zeros(BINS)
        full[self.first_bin : self.first_bin + len(self.counts)] = self.counts
        magnitude = full[BINS // 2 :] + full[BINS // 2 - 1 :: -1]
        # The zeros of a ReLU are exact in every scheme, and their spike would hide all else.
        magnitude[0] = magnitude[1]
        # A tensor of one sign has all levels on one side.
        levels = _LEVELS if low == 0.0 or high == 0.0 else _LEVELS // 2
        width = 2.0 * self.limit / BINS
        last = int(np.flatnonzero(magnitude)[-1]) + 1
        candidates = range(min(levels, last), last + 1, max(1, (last - levels) // 128))
        scores = [_divergence(magnitude[:last], n, levels) for n in candidates]
        best = candidates[len(scores) - 1 - int(np.argmin(scores[::-1]))]
        return max(-low, high) if best == last else best * width


def _squared_error(
    centres: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float
) -> float:
    """Return the summed squared error of quantizing a histogram to eight bits over ``[low, high]``."""
    step = (high - low) / (_LEVELS - 1)
    if step <= 0.0:
        return float("inf")
    # Zero is a level of its own, as in every integer scheme.
    first = round(low / step)
    level = np.clip(np.rint(centres / step), first, first + _LEVELS - 1)
    return float(counts @ np.square(centres - level * step))


def _divergence(magnitude: NDArray[np.float64], kept: int, levels: int) -> float:
    """Return KL(P || Q) of keeping the first `kept` bins and merging them into `levels`."""
    p = magnitude[:kept].copy()
    p[-1] += magnitude[kept:].sum()
    edges = (np.arange(min(levels, kept)) * kept) // min(levels, kept)
    kept_counts = magnitude[:kept]
    occupied = kept_counts > 0
    sums = np.add.reduceat(kept_counts, edges)
    sizes = np.add.reduceat(occupied.astype(np.float64), edges)
    mean = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
    q = np.where(occupied, np.repeat(mean, np.diff(np.append(edges, kept))), 0.0)
    if q.sum() == 0.0 or p.sum() == 0.0:
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    # Clipped mass that falls where the kept bins are empty has no image in Q: smoothed, not infinite.
    q = np.maximum(q, 1e-12)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


class StatisticsCollector:
    """Gathers the statistics of one tensor, one array at a time, in constant memory.

    The histogram starts at the first value range it sees. A value outside doubles `limit`, which
    merges pairs of bins exactly, so that the order of the samples hardly matters and none is read twice.
    """

    def __init__(self) -> None:
        self._minimum = float("inf")
        self._maximum = float("-inf")
        self._limit = 0.0
        self._counts = np.zeros(BINS, np.int64)
        self._zeros = 0
        self._elements = 0
        self._nonfinite = 0
        self._arrays = 0
        self._grown_at = 0

    @property
    def grown_at(self) -> int:
        """Which array, counted from 1, last widened the range by more than 5 %; 0 before the first."""
        return self._grown_at

    def add(self, array: NDArray[Any]) -> None:
        """Take in the values of one float array of any shape."""
        self._arrays += 1
        flat = array.reshape(-1)
        low, high = float("inf"), float("-inf")
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK].astype(np.float32, copy=False)
            block_low, block_high = float(block.min()), float(block.max())
            if not (np.isfinite(block_low) and np.isfinite(block_high)):
                kept = block[np.isfinite(block)]
                self._nonfinite += block.size - kept.size
                if kept.size == 0:
                    continue
                block, block_low, block_high = kept, float(kept.min()), float(kept.max())
            low, high = min(low, block_low), max(high, block_high)
            self._bin(block, max(-block_low, block_high))
        if low <= high:
            self._widen(low, high)

    def statistics(self) -> TensorStatistics | None:
        """Return what was gathered; None where no finite value was seen."""
        if self._elements == 0:
            return None
        counts = self._counts.copy()
        counts[BINS // 2] += self._zeros
        occupied = np.flatnonzero(counts)
        first, last = int(occupied[0]), int(occupied[-1])
        return TensorStatistics(
            minimum=self._minimum,
            maximum=self._maximum,
            limit=self._limit,
            first_bin=first,
            counts=tuple(counts[first : last + 1].tolist()),
            elements=self._elements,
            nonfinite=self._nonfinite,
        )

    def _widen(self, low: float, high: float) -> None:
        span = self._maximum - self._minimum
        if (
            self._minimum == float("inf")
            or self._minimum - low > 0.05 * span
            or high - self._maximum > 0.05 * span
        ):
            self._grown_at = self._arrays
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)

    def _bin(self, block: NDArray[np.float32], largest: float) -> None:
        self._elements += block.size
        if largest < _TINY:
            self._zeros += block.size
            return
        if self._limit == 0.0:
            self._limit = largest
        while self._limit < largest:
            self._double()
        scaled = np.multiply(block, np.float32(BINS / 2 / self._limit))
        np.add(scaled, np.float32(BINS / 2), out=scaled)
        counts = np.bincount(scaled.astype(np.intp), minlength=BINS + 1)
        counts[BINS - 1] += counts[BINS]  # a value at `limit` belongs to the last bin
        self._counts += counts[:BINS]

    def _double(self) -> None:
        merged = self._counts.reshape(-1, 2).sum(axis=1)
        self._counts = np.zeros(BINS, np.int64)
        self._counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
        self._limit *= 2.0
