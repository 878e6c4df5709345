"""Whether the weights of a graph, quantized and in half precision too, keep the zeros they were given.

The rule is TensorRT's: "for each output channel and for each spatial pixel in the kernel weights, every four
input channels must have at least two zeros"
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/io-formats-sparsity.html).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgec.compiler.lint import Finding
from edgec.compiler.pruning.linear import Linear
from edgec.compiler.pruning.patterns import is_two_of_four, parse_pattern

_PATTERN = parse_pattern("2:4")
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def lint_two_of_four(model: onnx.ModelProto) -> list[Finding]:
    """Return the layers that are large enough for sparse kernels, and whose weights do not allow them.

    Args:
        model: With Q/DQ around its weights or without, in fp32 or fp16.
    """
    weights = {t.name: t for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        layer = _layer(node, weights, makers)
        if layer is None or not _PATTERN.fits(layer) or is_two_of_four(layer.weight, _axis(node, layer)):
            continue
        found.append(
            Finding(
                rule="sparsity",
                node=node.name or node.output[0],
                message="of four input channels in a row, more than two have a weight that is not zero",
                severity="error",
                fix="compile the float model with --prune 2:4: what comes after it must keep zeros",
            )
        )
    return found


def _layer(
    node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], makers: Mapping[str, onnx.NodeProto]
) -> Linear | None:
    """Return a layer with the constant that its weights come from; None for other nodes."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    name = node.input[1]
    while name in makers and makers[name].op_type in _PAIR:
        name = makers[name].input[0]
    if name not in weights:
        return None
    weight = numpy_helper.to_array(weights[name])
    if node.op_type != "Conv" and weight.ndim != 2:
        return None
    return Linear(node=node, weight=np.asarray(weight), bias_name=None, can_shift=False)


def _axis(node: onnx.NodeProto, layer: Linear) -> int:
    """Return which axis of a layer's weights counts its input channels."""
    if node.op_type == "Conv":
        return 1
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return 1 if node.op_type == "Gemm" and attributes.get("transB", 0) else 0
