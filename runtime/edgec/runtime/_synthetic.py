"""Made-up inputs, for where there is no data: one rule for the compiler, benchmarks and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Artifact, TensorSpec
from edgec.errors import DataError


def calling_inputs(artifact: Artifact) -> tuple[list[dict[str, NDArray[Any]]], str]:
    """Return inputs that an artifact can be called with, and what they are.

    Returns:
        The inputs of its golden vectors and ``golden``; where it has none, one set of `synthetic_inputs`
        and ``synthetic``.

    Raises:
        DataError: It has no golden vectors, and no inputs can be made up for it.
    """
    golden = [dict(vector.inputs) for vector in artifact.golden()]
    if golden:
        return golden, "golden"
    return synthetic_inputs(artifact.manifest.inputs, 1, 0), "synthetic"


def synthetic_inputs(specs: Sequence[TensorSpec], n: int, seed: int) -> list[dict[str, NDArray[Any]]]:
    """Make up `n` inputs of a model: standard normal floats, uniform integers.

    Dynamic dimensions have size 1. The same seed gives the same inputs.

    Raises:
        DataError: An input is of another kind, such as text.
    """
    rng = np.random.default_rng(seed)
    return [{spec.name: _draw(spec, rng) for spec in specs} for _ in range(n)]


def describe_synthetic(specs: Sequence[TensorSpec]) -> str:
    """Return from what distributions `synthetic_inputs` draws, in words."""
    return "; ".join(f"{spec.name}: {_distribution(np.dtype(spec.dtype))}" for spec in specs)


def _draw(spec: TensorSpec, rng: np.random.Generator) -> NDArray[Any]:
    shape = tuple(n if isinstance(n, int) else 1 for n in spec.shape)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "fc":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if dtype.kind not in "iub":
        raise DataError(f"no inputs can be made up for {spec}: give data")
    low, high = _bounds(dtype)
    return np.asarray(rng.integers(low, high, shape, endpoint=True)).astype(dtype)


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    # Eight-bit inputs are images or quantized values; wider ones are indices or lengths, where only
    # small values are sure to be legal.
    if dtype.kind == "b" or dtype.itemsize > 1:
        return 0, 1
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _distribution(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "fc":
        return "standard normal"
    low, high = _bounds(dtype)
    return "fair coin" if dtype.kind == "b" else f"uniform integers {low}..{high}"
