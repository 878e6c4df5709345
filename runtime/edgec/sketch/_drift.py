"""How far a distribution has moved from the quantiles that were measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.sketch._histogram import Histogram

# A bin that one side has nothing in would make the index infinite.
_LEAST_SHARE = 1e-4


def reference_bins(quantiles: Mapping[str, float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the edges of bins at quantiles, and the share of values that belongs in each bin.

    Args:
        quantiles: Values by rank, as ``reference`` in a manifest has them: ``{"0.01": -2.1, "0.5": 0.3}``.
            Where several have the same value, it is one edge, with the lowest rank.

    Returns:
        n edges, and n + 1 shares: below the first edge, between each two, and from the last on; nothing of
        nothing.
    """
    edges: list[float] = []
    ranks: list[float] = []
    for rank, value in sorted((float(rank), value) for rank, value in quantiles.items()):
        if not edges or value > edges[-1]:
            edges.append(value)
            ranks.append(rank)
    if not edges:
        return (), ()
    return tuple(edges), tuple(np.diff([0.0, *ranks, 1.0]).tolist())


def population_stability(histogram: Histogram, shares: Sequence[float]) -> float:
    """Return the population stability index: 0 for no drift, from 0.25 on usually called a large one.

    The sum of ``(actual - expected) * ln(actual / expected)`` over bins, no share less than 0.0001; NaN
    where there are no values.

    Raises:
        ValueError: There is not one share per bin.
    """
    actual, expected = _shares(histogram, shares)
    actual, expected = np.maximum(actual, _LEAST_SHARE), np.maximum(expected, _LEAST_SHARE)
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def kolmogorov_smirnov(histogram: Histogram, shares: Sequence[float]) -> float:
    """Return the largest difference of the two distribution functions at the edges, from 0 to 1.

    NaN where there are no values.

    Raises:
        ValueError: There is not one share per bin.
    """
    actual, expected = _shares(histogram, shares)
    return float(np.max(np.abs(np.cumsum(actual) - np.cumsum(expected))))


def _shares(histogram: Histogram, shares: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    expected = np.asarray(shares, np.float64)
    if expected.shape != histogram.counts.shape:
        raise ValueError(f"expected {len(histogram.counts)} shares, one per bin, got {len(shares)}")
    count = histogram.count
    return histogram.counts / count if count else np.full(len(shares), np.nan), expected
