"""Dynamic int8: weights are integers in the file, activations are quantized anew in each call.

It needs no calibration, and spares what full static int8 loses where the ranges of activations vary with the
input, as in transformers. ONNX Runtime's own `quantize_dynamic` is not used: it writes the model to a
temporary file on the way, and gives an embedding one scale for all of its rows.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.model import walk_nodes
from edgec.compiler.passes.sort_nodes import sort_nodes
from edgec.compiler.quantization import lift_constants, raise_opset
from edgec.errors import ConversionError

_MIN_OPSET = 11  # the first that has DynamicQuantizeLinear
_MIN_EMBEDDING = 4096  # values; a smaller table is not worth the nodes that unpack its rows
# Of all weights, what has to be in the layers that become int8: the rest is computed as before.
_MIN_SHARE = 0.5


def quantize_dynamic(model: onnx.ModelProto, *, exclude: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model with MatMul, Gemm and embeddings in dynamic int8.

    Weights are symmetric int8 with one scale per column, activations asymmetric uint8 with one scale per
    tensor and call. The table of an embedding (a Gather of rows) is symmetric int8 with one scale per row.
    Same arguments, same bytes.

    Args:
        model: In fp32, weights inside; left as it is.
        exclude: Names of nodes to leave in float; a node without a name goes by its first output.

    Raises:
        ConversionError: No MatMul or Gemm has constant weights, other layers hold most of the weights, or
            the opset cannot be raised to what dynamic quantization needs.
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
    _Quantizer(copy.graph, frozenset(exclude)).run()
    del copy.graph.value_info[:]  # it speaks of tensors that are gone
    return sort_nodes(copy)


def _require_products(graph: onnx.GraphProto, exclude: frozenset[str]) -> None:
    weights = {t.name: t for t in graph.initializer}
    products = [n for n in graph.node if _is_product(n, weights)]
    if all(_named(n) & exclude for n in products):
        raise ConversionError(
            "no MatMul or Gemm with constant weights is left to quantize: dynamic int8 speeds up nothing else"
        )
    tables = [n for n in graph.node if _is_embedding(n, weights)]
    mine = {n.input[1] for n in products} | {n.input[0] for n in tables}
    sizes = {
        name: int(np.prod(t.dims, dtype=np.int64))
        for name, t in weights.items()
        if t.data_type == TensorProto.FLOAT
    }
    share = sum(sizes[name] for name in mine) / sum(sizes.values())
    if share < _MIN_SHARE:
        raise ConversionError(
            f"MatMul and Gemm hold {share:.0%} of the weights, and dynamic int8 speeds up nothing else: "
            "use int8 or fp32"
        )


def _named(node: onnx.NodeProto) -> set[str]:
    return {node.name, *node.output}


def _is_product(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    """Whether a node multiplies by a constant matrix of finite float32."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return False
    weight = weights.get(node.input[1])
    if weight is None or node.input[0] in weights or not _is_matrix(weight):
        return False
    if node.op_type == "MatMul":
        return True
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    biased = len(node.input) > 2 and node.input[2] != ""
    return (
        attributes.get("alpha", 1.0) == 1.0
        and not attributes.get("transA", 0)
        and (not biased or attributes.get("beta", 1.0) == 1.0)
    )


