"""Moves outlier channels of activations into the weights that they meet, before transformers become int8.

The activations of a transformer have a few channels that are a hundred times larger than the others, and
int8 gives all channels of a tensor one scale. Weights have a scale per column and no such outliers. So what
a matrix product takes is divided by s, channel by channel, and the rows of its weights multiplied by s:
Xiao et al., "SmoothQuant", ICML 2023. Every s is a power of two, so the model computes the same to the last
bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.model import walk_nodes
from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs
from edgec.compiler.passes.sort_nodes import sort_nodes

Arrays = Mapping[str, NDArray[Any]]

_MOST_BITS = 16  # of a scale


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Products that take the same activation.

    Attributes:
        activation: Its name; channels are its last axis.
        products: MatMul and Gemm nodes with constant weights.
        alone: Whether nobody else takes it.
    """

    activation: str
    products: list[onnx.NodeProto]
    alone: bool


def smooth_activations(
    model: onnx.ModelProto, inputs: Iterable[Arrays], alpha: float, *, normalized_only: bool = False
) -> tuple[onnx.ModelProto, int]:
    """Move scale from activations into the weights of MatMul and Gemm.

    Channel j of an activation X is divided by ``max|X_j|^alpha / max|W_j|^(1-alpha)``, rounded to a power of
    two. The division goes into the LayerNormalization, or the Mul (and Add) with constants, that gives X,
    where nobody else takes X; elsewhere a Mul is added before the products.

    Args:
        model: In fp32, weights inside; left as it is.
        inputs: Samples, from which ranges are taken one by one.
        alpha: How much of the difficulty goes to the weights, 0 to 1.
        normalized_only: Whether only what a LayerNormalization gives is changed. Its outliers are channels,
            the same in all rows; those of attention and GELU are rows too, which kernels that scale each
            row by itself hold as they are.

    Returns:
        The model, and how many activations were changed.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {t.name: t for t in copy.graph.initializer}
    groups = _groups(copy.graph, weights)
    if normalized_only:
        producers = {name: node for node in copy.graph.node for name in node.output}
        groups = [g for g in groups if _is_normalized(g.activation, producers)]
    if not groups:
        return copy, 0
    largest = channel_maxima(copy, [g.activation for g in groups], inputs)
    smoother = _Smoother(copy.graph, weights)
    changed = 0
    for group in groups:
        scales = _scales(group, largest[group.activation], weights, alpha)
        if np.any(scales != 1.0):
            smoother.apply(group, scales)
            changed += 1
    smoother.finish()
    return sort_nodes(copy), changed


def normalizes_products(model: onnx.ModelProto) -> bool:
    """Whether a model has LayerNormalization, in one node or many, and products of two activations.

    That is what tells a transformer from a network whose activations int8 can hold as they are.
    """
    kinds = {node.op_type for node in walk_nodes(model.graph)}
    if not kinds & {"LayerNormalization", "SimplifiedLayerNormalization"} and not (
        "ReduceMean" in kinds and "Sqrt" in kinds
    ):
        return False
    constants = {t.name for t in model.graph.initializer}
    constants |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}
    # Simplification turns MatMul and Add into Gemm between two Reshapes.
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm")]
    attention = any(n.op_type == "MatMul" and not constants & set(n.input) for n in products)
    return attention and any(n.input[1] in constants for n in products)


def channel_maxima(
    model: onnx.ModelProto, names: Iterable[str], inputs: Iterable[Arrays]
) -> dict[str, NDArray[np.float32]]:
    """Return the largest absolute value of every channel of named tensors, one sample in memory at a time.

    Args:
        model: That computes them.
        names: Of tensors, whose channels are their last axis.
        inputs: Samples.
    """
    wanted = list(dict.fromkeys(names))
    given = {i.name for i in model.graph.input}
    found: dict[str, NDArray[np.float32]] = {}
    with ReferenceProgram(
        with_outputs(model, [n for n in wanted if n not in given]), optimize=True
    ) as program:
        for sample in inputs:
            values = {**sample, **program.run(sample)}
            for name in wanted:
                array = np.abs(values[name])
                peak = array.reshape(-1, array.shape[-1]).max(axis=0, initial=0.0)
                found[name] = np.maximum(found[name], peak) if name in found else peak
    return found


def _groups(graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> list[_Group]:
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in walk_nodes(graph):
        for name in dict.fromkeys(node.input):
            takers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if _is_product(node, weights):
            found.setdefault(node.input[0], []).append(node)
    return [
        _Group(
            activation=name,
            products=products,
            alone=len(takers[name]) == len(products) and name not in outputs,
        )
        for name, products in found.items()
    ]


def _is_normalized(name: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a tensor is what a LayerNormalization gives, in one node or many, of whatever shape."""
    node = producers.get(name)
    while node is not None and node.op_type == "Reshape":
        node = producers.get(node.input[0])
    if node is None:
        return False
    if node.op_type in ("LayerNormalization", "SimplifiedLayerNormalization"):
        return True
    if node.op_type not in ("Mul", "Add"):
        return False
    # Written out it ends in Div by a Sqrt, Mul and Add; either of these may be absent.
    for _ in range(2):
        inner = [producers[i] for i in node.input if i in producers]
        if node.op_type not in ("Mul", "Add") or len(inner) != 1:
            break
        node = inner[0]
    divisor = producers.get(node.input[1]) if node.op_type == "Div" else None
    return divisor is not None and divisor.op_type == "Sqrt"


