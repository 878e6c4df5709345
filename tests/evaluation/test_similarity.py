from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgec.errors import DataError
from edgec.evaluation import OutputTally, agreement, compare_outputs, cosine, max_abs_error, snr_db


def test_figures_of_a_known_pair() -> None:
    reference, actual = np.array([[3.0, 4.0]], np.float32), np.array([[3.0, 4.5]], np.float32)
    assert max_abs_error(reference, actual) == 0.5
    assert snr_db(reference, actual) == pytest.approx(20.0)  # 25 / 0.25
    assert cosine(reference, actual) == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert agreement(reference, actual) == 1.0


def test_identical_outputs() -> None:
    x = np.arange(6.0).reshape(2, 3)
    (found,) = compare_outputs({"y": x}, {"y": x})
    assert (found.name, found.max_abs_error, found.snr_db, found.agreement) == ("y", 0.0, math.inf, 1.0)
    assert found.cosine == pytest.approx(1.0)


def test_zeros() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert (snr_db(zero, zero), cosine(zero, zero)) == (math.inf, 1.0)
    assert (snr_db(zero, one), cosine(zero, one)) == (-math.inf, 0.0)
    assert (snr_db(one, zero), cosine(one, zero)) == (0.0, 0.0)


def test_what_is_not_finite_in_both_counts_as_equal() -> None:
    x = np.array([1.0, np.nan, np.inf, -np.inf, 2.0])
    assert (max_abs_error(x, x), snr_db(x, x)) == (0.0, math.inf)
    assert cosine(x, x) == pytest.approx(1.0)
    everything = np.full(3, np.nan)
    assert (max_abs_error(everything, everything), cosine(everything, everything)) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_one_is_infinitely_wrong(bad: float) -> None:
    good, broken = np.array([1.0, 2.0, 3.0]), np.array([1.0, bad, 3.0])
    for pair in ((good, broken), (broken, good)):
        assert (max_abs_error(*pair), snr_db(*pair), cosine(*pair)) == (math.inf, -math.inf, 0.0)
    assert max_abs_error(np.array([np.inf]), np.array([-np.inf])) == math.inf


def test_agreement_is_the_share_of_rows_with_the_same_best() -> None:
    a = np.array([[1, 2, 3], [3, 2, 1], [1, 3, 2], [9, 8, 7]], np.float32)
    b = np.array([[1, 2, 4], [1, 2, 3], [0, 9, 0], [9, 8, 7]], np.float32)
    assert agreement(a, b) == 0.75
    b[0, 0] = np.nan
    assert agreement(a, b) == 0.5


def test_agreement_of_integers_is_equality_and_of_single_floats_nothing() -> None:
    assert agreement(np.array([1, 2, 3]), np.array([1, 2, 4])) == pytest.approx(2 / 3)
    assert agreement(np.array([[True]]), np.array([[True]])) == 1.0
    assert agreement(np.array([[0.5]]), np.array([[0.5]])) is None
    assert agreement(np.array(0.5), np.array(0.5)) is None


def test_a_tally_over_many_is_that_of_all_at_once() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 7))
    tally = OutputTally("y")
    for x, y in zip(a, b, strict=True):
        tally.add(x[None], y[None])
    (whole,) = compare_outputs({"y": a}, {"y": b})
    got = tally.result
    assert got.max_abs_error == whole.max_abs_error
    assert (got.snr_db, got.cosine) == pytest.approx((whole.snr_db, whole.cosine))
    assert got.agreement == whole.agreement


def test_float16_and_integers_do_not_overflow() -> None:
    big = np.full(1000, 60000, np.float16)
    assert snr_db(big, -big) == pytest.approx(20 * math.log10(0.5))
    assert max_abs_error(np.array([0], np.uint8), np.array([255], np.uint8)) == 255
    assert max_abs_error(np.array([-128], np.int8), np.array([127], np.int8)) == 255


@pytest.mark.parametrize(
    ("reference", "actual", "message"),
    [
        ({"a": np.zeros(2)}, {"b": np.zeros(2)}, r"reference gives \['a'\], the other \['b'\]"),
        ({"a": np.zeros(2)}, {"a": np.zeros(3)}, r"output 'a' has shape \[3\], the reference has \[2\]"),
        ({"a": np.array(["x"])}, {"a": np.array(["x"])}, "only numbers can be compared"),
    ],
)
def test_what_cannot_be_compared_is_refused(reference: Any, actual: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare_outputs(reference, actual)
