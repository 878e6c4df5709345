"""What charts draw, read from candidates that may lack any of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgec.artifact._report_text import number, one_line, time_unit

_STATUSES = ("winner", "admissible", "refused", "failed", "skipped", "source")


def latency_of(candidate: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Return p50, p90 and p99 in milliseconds, in rising order; None where there is no median."""
    latency = candidate.get("latency_ms")
    p50 = number(latency.get("p50")) if isinstance(latency, Mapping) else None
    if p50 is None or p50 <= 0 or not isinstance(latency, Mapping):
        return None
    p90 = max(number(latency.get("p90")) or p50, p50)
    return p50, p90, max(number(latency.get("p99")) or p90, p90)


def unit_of(candidates: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """Return one unit for the times of all, as `time_unit` does."""
    return time_unit(t[0] for c in candidates if (t := latency_of(c)) is not None)


def accuracy_of(candidate: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the accuracy, with a metric and a score for sure; None where there is no score."""
    accuracy = candidate.get("accuracy")
    if not isinstance(accuracy, Mapping) or number(accuracy.get("artifact")) is None:
        return None
    return {"metric": None, **accuracy}


def interval_of(accuracy: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval, low and high; None where there is none."""
    interval = accuracy.get("ci95")
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return None
    low, high = map(number, interval)
    return None if low is None or high is None else (low, high)


def source_snrs(candidates: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Return SNRs that may be compared: against the source, or all against one other reference."""
    snrs = [number(c.get("source_snr_db")) for c in candidates]
    if any(x is not None for x in snrs):
        return snrs
    parities = [p if isinstance(p := c.get("parity"), Mapping) else {} for c in candidates]
    if len({p.get("reference") for p in parities if p}) != 1:
        return snrs
    return [number(p.get("snr_db")) for p in parities]


def status_of(candidate: Mapping[str, Any]) -> str:
    """Return one of the statuses there are, ``other`` for any other text."""
    status = candidate.get("status")
    return status if status in _STATUSES else "other"


def shorten(text: object, length: int) -> str:
    """Return `text` on one line and in at most `length` characters."""
    short = one_line(text)
    return short if len(short) <= length else short[: length - 1] + "…"
