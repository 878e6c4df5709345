"""Latency, measured side by side: the core of the benchmark, and of the choice among candidates."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A run is cut into this many parts in order of time, whose medians are compared with each other.
_PARTS = 10
# Medians of the parts of a steady run vary by less than this.
_STEADY_CV = 0.05


@dataclass(frozen=True)
class LatencySamples:
    """Every latency that was measured of one call.

    Attributes:
        samples_ms: In milliseconds, in the order they were taken; float64[n], n >= 1.
    """

    samples_ms: NDArray[np.float64]

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.samples_ms)

    @property
    def p50_ms(self) -> float:
        """The median."""
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        """What 90 % of the calls stay under."""
        return self.percentile_ms(90)

    @property
    def p99_ms(self) -> float:
        """What 99 % of the calls stay under; of fewer than 100 samples it is an interpolation."""
        return self.percentile_ms(99)

    @property
    def mean_ms(self) -> float:
        """The mean."""
        return float(self.samples_ms.mean())

    @property
    def min_ms(self) -> float:
        """The fastest call."""
        return float(self.samples_ms.min())

    @property
    def max_ms(self) -> float:
        """The slowest call."""
        return float(self.samples_ms.max())

    @property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation over mean. One long pause moves it far."""
        return float(self.samples_ms.std() / self.mean_ms)

    @property
    def drift_cv(self) -> float:
        """Coefficient of variation of the medians of ten consecutive parts of the run.

        Blind to single slow calls, it shows whether the typical call kept its speed: a throttling
        clock or a busy neighbour moves it. 0 where there are fewer samples than parts.
        """
        if self.n < _PARTS:
            return 0.0
        medians = np.array([np.median(part) for part in np.array_split(self.samples_ms, _PARTS)])
        return float(medians.std() / medians.mean())

    def to_dict(self) -> dict[str, float]:
        """Return the latencies in milliseconds, by name: ``{"p50": 0.2, "p90": ...}``."""
        return {
            "p50": self.p50_ms,
            "p90": self.p90_ms,
            "p99": self.p99_ms,
            "mean": self.mean_ms,
            "min": self.min_ms,
            "max": self.max_ms,
        }

    @property
    def is_stable(self) -> bool:
        """Whether the typical call kept its speed: there are ten samples and `drift_cv` is at most 5 %."""
        return self.n >= _PARTS and self.drift_cv <= _STEADY_CV

    def percentile_ms(self, percent: float) -> float:
        """Return the latency that `percent` of the calls stay under, interpolated linearly."""
        return float(np.percentile(self.samples_ms, percent))


@dataclass(frozen=True)
class MedianRatio:
    """How two medians compare.

    Attributes:
        ratio: Median of the first over median of the second; below 1 the first is faster.
        lower: Lower end of the confidence interval of `ratio`.
        upper: Upper end.
    """

    ratio: float
    lower: float
    upper: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.lower <= 1.0 <= self.upper


def measure_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    duration_s: float = 2.0,
    min_rounds: int = 20,
    max_rounds: int = 20_000,
    warmup_s: float = 0.3,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, LatencySamples]:
    """Time several calls side by side, so that what disturbs the machine disturbs all of them.

    Each round makes every call once, in an order drawn anew for each round. Sample i of every
    result is from round i. Measuring ends with the first round after `duration_s`, but neither
    before `min_rounds` nor after `max_rounds`.

    Args:
        calls: What to time, by name. What a call returns is dropped before the next one starts.
        duration_s: For all of them together, in seconds, without the warm-up.
        min_rounds: Rounds to measure even if they take longer.
        max_rounds: Rounds after which to end even if time is left.
        warmup_s: Rounds are made and thrown away for this long, and at least twice, in seconds.
        seed: Of the order of calls.
        clock: Monotonic, in nanoseconds.

    Raises:
        ValueError: There are no calls, or a bound is out of range.
    """
    if not calls:
        raise ValueError("expected at least one call to measure, got none")
    if not 1 <= min_rounds <= max_rounds:
        raise ValueError(f"expected 1 <= min_rounds <= max_rounds, got {min_rounds} and {max_rounds}")
    shuffle = random.Random(seed).shuffle
    taken: dict[str, list[int]] = {name: [] for name in calls}
    order = [(call, taken[name].append) for name, call in calls.items()]

    def rounds(seconds: float, at_least: int, at_most: int) -> None:
        deadline = clock() + int(seconds * 1e9)
        done = 0
        while done < at_least or (done < at_most and clock() < deadline):
            shuffle(order)
            for call, note in order:
                start = clock()
                call()
                note(clock() - start)
            done += 1

    rounds(warmup_s, 2, max_rounds)
    for samples in taken.values():
        samples.clear()
    rounds(duration_s, min_rounds, max_rounds)
    return {name: LatencySamples(np.array(samples, np.float64) / 1e6) for name, samples in taken.items()}


def median_ratio(
    first: LatencySamples,
    second: LatencySamples,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> MedianRatio:
    """Compare the medians of two calls that `measure_interleaved` timed together.

    The interval is a percentile bootstrap over rounds, in blocks: both samples of a round are
    drawn together, because they share what disturbed it, and neighbouring rounds are too, because
    disturbances last longer than a round (circular block bootstrap, Politis and Romano 1992;
    block length: cube root of the number of rounds).

    Raises:
        ValueError: They were not measured together: their numbers of samples differ.
    """
    n = first.n
    if n != second.n:
        raise ValueError(f"expected two results of one measurement, got {n} and {second.n} samples")
    generator = np.random.default_rng(seed)
    block = max(1, round(n ** (1 / 3)))
    offsets = np.arange(block)
    ratios = np.empty(resamples)
    for i in range(resamples):
        starts = generator.integers(0, n, size=-(-n // block))
        rows = ((starts[:, None] + offsets).ravel() % n)[:n]
        ratios[i] = np.median(first.samples_ms[rows]) / np.median(second.samples_ms[rows])
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(ratios, [tail, 1 - tail])
    return MedianRatio(first.p50_ms / second.p50_ms, float(lower), float(upper))
