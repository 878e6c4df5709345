"""Static int8: explicit Q/DQ by the policy of the target's own quantization scheme.

Two placements cover the engines. Where int8 flows between operators (ONNX Runtime, OpenVINO) the QDQ
quantizer of ONNX Runtime puts a pair on the inputs and outputs of every operator that has an int8 kernel.
TensorRT wants pairs on the inputs of such operators only, and one input of a residual Add in float;
that placement is made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.calibration import CalibrationTable
from edgec.compiler.model import first_line, opset_of, walk_nodes
from edgec.compiler.passes.sort_nodes import sort_nodes
from edgec.compiler.quiet import quiet
from edgec.compiler.weight_scales import LARGEST, peaks, weight_scales
from edgec.errors import CalibrationError, ConversionError
from edgec.targets import QuantizationScheme

# Operators with weights are what int8 speeds up. The others pass int8 on between them, and are quantized
# only where int8 comes in: the float head and tail of a model stay as they are.
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_PASSING = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Pad",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
# At the end of a model these are quantized only for what takes them.
_AVERAGES = ("AveragePool", "GlobalAveragePool")
_TAIL = (*_AVERAGES, "Flatten", "Reshape", "Squeeze", "Unsqueeze")
# Shares of all that int8 would take: a layer with less stays in float behind an average.
_SMALL_WEIGHTS, _SMALL_PRODUCTS = 0.05, 0.01
_TENSORRT_WEIGHTED = (*_WEIGHTED, "ConvTranspose")
_TENSORRT_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")
_MIN_OPSET = 13  # the first whose DequantizeLinear has an axis
_TENSORRT_OPSET = 19  # the first whose Q and DQ take fp16


def quantize_static(
    model: onnx.ModelProto,
    table: CalibrationTable,
    scheme: QuantizationScheme,
    *,
    method: str = "minmax",
    exclude: Collection[str] = (),
    narrow_weights: bool = False,
    pass_on: bool = True,
) -> onnx.ModelProto:
    """Return the model in int8, with explicit Q/DQ pairs where `scheme` wants them.

    Operators with weights are quantized, and those that pass int8 on from one to the next. Left in float:
    recurrent and normalising operators, Softmax, products of two activations, bodies of subgraphs, whatever
    touches a tensor that the table does not know or saw infinite, and graph outputs that a fully connected
    layer gives. Same arguments, same bytes.

    Args:
        model: In fp32, weights inside, simplified; left as it is.
        table: Of this very model.
        scheme: The target's.
        method: How ranges are taken from the table, one of ``edgec.compiler.ranges.METHODS``.
        exclude: Names of nodes to leave in float; a node without a name goes by its first output.
        narrow_weights: Whether weights use 7 bits, for CPUs whose int8 products saturate.
        pass_on: Whether operators without weights are quantized where int8 comes in. Off for transformers:
            what their residual branches add up does not fit in eight bits.

    Raises:
        CalibrationError: The table is of another model.
        ConversionError: The scheme is not one of this version, the opset cannot be raised to what Q/DQ
            need, or nothing in the model can be quantized.
        ValueError: No such method.
    """
    if scheme.full_integer:
        raise ConversionError("full-integer models are not quantized as ONNX: this version builds none")
    explicit = scheme.weight_qdq
    ready = _prepare(model, _TENSORRT_OPSET if explicit else _MIN_OPSET, frozenset(exclude))
    graph = _View(ready, table)
    if table.inputs and not set(table.inputs) <= {i.name for i in model.graph.input}:
        raise CalibrationError(
            f"the calibration table is of a model with the inputs {', '.join(table.inputs)}: calibrate again"
        )
    strangers = set(table.tensors) - _names(model)
    if strangers:
        raise CalibrationError(
            f"the calibration table has {len(strangers)} tensors that the model has not, such as "
            f"{min(strangers)!r}: it is of another model; calibrate again"
        )
    weighted = _TENSORRT_WEIGHTED if explicit else _WEIGHTED
    chosen = _choose(graph, weighted, _PASSING if pass_on else (), frozenset(exclude))
    if not explicit:
        chosen = _without_tail(graph, chosen)
    if not any(graph.nodes[name].op_type in _TENSORRT_WEIGHTED for name in chosen):
        raise ConversionError(
            "no Conv, Gemm or MatMul with constant weights is left to quantize: int8 would only cost accuracy"
        )
    if explicit:
        result = _Inserter(graph, table, scheme, method).insert(chosen)
    else:
        result = _quantize_with_ort(graph, table, scheme, method, chosen, narrow_weights)
        if scheme.residual_one_input:
            _leave_float_branches(result.graph, graph, table, method, chosen)
        if not pass_on:
            _keep_biases_apart(result.graph, graph, chosen)
    del result.graph.value_info[:]  # it speaks of tensors that are gone
    result.ir_version = max(result.ir_version, 9 if explicit else 7)
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return sort_nodes(result)


def _names(model: onnx.ModelProto) -> set[str]:
    return {i.name for i in model.graph.input} | {name for n in model.graph.node for name in n.output}


class _View:
    """A graph with its names resolved."""

    def __init__(self, model: onnx.ModelProto, table: CalibrationTable) -> None:
        self.model = model
        self.nodes = {node.name: node for node in model.graph.node}
        self.initializers = {t.name: t for t in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output if name}
        self.outputs = {o.name for o in model.graph.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(n for inner in _with_bodies(node) for n in inner.input):
                self.consumers.setdefault(name, []).append(node)
        self._types = {
            v.name: v.type.tensor_type
            for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)
        }
        self._known = {name for name, s in table.tensors.items() if s.nonfinite == 0}

    def is_float(self, name: str) -> bool:
        """Whether an activation or a weight is a tensor of float32."""
        if name in self.initializers:
            return bool(self.initializers[name].data_type == TensorProto.FLOAT)
        kind = self._types.get(name)
        return bool(kind is not None and kind.elem_type == TensorProto.FLOAT)

    def rank(self, name: str) -> int:
        """Return how many axes an activation has; 0 where that is not known."""
        kind = self._types.get(name)
        return len(kind.shape.dim) if kind is not None and kind.HasField("shape") else 0

    def products(self, node: onnx.NodeProto) -> int:
        """Return how many multiplications a layer takes for one sample, where the shapes are known."""
        weights = int(np.prod(self.initializers[node.input[1]].dims, dtype=np.int64))
        kind = self._types.get(node.output[0])
        if node.op_type != "Conv" or kind is None:
            return weights
        return weights * int(np.prod([max(d.dim_value, 1) for d in kind.shape.dim[2:]], dtype=np.int64))

    def is_known(self, name: str) -> bool:
        """Whether an activation is float32 and has a range."""
        return self.is_float(name) and name not in self.initializers and name in self._known

    def float_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return the activations of float32 that a node takes."""
        return [n for n in node.input if n and n not in self.initializers and self.is_float(n)]