def _is_product(node: onnx.NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return False
    weight = weights.get(node.input[1])
    if weight is None or node.input[0] in weights:
        return False
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2 and not transposed


def _rows(node: onnx.NodeProto, weights: Mapping[str, TensorProto]) -> NDArray[np.float32]:
    """Return the weights of a product as a matrix whose rows are the channels of what it takes."""
    array: NDArray[np.float32] = numpy_helper.to_array(weights[node.input[1]])
    return array.T if _is_transposed(node) else array


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)


def _scales(
    group: _Group, largest: NDArray[np.float32], weights: Mapping[str, TensorProto], alpha: float
) -> NDArray[np.float32]:
    rows = np.max([np.abs(_rows(n, weights)).max(axis=1) for n in group.products], axis=0)
    usable = np.isfinite(largest) & (largest > 0) & np.isfinite(rows) & (rows > 0)
    bits = np.zeros(largest.shape)
    bits[usable] = alpha * np.log2(largest[usable]) - (1 - alpha) * np.log2(rows[usable])
    # A factor on all channels changes nothing but how far numbers are from the limits of fp32.
    bits -= np.median(bits)
    bits[~usable] = 0.0
    return np.asarray(np.exp2(np.clip(np.rint(bits), -_MOST_BITS, _MOST_BITS)), np.float32)


class _Smoother:
    """Changes a graph in place; weights that others share are copied first."""

    def __init__(self, graph: onnx.GraphProto, weights: dict[str, TensorProto]) -> None:
        self._graph = graph
        self._weights = weights
        self._producers = {name: node for node in graph.node for name in node.output}
        self._uses: dict[str, int] = {}
        for node in walk_nodes(graph):
            for name in node.input:
                self._uses[name] = self._uses.get(name, 0) + 1
        self._outputs = {o.name for o in graph.output}

    def apply(self, group: _Group, scales: NDArray[np.float32]) -> None:
        """Divide what a group takes, and multiply its weights."""
        for node in group.products:
            factors = scales[None, :] if _is_transposed(node) else scales[:, None]
            self._rescale(node, 1, factors)
        if group.alone and self._absorb(group.activation, scales):
            return
        inverse, smoothed = f"{group.activation}/inverse_scale", f"{group.activation}/smoothed"
        self._weights[inverse] = numpy_helper.from_array(np.float32(1) / scales, inverse)
        self._graph.initializer.append(self._weights[inverse])
        self._graph.node.append(
            helper.make_node("Mul", [group.activation, inverse], [smoothed], f"{smoothed}/mul")
        )
        for node in group.products:
            node.input[0] = smoothed

    def finish(self) -> None:
        """Drop the weights that nobody takes any more."""
        used = {name for node in walk_nodes(self._graph) for name in node.input} | self._outputs
        kept = [t for t in self._graph.initializer if t.name in used]
        if len(kept) < len(self._graph.initializer):
            copies = [TensorProto.FromString(t.SerializeToString()) for t in kept]
            del self._graph.initializer[:]
            self._graph.initializer.extend(copies)

    def _absorb(self, name: str, scales: NDArray[np.float32]) -> bool:
        """Divide the constants of the node that gives a tensor; return whether that can be done."""
        node = self._producers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        inverse = np.float32(1) / scales
        if node.op_type == "LayerNormalization":
            axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
            constants = [i for i in (1, 2) if len(node.input) > i and node.input[i]]
            if axis != -1 or not all(self._is_vector(node.input[i], scales.size) for i in constants):
                return False
            for i in constants:
                self._rescale(node, i, inverse)
            return True
        if node.op_type not in ("Mul", "Add"):
            return False
        vector = next((i for i in (0, 1) if self._is_vector(node.input[i], scales.size)), None)
        if vector is None:
            return False
        if node.op_type == "Add":
            other = node.input[1 - vector]
            if self._uses[other] != 1 or other in self._outputs or not self._absorb(other, scales):
                return False
        self._rescale(node, vector, inverse)
        return True

    def _is_vector(self, name: str, size: int) -> bool:
        tensor = self._weights.get(name)
        return (
            tensor is not None
            and tensor.data_type == TensorProto.FLOAT
            and bool(tensor.dims)
            and tensor.dims[-1] == size
            and int(np.prod(tensor.dims)) == size
        )

    def _rescale(self, node: onnx.NodeProto, index: int, factors: NDArray[np.float32]) -> None:
        """Multiply a constant of a node, which gets one of its own where others take it too."""
        name = node.input[index]
        array = np.ascontiguousarray(numpy_helper.to_array(self._weights[name]) * factors)
        if self._uses[name] == 1:
            self._weights[name].CopyFrom(numpy_helper.from_array(array, name))
            return
        own = f"{name}/smoothed_for_{node.output[0]}"
        self._uses[name] -= 1
        self._uses[own] = 1
        self._weights[own] = numpy_helper.from_array(array, own)
        self._graph.initializer.append(self._weights[own])
        node.input[index] = own
