"""What the steps between models of sound do: windows, Fourier transforms, overlap and add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.errors import PipelineError
from edgec.runtime.chains._plan import (
    Array,
    Operation,
    Planning,
    State,
    Value,
    Values,
    store_rows,
    storing,
    tensor,
)
from edgec.runtime.chains._steps import Irfft, Multiply, OverlapAdd, Polar, Rfft, Window

_REAL = ("float32",)
_COMPLEX = ("complex64",)


def plan_window(name: str, step: Window, planning: Planning) -> tuple[Operation, Value]:
    source, size = step.input, step.size
    _, new = planning.block("input", source, *_REAL)
    if new > size:
        raise PipelineError(
            f"size: {size} is less than the {new} values of {source!r}, which are new each time"
        )
    key = planning.keeps(f"{name}.kept", TensorSpec("kept", "float32", (size,)))
    value = tensor("float32", size)
    store = storing(planning, name, value)
    concatenate = np.concatenate

    def run(values: Values, state: State, after: State) -> None:
        kept = concatenate((state[key][new:], values[source].reshape(-1)))
        after[key] = kept
        store(values, kept)

    return run, value


def plan_rfft(name: str, step: Rfft, planning: Planning) -> tuple[Operation, Value]:
    source = step.input
    _, size = planning.block("input", source, *_REAL)
    weights = _weights(step.window, size)
    bins = size // 2 + 1
    value = Value(
        kind="parts",
        parts={
            "spectrum": tensor("complex64", bins),
            "magnitude": tensor("float32", bins),
            "phase": tensor("float32", bins),
        },
    )
    makers: dict[str, Callable[[Array], Array]] = {
        "spectrum": _same,
        "magnitude": lambda spectrum: np.abs(spectrum).astype(np.float32, copy=False),
        "phase": lambda spectrum: np.angle(spectrum).astype(np.float32, copy=False),
    }
    # Only what is read is computed.
    rows = [(makers[part], reference) for part, reference in store_rows(planning, name, value)]
    rfft = np.fft.rfft

    def run(values: Values, state: State, after: State) -> None:
        block = values[source].reshape(-1)
        spectrum = rfft(block if weights is None else block * weights)
        for make, reference in rows:
            values[reference] = make(spectrum)

    return run, value


def plan_polar(name: str, step: Polar, planning: Planning) -> tuple[Operation, Value]:
    magnitude, phase = step.magnitude, step.phase
    (_, size), (_, other) = (
        planning.block(k, r, *_REAL) for k, r in (("magnitude", magnitude), ("phase", phase))
    )
    _same_size(size, other)
    value = tensor("complex64", size)
    store = storing(planning, name, value)

    def run(values: Values, state: State, after: State) -> None:
        angles = values[phase].reshape(-1)
        spectrum = np.empty(size, np.complex64)
        spectrum.real, spectrum.imag = np.cos(angles), np.sin(angles)
        spectrum *= values[magnitude].reshape(-1)
        store(values, spectrum)

    return run, value


def plan_multiply(name: str, step: Multiply, planning: Planning) -> tuple[Operation, Value]:
    a, b = step.a, step.b
    (first, size), (second, other) = (
        planning.block(key, reference, *_REAL, *_COMPLEX) for key, reference in (("a", a), ("b", b))
    )
    _same_size(size, other)
    value = tensor("complex64" if "complex64" in (first.dtype, second.dtype) else "float32", size)
    store = storing(planning, name, value)

    def run(values: Values, state: State, after: State) -> None:
        store(values, values[a].reshape(-1) * values[b].reshape(-1))

    return run, value


def plan_irfft(name: str, step: Irfft, planning: Planning) -> tuple[Operation, Value]:
    source = step.input
    _, bins = planning.block("input", source, *_COMPLEX)
    size = step.size or 2 * (bins - 1)
    if size // 2 + 1 != bins:
        raise PipelineError(
            f"size: a spectrum of {bins} values is of a block of {2 * bins - 2} or {2 * bins - 1}"
        )
    weights = _weights(step.window, size)
    value = tensor("float32", size)
    store = storing(planning, name, value)
    irfft = np.fft.irfft

    def run(values: Values, state: State, after: State) -> None:
        block = irfft(values[source], size).astype(np.float32, copy=False)
        store(values, block if weights is None else block * weights)

    return run, value


def plan_overlap_add(name: str, step: OverlapAdd, planning: Planning) -> tuple[Operation, Value]:
    source, hop = step.input, step.hop
    _, size = planning.block("input", source, *_REAL)
    if hop > size:
        raise PipelineError(f"hop: {hop} is more than the {size} values of {source!r}")
    key = planning.keeps(f"{name}.kept", TensorSpec("kept", "float32", (size,)))
    value = tensor("float32", hop)
    store = storing(planning, name, value)

    def run(values: Values, state: State, after: State) -> None:
        total = np.zeros(size, np.float32)
        total[: size - hop] = state[key][hop:]
        total += values[source].reshape(-1)
        after[key] = total
        store(values, total[:hop].copy())  # what is kept is not the caller's to change

    return run, value


def _weights(window: str, size: int) -> Array | None:
    """Return a periodic window, which adds up to a constant where blocks overlap by half."""
    if window == "none":
        return None
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return np.asarray(np.sqrt(hann) if window == "sqrt_hann" else hann, np.float32)


def _same(value: Any) -> Any:
    return value


def _same_size(a: int, b: int) -> None:
    if a != b:
        raise PipelineError(f"expected two values of the same size, got {a} and {b} numbers")
