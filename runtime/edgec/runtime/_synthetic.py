"""Inputs to call a model with where nobody gave any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Artifact, TensorSpec


def calling_inputs(artifact: Artifact) -> tuple[list[dict[str, NDArray[Any]]], str]:
    """Return inputs that an artifact can be called with, and what they are.

    Returns:
        The inputs of its golden vectors and ``golden``; where it has none, one set of `synthetic_inputs`
        and ``synthetic``.
    """
    golden = [dict(vector.inputs) for vector in artifact.golden()]
    if golden:
        return golden, "golden"
    return [synthetic_inputs(artifact.manifest.inputs)], "synthetic"


def synthetic_inputs(specs: Sequence[TensorSpec], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return one array per spec: standard normal floats, integers 0 and 1; named dimensions have size 1.

    Small integers are indices that every embedding has.
    """
    random = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for spec in specs:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        dtype = np.dtype(spec.dtype)
        values = random.standard_normal(shape) if dtype.kind in "fc" else random.integers(0, 2, shape)
        inputs[spec.name] = np.asarray(values, dtype)
    return inputs
