"""Dynamic int8: weights are integers in the file, activations are quantized anew in each call.

It needs no calibration, and spares what full static int8 loses where the ranges of activations vary with the
input, as in transformers and recurrent networks. ONNX Runtime's own `quantize_dynamic` is not used: it writes
the model to a temporary file on the way, gives an embedding one scale for all of its rows, and an LSTM one
scale for all of its gates.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.model import walk_nodes
from edgec.compiler.passes.sort_nodes import sort_nodes
from edgec.compiler.products import (
    Rewriter,
    float_sizes,
    is_embedding,
    is_product,
    named,
    symmetric,
    with_domain,
)
from edgec.compiler.quantization import lift_constants, raise_opset
from edgec.errors import ConversionError, NoGainError

_MIN_OPSET = 11  # the first that has DynamicQuantizeLinear
# Of all weights, what has to be in the layers that become int8: the rest is computed as before.
_MIN_SHARE = 0.5
_MICROSOFT = "com.microsoft"


def quantize_dynamic(model: onnx.ModelProto, *, exclude: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model with MatMul, Gemm, LSTM and embeddings in dynamic int8.

    Weights of products are symmetric int8 with one scale per column, activations asymmetric uint8 with one
    scale per tensor and call. The table of an embedding (a Gather of rows) is symmetric int8 with one scale
    per row. An LSTM becomes ONNX Runtime's own operator DynamicQuantizeLSTM, with symmetric int8 weights and
    one scale per gate and unit; a GRU stays in float, for which there is no such operator. Same arguments,
    same bytes.

    Args:
        model: In fp32, weights inside; left as it is.
        exclude: Names of nodes to leave in float; a node without a name goes by its first output.

    Raises:
        ConversionError: No MatMul, Gemm or LSTM has constant weights, other layers hold most of the weights,
            or the opset cannot be raised to what dynamic quantization needs.
    """
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ConversionError(
            "dynamic int8 needs the weights inside the model, and these are too large: use fp32"
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Refused before the costly conversion of the opset, which changes no weights.
    lift_constants(copy.graph)
    _require_products(copy.graph, frozenset(exclude))
    copy = raise_opset(copy, _MIN_OPSET)
    lift_constants(copy.graph)
    _Dynamic(copy.graph, exclude).run()
    if any(n.domain == _MICROSOFT for n in walk_nodes(copy.graph)):
        with_domain(copy, _MICROSOFT)
    del copy.graph.value_info[:]  # it speaks of tensors that are gone
    return sort_nodes(copy)


def _require_products(graph: onnx.GraphProto, exclude: frozenset[str]) -> None:
    weights = {t.name: t for t in graph.initializer}
    products = [n for n in graph.node if is_product(n, weights) or _is_lstm(n, weights)]
    if all(named(n) & exclude for n in products):
        raise NoGainError(
            "no MatMul, Gemm or LSTM with constant weights is left to quantize: dynamic int8 speeds up "
            "nothing else"
        )
    mine = {n.input[1] for n in products} | {n.input[2] for n in products if n.op_type == "LSTM"}
    mine |= {n.input[0] for n in graph.node if is_embedding(n, weights)}
    sizes = float_sizes(graph)
    share = sum(sizes[name] for name in mine) / sum(sizes.values())
    if share < _MIN_SHARE:
        raise NoGainError(
            f"MatMul, Gemm and LSTM hold {share:.0%} of the weights, and dynamic int8 speeds up nothing "
            "else: use int8 or fp32"
        )


def _is_lstm(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    """Whether a node is an LSTM with constant weights, of the kind that the operator in int8 computes."""
    if node.domain not in ("", "ai.onnx") or node.op_type != "LSTM":
        return False
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    matrices = [weights.get(node.input[i]) for i in (1, 2)]
    return attributes.get("layout", 0) == 0 and all(
        m is not None and m.data_type == TensorProto.FLOAT and np.isfinite(numpy_helper.to_array(m)).all()
        for m in matrices
    )


class _Dynamic(Rewriter):
    """Writes products on integers, quantized in each call."""

    def __init__(self, graph: onnx.GraphProto, exclude: Collection[str]) -> None:
        super().__init__(graph, exclude)
        self._activations: set[str] = set()

    def _replace_product(self, node: onnx.NodeProto) -> None:
        """MatMulInteger, Cast, Mul by both scales: the pattern that ONNX Runtime makes one kernel of."""
        x, y = node.input[0], node.output[0]
        w, w_scale, w_zero = self._column_scaled(node)
        q, scale, zero = (f"{x}/dynamic_{part}" for part in ("quantized", "scale", "zero_point"))
        if x not in self._activations:
            self._activations.add(x)
            self._add("DynamicQuantizeLinear", [x], [q, scale, zero], f"{x}/dynamic_quantize")
        name = node.name or y
        integer, real, both = f"{y}/integer", f"{y}/unscaled", f"{y}/scale"
        self._add("MatMulInteger", [q, w, zero, w_zero], [integer], f"{name}/integer")
        self._cast(integer, real, f"{name}/cast")
        self._add("Mul", [scale, w_scale], [both], f"{name}/scale")
        self._add("Mul", [real, both], [self._unbiased(node)], f"{name}/rescale")
        self._add_bias(node)

    def _column_scaled(self, node: onnx.NodeProto) -> tuple[str, str, str]:
        """Return the names of the integers, scales and zero points of a matrix."""
        stem, matrix = self._matrix(node)
        names = (f"{stem}/int8", f"{stem}/column_scale", f"{stem}/column_zero_point")
        if names[0] not in self._made:
            integers, scales = symmetric(matrix, axis=0)
            self._store(names[0], integers)
            self._store(names[1], scales.reshape(-1))
            self._store(names[2], np.zeros(scales.size, np.int8))
        return names

    def _replace_other(self, node: onnx.NodeProto) -> bool:
        if not _is_lstm(node, self._weights):
            return False
        w, w_scale, w_zero = self._gate_scaled(node.input[1])
        r, r_scale, r_zero = self._gate_scaled(node.input[2])
        rest = [*node.input[3:], *[""] * (8 - len(node.input))]  # up to the peephole weights
        inputs = [node.input[0], w, r, *rest, w_scale, w_zero, r_scale, r_zero]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name != "layout"}
        self._add(
            "DynamicQuantizeLSTM",
            inputs,
            list(node.output),
            node.name or next(o for o in node.output if o),
            _MICROSOFT,
            **attributes,
        )
        return True

    def _gate_scaled(self, weight: str) -> tuple[str, str, str]:
        """Return the names of an LSTM's weights in int8, transposed, of their scales and zero points."""
        names = (f"{weight}/gates_int8", f"{weight}/gates_scale", f"{weight}/gates_zero_point")
        if names[0] not in self._made:
            # [directions, 4 * units, inputs] -> [directions, inputs, 4 * units]
            array = numpy_helper.to_array(self._weights[weight]).transpose(0, 2, 1)
            integers, scales = symmetric(array, axis=1)
            self._store(names[0], integers)
            self._store(names[1], scales[:, 0, :])
            self._store(names[2], np.zeros(scales[:, 0, :].shape, np.int8))
        return names
