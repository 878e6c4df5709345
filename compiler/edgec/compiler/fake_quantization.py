"""A model with activations and weights rounded to integers, in floats: what any full-integer file computes.

Unlike the Q/DQ graphs that are shipped, which quantize what an engine has integer kernels for, this rounds
everywhere. It is a reference for engines whose files do that by rules of their own, and is never shipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgec.compiler.calibration import CalibrationTable
from edgec.compiler.converters import Quantities
from edgec.compiler.quantization import raise_opset
from edgec.compiler.weight_scales import weight_scales
from edgec.errors import CalibrationError

ROUNDED = "the source with every activation and weight rounded to integers"
_OPSETS = {8: 13, 16: 21}  # the first whose Q and DQ take such integers
# What alone computes in integers in a transformer.
PRODUCTS = ("Conv", "Gemm", "MatMul")
# Operators whose second input is weights where it is constant, and the axis of their output channels.
_CHANNEL_AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": -1}
# Fused into the operator before them: what comes between is never rounded.
_FUSED = ("Relu", "Clip")
_LEVELS = 255
_LARGEST_INT16 = 32767
_SMALLEST = 1e-9


def fake_quantized(model: onnx.ModelProto, quantities: Quantities) -> onnx.ModelProto:
    """Return the model with a Q/DQ pair of int8, or int16, behind every activation that the table knows.

    Args:
        model: In fp32, weights inside; left as it is.
        quantities: With the ranges of this very model. What nodes in float give, and their weights, is not
            rounded, unless a product in integers takes it.

    Raises:
        CalibrationError: There are no ranges.
    """
    table = quantities.table
    if table is None:
        raise CalibrationError("rounding to int8 needs the ranges of all tensors: give calibration data")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy = raise_opset(copy, _OPSETS[quantities.activation_bits])
    graph = copy.graph
    left = frozenset(quantities.exclude)
    if quantities.products_only:
        left |= {n.name or n.output[0] for n in graph.node if n.op_type not in PRODUCTS}
    _round_weights(graph, left)
    rounded = set(_rounded(graph, table, left))
    nodes: list[onnx.NodeProto] = []
    constants = {t.name for t in graph.initializer}
    for value in graph.input:
        if value.name in rounded and value.name not in constants:
            inner = f"{value.name}_rounded"
            nodes += _pair(graph, quantities, value.name, value.name, inner)
            for node in graph.node:
                for i, name in enumerate(node.input):
                    if name == value.name:
                        node.input[i] = inner
    for node in graph.node:
        pairs: list[onnx.NodeProto] = []
        for i, name in enumerate(node.output):
            if name in rounded:
                node.output[i] = f"{name}_exact"
                pairs += _pair(graph, quantities, name, node.output[i], name)
        nodes += [node, *pairs]
    made = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(made)
    del graph.value_info[:]
    return copy


def _rounded(graph: onnx.GraphProto, table: CalibrationTable, left: frozenset[str]) -> Iterator[str]:
    """Yield the names of tensors to round."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    yield from (i.name for i in graph.input if i.name in table.tensors)
    for node in graph.node:
        inexact = bool(left & {node.name, *node.output})
        for name in node.output:
            following = consumers.get(name, [])
            if inexact and not any(n.op_type in PRODUCTS and n.name not in left for n in following):
                continue
            next_ones = [n.op_type for n in following]
            fused = name not in outputs and next_ones in ([op] for op in _FUSED)
            if name in table.tensors and not fused:
                yield name


def _pair(
    graph: onnx.GraphProto, quantities: Quantities, name: str, source: str, result: str
) -> list[onnx.NodeProto]:
    assert quantities.table is not None
    wide = quantities.activation_bits == 16
    low, high = quantities.table.tensors[name].range(quantities.method, symmetric=wide)
    zero: np.int8 | np.int16
    if wide:
        scale = np.float32(max(max(-low, high) / _LARGEST_INT16, _SMALLEST))
        zero = np.int16(0)
    else:
        scale = np.float32(max((high - low) / _LEVELS, _SMALLEST))
        zero = np.int8(np.clip(np.rint(-128 - low / scale), -128, 127))
    parameters = [f"{name}_step", f"{name}_zero"]
    for label, value in zip(parameters, (scale, zero), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), label))
    make = onnx.helper.make_node
    return [
        make("QuantizeLinear", [source, *parameters], [f"{name}_integer"]),
        make("DequantizeLinear", [f"{name}_integer", *parameters], [result]),
    ]


def _round_weights(graph: onnx.GraphProto, left: frozenset[str]) -> None:
    constants = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    done: set[str] = set()
    for node in graph.node:
        axis = _CHANNEL_AXES.get(node.op_type)
        if axis is None or len(node.input) < 2 or left & {node.name, *node.output}:
            continue
        tensor = constants.get(node.input[1])
        if tensor is None or tensor.name in done:
            continue
        done.add(tensor.name)
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        weights = numpy_helper.to_array(tensor).copy()
        for part in _parts(node, weights):
            part[:] = _rounded_weights(part, 0 if transposed else axis)
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))


def _parts(node: onnx.NodeProto, weights: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return views of the weights that have scales of their own.

    A transposed convolution along one axis becomes as many convolutions as its stride.
    """
    if node.op_type != "ConvTranspose" or weights.ndim != 3:
        return [weights]
    strides = [a.ints[0] for a in node.attribute if a.name == "strides"]
    stride = strides[0] if strides else 1
    return [weights[:, :, phase::stride] for phase in range(min(stride, weights.shape[2]))]


def _rounded_weights(weights: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    axis %= weights.ndim
    others = tuple(i for i in range(weights.ndim) if i != axis)
    scale = np.expand_dims(np.maximum(weight_scales(weights, axis), _SMALLEST), others)
    rounded: NDArray[np.float32] = (np.rint(weights / scale) * scale).astype(np.float32)
    return rounded
