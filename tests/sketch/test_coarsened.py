"""Sketches made coarser, to fit where there is little room."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.sketch import QuantileSketch


@pytest.mark.parametrize("joined", [1, 2, 4, 8])
def test_a_coarsened_sketch_is_smaller_and_as_accurate_as_it_says(joined: int) -> None:
    values = np.random.default_rng(0).lognormal(1.0, 0.8, 50_000)
    sketch = QuantileSketch()
    sketch.add_many(np.concatenate([values, -values]))
    coarse = sketch.coarsened(joined)
    assert coarse.count == sketch.count
    assert (coarse.minimum, coarse.maximum, coarse.total) == (sketch.minimum, sketch.maximum, sketch.total)
    assert QuantileSketch.from_bytes(coarse.to_bytes()) == coarse
    if joined > 1:
        assert len(coarse.to_bytes()) < len(sketch.to_bytes()) * (0.2 + 1.1 / joined)
    for q in (0.01, 0.3, 0.5, 0.7, 0.99):
        exact = np.quantile(np.concatenate([values, -values]), q, method="lower")
        assert coarse.quantile(q) == pytest.approx(exact, rel=1.05 * (joined + 1) / 100)


def test_a_sketch_is_not_coarsened_by_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="at least 1 bin"):
        QuantileSketch().coarsened(0)
