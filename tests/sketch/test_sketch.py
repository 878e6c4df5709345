"""Sketches: within their accuracy, the union when merged, small, and never built of damaged bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.sketch import Histogram, QuantileSketch

VALUES = st.lists(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12).map(
        lambda v: v if abs(v) > 1e-3 else 0.0
    ),
    min_size=1,
    max_size=60,
)


def sketch_of(values: list[float]) -> QuantileSketch:
    sketch = QuantileSketch()
    for value in values:
        sketch.add(value)
    return sketch


@settings(max_examples=60, deadline=None)
@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_one_percent(values: list[float], q: float) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    assert abs(sketch_of(values).quantile(q) - exact) <= 0.01 * abs(exact) * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_merged_parts_are_the_whole(first: list[float], second: list[float]) -> None:
    merged, whole = sketch_of(first), sketch_of(first + second)
    merged.merge(sketch_of(second))
    merged.total = whole.total  # sums differ by rounding
    assert merged == whole
    at_once = QuantileSketch()
    at_once.add_many(np.array(first + second))
    at_once.total = whole.total
    assert at_once == whole
    assert QuantileSketch.from_bytes(whole.to_bytes()) == whole


def test_size_is_bounded() -> None:
    sketch = QuantileSketch()
    sketch.add_many(np.exp(np.random.default_rng(0).uniform(-300, 300, 200_000)))
    assert len(sketch.to_bytes()) < 10_000
    assert sketch.count == 200_000
    values = np.random.default_rng(0).lognormal(1, 0.5, 100_000)
    usual = QuantileSketch()
    usual.add_many(values)
    assert len(usual.to_bytes()) < 700
    assert usual.quantile(0.999) == pytest.approx(np.quantile(values, 0.999), rel=0.011)


def test_what_is_not_finite_is_counted_apart() -> None:
    sketch = sketch_of([1.0, math.nan, math.inf, -math.inf])
    assert (sketch.count, sketch.invalid, sketch.quantile(0.5)) == (1, 3, 1.0)
    assert math.isnan(QuantileSketch().quantile(0.5))


@pytest.mark.parametrize("value", [5e-324, 1.7976931348623157e308, -1.7976931348623157e308])
def test_the_ends_of_what_a_float_can_be(value: float) -> None:
    sketch = sketch_of([value])
    assert sketch.quantile(0.5) == value
    assert QuantileSketch.from_bytes(sketch.to_bytes()) == sketch


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_damaged_bytes_are_refused(data: bytes, headed: bool) -> None:
    whole = bytes([1]) * headed + data
    for kind in (QuantileSketch, Histogram):
        try:
            read = kind.from_bytes(whole)
        except ValueError:
            continue
        assert kind.from_bytes(read.to_bytes()) == read


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_histograms_add_up(first: list[float], second: list[float]) -> None:
    edges = [-10.0, 0.0, 0.5, 1000.0]
    a, b, whole = Histogram(edges), Histogram(edges), Histogram(edges)
    a.add_many(first)
    b.add_many([*second, math.nan])
    whole.add_many(first + second)
    a.merge(b)
    assert a.counts.tolist() == whole.counts.tolist()
    assert (a.count, a.invalid) == (len(first) + len(second), 1)
    again = Histogram.from_bytes(a.to_bytes())
    assert again.to_bytes() == a.to_bytes()


def test_a_value_on_an_edge_belongs_above_it() -> None:
    histogram = Histogram([0.0, 1.0])
    histogram.add_many([-1, 0, 0.5, 1, 2])
    assert histogram.counts.tolist() == [1, 2, 2]


def test_values_one_by_one_count_as_all_together() -> None:
    values = [-1.0, 0.0, 0.5, 1.0, 2.0, math.nan, math.inf]
    together, single = Histogram([0.0, 1.0]), Histogram([0.0, 1.0])
    together.add_many(values)
    for value in values:
        single.add(value)
    assert single.to_bytes() == together.to_bytes()
    assert (single.count, single.invalid) == (6, 1)


def test_other_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Histogram([0.0]).merge(Histogram([1.0]))
    for edges in ([], [1.0, 1.0], [math.nan]):
        with pytest.raises(ValueError, match="increasing edges"):
            Histogram(edges)
