"""An ONNX model against the framework that it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec.compiler.ingest._kinds import Arrays, Taken
from edgec.compiler.model import SourceModel
from edgec.compiler.parity import (
    OutputParity,
    Parity,
    Reference,
    Tolerance,
    check_parity,
    float_reference,
    quantized_reference,
)
from edgec.compiler.passes.fold_constant_dequantize import is_quantized
from edgec.errors import ParityError, UnsupportedModelError

# Where the framework quantizes activations in each call and the ONNX model does not: 20 dB.
_COARSE = 0.1
# Fixed-point kernels misround a little more than the noise that stands for engines of Q/DQ graphs.
_WIDER = 2.0


def compare(source: SourceModel, taken: Taken) -> tuple[str, Parity]:
    """Hold what the ONNX model computes against what its framework computed on the same inputs.

    A float model may differ as far as rounding explains, as `float_reference` measures it; a quantized one
    by what misrounding explains, as `quantized_reference` does.

    Returns:
        How exact it is, in words, and the figures.

    Raises:
        ParityError: They differ by more; every output that does is named with its figures.
        UnsupportedModelError: ONNX Runtime cannot run the model.
    """
    wanted = {s.name for s in source.outputs}
    for outputs in taken.outputs[:1]:
        if outputs.keys() != wanted:
            raise UnsupportedModelError(
                f"the converter changed the outputs: expected {', '.join(outputs)}, got {', '.join(wanted)}"
            )
    reference, explained = _reference(source, taken)
    # The framework's outputs are what is right; the reference's tolerance says how far rounding may go.
    pending = iter(reference.outputs)
    parity = check_parity(lambda _: next(pending), replace(reference, outputs=taken.outputs))
    if not parity.passed:
        bad = "; ".join(_figures(o) for o in parity.outputs if not o.passed)
        raise ParityError(
            f"{source.path.name}: the ONNX model computes something else than its source: {bad}; the "
            "converter gets an operator wrong: change or leave out that part of the model, or export ONNX "
            "another way"
        )
    worst = parity.worst
    return f"{_figures(worst)}, which {explained} explains", parity


def _reference(source: SourceModel, taken: Taken) -> tuple[Reference, str]:
    model = source.path if source.large else source.proto
    if not isinstance(model, Path) and is_quantized(model):
        reference = quantized_reference(model, taken.inputs)
        wide = {n: Tolerance(max_abs=t.max_abs, rms=_WIDER * t.rms) for n, t in reference.tolerance.items()}
        return replace(reference, tolerance=wide), "misrounding by a step here and there"
    reference = float_reference(model, taken.inputs, "fp32")
    if not taken.rounds:
        return reference, "rounding in fp32"
    coarse = {n: _coarse(taken.outputs, n, t) for n, t in reference.tolerance.items()}
    return replace(
        reference, tolerance=coarse
    ), "int8 arithmetic in the source, of which ONNX has the floats,"


def _coarse(outputs: Sequence[Arrays], name: str, fine: Tolerance) -> Tolerance:
    largest = max(float(abs(o[name]).max(initial=0.0)) for o in outputs)
    mean = math.sqrt(sum(float((o[name].astype(float) ** 2).mean()) for o in outputs) / len(outputs))
    return Tolerance(max_abs=fine.max_abs + largest, rms=fine.rms + _COARSE * mean)


def _figures(output: OutputParity) -> str:
    c, allowed = output.comparison, output.tolerance
    if c.max_abs_error == 0:
        return f"output {c.name!r} is identical"
    return (
        f"output {c.name!r} is off by {c.max_abs_error:.3g} at most (allowed {allowed.max_abs:.3g}), "
        f"{output.rms_error:.3g} RMS (allowed {allowed.rms:.3g}), {c.snr_db:.1f} dB"
    )


def figures_of(parity: Parity) -> tuple[dict[str, Any], ...]:
    """Return the figures of every output, fit for JSON."""
    return tuple(
        {
            "name": o.comparison.name,
            "max_abs_error": o.comparison.max_abs_error,
            "tolerance": o.tolerance.max_abs,
            "snr_db": o.comparison.snr_db if math.isfinite(o.comparison.snr_db) else None,
        }
        for o in parity.outputs
    )
