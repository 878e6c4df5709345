"""How alike two models' outputs are, number by number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DataError


@dataclass(frozen=True, kw_only=True)
class OutputComparison:
    """How far one output of a model is from a reference's.

    A value that is NaN, or the same infinity, in both counts as equal; one that is not finite in
    one of them only makes `max_abs_error` infinite, `snr_db` minus infinity and `cosine` 0.

    Attributes:
        name: Of the output.
        max_abs_error: Largest absolute difference of two values.
        snr_db: Signal-to-noise ratio, 10 log10(sum of reference^2 / sum of difference^2), in
            decibels; infinite where there is no difference, minus infinity where the reference is 0
            and the other is not.
        cosine: Of the angle between the two, all values as one vector; 1 where both are 0.
        agreement: Share of rows along the last axis whose largest value is at the same place in
            both; of integers and booleans the share of equal values; None for floats of fewer than
            two values per row, where there is no choice to agree on.
    """

    name: str
    max_abs_error: float
    snr_db: float
    cosine: float
    agreement: float | None


class OutputTally:
    """Compares one output over many inferences, in constant memory.

    ``add`` each pair of arrays, then ask for the `result`.
    """

    def __init__(self, name: str) -> None:
        """Start with nothing added; `name` is the output's."""
        self._name = name
        self._max_error = 0.0
        self._signal = self._other = self._noise = self._dot = 0.0
        self._agreed = self._rows = 0

    def add(self, reference: NDArray[Any], actual: NDArray[Any]) -> None:
        """Add the reference's output and the other's for one input.

        Raises:
            DataError: Their shapes differ, or they are not numbers.
        """
        r, a = np.asarray(reference), np.asarray(actual)
        if r.shape != a.shape:
            raise DataError(
                f"output {self._name!r} has shape {list(a.shape)}, the reference has {list(r.shape)}: "
                "compare two versions of the same model on the same inputs"
            )
        if r.dtype.kind not in "fiub" or a.dtype.kind not in "fiub":
            raise DataError(f"output {self._name!r} is {a.dtype}, only numbers can be compared")
        self._add_agreement(r, a)
        self._add_distance(r.astype(np.float64).reshape(-1), a.astype(np.float64).reshape(-1))

    @property
    def result(self) -> OutputComparison:
        """How far the two are apart over all that was added."""
        return OutputComparison(
            name=self._name,
            max_abs_error=self._max_error,
            snr_db=_decibels(self._signal, self._noise),
            cosine=self._cosine(),
            agreement=self._agreed / self._rows if self._rows else None,
        )

    def _add_distance(self, r: NDArray[np.float64], a: NDArray[np.float64]) -> None:
        usable = np.isfinite(r) & np.isfinite(a)
        if not usable.all():
            broken = ~usable & ~((r == a) | (np.isnan(r) & np.isnan(a)))
            if broken.any():
                self._max_error = self._noise = math.inf
            r, a = r[usable], a[usable]
        if not r.size:
            return
        difference = a - r
        self._max_error = max(self._max_error, float(np.abs(difference).max()))
        self._noise += inner_product(difference, difference)
        self._signal += inner_product(r, r)
        self._other += inner_product(a, a)
        self._dot += inner_product(r, a)

    def _add_agreement(self, r: NDArray[Any], a: NDArray[Any]) -> None:
        if r.dtype.kind in "iub" and a.dtype.kind in "iub":
            self._rows += r.size
            self._agreed += int((r == a).sum())
        elif r.ndim and r.shape[-1] > 1:
            same = np.argmax(r, axis=-1) == np.argmax(a, axis=-1)
            self._rows += same.size
            # A row with a NaN in one of them only does not agree: argmax would name the NaN.
            self._agreed += int((same & (np.isnan(r).any(-1) == np.isnan(a).any(-1))).sum())

    def _cosine(self) -> float:
        if math.isinf(self._noise):
            return 0.0
        norm = math.sqrt(self._signal) * math.sqrt(self._other)
        if norm > 0:
            return max(-1.0, min(1.0, self._dot / norm))
        return 1.0 if self._noise == 0 else 0.0


def inner_product(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the sum of the products of two rows, in one thread.

    BLAS would share that among threads, which wait for each other longer than it takes where cores are busy.
    """
    return float(np.einsum("i,i->", a, b))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    if signal == 0 or math.isinf(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)


def compare_outputs(
    reference: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]]
) -> list[OutputComparison]:
    """Compare two models' outputs by name, in the reference's order.

    Raises:
        DataError: Names or shapes differ.
    """
    if set(reference) != set(actual):
        raise DataError(
            f"outputs differ: the reference gives {sorted(reference)}, the other {sorted(actual)}"
        )
    return [_compare(name, reference[name], actual[name]) for name in reference]


def snr_db(reference: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return the signal-to-noise ratio in decibels, see `OutputComparison`."""
    return _compare("output", reference, actual).snr_db


def cosine(reference: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return the cosine of the angle between two arrays, see `OutputComparison`."""
    return _compare("output", reference, actual).cosine


def max_abs_error(reference: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return the largest absolute difference, see `OutputComparison`."""
    return _compare("output", reference, actual).max_abs_error


def agreement(reference: NDArray[Any], actual: NDArray[Any]) -> float | None:
    """Return the share of rows with the same largest place, see `OutputComparison`."""
    return _compare("output", reference, actual).agreement


def _compare(name: str, reference: NDArray[Any], actual: NDArray[Any]) -> OutputComparison:
    tally = OutputTally(name)
    tally.add(reference, actual)
    return tally.result