def _is_embedding(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    """Whether a node takes rows of a constant, large enough matrix of finite float32."""
    if node.domain not in ("", "ai.onnx") or node.op_type != "Gather":
        return False
    table = weights.get(node.input[0])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return (
        axis == 0
        and table is not None
        and int(np.prod(table.dims, dtype=np.int64)) >= _MIN_EMBEDDING
        and _is_matrix(table)
    )


def _is_matrix(tensor: TensorProto) -> bool:
    return bool(
        tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and all(tensor.dims)
        and np.isfinite(numpy_helper.to_array(tensor)).all()
    )


class _Quantizer:
    """Replaces nodes of a graph in place."""

    def __init__(self, graph: onnx.GraphProto, exclude: frozenset[str]) -> None:
        self._graph = graph
        self._exclude = exclude
        self._weights = {t.name: t for t in graph.initializer}
        self._made: dict[str, TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._activations: set[str] = set()

    def run(self) -> None:
        """Replace every node that can be, then drop the weights that nobody takes any more."""
        for node in self._graph.node:
            if _named(node) & self._exclude:
                self._nodes.append(node)
            elif _is_product(node, self._weights):
                self._replace_product(node)
            elif _is_embedding(node, self._weights) and self._only_gathered(node.input[0]):
                self._replace_embedding(node)
            else:
                self._nodes.append(node)
        nodes = [_copied(n) for n in self._nodes]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        used = {name for node in walk_nodes(self._graph) for name in node.input}
        used |= {o.name for o in self._graph.output}
        kept = [t for t in (*self._weights.values(), *self._made.values()) if t.name in used]
        dropped = self._weights.keys() - used
        kept = [_copied_tensor(t) for t in kept]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        # Old models list their initializers as inputs too.
        inputs = [i for i in self._graph.input if i.name not in dropped]
        del self._graph.input[:]
        self._graph.input.extend(inputs)

    def _only_gathered(self, name: str) -> bool:
        # A table that somebody takes in float stays in the file; a second one would only enlarge it.
        takers = [n for n in walk_nodes(self._graph) if name in n.input]
        return all(_is_embedding(n, self._weights) and not _named(n) & self._exclude for n in takers)

    def _replace_product(self, node: onnx.NodeProto) -> None:
        """MatMulInteger, Cast, Mul by both scales: the pattern that ONNX Runtime makes one kernel of."""
        x, weight = node.input[0], node.input[1]
        transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
        w, w_scale, w_zero = self._column_scaled(weight, transposed)
        q, scale, zero = (f"{x}/dynamic_{part}" for part in ("quantized", "scale", "zero_point"))
        if x not in self._activations:
            self._activations.add(x)
            self._add("DynamicQuantizeLinear", [x], [q, scale, zero], f"{x}/dynamic_quantize")
        y = node.output[0]
        bias = node.input[2] if len(node.input) > 2 else ""
        result = f"{y}/unbiased" if bias else y
        name = node.name or y
        integer, real, both = f"{y}/integer", f"{y}/unscaled", f"{y}/scale"
        self._add("MatMulInteger", [q, w, zero, w_zero], [integer], f"{name}/integer")
        self._cast(integer, real, f"{name}/cast")
        self._add("Mul", [scale, w_scale], [both], f"{name}/scale")
        self._add("Mul", [real, both], [result], f"{name}/rescale")
        if bias:
            self._add("Add", [result, bias], [y], f"{name}/bias")

    def _column_scaled(self, weight: str, transposed: bool) -> tuple[str, str, str]:
        """Return the names of the integers, scales and zero points of a matrix."""
        stem = f"{weight}/transposed" if transposed else weight
        names = (f"{stem}/int8", f"{stem}/column_scale", f"{stem}/column_zero_point")
        if names[0] not in self._made:
            array = numpy_helper.to_array(self._weights[weight])
            matrix = array.T if transposed else array
            integers, scales = _symmetric(matrix, axis=0)
            self._store(names[0], integers)
            self._store(names[1], scales.reshape(-1))
            self._store(names[2], np.zeros(scales.size, np.int8))
        return names

    def _replace_embedding(self, node: onnx.NodeProto) -> None:
        table, indices, y = node.input[0], node.input[1], node.output[0]
        rows, scales = f"{table}/int8_rows", f"{table}/row_scale"
        if rows not in self._made:
            integers, factors = _symmetric(numpy_helper.to_array(self._weights[table]), axis=1)
            self._store(rows, integers)
            self._store(scales, factors)
        name = node.name or y
        integer, scale, real = f"{y}/integer", f"{y}/scale", f"{y}/unscaled"
        self._add("Gather", [rows, indices], [integer], f"{name}/integer")
        self._add("Gather", [scales, indices], [scale], f"{name}/scale")
        self._cast(integer, real, f"{name}/cast")
        self._add("Mul", [real, scale], [y], f"{name}/rescale")

    def _add(self, kind: str, inputs: list[str], outputs: list[str], name: str) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, name))

    def _cast(self, value: str, result: str, name: str) -> None:
        self._nodes.append(helper.make_node("Cast", [value], [result], name, to=TensorProto.FLOAT))

    def _store(self, name: str, value: NDArray[Any]) -> None:
        self._made[name] = numpy_helper.from_array(value, name)


def _symmetric(matrix: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values in -127..127 and their scales, which keep `axis` with the length one."""
    largest = np.abs(matrix).max(axis=axis, keepdims=True)
    # A row or column of zeros, or of numbers too small for a scale, is zeros at any scale.
    smallest = np.float32(np.finfo(np.float32).tiny)
    scales = np.where(largest / 127 >= smallest, largest / 127, np.float32(1)).astype(np.float32)
    integers = np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8)
    return np.ascontiguousarray(integers), scales


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _copied_tensor(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy
