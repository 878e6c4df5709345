"""Inputs whose values eight bits cannot tell from zero: why a model may fail as integers of eight bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEPS = 255  # between the least and the greatest value of eight bits
# Of the values that are not zero; images with dark corners have a tenth.
_MOST_LOST = 0.5


def rounded_away(samples: Iterable[Mapping[str, NDArray[Any]]]) -> list[str]:
    """Say of which inputs most values become zero when they are rounded to eight bits.

    One scale serves all of a tensor: where small values lie beside large ones, such as the two states of an
    LSTM in one input, the small ones are lost before the model begins.

    Args:
        samples: What the model takes, by name of the input.

    Returns:
        A sentence for each such input, with what to do about it.
    """
    values: dict[str, list[NDArray[np.float64]]] = {}
    for sample in samples:
        for name, array in sample.items():
            if array.dtype.kind == "f":
                values.setdefault(name, []).append(array.astype(np.float64).ravel())
    return [said for name, parts in values.items() if (said := _lost(name, np.concatenate(parts)))]


def _lost(name: str, values: NDArray[np.float64]) -> str:
    values = values[np.isfinite(values) & (values != 0)]
    if not values.size:
        return ""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    step = (high - low) / _STEPS
    share = float((np.abs(values) < step / 2).mean())
    if share <= _MOST_LOST:
        return ""
    return (
        f"of input {name!r}, {share:.0%} of the values that are not 0 become 0 in 8 bits (from {low:.3g} to "
        f"{high:.3g}, a step is {step:.3g}): export what has another scale as an input of its own, scale it, "
        "or compile for a target that has 16-bit activations (int16x8) or floats"
    )
