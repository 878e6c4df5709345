"""Half precision: a model whose tensors are typed float16."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

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
        keep_fp32: Names of nodes to leave in float32 between casts.

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
    try:
        with quiet():
            half = convert_float_to_float16(copy, keep_io_types=keep_io, node_block_list=list(keep_fp32))
    # The converter asserts on names that two subgraphs share, and infers shapes strictly.
    except (AssertionError, ValueError, onnx.shape_inference.InferenceError) as e:
        raise ConversionError(f"the model cannot be typed as fp16: {first_line(str(e) or repr(e))}") from e
    # Its casts are appended at the end.
    result = sort_nodes(half)
    del result.graph.value_info[:]  # of tensors that are renamed or retyped
    return result


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
