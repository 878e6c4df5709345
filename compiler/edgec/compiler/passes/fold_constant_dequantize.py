"""Weights that are stored as integers become floats, where nothing else is quantized."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def is_quantized(model: onnx.ModelProto) -> bool:
    """Return whether a model quantizes activations: its author chose int8 already."""
    constants = {t.name for t in model.graph.initializer}
    return any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and node.input[0] not in constants
        for node in model.graph.node
    )


def fold_constant_dequantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every ``w = DequantizeLinear(constant, scale, zero_point)`` computed.

    Converters from TFLite leave float models whose weights alone are integers. Computed ahead, such a
    model can be quantized or cast as any other; it computes the same.

    1. The tensor, its scale and its zero point are initializers, dequantized per tensor or per axis:
       the node goes, its output becomes an initializer.
    2. Blocked dequantization, or a model that quantizes activations: left as it is.
    """
    if is_quantized(model):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {t.name: t for t in copy.graph.initializer}
    kept = []
    for node in copy.graph.node:
        known = node.op_type == "DequantizeLinear" and all(name in constants for name in node.input if name)
        if not known or _attribute(node, "block_size", 0):
            kept.append(node)
            continue
        copy.graph.initializer.append(_computed(node, constants))
    if len(kept) == len(copy.graph.node):
        return model
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    _drop_unused(copy.graph)
    return copy


def _computed(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> onnx.TensorProto:
    parts = [numpy_helper.to_array(constants[name]) for name in node.input if name]
    value, scale = parts[0], parts[1]
    zero = parts[2] if len(parts) > 2 else np.zeros_like(scale, dtype=value.dtype)
    if scale.ndim and scale.size > 1:
        shape = [1] * value.ndim
        shape[_attribute(node, "axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    real = (value.astype(np.int32) - zero.astype(np.int32)).astype(scale.dtype) * scale
    return numpy_helper.from_array(np.ascontiguousarray(real.reshape(value.shape)), node.output[0])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                used |= {name for inner in body.node for name in inner.input}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