def _with_bodies(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    yield node
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from walk_nodes(body)


# -- what is quantized -------------------------------------------------------------------------------------


def _choose(
    graph: _View, weighted: Collection[str], passing: Collection[str], exclude: frozenset[str]
) -> set[str]:
    """Return the names of the nodes to quantize, decided in the order of computation."""
    chosen: set[str] = set()
    for node in graph.model.graph.node:
        if node.domain not in ("", "ai.onnx") or exclude & {node.name, *node.output}:
            continue
        if node.op_type in weighted:
            fits = _has_plain_weights(graph, node)
        elif node.op_type in passing:
            fed = [p for name in graph.float_inputs(node) if (p := graph.producers.get(name)) is not None]
            # What a layer that is kept in float gives must not be rounded only to be added to int8.
            apart = any(_is_excluded(graph, p, exclude) for p in fed)
            fits = not apart and any(p.name in chosen for p in fed) and _passes_int8(graph, node)
        else:
            continue
        touched = [n for n in (*node.input, *node.output) if n and n not in graph.initializers]
        if fits and all(graph.is_known(n) for n in touched if graph.is_float(n)):
            chosen.add(node.name)
    return chosen


def _without_tail(graph: _View, chosen: set[str]) -> set[str]:
    """Return the nodes to quantize without the averages and moves at the end of the model.

    What only float operators or the caller take is not worth rounding; and a fully connected layer behind
    averages whose products and weights are next to nothing stays in float, since it gains no time that could
    be seen: rounding a few averages costs more than rounding any layer before them.
    """
    kept = set(chosen)
    layers = [n for n in graph.model.graph.node if n.name in kept and n.op_type in _WEIGHTED]
    weights = {n.name: int(np.prod(graph.initializers[n.input[1]].dims, dtype=np.int64)) for n in layers}
    products = {n.name: graph.products(n) for n in layers}
    for node in reversed(graph.model.graph.node):
        if node.name not in kept or any(
            t.name in kept for name in node.output for t in graph.consumers.get(name, ())
        ):
            continue
        if node.op_type in _TAIL:
            kept.discard(node.name)
        elif node.op_type in ("Gemm", "MatMul") and _follows_average(graph, node):
            of_weights = weights[node.name] / max(sum(weights.values()), 1)
            of_products = products[node.name] / max(sum(products.values()), 1)
            if of_weights <= _SMALL_WEIGHTS and of_products <= _SMALL_PRODUCTS:
                kept.discard(node.name)
    return kept


def _follows_average(graph: _View, node: onnx.NodeProto) -> bool:
    producer = graph.producers.get(node.input[0])
    while producer is not None and producer.op_type in _TAIL:
        if producer.op_type in _AVERAGES:
            return True
        producer = graph.producers.get(producer.input[0])
    return False


def _is_excluded(graph: _View, node: onnx.NodeProto, exclude: frozenset[str]) -> bool:
    """Whether a node is to stay in float, or is a Relu of one that is."""
    if exclude & {node.name, *node.output}:
        return True
    producer = graph.producers.get(node.input[0]) if node.op_type == "Relu" else None
    return producer is not None and bool(exclude & {producer.name, *producer.output})


def _has_plain_weights(graph: _View, node: onnx.NodeProto) -> bool:
    if len(node.input) < 2 or not graph.is_known(node.input[0]) or not graph.is_known(node.output[0]):
        return False
    weight = graph.initializers.get(node.input[1])
    if (
        weight is None
        or not graph.is_float(node.input[1])
        or not np.isfinite(numpy_helper.to_array(weight)).all()
    ):
        return False
    if node.op_type == "MatMul":
        return len(weight.dims) == 2
    if len(node.input) > 2 and node.input[2] and not graph.is_float(node.input[2]):
        return False
    if node.op_type == "Gemm":
        attributes = _attributes(node)
        bias = graph.initializers.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if len(node.input) > 2 and node.input[2] and (bias is None or len(bias.dims) != 1):
            return False
        return attributes.get("alpha", 1.0) == 1.0 and not attributes.get("transA", 0)
    # A bias that is computed at run time cannot be quantized with the weights.
    return len(node.input) < 3 or not node.input[2] or node.input[2] in graph.initializers


def _passes_int8(graph: _View, node: onnx.NodeProto) -> bool:
    if not all(graph.is_float(n) for n in node.output if n) or not graph.is_float(node.input[0]):
        return False
    if node.op_type in ("Add", "Mul"):
        return all(graph.is_float(n) for n in node.input)
    if node.op_type == "Clip":
        # The quantizer replaces a Clip by the range of its output, which always includes zero.
        low, high = (_constant(graph, node, i, default) for i, default in ((1, -np.inf), (2, np.inf)))
        return low is not None and high is not None and low <= 0.0 <= high
    if node.op_type == "Pad":
        value = _constant(graph, node, 2, 0.0)
        return value == 0.0 and _attributes(node).get("mode", b"constant") == b"constant"
    if node.op_type == "Resize":
        return _attributes(node).get("mode", b"nearest") in (b"nearest", b"linear")
    return True


def _constant(graph: _View, node: onnx.NodeProto, index: int, default: float) -> float | None:
    if len(node.input) <= index or not node.input[index]:
        return default
    tensor = graph.initializers.get(node.input[index])
    if tensor is None or int(np.prod(tensor.dims, dtype=np.int64)) != 1:
        return None
    return float(numpy_helper.to_array(tensor).reshape(-1)[0])


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


# -- preparation -------------------------------------------------------------------------------------------


def _prepare(model: onnx.ModelProto, opset: int, exclude: frozenset[str]) -> onnx.ModelProto:
    """Return a copy ready to be quantized.

    1. Opset at least `opset`; shapes inferred; every node has a name of its own.
    2. Constant nodes become initializers, and initializers that old models list as inputs do not.
    3. MatMul of a matrix with constant weights, then Add of a constant vector, becomes Gemm.
    4. The bias of a Gemm is a vector as long as the output is wide.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if any(t.data_location == TensorProto.EXTERNAL for t in copy.graph.initializer):
        raise ConversionError(
            "static int8 needs the weights inside the model, and these are too large: use fp32"
        )
    copy = raise_opset(copy, opset)
    own = {t.name for t in copy.graph.initializer}
    inputs = [i for i in copy.graph.input if i.name not in own]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    lift_constants(copy.graph)
    copy.graph.CopyFrom(_infer(copy).graph)
    _fuse_matmul_add(copy.graph, exclude)
    _flatten_gemm_biases(copy.graph)
    taken: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        name = node.name or node.output[0]
        while name in taken:
            name = f"{node.name or node.output[0]}/{index}"
            index += 1
        node.name = name
        taken.add(name)
    return copy


def raise_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a model that imports at least `opset`: itself where it does already.

    Raises:
        ConversionError: It cannot be raised.
    """
    if opset_of(model) >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except (RuntimeError, onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError) as e:
        raise ConversionError(
            f"int8 needs opset {opset}, and the model's opset {opset_of(model)} cannot be raised: "
            f"{first_line(str(e))}; export it with opset_version={opset}"
        ) from e


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as e:
        raise ConversionError(
            f"the shapes inside the model contradict each other: {first_line(str(e))}"
        ) from e


def lift_constants(graph: onnx.GraphProto) -> None:
    """Turn the Constant nodes of a graph that hold a tensor into initializers."""
    kept = []
    for node in graph.node:
        value = (
            _attributes(node).get("value")
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx")
            else None
        )
        if isinstance(value, TensorProto):
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        kept = [_copied(n) for n in kept]
        del graph.node[:]
        graph.node.extend(kept)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _fuse_matmul_add(graph: onnx.GraphProto, exclude: frozenset[str]) -> None:
    initializers = {t.name: t for t in graph.initializer}
    products = _matrix_products(graph, initializers, exclude)
    fused = set()
    for node in graph.node:
        if node.op_type != "Add" or exclude & {node.name, *node.output}:
            continue
        for mine, other in ((0, 1), (1, 0)):
            product, bias = products.get(node.input[mine]), initializers.get(node.input[other])
            if product is None or bias is None:
                continue
            wide = initializers[product.input[1]].dims[1]
            if list(bias.dims) not in ([wide], [1, wide]):
                continue
            fused.add(product.output[0])
            inputs = [*product.input, bias.name]
            node.op_type, node.name = "Gemm", product.name or node.name
            del node.input[:]
            node.input.extend(inputs)
            break
    kept = [_copied(n) for n in graph.node if not fused & set(n.output)]
    del graph.node[:]
    graph.node.extend(kept)


def _matrix_products(
    graph: onnx.GraphProto, initializers: dict[str, TensorProto], exclude: frozenset[str]
) -> dict[str, onnx.NodeProto]:
    """Return every MatMul of a matrix with a constant matrix that has one taker, by its output."""
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in (*graph.value_info, *graph.input, *graph.output)
        if v.type.tensor_type.HasField("shape")
    }
    uses = Counter(name for node in walk_nodes(graph) for name in node.input)
    uses.update(o.name for o in graph.output)
    return {
        n.output[0]: n
        for n in graph.node
        if n.op_type == "MatMul"
        and not exclude & {n.name, *n.output}
        and ranks.get(n.input[0]) == 2
        and n.input[1] in initializers
        and len(initializers[n.input[1]].dims) == 2
        and uses[n.output[0]] == 1
    }


