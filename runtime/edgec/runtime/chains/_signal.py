"""What the steps between models of sound do: windows, Fourier transforms, overlap and add."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller

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
    tensor,
)
from edgec.runtime.chains._steps import Irfft, Multiply, OverlapAdd, Polar, Rfft, Window

_REAL = ("float32",)
_COMPLEX = ("complex64",)


def plan_window(name: str, step: Window, planning: Planning) -> tuple[Operation, Value]:
    source, size = step.input, step.size
    given, new = planning.block("input", source, *_REAL)
    if new > size:
        raise PipelineError(
            f"size: {size} is less than the {new} values of {source!r}, which are new each time"
        )
    key = planning.keeps(f"{name}.kept", TensorSpec("kept", "float32", (size,)))
    flat, concatenate = _flat(given), np.concatenate

    def run(values: Values, state: State, after: State) -> None:
        block = values[source] if flat is None else flat(values[source])
        values[name] = after[key] = concatenate((state[key][new:], block))

    return run, tensor("float32", size)


def plan_rfft(name: str, step: Rfft, planning: Planning) -> tuple[Operation, Value]:
    source = step.input
    block, size = planning.block("input", source, *_REAL)
    weights, flat = _weights(step.window, size), _flat(block)
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
        "magnitude": lambda spectrum: np.abs(spectrum).astype(np.float32, copy=False),
        "phase": lambda spectrum: np.angle(spectrum).astype(np.float32, copy=False),
    }
    # Only what is read is computed.
    wanted = store_rows(planning, name, value)
    whole = [reference for part, reference in wanted if part == "spectrum"]
    rows = [(makers[part], reference) for part, reference in wanted if part != "spectrum"]
    rfft = np.fft.rfft

    def run(values: Values, state: State, after: State) -> None:
        samples = values[source] if flat is None else flat(values[source])
        spectrum = rfft(samples if weights is None else samples * weights)
        for reference in whole:
            values[reference] = spectrum
        for make, reference in rows:
            values[reference] = make(spectrum)

    return run, value


def plan_polar(name: str, step: Polar, planning: Planning) -> tuple[Operation, Value]:
    magnitude, phase = step.magnitude, step.phase
    (_, size), (_, other) = (
        planning.block(k, r, *_REAL) for k, r in (("magnitude", magnitude), ("phase", phase))
    )
    _same_size(size, other)

    def run(values: Values, state: State, after: State) -> None:
        angles = values[phase].reshape(-1)
        spectrum = np.empty(size, np.complex64)
        spectrum.real, spectrum.imag = np.cos(angles), np.sin(angles)
        spectrum *= values[magnitude].reshape(-1)
        values[name] = spectrum

    return run, tensor("complex64", size)


def plan_multiply(name: str, step: Multiply, planning: Planning) -> tuple[Operation, Value]:
    a, b = step.a, step.b
    (one, size), (two, other) = (
        planning.block(key, reference, *_REAL, *_COMPLEX) for key, reference in (("a", a), ("b", b))
    )
    _same_size(size, other)
    dtype = "complex64" if "complex64" in (one.dtype, two.dtype) else "float32"
    flat_a, flat_b = _flat(one), _flat(two)

    def run(values: Values, state: State, after: State) -> None:
        first, second = values[a], values[b]
        values[name] = (flat_a(first) if flat_a else first) * (flat_b(second) if flat_b else second)

    return run, tensor(dtype, size)


def plan_irfft(name: str, step: Irfft, planning: Planning) -> tuple[Operation, Value]:
    source = step.input
    spectrum, count = planning.block("input", source, *_COMPLEX)
    size = step.size or 2 * (count - 1)
    if size // 2 + 1 != count:
        raise PipelineError(
            f"size: a spectrum of {count} values is of a block of {2 * count - 2} or {2 * count - 1}"
        )
    weights, flat = _weights(step.window, size), _flat(spectrum)
    irfft, float32 = np.fft.irfft, np.dtype(np.float32)

    def run(values: Values, state: State, after: State) -> None:
        bins = values[source] if flat is None else flat(values[source])
        block = irfft(bins, size).astype(float32, copy=False)
        values[name] = block if weights is None else block * weights

    return run, tensor("float32", size)


def plan_overlap_add(name: str, step: OverlapAdd, planning: Planning) -> tuple[Operation, Value]:
    source, hop = step.input, step.hop
    block, size = planning.block("input", source, *_REAL)
    if hop > size:
        raise PipelineError(f"hop: {hop} is more than the {size} values of {source!r}")
    key = planning.keeps(f"{name}.kept", TensorSpec("kept", "float32", (size,)))
    flat, empty, concatenate = _flat(block), np.zeros(hop, np.float32), np.concatenate

    def run(values: Values, state: State, after: State) -> None:
        total = after[key] = concatenate((state[key][hop:], empty))
        total += values[source] if flat is None else flat(values[source])
        values[name] = total[:hop]  # the next call does not read this part of what is kept

    return run, tensor("float32", hop)


def _flat(value: Value) -> Callable[[Array], Array] | None:
    """Return how a tensor becomes a row; None where it is one, for calling nothing is quicker."""
    return None if len(value.shape) == 1 else methodcaller("reshape", -1)


def _weights(window: str, size: int) -> Array | None:
    """Return a periodic window, which adds up to a constant where blocks overlap by half."""
    if window == "none":
        return None
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return np.asarray(np.sqrt(hann) if window == "sqrt_hann" else hann, np.float32)


def _same_size(a: int, b: int) -> None:
    if a != b:
        raise PipelineError(f"expected two values of the same size, got {a} and {b} numbers")
