"""Golden vectors: does this device compute what the source model computed?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import GoldenVector

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class OutputTest:
    """How one output of one golden vector compares.

    Attributes:
        vector: Index of the golden vector.
        output: Name of the output.
        max_abs_error: Largest absolute difference of two elements; infinite where dtype or shape
            differ, or where one is not a number and the other is.
        tolerance: Largest that passes.
        passed: Whether it is within, and the root mean square error too.
        rms_error: Root mean square error of the output over all vectors together, which a systematic fault
            moves first; infinite as above.
        rms_tolerance: Largest that passes; None where the artifact has none.
    """

    vector: int
    output: str
    max_abs_error: float
    tolerance: float
    passed: bool
    rms_error: float = 0.0
    rms_tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class SelfTestResult:
    """Whether an artifact computes here what it computed where it was made.

    Attributes:
        passed: Whether every output of every vector is within its tolerance; true where there are none.
        outputs: One entry per vector and output that has a tolerance.
        vectors: How many golden vectors the artifact has.
    """

    passed: bool
    outputs: tuple[OutputTest, ...]
    vectors: int

    @property
    def worst(self) -> OutputTest | None:
        """The output furthest from, or closest to, its tolerance; None where there is none."""
        return max(self.outputs, key=lambda o: (not o.passed, o.max_abs_error - o.tolerance), default=None)


def run_golden_vectors(
    run: Callable[[Arrays], Arrays],
    vectors: Sequence[GoldenVector],
    tolerances: Mapping[str, Mapping[str, float]],
) -> SelfTestResult:
    """Run golden vectors and compare what comes out.

    Args:
        run: Runs the model once.
        vectors: Inputs, with the outputs of the source model.
        tolerances: By name of the output: ``{"scores": {"max_abs_error": 1e-5, "rms_error": 1e-6}}``; an
            output without the first is not compared, and without the second only by the first.
    """
    worst: dict[tuple[int, str], float] = {}
    squares: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for i, vector in enumerate(vectors):
        actual = run(vector.inputs)
        for name, limits in tolerances.items():
            if name in vector.outputs and "max_abs_error" in limits:
                error = _errors(vector.outputs[name], actual[name])
                worst[i, name] = float(error.max(initial=0.0))
                squares[name] = squares.get(name, 0.0) + float(np.sum(np.square(error)))
                sizes[name] = sizes.get(name, 0) + error.size
    tests = []
    for (i, name), largest in worst.items():
        tolerance, allowed = tolerances[name]["max_abs_error"], tolerances[name].get("rms_error")
        rms = math.sqrt(squares[name] / sizes[name]) if sizes[name] else 0.0
        tests.append(
            OutputTest(
                vector=i,
                output=name,
                max_abs_error=largest,
                tolerance=tolerance,
                passed=largest <= tolerance and (allowed is None or rms <= allowed),
                rms_error=rms,
                rms_tolerance=allowed,
            )
        )
    return SelfTestResult(passed=all(t.passed for t in tests), outputs=tuple(tests), vectors=len(vectors))


def max_abs_error(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return the largest absolute difference of two elements.

    Equal infinities, and two elements that are both not a number, do not differ. Infinite where
    dtype or shape differ.
    """
    return float(_errors(expected, actual).max(initial=0.0))


def _errors(expected: NDArray[Any], actual: NDArray[Any]) -> NDArray[np.float64]:
    """Return the absolute difference of each two elements; one infinity where dtype or shape differ."""
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        return np.array([np.inf])
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    a, b = expected.astype(wide), actual.astype(wide)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    found: NDArray[np.float64] = np.nan_to_num(difference, nan=np.inf, posinf=np.inf)
    return found
