"""Which operators stay in fp32 when a model becomes fp16 or bf16, decided from ranges and kinds.

Models with If, Loop or Scan are refused: nothing is known of what happens in their bodies.

float16 ends at 65504 and has eleven significant bits: what leaves that range becomes infinite, and what adds
up many terms, or takes exponentials and powers, loses its last bits. The rules, in the order in which they
are tried:

1. Operators that are numerically sensitive by kind: normalisations, Softmax, reductions, exponentials,
   logarithms, powers, roots, and recurrent networks, whose error grows with every step.
2. Operators that take or give a tensor beyond half of the range of float16, by the calibration table, or that
   was infinite there.
3. Operators with a constant beyond that range, or whose constants would all become zero.
4. Products and convolutions whose sums may leave the range on the way: the largest input times the largest
   sum of absolute weights of an output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.calibration import CalibrationTable
from edgec.errors import ConversionError

FLOAT16_MAX = 65504.0
# Of the range: data to come may be twice as large as what was seen.
_LIMIT = FLOAT16_MAX / 2
# Smaller ones are zero in float16.
_LEAST = 2.0**-25
_SENSITIVE = {
    **dict.fromkeys(
        ("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Softplus", "CumSum"),
        "is sensitive to rounding",
    ),
    **dict.fromkeys(
        (
            "LayerNormalization",
            "InstanceNormalization",
            "GroupNormalization",
            "LpNormalization",
            "MeanVarianceNormalization",
            "RMSNormalization",
        ),
        "adds up squares",
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "is recurrent, so that errors grow"),
}
_SUMS = ("MatMul", "Gemm", "Conv")


def kept_in_fp32(model: onnx.ModelProto, table: CalibrationTable | None) -> dict[str, str]:
    """Return the nodes that stay in fp32, by name or else first output, each with the reason in words.

    Args:
        model: In fp32, weights inside.
        table: Of this very model; None where there is none, and ranges are not looked at.

    Raises:
        ConversionError: The model has If, Loop or Scan.
    """
    constants = dict(_constants(model.graph))
    bodies = [name_of(n) for n in model.graph.node if any(a.g.node or a.graphs for a in n.attribute)]
    if bodies:
        raise ConversionError(
            f"nobody knows the ranges in the bodies of {', '.join(bodies)}, so that fp16 is not safe there: "
            "use fp32, or export the model without If, Loop and Scan"
        )
    reasons = {name_of(n): _reason(n, constants, table) for n in model.graph.node}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def name_of(node: onnx.NodeProto) -> str:
    """Return what a node goes by: its name, or its first output."""
    return node.name or next((o for o in node.output if o), "")


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None and value.data_type == TensorProto.FLOAT:
                yield node.output[0], numpy_helper.to_array(value)


def _reason(
    node: onnx.NodeProto, constants: dict[str, NDArray[Any]], table: CalibrationTable | None
) -> str | None:
    if node.op_type in _SENSITIVE:
        return _SENSITIVE[node.op_type]
    if node.op_type.startswith("Reduce") and node.op_type not in ("ReduceMax", "ReduceMin"):
        return "adds up many values"
    largest = {name: _largest(table, name) for name in (*node.input, *node.output) if name}
    beyond = [name for name, value in largest.items() if value > _LIMIT]
    if beyond:
        value = largest[beyond[0]]
        return f"reaches {value:.3g} in {beyond[0]!r}, and float16 ends at {FLOAT16_MAX:g}"
    for name in node.input:
        if name in constants and (problem := _constant_problem(constants[name])) is not None:
            return f"{problem} in {name!r}"
    if node.op_type in _SUMS and len(node.input) > 1 and node.input[1] in constants:
        most = largest[node.input[0]] * _largest_sum(node, constants[node.input[1]])
        if most > FLOAT16_MAX:
            return f"may add up to {most:.3g} on the way, and float16 ends at {FLOAT16_MAX:g}"
    return None


def _largest(table: CalibrationTable | None, name: str) -> float:
    found = table.tensors.get(name) if table is not None else None
    if found is None:
        return 0.0
    return np.inf if found.nonfinite else max(abs(found.minimum), abs(found.maximum))


def _constant_problem(values: NDArray[Any]) -> str | None:
    magnitudes = np.abs(values[np.isfinite(values)])
    if np.max(magnitudes, initial=0.0) > FLOAT16_MAX:
        return f"has a constant of {np.max(magnitudes):.3g}"
    nonzero = magnitudes[magnitudes > 0]
    if nonzero.size and np.max(nonzero) < _LEAST:
        return f"has constants of {np.max(nonzero):.3g} at most, which float16 takes for zero,"
    return None


def _largest_sum(node: onnx.NodeProto, weight: NDArray[Any]) -> float:
    """Return the largest sum of the absolute weights of one output."""
    absolute = np.abs(weight.astype(np.float64))
    if node.op_type == "Conv":
        return float(absolute.sum(axis=tuple(range(1, absolute.ndim))).max(initial=0.0))
    transposed = any(a.name == "transB" and helper.get_attribute_value(a) for a in node.attribute)
    axis = -1 if node.op_type == "Gemm" and transposed else -2 if absolute.ndim > 1 else 0
    return float(absolute.sum(axis=axis).max(initial=0.0))


def sensitive_layers(
    model: onnx.ModelProto, table: CalibrationTable, method: str, least_snr_db: float = 25.0
) -> tuple[str, ...]:
    """Return the layers with weights that take what eight bits cannot hold, sorted by name.

    What counts is the SNR of the rounding of a layer's input over its range: a few outliers in a narrow
    distribution leave too few steps for the rest.

    Args:
        model: In fp32.
        table: Of this very model.
        method: How ranges are taken from the table.
        least_snr_db: Layers with less stay in float.
    """
    constants = {t.name for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in (*_SUMS, "ConvTranspose") and len(node.input) > 1 and node.input[1] in constants:
            tensor = node.input[0]
            if tensor in table.tensors and _rounding_snr_db(table, tensor, method) < least_snr_db:
                found.append(name_of(node))
    return tuple(sorted(found))


def _rounding_snr_db(table: CalibrationTable, tensor: str, method: str) -> float:
    statistics = table.tensors[tensor]
    values, counts = statistics.histogram()
    total = counts.sum()
    if not total:
        return np.inf
    low, high = statistics.range(method)
    step = (high - low) / 255
    clipped = values - np.clip(values, low, high)
    noise = float((counts * clipped**2).sum() / total) + step**2 / 12
    signal = float((counts * values**2).sum() / total)
    return float(10 * np.log10(signal / noise)) if signal > 0 and noise > 0 else np.inf
