"""Products by constant matrices, and embeddings: what dynamic int8 and compressed weights replace.

Both find the same nodes, and store the table of an embedding in the same way; how a product is written is
what they differ in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.model import walk_nodes
from edgec.compiler.weight_scales import weight_scales

_MIN_EMBEDDING = 4096  # values; a smaller table is not worth the nodes that unpack its rows


def named(node: onnx.NodeProto) -> set[str]:
    """Return what a user may call a node: its name and those of its outputs."""
    return {node.name, *node.output}


def is_product(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
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


def is_embedding(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
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


def float_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return how many values every float32 initializer has, by name."""
    return {
        t.name: int(np.prod(t.dims, dtype=np.int64))
        for t in graph.initializer
        if t.data_type == TensorProto.FLOAT
    }


def matrices_of(
    graph: onnx.GraphProto, exclude: Collection[str] = (), *, embeddings: bool = True
) -> set[str]:
    """Return the names of the weights of products, and of the tables of embeddings."""
    weights = {t.name: t for t in graph.initializer}
    nodes = [n for n in graph.node if not named(n) & set(exclude)]
    found = {n.input[1] for n in nodes if is_product(n, weights)}
    if embeddings:
        found |= {n.input[0] for n in nodes if is_embedding(n, weights)}
    return found


def is_transposed(node: onnx.NodeProto) -> bool:
    """Whether a product takes its matrix transposed."""
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


class Rewriter(ABC):
    """Replaces nodes of a graph in place; subclasses say by what."""

    def __init__(self, graph: onnx.GraphProto, exclude: Collection[str]) -> None:
        self._graph = graph
        self._exclude = frozenset(exclude)
        self._weights = {t.name: t for t in graph.initializer}
        self._made: dict[str, TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        """Replace every node that can be, then drop the weights that nobody takes any more."""
        for node in self._graph.node:
            if named(node) & self._exclude:
                self._nodes.append(node)
            elif is_product(node, self._weights):
                self._replace_product(node)
            elif is_embedding(node, self._weights) and self._only_gathered(node.input[0]):
                self._replace_embedding(node)
            elif not self._replace_other(node):
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

    @abstractmethod
    def _replace_product(self, node: onnx.NodeProto) -> None:
        """Add the nodes that compute what a product does."""

    def _replace_other(self, node: onnx.NodeProto) -> bool:
        """Add the nodes that compute what a node does; return False where it stays as it is."""
        del node
        return False

    def _only_gathered(self, name: str) -> bool:
        # A table that somebody takes in float stays in the file; a second one would only enlarge it.
        takers = [n for n in walk_nodes(self._graph) if name in n.input]
        return all(is_embedding(n, self._weights) and not named(n) & self._exclude for n in takers)

    def _replace_embedding(self, node: onnx.NodeProto) -> None:
        """Take rows of int8, and the scale of each row."""
        table, indices, y = node.input[0], node.input[1], node.output[0]
        rows, scales = f"{table}/int8_rows", f"{table}/row_scale"
        if rows not in self._made:
            integers, factors = symmetric(numpy_helper.to_array(self._weights[table]), axis=1)
            self._store(rows, integers)
            self._store(scales, factors)
        name = node.name or y
        integer, scale, real = f"{y}/integer", f"{y}/scale", f"{y}/unscaled"
        self._add("Gather", [rows, indices], [integer], f"{name}/integer")
        self._add("Gather", [scales, indices], [scale], f"{name}/scale")
        self._cast(integer, real, f"{name}/cast")
        self._add("Mul", [real, scale], [y], f"{name}/rescale")

    def _matrix(self, node: onnx.NodeProto) -> tuple[str, NDArray[np.float32]]:
        """Return a name and the values of what a product multiplies by, rows in, columns out."""
        weight = node.input[1]
        array: NDArray[np.float32] = numpy_helper.to_array(self._weights[weight])
        return (f"{weight}/transposed", array.T) if is_transposed(node) else (weight, array)

    def _unbiased(self, node: onnx.NodeProto) -> str:
        """Return where the product itself goes: the output, or what a bias is added to."""
        biased = len(node.input) > 2 and node.input[2]
        return f"{node.output[0]}/unbiased" if biased else node.output[0]

    def _add_bias(self, node: onnx.NodeProto) -> None:
        if len(node.input) > 2 and node.input[2]:
            y = node.output[0]
            self._add("Add", [self._unbiased(node), node.input[2]], [y], f"{node.name or y}/bias")

    def _add(
        self,
        kind: str,
        inputs: list[str],
        outputs: list[str],
        name: str,
        domain: str = "",
        **attributes: Any,
    ) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))

    def _cast(self, value: str, result: str, name: str) -> None:
        self._add("Cast", [value], [result], name, to=TensorProto.FLOAT)

    def _store(self, name: str, value: NDArray[Any]) -> None:
        self._made[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)


def symmetric(array: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values in -127..127 and their scales, which keep `axis` with the length one."""
    rows = np.moveaxis(array, axis, -1)
    found = weight_scales(rows.reshape(-1, rows.shape[-1]), 0).reshape(rows.shape[:-1])
    # A row or column of zeros, or of numbers too small for a scale, is zeros at any scale.
    smallest = np.float32(np.finfo(np.float32).tiny)
    scales = np.expand_dims(np.where(found >= smallest, found, np.float32(1)), axis)
    integers = np.clip(np.rint(array / scales), -127, 127).astype(np.int8)
    return np.ascontiguousarray(integers), scales


def with_domain(model: onnx.ModelProto, domain: str) -> None:
    """Have a model import the first version of an operator set, where it does not yet."""
    if domain not in {o.domain for o in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(domain, 1))


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _copied_tensor(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy
