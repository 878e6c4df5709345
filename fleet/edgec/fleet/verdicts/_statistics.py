"""Intervals for what devices did: one-sided bounds on each side, with devices or calls as the units.

Calls of one device are alike (the same camera, the same room), so that a million of them on three devices are
three pieces of evidence. Where there are enough devices, each is one unit, and calls only weigh it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and what it may be: each bound is exceeded with the probability that was asked for."""

    figure: float
    low: float
    high: float


def spend(alpha: float, look: int) -> float:
    """Return how much of `alpha` the look of this number, from 1, may use: ``alpha * 6 / (pi * look)**2``.

    All looks together, however many, use `alpha`: a union bound over a convergent series, which holds under
    any dependence between looks (error spending: Lan, DeMets, Biometrika 1983; the series as in Howard et
    al., "Time-uniform Chernoff bounds", Probability Surveys 2020). No number of looks is fixed beforehand.

    Raises:
        ValueError: `look` is below 1.
    """
    if look < 1:
        raise ValueError(f"looks are numbered from 1, got {look}")
    return alpha * 6 / (math.pi * look) ** 2


def proportion(successes: int, n: int, alpha: float) -> Estimate:
    """Return a share with Wilson's bounds (JASA 1927), each at `alpha`; 0 to 1 of nothing."""
    if not n:
        return Estimate(figure=math.nan, low=0.0, high=1.0)
    bounds = binomtest(successes, n).proportion_ci(1 - 2 * alpha, method="wilson")
    return Estimate(figure=successes / n, low=float(bounds.low), high=float(bounds.high))


def proportion_difference(one: tuple[int, int], other: tuple[int, int], alpha: float) -> Estimate:
    """Return the difference of two independent shares, ``(successes, n)`` each.

    Newcombe's hybrid of two score intervals (Statistics in Medicine 1998, method 10).
    """
    a, b = proportion(*one, alpha), proportion(*other, alpha)
    difference = a.figure - b.figure
    return Estimate(
        figure=difference,
        low=difference - math.hypot(a.figure - a.low, b.high - b.figure),
        high=difference + math.hypot(a.high - a.figure, b.figure - b.low),
    )


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of sums over devices, with its standard error; `clusters` is the number of devices."""

    value: float
    error: float
    clusters: int


def ratio_of_sums(parts: Floats, wholes: Floats) -> Ratio:
    """Return ``sum(parts) / sum(wholes)``, where pairs are independent and what is in them is not.

    The error is that of the linearised ratio (Cochran, Sampling Techniques, 1977, 6.3; Deng, Knoblich, Lu,
    "Applying the Delta Method in Metric Analytics", KDD 2018).

    Args:
        parts: Per device; float64[n], n at least 2.
        wholes: Per device; float64[n], with a sum above zero.
    """
    n, total = len(parts), float(wholes.sum())
    value = float(parts.sum()) / total
    left = parts - value * wholes
    return Ratio(value=value, error=math.sqrt(n / (n - 1) * float(np.square(left).sum())) / total, clusters=n)


def ratio_difference(one: Ratio, other: Ratio, alpha: float) -> Estimate:
    """Return the difference of two ratios, with the quantile of Student's t for the smaller arm."""
    error = math.hypot(one.error, other.error)
    reach = student(alpha, min(one.clusters, other.clusters) - 1) * error
    difference = one.value - other.value
    return Estimate(figure=difference, low=difference - reach, high=difference + reach)


def mean_difference(one: Floats, other: Floats, alpha: float) -> Estimate:
    """Return the difference of two means with Welch's bounds; at least 2 values each."""
    parts = [float(x.var(ddof=1)) / len(x) for x in (one, other)]
    error = math.sqrt(sum(parts))
    difference = float(one.mean() - other.mean())
    if error == 0:
        return Estimate(figure=difference, low=difference, high=difference)
    freedom = sum(parts) ** 2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (one, other), strict=True))
    reach = student(alpha, freedom) * error
    return Estimate(figure=difference, low=difference - reach, high=difference + reach)


def student(alpha: float, freedom: float) -> float:
    """Return the value that Student's t exceeds with probability `alpha`."""
    return float(-stdtrit(freedom, alpha))


def normal(alpha: float) -> float:
    """Return the value that a standard normal exceeds with probability `alpha`."""
    return float(-ndtri(alpha))


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of some values in bins, or below edges, with their errors.

    Attributes:
        values: float64[bins].
        errors: Standard errors; float64[bins].
        n: Values.
        clusters: Devices, where these were the units; 0 where values were.
        inflation: How many values are worth one independent value, at least 1 (design effect, Kish 1965).
    """

    values: Floats
    errors: Floats
    n: int
    clusters: int
    inflation: float


def shares_of(counts: Floats, *, cumulative: bool, by_device: bool) -> Shares:
    """Return shares over devices.

    Args:
        counts: Values by device and bin; float64[devices, bins], not all zero.
        cumulative: Whether shares below edges are wanted, rather than those of bins.
        by_device: Whether devices are the units, of which there must be at least 2.
    """
    sizes = counts.sum(axis=1)
    n = float(sizes.sum())
    own = np.cumsum(counts, axis=1)[:, :-1] if cumulative else counts
    values = own.sum(axis=0) / n
    plain = values * (1 - values) / n
    if not by_device:
        return Shares(values=values, errors=np.sqrt(plain), n=int(n), clusters=0, inflation=1.0)
    m = len(counts)
    left = own - values * sizes[:, None]
    spread = m / (m - 1) * np.square(left).sum(axis=0) / n**2
    known = plain > 0
    inflation = float((spread[known] / plain[known]).mean()) if known.any() else 1.0
    return Shares(values=values, errors=np.sqrt(spread), n=int(n), clusters=m, inflation=max(inflation, 1.0))


def distance(one: Shares, other: Shares | None, expected: Floats | None, alpha: float) -> Estimate:
    """Return the largest difference of shares: of cumulative ones, the binned Kolmogorov-Smirnov distance.

    The bounds hold for all bins at once (Bonferroni): the low one is the greatest that any bin proves.

    Args:
        one: Of the candidate.
        other: What it is held against; None for `expected`, which is known exactly.
        expected: Shares; float64[bins].
        alpha: Of each bound.
    """
    against = other.values if other is not None else np.asarray(expected)
    errors = np.hypot(one.errors, other.errors) if other is not None else one.errors
    clusters = [s.clusters for s in (one, other) if s is not None and s.clusters]
    each = alpha / (2 * max(len(one.values), 1))
    reach = (student(each, min(clusters) - 1) if clusters else normal(each)) * errors
    gaps = np.abs(one.values - against)
    return Estimate(
        figure=float(gaps.max()),
        low=max(float((gaps - reach).max()), 0.0),
        high=min(float((gaps + reach).max()), 1.0),
    )
