"""Preprocessing of tensors of any meaning."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from edgec.artifact import Quantization, TensorSpec
from edgec.artifact.steps import Dequantize, Dtype, Normalize, Quantize, Reshape
from edgec.errors import PipelineError
from edgec.runtime.pipeline._plan import Array, Frame, Operation, Planner, Value, expect


def to_array(value: Any) -> Array:
    """Return `value` as an array.

    Raises:
        PipelineError: It is no array, number or nested list of numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError as e:
        raise PipelineError(f"expected an array or a list of numbers, got a list of uneven rows: {e}") from e
    if array.dtype.kind not in "biuf":
        got = f"an array of {array.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise PipelineError(f"expected an array or a list of numbers, got {got}")
    return array


def plan_dtype(step: Dtype, value: Value, _: TensorSpec) -> tuple[Operation, Value]:
    dtype = np.dtype(step.to)
    return (lambda array, _: convert(to_array(array), dtype)), value._replace(dtype=step.to)


def convert(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return `array` in another element type; real numbers become integers by rounding.

    Raises:
        PipelineError: A value does not fit; for floats only infinity where the input was finite is accepted.
    """
    if array.dtype == dtype:
        return array
    if dtype.kind not in "iu" or np.can_cast(array.dtype, dtype, "safe") or not array.size:
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    low, high = array.min(), array.max()
    if not (limits.min <= low and high <= limits.max):  # also where one is NaN
        raise PipelineError(
            f"dtype: values from {low} to {high} do not fit in {dtype}: `normalize` or `quantize` first"
        )
    return (np.rint(array) if array.dtype.kind == "f" else array).astype(dtype)


def normalize_constants(step: Normalize) -> tuple[Array, Array]:
    """Return factor and shift, float32 of shape [1] or [c], such that the step is x * factor + shift."""
    scale, mean, std = (np.array(values, np.float64) for values in (step.scale, step.mean, step.std))
    return (scale / std).astype(np.float32), (-mean / std).astype(np.float32)


def plan_normalize(step: Normalize, value: Value, _: TensorSpec) -> tuple[Operation, Value]:
    factor, shift = normalize_constants(step)
    channels = max(factor.size, shift.size)
    axis = value.layout.index("C") - len(value.layout) if value.layout else -1
    have = value.shape[axis] if value.shape else None
    expect(
        channels == 1 or have is None or channels == have,
        f"normalize: {channels} values per channel, the value has {have} channels",
    )
    return _affine(factor, shift, channels, axis), value._replace(dtype="float32")


def _affine(factor: Array, shift: Array, channels: int, axis: int) -> Operation:
    multiply, add = bool((factor != 1).any()), bool(shift.any())
    # Broadcasting over a last axis of 3 is 8 times slower than over a row, so constants are repeated to one.
    stretched = _repeated(factor, shift) if channels > 1 and axis == -1 else None
    tail = (1,) * (-1 - axis)
    factor, shift = (v.reshape(-1, *tail) if v.size > 1 else v for v in (factor, shift))

    def normalize(array: Any, _: Frame) -> Array:
        array = to_array(array)
        if channels > 1 and (array.ndim < -axis or array.shape[axis] != channels):
            raise PipelineError(f"normalize: expected {channels} channels, got an array {list(array.shape)}")
        result: Array = array.astype(np.float32, order="C")
        rows, a, b = result, factor, shift
        if stretched is not None and result.ndim > 1:
            a, b = stretched(result.shape[-2])
            rows = result.reshape(-1, a.size)
        if multiply:
            rows *= a
        if add:
            rows += b
        return result

    return normalize


def _repeated(factor: Array, shift: Array) -> Callable[[int], tuple[Array, Array]]:
    size = max(factor.size, shift.size)
    factor, shift = (np.broadcast_to(v, size) for v in (factor, shift))
    last: tuple[int, Array, Array] = (0, factor, shift)

    def repeat(times: int) -> tuple[Array, Array]:
        nonlocal last
        kept = last  # one read: another thread may replace it
        if kept[0] != times:
            kept = last = (times, np.tile(factor, times), np.tile(shift, times))
        return kept[1], kept[2]

    return repeat


def plan_reshape(step: Reshape, value: Value, _: TensorSpec) -> tuple[Operation, Value]:
    shape = step.shape
    known = None if value.shape is None or None in value.shape else prod(n or 1 for n in value.shape)
    fixed = prod(n for n in shape if n != -1)
    if known is not None:
        expect(
            known % fixed == 0 if -1 in shape else known == fixed,
            f"reshape: {known} values cannot be {list(shape)}",
        )

    def reshape(value: Any, _: Frame) -> Array:
        array = to_array(value)
        try:
            return array.reshape(shape)
        except ValueError as e:
            raise PipelineError(f"reshape: an array {list(array.shape)} cannot be {list(shape)}") from e

    after = tuple((known // fixed if known is not None else None) if n == -1 else n for n in shape)
    return reshape, Value(value.dtype, after)


def plan_quantize(step: Quantize, value: Value, spec: TensorSpec) -> tuple[Operation, Value]:
    dtype = np.dtype(spec.dtype)
    expect(
        dtype.kind in "iu" and dtype.itemsize <= 2,
        f"quantize: the model's input {spec} takes no integers of 8 or 16 bits: drop the step",
    )
    scale, zero_point = quantization_of(step, spec)
    limits = np.iinfo(dtype)

    def quantize(array: Any, _: Frame) -> Array:
        steps: Array = to_array(array).astype(np.float32, order="C")
        steps /= np.float32(scale)
        np.rint(steps, out=steps)
        steps += np.float32(zero_point)
        np.clip(steps, limits.min, limits.max, out=steps)
        integers: Array = steps.astype(dtype)
        return integers

    return quantize, value._replace(dtype=spec.dtype)


def dequantize(array: Array, scale: float, zero_point: int) -> Array:
    """Return the real numbers, float32, that the integers of `array` stand for."""
    real = array.astype(np.float32)
    real -= np.float32(zero_point)
    real *= np.float32(scale)
    return real


def quantization_of(step: Quantize | Dequantize, spec: TensorSpec) -> tuple[float, int]:
    """Return scale and zero point of a step, or of the tensor where the step leaves them out.

    Raises:
        PipelineError: Neither says them, or the tensor has one pair per channel.
    """
    if step.scale is not None and step.zero_point is not None:
        return step.scale, step.zero_point
    known = single(spec.quantization)
    if known is None:
        raise PipelineError(
            f"{step.step}: {spec} has no scale and zero point for the whole tensor: give both in the step"
        )
    return known


def single(quantization: Quantization | None) -> tuple[float, int] | None:
    """Return the scale and zero point that hold for a whole tensor; None where there is no such pair."""
    if quantization is None or len(quantization.scale) != 1:
        return None
    return quantization.scale[0], quantization.zero_point[0]


PLANNERS: dict[type, Planner] = {
    Dtype: plan_dtype,
    Normalize: plan_normalize,
    Reshape: plan_reshape,
    Quantize: plan_quantize,
}
