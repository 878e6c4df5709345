"""Hours as series for charts and their tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgec.fleet.store import HourOf
from edgec.fleet.store._hours import HOUR_S
from edgec.sketch import Histogram


@dataclass(frozen=True, kw_only=True)
class Series:
    """Figures by hour, all of one length; None where nothing is known.

    Attributes:
        at: Beginning of each hour, seconds since 1970.
        calls: Of the model, or all models.
        errors: Of these, those that failed.
        p50: Median of the latency, in milliseconds; likewise the 95th and 99th percentile.
        confidence: Median of the highest score, as far as a histogram tells.
        unsure: The score that a tenth of calls is below.
        crashes: Of agent or application.
        non_finite: Share of the sampled calls with NaN or infinity.
    """

    at: list[float]
    calls: list[float]
    errors: list[float]
    p50: list[float | None]
    p95: list[float | None]
    p99: list[float | None]
    confidence: list[float | None]
    unsure: list[float | None]
    crashes: list[float]
    non_finite: list[float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @property
    def known(self) -> bool:
        """Whether there was any call."""
        return any(self.calls)


def series_of(hours: Iterable[int], found: Mapping[int, HourOf]) -> Series:
    """Return figures of hours since 1970, those that are not known without calls."""
    numbers = list(hours)
    told = [found.get(n) or HourOf() for n in numbers]
    return Series(
        at=[float(n * HOUR_S) for n in numbers],
        calls=[t.figures["calls"] for t in told],
        errors=[t.figures["errors"] for t in told],
        crashes=[t.figures["crashes"] for t in told],
        p50=[_latency(t, 0.5) for t in told],
        p95=[_latency(t, 0.95) for t in told],
        p99=[_latency(t, 0.99) for t in told],
        confidence=[_score(t.confidence, 0.5) for t in told],
        unsure=[_score(t.confidence, 0.1) for t in told],
        non_finite=[
            t.figures["non_finite"] / t.figures["sampled"] if t.figures["sampled"] else None for t in told
        ],
    )


def _latency(said: HourOf, q: float) -> float | None:
    return float(said.latency.quantile(q)) if said.latency.count else None


def _score(scores: Histogram | None, q: float) -> float | None:
    """Return a quantile of scores, by straight lines between the edges, from 0 to 1."""
    if scores is None or not scores.count:
        return None
    edges = [0.0, *(float(e) for e in scores.edges), 1.0]
    wanted, below = q * scores.count, 0.0
    for i, n in enumerate(scores.counts):
        if below + n >= wanted and n:
            low, high = max(edges[i], 0.0), max(edges[i + 1], edges[i])
            return round(low + (high - low) * (wanted - below) / float(n), 4)
        below += float(n)
    return edges[-1]
