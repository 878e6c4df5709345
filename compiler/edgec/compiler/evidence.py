"""What an artifact is checked by on the device: golden vectors, and how its outputs usually look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import GoldenVector, Observation, TensorSpec, encode_golden
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import Reference
from edgec.compiler.variants import Variant

_VECTORS = 3
_LARGEST_BYTES = 4 << 20  # of one golden vector: a device should not carry more evidence than model
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_REFERENCE_SAMPLES = 256
_KEPT_VALUES = 1_000_000


def golden_vectors(reference: Reference) -> list[GoldenVector]:
    """Return the first inputs of a reference with what it computes of them; at least one, however large."""
    vectors: list[GoldenVector] = []
    for inputs, outputs in zip(reference.inputs[:_VECTORS], reference.outputs[:_VECTORS], strict=True):
        size = sum(a.nbytes for a in (*inputs.values(), *outputs.values()))
        if vectors and size > _LARGEST_BYTES:
            break
        vectors.append(GoldenVector(inputs=dict(inputs), outputs=dict(outputs)))
    return vectors


def golden_bytes(reference: Reference) -> bytes:
    """Return the golden vectors as they are stored."""
    return encode_golden(golden_vectors(reference))


def golden_tolerances(reference: Reference) -> dict[str, dict[str, float]]:
    """Return how far each output may be from the golden one.

    The root mean square error is told over all golden vectors together. They are some of the samples that
    its tolerance is for, and all of the error may be in them.
    """
    share = len(golden_vectors(reference)) / len(reference.inputs)
    return {
        name: {"max_abs_error": t.max_abs, "rms_error": t.rms / math.sqrt(share)}
        for name, t in reference.tolerance.items()
    }


def reference_quantiles(variant: Variant) -> dict[str, dict[str, float]]:
    """Return quantiles of each float output of the source over the representative data.

    From at most 256 samples and, evenly thinned, a million values per output; by name of the output
    and of the quantile: ``{"scores": {"0.5": 0.1}}``.
    """
    inputs = variant.samples.spread_inputs(variant.processor, variant.inputs, _REFERENCE_SAMPLES)
    collected: dict[str, list[NDArray[Any]]] = {}
    with ReferenceProgram(variant.runnable, optimize=True) as program:
        for sample in inputs:
            for name, value in program.run(sample).items():
                if value.dtype.kind == "f" and value.size:
                    collected.setdefault(name, []).append(_thinned(value, _KEPT_VALUES // len(inputs)))
    return {name: _quantiles(np.concatenate(values)) for name, values in collected.items()}


def observation(inputs: tuple[TensorSpec, ...]) -> Observation:
    """Return what is worth watching of a model's inputs on a device: mean and spread of signals.

    Images, sounds and features are floats or have 8 bits. Wider integers are indices, and their mean says
    nothing.
    """
    signals = [
        spec.name for spec in inputs if np.dtype(spec.dtype).kind == "f" or spec.dtype in ("uint8", "int8")
    ]
    return Observation(inputs=dict.fromkeys(signals, ("mean", "std")))


def _thinned(value: NDArray[Any], most: int) -> NDArray[np.float64]:
    flat = value.ravel()
    step = max(1, -(-flat.size // most))
    return flat[::step].astype(np.float64)


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return {}
    # Six digits: the last bits differ from machine to machine and mean nothing here.
    found: Mapping[float, Any] = dict(zip(_QUANTILES, np.quantile(finite, _QUANTILES), strict=True))
    return {str(q): float(f"{v:.6g}") for q, v in found.items()}
