"""What an artifact is checked by on the device: golden vectors, and how its outputs usually look."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import GoldenVector, Manifest, Observation, TensorSpec, encode_golden
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import Reference
from edgec.compiler.variants import Variant
from edgec.runtime._batches import why_not_batched
from edgec.runtime._input_statistics import MOST_VALUES, one_sample, statistics_of

_VECTORS = 3
_LARGEST_BYTES = 4 << 20  # of one golden vector: a device should not carry more evidence than model
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
REFERENCE_SAMPLES = 256
# Of fewer samples than the first number the outer quantiles of a statistic of inputs, one value per sample,
# are mostly chance, and of fewer than the second any quantile is. From 100 samples on, what has not moved has
# a stability index above 0.25 and a distance above 0.1 in no build of 300, with the quartiles of 32 in 4 %.
_ALL_QUANTILES, _ANY_QUANTILE = 100, 32
_QUARTILES = (0.25, 0.5, 0.75)
# Of the root mean square of an input: what varies less is rounding.
_VARIES = 1e-5
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
    inputs = variant.samples.spread_inputs(variant.processor, variant.inputs, REFERENCE_SAMPLES)
    collected: dict[str, list[NDArray[Any]]] = {}
    with ReferenceProgram(variant.runnable, optimize=True) as program:
        for sample in inputs:
            for name, value in program.run(sample).items():
                if value.dtype.kind == "f" and value.size:
                    collected.setdefault(name, []).append(_thinned(value, _KEPT_VALUES // len(inputs)))
    return {name: _quantiles(np.concatenate(values)) for name, values in collected.items()}


def input_quantiles(
    samples: Iterable[Mapping[str, NDArray[Any]]], manifest: Manifest
) -> dict[str, dict[str, dict[str, float]]]:
    """Return quantiles of the statistics of inputs that are observed, one value per sample.

    They are taken as the observer takes them; by name of the input, the statistic and the quantile:
    ``{"image": {"mean": {"0.5": 0.1}}}``. Nothing of fewer than 32 samples, and of what all of them have the
    same.

    Args:
        samples: Inputs as the model takes them; real ones, one at a time.
        manifest: With what is to be observed.
    """
    names, joins = manifest.observe.inputs, not why_not_batched(manifest, "")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number, inputs in enumerate(samples):
        for name, chosen in names.items():
            array = one_sample(inputs[name], number) if joins else inputs[name]
            values = statistics_of(array, {"mean", "std", *chosen}, MOST_VALUES)
            if values and all(map(math.isfinite, values.values())):
                found[name].append(values)
    made = {name: _statistic_quantiles(found[name], chosen) for name, chosen in names.items()}
    return {name: quantiles for name, quantiles in made.items() if quantiles}


def observation(inputs: tuple[TensorSpec, ...]) -> Observation:
    """Return what is worth watching of a model's inputs on a device: mean and spread of signals.

    Images, sounds and features are floats or have 8 bits. Wider integers are indices, and their mean says
    nothing.
    """
    signals = [
        spec.name for spec in inputs if np.dtype(spec.dtype).kind == "f" or spec.dtype in ("uint8", "int8")
    ]
    return Observation(inputs=dict.fromkeys(signals, ("mean", "std")))


def _statistic_quantiles(
    found: Sequence[Mapping[str, float]], chosen: Sequence[str]
) -> dict[str, dict[str, float]]:
    if len(found) < _ANY_QUANTILE:
        return {}
    ranks = _QUANTILES if len(found) >= _ALL_QUANTILES else _QUARTILES
    size = max(math.hypot(values["mean"], values["std"]) for values in found)
    made = {}
    for name in chosen:
        quantiles = np.quantile([values[name] for values in found], ranks)
        if quantiles[-1] - quantiles[0] > _VARIES * size:
            # A little lower: what many samples have is in the bin above it, whatever the last bits are.
            lower = quantiles - np.abs(quantiles) * 1e-6
            made[name] = {str(q): float(f"{v:.9g}") for q, v in zip(ranks, lower, strict=True)}
    return made


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
