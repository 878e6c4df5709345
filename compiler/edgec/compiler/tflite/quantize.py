"""Scales, zero points and integers, after the TFLite 8-bit quantization specification.

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.tflite.flatbuffer import Quant
from edgec.compiler.weight_scales import weight_scales

_SMALLEST = 1e-9  # a range of zero has no scale of its own
SOFTMAX = Quant((1 / 256,), -128, "int8")  # fixed by the specification: kernels assume it
TANH = Quant((1 / 128,), 0, "int8")
LOG_SOFTMAX = Quant((16 / 256,), 127, "int8")
_FIXED_INT16 = Quant((1 / 32768,), 0, "int16")


def probabilities(dtype: str) -> Quant:
    """Return the parameters that kernels fix for Softmax and Sigmoid."""
    return SOFTMAX if dtype == "int8" else _FIXED_INT16


def tanh_range(dtype: str) -> Quant:
    """Return the parameters that kernels fix for Tanh."""
    return TANH if dtype == "int8" else _FIXED_INT16


def from_range(low: float, high: float, dtype: str) -> Quant:
    """Return the parameters of activations: int8 asymmetric, int16 symmetric; zero is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    if dtype == "int16":
        return Quant((_float32(max(-low, high) / 32767),), 0, dtype)
    scale = _float32((high - low) / 255)
    zero = round(-128 - low / scale)
    return Quant((scale,), min(max(zero, -128), 127), dtype)


def reals(quant: Quant) -> tuple[float, float]:
    """Return the lowest and the highest number that activations of some parameters stand for."""
    info = np.iinfo(quant.dtype)
    low, high = ((i - quant.zero_point) * quant.scale[0] for i in (int(info.min), int(info.max)))
    return low, high


def _float32(scale: float) -> float:
    return float(np.float32(max(scale, _SMALLEST)))


def to_integers(array: NDArray[Any], quant: Quant) -> NDArray[Any]:
    """Return the integers that stand for an array, rounded to nearest and clipped."""
    info = np.iinfo(quant.dtype)
    scale = np.asarray(quant.scale, np.float64)
    if scale.size > 1:
        scale = scale.reshape([-1 if a == quant.axis else 1 for a in range(array.ndim)])
    scaled = np.rint(array.astype(np.float64) / scale) + quant.zero_point
    integers: NDArray[Any] = np.clip(scaled, info.min, info.max).astype(quant.dtype)
    return integers


def quantize_weights(
    weights: NDArray[np.float32],
    axis: int,
    *,
    bias: NDArray[np.float32] | None = None,
    input_scale: float = 0.0,
    bias_bits: int = 32,
) -> tuple[NDArray[np.int8], Quant]:
    """Return symmetric int8 weights with one scale per index of `axis`, and their parameters.

    Where a bias would overflow at ``input_scale * scale``, its channel gets a larger scale.
    """
    scale = np.maximum(weight_scales(weights, axis), _SMALLEST)
    if bias is not None and input_scale > 0:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (input_scale * 2.0 ** (bias_bits - 2)))
    scale = scale.astype(np.float32)
    quant = Quant(tuple(float(s) for s in scale), 0, "int8", axis)
    integers = np.maximum(to_integers(weights, quant), -127).astype(np.int8)
    return integers, quant


def quantize_bias(
    bias: NDArray[np.float32], input_scale: float, weights: Quant, dtype: str
) -> tuple[NDArray[Any], Quant]:
    """Return a bias at the scale of the products it is added to."""
    scales = np.asarray(weights.scale, np.float64) * input_scale
    quant = Quant(tuple(float(np.float32(s)) for s in scales), 0, dtype)
    return to_integers(bias, quant), quant
