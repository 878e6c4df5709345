"""Half precision: a model whose tensors are typed float16."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.model import first_line, opset_of, walk_nodes
from edgec.compiler.passes.sort_nodes import sort_nodes
from edgec.compiler.quiet import quiet
from edgec.errors import ConversionError

_QDQ_OPSET = 19  # the first whose Q and DQ take fp16
# A scale below this would be a float16 subnormal of few bits. A larger one only makes the steps of a
# tensor that is nearly zero coarser.
_SMALLEST_SCALE = 2.0**-17


def to_fp16(
    model: onnx.ModelProto, *, keep_io: bool = True, keep_fp32: Collection[str] = ()
) -> onnx.ModelProto:
    """Return the model with float32 tensors and operators typed float16.

    Operators that have no float16 form, such as TopK, stay in float32 between casts. Weights beyond float16's
    range become its largest number. Explicit Q/DQ pairs are kept, with float16 scales; such a graph is right
    in ONNX Runtime only with optimizations off: up to 1.31 at least, ``WeightBiasQuantization`` would make
    int32 biases whose float16 scale underflows.

    Args:
        model: Left as it is; its weights inside.
        keep_io: Whether float32 inputs and outputs stay float32, with a cast behind each.
        keep_fp32: Names of nodes to leave in float32 between casts; a node without a name goes by its first
            output. What one of them gives another stays in float32 on the way.

    Raises:
        ConversionError: The graph cannot be typed, or has Q/DQ and its opset cannot be raised to 19.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ConversionError("fp16 needs the weights inside the model, and these are too large: use fp32")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in walk_nodes(copy.graph)):
        copy = _ready_for_fp16_scales(copy)
    for node in walk_nodes(copy.graph):
        node.name = node.name or next((o for o in node.output if o), "")
    named = {n.name for n in walk_nodes(copy.graph)}
    try:
        with quiet():
            half = convert_float_to_float16(copy, keep_io_types=keep_io, node_block_list=list(keep_fp32))
    # The converter asserts on names that two subgraphs share, and infers shapes strictly.
    except (AssertionError, ValueError, onnx.shape_inference.InferenceError) as e:
        raise ConversionError(f"the model cannot be typed as fp16: {first_line(str(e) or repr(e))}") from e
    _drop_round_trips(half.graph, named)
    # Its casts are appended at the end.
    result = sort_nodes(half)
    del result.graph.value_info[:]  # of tensors that are renamed or retyped
    return result


def _drop_round_trips(graph: onnx.GraphProto, named: set[str]) -> None:
    """Take float32 where a value is cast to float16 and straight back, which would round it, or overflow.

    Args:
        graph: Changed in place.
        named: Names of nodes that are the model's own.
    """
    _drop_copies(graph, named)
    casts = {n.output[0]: n for n in graph.node if n.op_type == "Cast" and n.name not in named}
    widths = {name: next(a.i for a in n.attribute if a.name == "to") for name, n in casts.items()}
    sources = {
        name: casts[n.input[0]].input[0]
        for name, n in casts.items()
        if widths[name] == TensorProto.FLOAT and widths.get(n.input[0]) == TensorProto.FLOAT16
    }
    outputs = {o.name for o in graph.output}
    for node in walk_nodes(graph):
        if node.output and node.output[0] in sources and node.output[0] in outputs:
            identity = helper.make_node("Identity", [sources[node.output[0]]], list(node.output), node.name)
            node.CopyFrom(identity)
        for index, name in enumerate(node.input):
            node.input[index] = sources.get(name, name)
    used = {name for n in walk_nodes(graph) for name in n.input} | outputs
    while True:
        kept = [n for n in graph.node if n.name in named or n.op_type != "Cast" or n.output[0] in used]
        if len(kept) == len(graph.node):
            return
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
        del graph.node[:]
        graph.node.extend(copies)
        used = {name for n in walk_nodes(graph) for name in n.input} | outputs


def _drop_copies(graph: onnx.GraphProto, named: set[str]) -> None:
    """Drop a cast that is there already: the converter writes two where a node takes a value twice."""
    seen: set[str] = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Cast" and node.name not in named:
            if node.output[0] in seen:
                del graph.node[index]
            else:
                seen.add(node.output[0])


def _ready_for_fp16_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    if opset_of(model) < _QDQ_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, _QDQ_OPSET)
        except (RuntimeError, onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError) as e:
            raise ConversionError(
                f"fp16 with Q/DQ needs opset {_QDQ_OPSET}, and the model's opset {opset_of(model)} cannot be "
                f"raised: {first_line(str(e))}; export it with opset_version={_QDQ_OPSET}"
            ) from e
        model.ir_version = max(model.ir_version, 9)
    # Integers that are stored already keep their scale; where Q makes them, both ends of the pair change.
    quantizers = {n.input[1] for n in walk_nodes(model.graph) if n.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in quantizers and tensor.data_type == TensorProto.FLOAT:
            scale = np.maximum(numpy_helper.to_array(tensor), np.float32(_SMALLEST_SCALE))
            tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    return model
