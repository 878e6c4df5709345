"""Drift of a histogram from quantiles."""

from __future__ import annotations

import math

import pytest

from edgec.sketch import Histogram, QuantileSketch, kolmogorov_smirnov, population_stability, reference_bins


def test_bins_have_the_shares_between_quantiles() -> None:
    edges, shares = reference_bins({"0.5": 2.0, "0.1": -1.0, "0.9": 7.0})
    assert edges == (-1.0, 2.0, 7.0)
    assert shares == pytest.approx((0.1, 0.4, 0.4, 0.1))


def test_equal_quantiles_are_one_edge() -> None:
    edges, shares = reference_bins({"0.01": 0.0, "0.5": 0.0, "0.9": 3.0})
    assert edges == (0.0, 3.0)
    assert shares == pytest.approx((0.01, 0.89, 0.1))
    assert reference_bins({}) == ((), ())


def test_drift_is_nothing_for_what_is_expected_and_grows() -> None:
    edges, shares = reference_bins({"0.25": 0.0, "0.5": 1.0, "0.75": 2.0})
    found = []
    for values in ([-1, 0.5, 1.5, 3], [-1, 1.5, 1.5, 3], [3, 3, 3, 3]):
        histogram = Histogram(edges)
        histogram.add_many(values)
        found.append((population_stability(histogram, shares), kolmogorov_smirnov(histogram, shares)))
    assert found[0] == pytest.approx((0.0, 0.0))
    assert found[1][1] == pytest.approx(0.25)
    assert found[2][1] == pytest.approx(0.75)
    assert 0.25 < found[1][0] < found[2][0] < math.inf


def test_nothing_has_no_drift() -> None:
    assert math.isnan(population_stability(Histogram([0.0]), (0.5, 0.5)))
    assert math.isnan(kolmogorov_smirnov(Histogram([0.0]), (0.5, 0.5)))
    with pytest.raises(ValueError, match="2 shares"):
        population_stability(Histogram([0.0]), (1.0,))


def test_values_below_are_counted() -> None:
    sketch = QuantileSketch()
    for value in (-10.0, -1.0, 0.0, 0.0, 1.0, 10.0):
        sketch.add(value)
    counts = {at: sketch.count_below(at) for at in (-20.0, -5.0, -0.5, 0.0, 0.5, 5.0, 10.0, 1e9)}
    assert list(counts.values()) == [0, 1, 2, 4, 4, 5, 6, 6]
