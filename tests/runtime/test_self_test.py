"""Golden vectors: what passes and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.artifact import GoldenVector
from edgec.runtime._self_test import max_abs_error, run_golden_vectors

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("expected", "actual", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 2.0], [1.5, 1.75], 0.5),
        ([], [], 0),
        ([NAN, 1.0], [NAN, 1.0], 0),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([1.0], [NAN], INF),
        ([INF, -INF], [INF, -INF], 0),
        ([INF], [-INF], INF),
        ([INF], [3e38], INF),
        ([1.0, 2.0], [1.0], INF),
        ([[1.0]], [1.0], INF),
    ],
)
def test_errors_of_floats(expected: list[float], actual: list[float], error: float) -> None:
    assert max_abs_error(np.array(expected, np.float32), np.array(actual, np.float32)) == error


def test_errors_of_integers_do_not_overflow() -> None:
    assert max_abs_error(np.array([0], np.uint8), np.array([255], np.uint8)) == 255
    assert max_abs_error(np.array([-128], np.int8), np.array([127], np.int8)) == 255
    assert max_abs_error(np.array([True]), np.array([False])) == 1


def test_another_dtype_is_infinitely_wrong() -> None:
    assert max_abs_error(np.zeros(1, np.float32), np.zeros(1, np.float64)) == INF


def vectors() -> list[GoldenVector]:
    xs = [np.array([i], np.float32) for i in (1, 2)]
    return [GoldenVector(inputs={"x": x}, outputs={"y": x * 2, "z": x * 3}) for x in xs]


def model(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    x = inputs["x"]
    return {"y": x * 2, "z": x * 3 + (0.25 if x[0] == 2 else 0)}


def test_each_output_of_each_vector_is_held_to_its_tolerance() -> None:
    result = run_golden_vectors(model, vectors(), {"y": {"max_abs_error": 0.0}, "z": {"max_abs_error": 0.2}})
    assert not result.passed
    assert result.vectors == 2
    assert [(o.vector, o.output, o.max_abs_error, o.passed) for o in result.outputs] == [
        (0, "y", 0, True),
        (0, "z", 0, True),
        (1, "y", 0, True),
        (1, "z", 0.25, False),
    ]
    assert result.worst is not None
    assert (result.worst.vector, result.worst.output) == (1, "z")
    assert run_golden_vectors(model, vectors(), {"z": {"max_abs_error": 0.25}}).passed


def test_without_vectors_nothing_fails_and_nothing_is_claimed() -> None:
    result = run_golden_vectors(model, [], {"y": {"max_abs_error": 0}})
    assert (result.passed, result.vectors, result.outputs, result.worst) == (True, 0, (), None)


def test_a_systematic_error_within_the_largest_is_told_by_the_root_mean_square() -> None:
    exact = [GoldenVector(inputs={"x": np.zeros(100, np.float32)}, outputs={"y": np.zeros(100, np.float32)})]

    def off(by: float, share: int) -> bool:
        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            y = inputs["x"].copy()
            y[:share] += np.float32(by)
            return {"y": y}

        return run_golden_vectors(run, exact * 3, {"y": {"max_abs_error": 1.0, "rms_error": 0.2}}).passed

    assert off(0.9, 4)
    assert not off(0.9, 100)
    assert not off(1.1, 1)
    assert not off(np.nan, 1)