def _flatten_gemm_biases(graph: onnx.GraphProto) -> None:
    initializers = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3:
            continue
        bias, weight = initializers.get(node.input[2]), initializers.get(node.input[1])
        if bias is None or weight is None or (len(bias.dims) == 1 and bias.dims[0] > 1):
            continue
        wide = weight.dims[0] if _attributes(node).get("transB", 0) else weight.dims[1]
        array = numpy_helper.to_array(bias)
        if array.size not in (1, wide) or (array.ndim == 2 and array.shape[0] != 1):
            continue  # one bias per row cannot go with the weights: the node stays in float
        name = f"{bias.name}/vector_{wide}"
        if name not in initializers:
            tensor = numpy_helper.from_array(np.broadcast_to(array.reshape(-1), (wide,)).copy(), name)
            graph.initializer.append(tensor)
            initializers[name] = tensor
        node.input[2] = name


# -- ONNX Runtime's placement ------------------------------------------------------------------------------


def _quantize_with_ort(
    graph: _View,
    table: CalibrationTable,
    scheme: QuantizationScheme,
    method: str,
    chosen: set[str],
    narrow_weights: bool,
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    kinds = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    present = [n for n in table.tensors if graph.is_known(n)]
    ranges = {}
    for name in present:
        low, high = table.range(name, method, symmetric=scheme.activation_symmetric)
        ranges[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    # Keeps the quantizer from writing the model to a temporary file to infer its shapes.
    model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    with quiet():
        quantizer = QDQQuantizer(
            model,
            scheme.per_channel,
            narrow_weights,
            kinds[scheme.weight_dtype],
            kinds[scheme.activation_dtype],
            ranges,
            sorted(chosen),
            [],
            [*_WEIGHTED, *_PASSING],
            {
                "ActivationSymmetric": scheme.activation_symmetric,
                "WeightSymmetric": scheme.weight_symmetric,
                "QuantizeBias": scheme.bias_dtype == "int32",
                "AddQDQPairToWeight": scheme.weight_qdq,
                "TensorQuantOverrides": _grid_scales(
                    graph, scheme, chosen, 64 if narrow_weights else LARGEST
                ),
            },
        )
        _scale_averages_apart(quantizer, {n.name for n in model.graph.node if n.op_type == "AveragePool"})
        result: onnx.ModelProto = quantizer.quantize_model()
    _leave_float_results(result.graph, chosen)
    return result


def _grid_scales(
    graph: _View, scheme: QuantizationScheme, chosen: set[str], largest: int
) -> dict[str, list[dict[str, Any]]]:
    """Return scales for ONNX Runtime's quantizer, of the weights that are on a grid: it knows of none.

    A tensor that layers take along unlike axes is left to it.
    """
    if scheme.weight_dtype != "int8" or not scheme.weight_symmetric:
        return {}
    layers = [n for n in graph.model.graph.node if n.name in chosen and n.op_type in _WEIGHTED]
    axes: dict[str, set[int | None]] = {}
    for node in layers:
        axes.setdefault(node.input[1], set()).add(_channel_axis(node) if scheme.per_channel else None)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (axis, *others) in axes.items():
        weights = numpy_helper.to_array(graph.initializers[name])
        usual = peaks(weights, axis) / largest
        scales = weight_scales(weights, axis, largest=largest)
        if others or np.array_equal(scales, usual.astype(np.float32)):
            continue
        along = {} if axis is None else {"axis": axis}
        found[name] = [{"scale": scale, "zero_point": 0, **along} for scale in np.atleast_1d(_usable(scales))]
    return found


def _scale_averages_apart(quantizer: Any, averages: Collection[str]) -> None:
    """Have ONNX Runtime's quantizer scale averages by their own range.

    It gives the output of an AveragePool the scale of its input, as that of operators that only move values;
    but an average over a whole picture spans a fraction of what its pixels do, and would lose bits.
    """
    same_as_input = quantizer.quantize_output_same_as_input

    def scale(output: str, source: str, node: str) -> None:
        if node in averages:
            quantizer.quantize_activation_tensor(output)
        else:
            same_as_input(output, source, node)

    quantizer.quantize_output_same_as_input = scale


def _leave_float_results(graph: onnx.GraphProto, chosen: set[str]) -> None:
    """Drop the pair after a fully connected layer whose result only float operators or the caller take.

    Its kernels give float results as readily as int8, and logits are worth more than eight bits.
    """
    producers = {name: node for node in graph.node for name in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(n for inner in _with_bodies(node) for n in inner.input):
            consumers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    dropped: set[str] = set()
    for dq in graph.node:
        if dq.op_type != "DequantizeLinear":
            continue
        q = producers.get(dq.input[0])
        layer = producers.get(q.input[0]) if q is not None and q.op_type == "QuantizeLinear" else None
        if q is None or layer is None or layer.op_type not in ("Gemm", "MatMul") or layer.name not in chosen:
            continue
        takers = consumers.get(dq.output[0], [])
        if any(t.name in chosen or t.op_type == "QuantizeLinear" for t in takers):
            continue
        if len(consumers[q.input[0]]) != 1 or len(consumers[q.output[0]]) != 1 or q.input[0] in outputs:
            continue
        layer.output[0] = dq.output[0]
        dropped.update((q.name, dq.name))
    kept = [_copied(n) for n in graph.node if n.name not in dropped]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in walk_nodes(graph) for name in node.input}
    initializers = [t for t in graph.initializer if t.name in used]
    if len(initializers) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(initializers)


def _leave_float_branches(
    graph: onnx.GraphProto, before: _View, table: CalibrationTable, method: str, chosen: set[str]
) -> None:
    """Drop the pair between a layer and the residual Add that alone takes its result.

    An engine that makes the Add the last step of that layer's kernel has no integers there; the other operand
    and the sum keep their pairs. Only where the sum has both signs and its takers pad nothing with zeros, so
    that its zero point can go into biases (`edgec.compiler.passes.fold_zero_points`): for its own sake it
    gains no speed. Where two layers meet, the one computed last is left in float.
    """
    ends = {
        name: index
        for index, node in enumerate(before.model.graph.node)
        if node.op_type in _WEIGHTED and node.name in chosen
        for name in node.output
        if len(before.consumers.get(name, ())) == 1 and name not in before.outputs
    }
    adds = (n for n in before.model.graph.node if n.op_type == "Add" and n.name in chosen)
    shifted = (a for a in adds if table.range(a.output[0], method)[0] < 0 and _may_shift(before, a, chosen))
    operands = (set(a.input) & set(ends) for a in shifted if a.input[0] != a.input[1])
    branches = {max(given, key=ends.__getitem__) for given in operands if given}
    producers = {name: node for node in graph.node for name in node.output}
    pairs: set[str] = set()
    for add in graph.node:
        if add.op_type != "Add":
            continue
        for index, name in enumerate(add.input):
            dq = producers.get(name)
            q = producers.get(dq.input[0]) if dq is not None and dq.op_type == "DequantizeLinear" else None
            if dq is not None and q is not None and q.op_type == "QuantizeLinear" and q.input[0] in branches:
                add.input[index] = q.input[0]
                pairs |= {q.name, dq.name}
    kept = [_copied(n) for n in graph.node if n.name not in pairs]
    del graph.node[:]
    graph.node.extend(kept)


def _may_shift(graph: _View, node: onnx.NodeProto, chosen: set[str]) -> bool:
    """Whether everything that takes a node's result can take it with a constant added."""
    takers = graph.consumers.get(node.output[0], [])
    if not takers or node.output[0] in graph.outputs:
        return False
    return all(
        t.name in chosen and t.op_type in ("Add", "Conv", "Gemm") and not _pads(_attributes(t))
        for t in takers
    )


def _pads(attributes: dict[str, object]) -> bool:
    explicit = np.asarray(attributes.get("pads", 0)).any()
    return bool(explicit) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")


def _keep_biases_apart(graph: onnx.GraphProto, before: _View, chosen: set[str]) -> None:
    """Give the float biases that are added to quantized products of many axes a leading axis of one.

    Otherwise ONNX Runtime, 1.31 at least, fuses MatMul and Add to a Gemm in float before it looks at Q/DQ,
    and no integer kernel is left.
    """
    weights = {t.name: t for t in graph.initializer}
    products = {
        n.output[0]
        for n in graph.node
        if n.op_type == "MatMul" and n.name in chosen and before.rank(before.nodes[n.name].output[0]) > 2
    }
    uses = Counter(name for node in walk_nodes(graph) for name in node.input)
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for mine, other in ((0, 1), (1, 0)):
            bias = weights.get(node.input[other])
            if node.input[mine] in products and bias is not None and len(bias.dims) == 1:
                array = numpy_helper.to_array(bias).reshape(1, 1, -1)
                if uses[bias.name] == 1:
                    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
                elif (name := f"{bias.name}/apart") not in weights:
                    weights[name] = numpy_helper.from_array(array, name)
                    graph.initializer.append(weights[name])
                    node.input[other] = name
                else:
                    node.input[other] = name
                break


# -- TensorRT's placement ----------------------------------------------------------------------------------


class _Inserter:
    """Puts a Q/DQ pair of its own before each input that is to be int8.

    TensorRT's rules for explicit quantization: zero points are 0; weights have one scale per output channel;
    biases and outputs stay in float, since TensorRT moves the next Q up where that pays; a residual Add has a
    pair on its skip branch only, so that the other branch fuses with the convolution that ends it.
    """

    def __init__(
        self, graph: _View, table: CalibrationTable, scheme: QuantizationScheme, method: str
    ) -> None:
        self._graph, self._table, self._scheme, self._method = graph, table, scheme, method
        self._model = graph.model
        self._made: set[str] = set()
        self._depth = self._depths()

    def insert(self, chosen: set[str]) -> onnx.ModelProto:
        """Return the model with its pairs."""
        nodes: list[onnx.NodeProto] = []
        for node in self._model.graph.node:
            copy = _copied(node)
            if node.name in chosen:
                if node.op_type in _TENSORRT_WEIGHTED:
                    nodes += self._activation_pair(copy, 0)
                    nodes += self._weight_pair(copy)
                elif node.op_type in _TENSORRT_POOLS:
                    nodes += self._activation_pair(copy, 0)
                elif node.op_type == "Add":
                    skip = self._skip_branch(node, chosen)
                    nodes += self._activation_pair(copy, skip) if skip is not None else []
            nodes.append(copy)
        del self._model.graph.node[:]
        self._model.graph.node.extend(nodes)
        return self._model

    def _depths(self) -> dict[str, int]:
        depth: dict[str, int] = {}
        for node in self._model.graph.node:
            longest = max((depth.get(n, 0) for inner in _with_bodies(node) for n in inner.input), default=0)
            depth.update(dict.fromkeys(node.output, longest + 1))
        return depth

    def _skip_branch(self, add: onnx.NodeProto, chosen: set[str]) -> int | None:
        """Return which input of a residual Add is the skip branch; None where neither ends in a layer."""
        if any(name in self._graph.initializers for name in add.input) or add.input[0] == add.input[1]:
            return None
        ends = [self._ends_in_layer(name, chosen) for name in add.input]
        if ends == [True, True]:
            return 0 if self._depth[add.input[0]] < self._depth[add.input[1]] else 1
        return ends.index(False) if any(ends) else None

    def _ends_in_layer(self, name: str, chosen: set[str]) -> bool:
        producer = self._graph.producers.get(name)
        return (
            producer is not None
            and producer.name in chosen
            and producer.op_type in _TENSORRT_WEIGHTED
            and len(self._graph.consumers[name]) == 1
            and name not in self._graph.outputs
        )

    def _activation_pair(self, node: onnx.NodeProto, index: int) -> list[onnx.NodeProto]:
        tensor = node.input[index]
        _, high = self._table.range(tensor, self._method, symmetric=True)
        scale = _usable(np.asarray(high / 127.0, np.float32))
        return self._pair(node, index, tensor, scale, None)

    def _weight_pair(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        tensor = node.input[1]
        array = numpy_helper.to_array(self._graph.initializers[tensor])
        axis = _channel_axis(node) if self._scheme.per_channel else None
        return self._pair(node, 1, tensor, _usable(weight_scales(array, axis)), axis)

    def _pair(
        self, node: onnx.NodeProto, index: int, tensor: str, scale: NDArray[np.float32], axis: int | None
    ) -> list[onnx.NodeProto]:
        scale_name, zero_name = f"{tensor}/scale", f"{tensor}/zero_point"
        if axis is not None:
            scale_name, zero_name = f"{scale_name}_{axis}", f"{zero_name}_{axis}"
        if scale_name not in self._made:
            self._made.add(scale_name)
            self._model.graph.initializer.extend(
                [
                    numpy_helper.from_array(scale, scale_name),
                    numpy_helper.from_array(np.zeros(scale.shape, np.int8), zero_name),
                ]
            )
        stem = f"{node.name}/{index}"
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        node.input[index] = f"{stem}/dq"
        return [
            helper.make_node(
                "QuantizeLinear",
                [tensor, scale_name, zero_name],
                [f"{stem}/q"],
                f"{stem}/QuantizeLinear",
                **attributes,
            ),
            helper.make_node(
                "DequantizeLinear",
                [f"{stem}/q", scale_name, zero_name],
                [f"{stem}/dq"],
                f"{stem}/DequantizeLinear",
                **attributes,
            ),
        ]


def _usable(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    # The zero range of a dead channel or a constant zero has no scale of its own; any positive one is exact.
    return np.where(scales > 0, np.maximum(scales, np.finfo(np.float32).tiny), 1.0).astype(np.float32)


def _channel_axis(node: onnx.NodeProto) -> int:
    match node.op_type:
        case "Conv":
            return 0
        case "Gemm" if _attributes(node).get("transB", 0):
            return 0
        case _:
            return 1
