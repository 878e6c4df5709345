"""Drift of each model against the calibration data of its artifact, measured by the hour over all devices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgec.fleet.store import DriftRow, Observed, Store
from edgec.fleet.store._drift import DAY_H, INPUT
from edgec.fleet.verdicts import LEAST_VALUES
from edgec.sketch import Histogram, kolmogorov_smirnov, population_stability, reference_bins

_HOUR_S = 3600.0
# Windows of an hour arrive in the next one; so the last three are measured anew.
_AGAIN = 3
# Of the most that came in within an hour: from that on an hour counts as one in which a model is in use.
_WEIGHT = 0.1


def measure_drift(store: Store, now: float) -> list[DriftRow]:
    """Measure the last hours and write it down; return it.

    For each artifact, class of hardware, output and statistic of an input: the population stability index
    less its bias, ``(B - 1) / n`` for B bins, and the binned Kolmogorov-Smirnov distance, of all devices'
    values together. Nothing is said of fewer than 1,000 values (`LEAST_VALUES`): the index is mostly noise
    then. An hour with fewer is measured together with those before it, of a day at the most. Inputs follow
    the time of day, and are always measured together with those of the day before.
    """
    last = int(now // _HOUR_S)
    rows = [
        row
        for seen in store.drift.observed(last - _AGAIN - DAY_H + 1, last)
        for hour in range(last - _AGAIN + 1, last + 1)
        for row in _measured(seen, hour)
    ]
    if rows:
        store.drift.write(rows)
    return rows


def _measured(seen: Observed, hour: int) -> Iterator[DriftRow]:
    if hour not in seen.hours:
        return
    for (kind, name), quantiles in sorted(seen.references.items()):
        edges, shares = reference_bins(quantiles)
        if not edges:
            continue
        merged, hours = _enough(seen, hour, (kind, name), edges)
        if merged.count < LEAST_VALUES:
            continue
        index = population_stability(merged, shares) - (len(shares) - 1) / merged.count
        yield DriftRow(
            model=seen.model,
            digest=seen.digest,
            hardware=seen.hardware,
            kind=kind,
            output=name,
            hour=hour,
            hours=hours,
            n=merged.count,
            psi=index,
            ks=kolmogorov_smirnov(merged, shares),
        )


def _enough(
    seen: Observed, hour: int, of: tuple[str, str], edges: tuple[float, ...]
) -> tuple[Histogram, int]:
    """Return values up to an hour, and of how many hours: as few as suffice, or of inputs those of a day."""
    # Devices count at the reference of the artifact that they have: other edges are another's.
    known = {
        past: histogram
        for past, part in seen.hours.items()
        if (histogram := (part.inputs if of[0] == INPUT else part.outputs).get(of[1])) is not None
        and np.array_equal(histogram.edges, edges)
    }
    merged, hours = Histogram(edges), 0
    for past in range(hour, hour - DAY_H, -1):
        if past in known:
            merged.merge(known[past])
            hours = hour - past + 1
        if of[0] != INPUT and merged.count >= LEAST_VALUES:
            return merged, hours
    if of[0] == INPUT:
        # Where there were values a day before, too, it is a whole day, though some of its hours are silent.
        # Those of few devices, before all others got the release, do not count: one morning outweighs them.
        most = max((histogram.count for histogram in known.values()), default=0)
        first = min((past for past, part in known.items() if part.count >= _WEIGHT * most), default=hour)
        hours = min(hour - first + 1, DAY_H)
    return merged, hours
