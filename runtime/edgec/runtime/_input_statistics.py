"""Statistics of what goes into one call: the observer and the compiler take them by the same code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of each tensor, values that are looked at where nothing else is said; quantiles in artifacts are of so many.
MOST_VALUES = 2048


def _deviation(values: NDArray[np.float64]) -> float:
    """Return the standard deviation, in half the time of `numpy.std`."""
    around = values - values.mean()
    return math.sqrt(around.dot(around) / around.size)


_STATISTICS: Mapping[str, Callable[[NDArray[np.float64]], Any]] = {
    "mean": np.mean, "std": _deviation, "min": np.min, "max": np.max
}  # fmt: skip


def statistics_of(array: NDArray[Any], names: Iterable[str], most: int) -> dict[str, float]:
    """Return statistics of the values of an input, of at most `most` of them; nothing of an empty one.

    Args:
        array: As the model takes it; numbers.
        names: Of `edgec.artifact.STATISTICS`.
        most: Values that are looked at, spread over the array evenly.
    """
    values = thinned(array, most).astype(np.float64)
    return {name: float(_STATISTICS[name](values)) for name in names} if values.size else {}


def one_sample(array: NDArray[Any], number: int) -> NDArray[Any]:
    """Return one sample of a call that may have joined several along the first axis, another each time.

    A mean over a batch varies less than that of a sample: held against quantiles of samples, it would seem
    to have moved.

    Args:
        array: Of an input whose first axis is of samples.
        number: Of the call.
    """
    rows = len(array)
    return array[number % rows][None] if rows > 1 else array


def thinned(array: NDArray[Any], most: int) -> NDArray[Any]:
    """Return at most some values of an array, from all over it; float[n]."""
    flat = array.ravel(order="K")  # the order of memory: no copy of what is transposed
    if flat.size <= most:
        return flat
    step = -(-flat.size // most)
    while gcd(step, flat.size) > 1:  # or it may meet one channel only
        step += 1
    return flat[::step]
