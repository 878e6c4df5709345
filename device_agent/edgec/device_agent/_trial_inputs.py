"""Inputs to try a model with: its golden ones, and those at the edge of what it may be given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Artifact, TensorSpec
from edgec.errors import DataError
from edgec.runtime._synthetic import synthetic_inputs

Feed = dict[str, NDArray[Any]]


def golden_inputs(artifact: Artifact) -> list[Feed]:
    """Return the inputs of the golden vectors; made-up ones where there are none and they can be made up."""
    found = [dict(vector.inputs) for vector in artifact.golden()]
    if found:
        return found
    try:
        return synthetic_inputs(artifact.manifest.inputs, 4, 0)
    except DataError:  # texts
        return []


def edge_inputs(specs: Sequence[TensorSpec], golden: Sequence[Feed]) -> list[tuple[str, Feed]]:
    """Return legal inputs that are unlike the golden ones, each with a name.

    Zeros, the least and the greatest value, random values, and golden ones that are shifted, mirrored and
    dimmed. Values stay within those of the golden inputs, but for bytes, which may be anything: an index
    beyond a vocabulary, or a sound beyond full scale, is no legal input.

    Args:
        specs: Of the model's inputs.
        golden: Of `golden_inputs`.
    """
    if not golden or any(np.dtype(spec.dtype).kind not in "biuf" for spec in specs):
        return []
    random = np.random.default_rng(0)
    first = golden[0]
    made: dict[str, Feed] = {"zeros": {}, "least": {}, "greatest": {}, "random": {}, "random again": {}}
    shifted: dict[str, Feed] = {"shifted": {}, "mirrored": {}, "dimmed": {}}
    for spec in specs:
        value = first[spec.name]
        low, high = _range(value.dtype, [feed[spec.name] for feed in golden])
        made["zeros"][spec.name] = np.full_like(value, min(max(0, low), high))
        made["least"][spec.name] = np.full_like(value, low)
        made["greatest"][spec.name] = np.full_like(value, high)
        for name in ("random", "random again"):
            made[name][spec.name] = _uniform(random, value, low, high)
        shifted["shifted"][spec.name] = np.roll(value, 1, axis=_longest(value))
        shifted["mirrored"][spec.name] = np.flip(value, axis=_longest(value)).copy()
        # Integers that are no bytes are indices, or lengths: they stay as they are.
        dims = value.dtype.kind == "f" or value.dtype.itemsize == 1
        shifted["dimmed"][spec.name] = (value * 0.5).astype(value.dtype) if dims and low <= 0 else value
    return [*made.items(), *shifted.items()]


def _range(dtype: np.dtype[Any], values: Sequence[NDArray[Any]]) -> tuple[Any, Any]:
    if dtype.kind == "b":
        return False, True
    if dtype.kind in "iu" and dtype.itemsize == 1:
        return np.iinfo(dtype).min, np.iinfo(dtype).max
    filled = [value for value in values if value.size]
    if not filled:
        return 0, 0
    return min(value.min() for value in filled), max(value.max() for value in filled)


def _uniform(random: np.random.Generator, like: NDArray[Any], low: Any, high: Any) -> NDArray[Any]:
    if like.dtype.kind == "f":
        return random.uniform(low, high, like.shape).astype(like.dtype)
    return random.integers(int(low), int(high), like.shape, endpoint=True).astype(like.dtype)


def _longest(value: NDArray[Any]) -> int | None:
    return int(np.argmax(value.shape)) if value.ndim else None
