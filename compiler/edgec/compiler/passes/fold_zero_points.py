"""Zero points of activations go into biases, where that computes the same.

A layer without an activation, such as the last one of a bottleneck, gives values of both signs. Eight
unsigned bits hold them with a zero point ``z`` that every kernel after it has to take out again.
``x + scale * z`` is never negative and needs none: the bias before adds ``scale * z``, the bias after takes
out what that makes of its sums, ``scale * z * sum(weights)``, and the integers stay what they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgec.compiler.model import walk_nodes

_LAYERS = ("Conv", "Gemm")


def fold_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a Q/DQ model with fewer zero points; itself where there is nothing to fold.

    The zero point of an activation becomes 0 where

    1. it is one constant uint8, and what it quantizes is given by a Conv or Gemm with quantized weights, or
       by an Add of which one operand is the float result of such a layer and taken by the Add alone;
    2. everything that takes the activation is a Conv without padding (padding is 0 of x, and not of
       x + scale * z), the first input of a Gemm, or the other operand of such an Add;
    3. it is no output of the graph.

    Biases that change become float32. Outputs keep their values, but for the rounding of biases.
    """
    if not any(n.op_type == "QuantizeLinear" for n in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = _Graph(copy.graph)
    foldable = [a for n in copy.graph.node if (a := graph.activation(n)) is not None and graph.may_fold(a)]
    if not foldable:
        return model
    shifts: dict[str, NDArray[np.float64]] = {}
    for activation in foldable:
        for layer, shift in graph.shifts(activation):
            name = layer.output[0]
            shifts[name] = shifts.get(name, np.zeros(1)) + shift
    for name, shift in shifts.items():
        graph.shift_bias(graph.producers[name], shift)
    for activation in foldable:
        graph.clear(activation)
    _drop_unused(copy.graph)
    return copy


@dataclass(frozen=True, kw_only=True)
class _Activation:
    """An activation that is quantized with a zero point.

    Attributes:
        source: The node that gives it in float.
        quantize: Its QuantizeLinear.
        dequantize: Everything that takes the integers.
        shift: Its scale times its zero point.
    """

    source: onnx.NodeProto
    quantize: onnx.NodeProto
    dequantize: list[onnx.NodeProto]
    shift: float


@dataclass
class _Graph:
    """A Q/DQ graph with its names resolved."""

    graph: onnx.GraphProto
    constants: dict[str, onnx.TensorProto] = field(init=False)
    producers: dict[str, onnx.NodeProto] = field(init=False)
    takers: dict[str, list[onnx.NodeProto]] = field(init=False)
    outputs: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.constants = {t.name: t for t in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output if name}
        self.outputs = {o.name for o in self.graph.output}
        self.takers = {}
        for node in walk_nodes(self.graph):
            for name in dict.fromkeys(node.input):
                self.takers.setdefault(name, []).append(node)

    def activation(self, node: onnx.NodeProto) -> _Activation | None:
        """Return what a QuantizeLinear with a zero point quantizes; None for every other node."""
        if (
            node.op_type != "QuantizeLinear"
            or node.input[0] in self.outputs
            or node.output[0] in self.outputs
        ):
            return None
        source, scale, zero = (
            self.producers.get(node.input[0]),
            self._constant(node, 1),
            self._constant(node, 2),
        )
        if source is None or len(self.takers[node.input[0]]) != 1 or scale is None or zero is None:
            return None
        if zero.dtype != np.uint8 or zero.size != 1 or scale.size != 1 or not zero.any():
            return None
        takers = self.takers.get(node.output[0], [])
        if any(t.op_type != "DequantizeLinear" or t.output[0] in self.outputs for t in takers):
            return None
        if any(list(t.input[1:]) != list(node.input[1:]) for t in takers):
            return None
        shift = float(scale.reshape(-1)[0]) * float(zero.reshape(-1)[0])
        return _Activation(source=source, quantize=node, dequantize=takers, shift=shift)

    def may_fold(self, activation: _Activation) -> bool:
        """Whether rules 1 and 2 hold."""
        source = activation.source
        if not self._is_layer(source) and self._branch(source) is None:
            return False
        return all(self._takes_shifted(t, name) for t, name in self._taken(activation))

    def shifts(self, activation: _Activation) -> list[tuple[onnx.NodeProto, NDArray[np.float64] | float]]:
        """Return by how much which layers' biases change."""
        source = activation.source if self._is_layer(activation.source) else self._branch(activation.source)
        assert source is not None
        found: list[tuple[onnx.NodeProto, NDArray[np.float64] | float]] = [(source, activation.shift)]
        for taker, name in self._taken(activation):
            if self._is_layer(taker):
                found.append((taker, -activation.shift * self._weight_sums(taker)))
            else:
                branch = self._branch(taker, name)
                assert branch is not None
                found.append((branch, -activation.shift))
        return found

    def shift_bias(self, layer: onnx.NodeProto, shift: NDArray[np.float64]) -> None:
        """Add to a layer's bias, which becomes float32."""
        bias = self._bias(layer)
        assert bias is not None
        name = f"{layer.output[0]}/bias"
        self.graph.initializer.append(numpy_helper.from_array((bias + shift).astype(np.float32), name))
        while len(layer.input) < 3:
            layer.input.append("")
        layer.input[2] = name

    def clear(self, activation: _Activation) -> None:
        """Make a zero point 0."""
        name = f"{activation.quantize.output[0]}/no_zero_point"
        self.graph.initializer.append(numpy_helper.from_array(np.array(0, np.uint8), name))
        for node in (activation.quantize, *activation.dequantize):
            node.input[2] = name

    def _taken(self, activation: _Activation) -> list[tuple[onnx.NodeProto, str]]:
        """Return every node that takes an activation, with the name that it takes it by."""
        names = [dq.output[0] for dq in activation.dequantize]
        return [(taker, name) for name in names for taker in self.takers.get(name, [])]

    def _takes_shifted(self, taker: onnx.NodeProto, name: str) -> bool:
        if self._is_layer(taker):
            return list(taker.input).count(name) == 1 and taker.input[0] == name and not _pads(taker)
        return self._branch(taker, name) is not None

    def _branch(self, add: onnx.NodeProto, other: str | None = None) -> onnx.NodeProto | None:
        """Return the layer whose float result an Add alone takes, next to the operand `other`."""
        if add.op_type != "Add" or add.input[0] == add.input[1]:
            return None
        for name in add.input:
            layer = self.producers.get(name)
            alone = name not in self.outputs and len(self.takers[name]) == 1
            if name != other and layer is not None and alone and self._is_layer(layer):
                return layer
        return None

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a Conv or Gemm with quantized constant weights, and a bias that can change."""
        if node.op_type not in _LAYERS or node.domain not in ("", "ai.onnx") or self._weights(node) is None:
            return False
        plain = all(_attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        return plain and not _attribute(node, "transA", 0) and self._bias(node) is not None

    def _weights(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        source = self.producers.get(node.input[1])
        if source is None or source.op_type != "DequantizeLinear" or self._constant(source, 0) is None:
            return None
        return self._dequantized(source)

    def _bias(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        """Return a layer's bias as float64[channels]; None where it is computed at run time."""
        weights = self._weights(node)
        assert weights is not None
        channels = weights.shape[_channel_axis(node)]
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros(channels)
        source, constant = self.producers.get(node.input[2]), self._constant(node, 2)
        if constant is None and source is not None and source.op_type == "DequantizeLinear":
            constant = self._dequantized(source)
        if constant is None or constant.shape != (channels,):
            return None
        return constant.astype(np.float64)

    def _weight_sums(self, node: onnx.NodeProto) -> NDArray[np.float64]:
        """Return what a layer makes of an input of ones, without its bias; float64[channels]."""
        weights = self._weights(node)
        assert weights is not None
        axis = _channel_axis(node)
        sums: NDArray[np.float64] = weights.sum(axis=tuple(i for i in range(weights.ndim) if i != axis))
        return sums

    def _dequantized(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        value, scale, zero = (self._constant(node, i) for i in range(3))
        if value is None or scale is None or (zero is None and len(node.input) > 2 and node.input[2]):
            return None
        if _attribute(node, "block_size", 0):
            return None
        shape = [1] * value.ndim
        if scale.size > 1:
            shape[int(_attribute(node, "axis", 1)) if value.ndim > 1 else 0] = -1
        offset = np.float64(0) if zero is None else zero.astype(np.float64).reshape(shape)
        return np.asarray((value.astype(np.float64) - offset) * scale.astype(np.float64).reshape(shape))

    def _constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
        if len(node.input) <= index or node.input[index] not in self.constants:
            return None
        return numpy_helper.to_array(self.constants[node.input[index]])


def _channel_axis(node: onnx.NodeProto) -> int:
    return 1 if node.op_type == "Gemm" and not _attribute(node, "transB", 0) else 0


def _pads(node: onnx.NodeProto) -> bool:
    if node.op_type != "Conv":
        return False
    return any(_attribute(node, "pads", (0,))) or _attribute(node, "auto_pad", b"NOTSET") not in (
        b"NOTSET",
        b"VALID",
    )


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drop what served the biases that were replaced: their DequantizeLinear, and constants."""
    used = {name for node in walk_nodes(graph) for name in node.input} | {o.name for o in graph.output}
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear" and n.output[0] not in used]:
        graph.node.remove(node)
    used = {name for node in walk_nodes(graph) for name in node.input} | {o.name for o in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
