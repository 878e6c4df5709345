"""A graph that its author quantized, computed in float: with the author's rounding, or without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgec.compiler.model import opset_of, walk_nodes
from edgec.compiler.passes.fold_constant_dequantize import _computed, _drop_unused
from edgec.compiler.passes.sort_nodes import sort_nodes

_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
# What gives some of the integers that it takes, in another order or shape.
_MOVES = ("Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_INTEGER = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "DequantizeLinear", "QuantizeLinear")
_OPSET = 11  # the first with Round, and with limits of Clip as inputs

# Scale and zero point, dtype of the integers, dtype of the floats.
_Parameters = tuple[float, int, str, np.dtype[Any]]


def unquantize(model: onnx.ModelProto, *, rounding: bool) -> onnx.ModelProto | None:
    """Return a quantized graph without Q/DQ: what they do is done by arithmetic in float.

    1. Integer weights and biases become the floats that they stand for.
    2. A pair around an activation divides, rounds to even, clips and multiplies, which is what it means; or
       only clips, because a range that ends at zero is how some frameworks write Relu.
    3. Integer inputs and outputs of the graph keep their dtype, and are scaled by Cast and arithmetic there;
       what changes their layout does so in float.

    Args:
        model: Weights inside; left as it is.
        rounding: Whether activations are rounded where their author rounds them.

    Returns:
        None where some of it cannot be expressed so: dynamic or per-axis quantization of activations,
        operators on integers, pairs with unlike parameters, bodies of If and Loop, an opset before 11.
    """
    if opset_of(model) < _OPSET:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewriter = _Rewriter(copy, rounding)
    rewriter.run()
    del copy.graph.node[:]
    copy.graph.node.extend(rewriter.nodes)
    del copy.graph.value_info[:]  # it speaks of tensors that are gone
    _drop_unused(copy.graph)
    left = any(n.op_type in _INTEGER or n.op_type.startswith("QLinear") for n in walk_nodes(copy.graph))
    return None if left else sort_nodes(copy)


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, rounding: bool) -> None:
        self.graph, self.rounding = model.graph, rounding
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {t.name: t for t in model.graph.initializer}
        self.outputs = {o.name for o in model.graph.output}
        self.inputs = {i.name for i in model.graph.input} - self.constants.keys()
        # Parameters of integer tensors that now hold the floats that they stand for.
        self.real: dict[str, _Parameters] = {}
        # Likewise, of those that are quantized only where they leave the graph.
        self.leaving: dict[str, _Parameters] = {}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)

    def run(self) -> None:
        for name in sorted(self.inputs):
            self._enter(name)
        for node in self.graph.node:
            self.nodes += self._rewritten(node)

    def _enter(self, name: str) -> None:
        """Dequantize a graph input where it enters, if all that takes it does so by the same parameters."""
        found = self._dequantizer(name)
        parameters = self._parameters(found) if found is not None else None
        if parameters is None or not self._stays_inside(name, parameters):
            return
        made = f"{name}/float"
        self.nodes += self._floats(name, made, parameters)
        self.real[made] = parameters
        for taker in self.takers[name]:
            for position, taken in enumerate(taker.input):
                if taken == name:
                    taker.input[position] = made

    def _dequantizer(self, name: str) -> onnx.NodeProto | None:
        """Return a DequantizeLinear that a tensor is given to, as it is or moved."""
        for node in self.takers.get(name, []):
            if node.op_type == "DequantizeLinear":
                return node
            if node.op_type in _MOVES and (found := self._dequantizer(node.output[0])) is not None:
                return found
        return None

    def _rewritten(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        constant = node.input[0] in self.constants if node.input else False
        if constant and node.op_type == "DequantizeLinear":
            return self._fold(node)
        if constant and node.op_type == "QuantizeLinear":
            return self._fold_quantize(node)
        parameters = (
            self._parameters(node) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
        )
        if node.op_type == "QuantizeLinear" and parameters is not None:
            source, name = node.input[0], node.output[0]
            if self._stays_inside(name, parameters):
                self.real[name] = parameters
                return self._pair(node, parameters)
            if name in self.outputs or not self._leaves(name):
                return self._integers(source, name, parameters)
            self.leaving[name] = parameters
            return [helper.make_node("Identity", [source], [name], node.name)]
        if node.op_type == "DequantizeLinear" and parameters is not None:
            if node.input[0] in self.real:
                return [helper.make_node("Identity", [node.input[0]], list(node.output), node.name)]
            return self._floats(node.input[0], node.output[0], parameters)
        return self._moved(node) if node.op_type in _MOVES else [node]

    def _moved(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        source, name = node.input[0], node.output[0]
        if source in self.real:
            self.real[name] = self.real[source]
        if source not in self.leaving:
            return [node]
        if name not in self.outputs:
            self.leaving[name] = self.leaving[source]
            return [node]
        node.output[0] = f"{name}/float"
        return [node, *self._integers(node.output[0], name, self.leaving[source])]

    def _leaves(self, name: str) -> bool:
        """Return whether a tensor is an output of the graph, or only moved until it is."""
        taking = self.takers.get(name, [])
        if name in self.outputs:
            return not taking
        moved = len(taking) == 1 and taking[0].op_type in _MOVES
        return moved and self._leaves(taking[0].output[0])

    def _stays_inside(self, name: str, parameters: _Parameters) -> bool:
        """Return whether all that takes integers gives them back to floats by the same parameters."""
        if name in self.outputs:
            return False
        for node in self.takers.get(name, []):
            if node.op_type == "DequantizeLinear":
                mine = self._parameters(node)
                if mine is None or mine[:2] != parameters[:2]:
                    return False
                continue
            moves = node.op_type in _MOVES and len([o for o in node.output if o]) == 1
            if not moves or not self._stays_inside(node.output[0], parameters):
                return False
        return True

    def _pair(self, node: onnx.NodeProto, parameters: _Parameters) -> list[onnx.NodeProto]:
        scale, zero, kind, dtype = parameters
        low, high = (limit - zero for limit in _LIMITS[kind])
        source, name = node.input[0], node.output[0]
        if not self.rounding:
            limits = [
                self._constant(f"{name}/{n}", dtype.type(v * scale))
                for n, v in (("low", low), ("high", high))
            ]
            return [helper.make_node("Clip", [source, *limits], [name], node.name)]
        step = self._constant(f"{name}/step", dtype.type(scale))
        limits = [self._constant(f"{name}/{n}", dtype.type(v)) for n, v in (("low", low), ("high", high))]
        return [
            helper.make_node("Div", [source, step], [f"{name}/steps"], f"{name}/divide"),
            helper.make_node("Round", [f"{name}/steps"], [f"{name}/whole"], f"{name}/round"),
            helper.make_node("Clip", [f"{name}/whole", *limits], [f"{name}/kept"], f"{name}/clip"),
            helper.make_node("Mul", [f"{name}/kept", step], [name], node.name or f"{name}/multiply"),
        ]

    def _integers(self, source: str, name: str, parameters: _Parameters) -> list[onnx.NodeProto]:
        """Quantize by arithmetic: the integers go out of the graph, or to operators on integers."""
        scale, zero, kind, dtype = parameters
        step = self._constant(f"{name}/step", dtype.type(scale))
        offset = self._constant(f"{name}/zero", dtype.type(zero))
        limits = [
            self._constant(f"{name}/{n}", dtype.type(v)) for n, v in zip("lh", _LIMITS[kind], strict=True)
        ]
        to = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        return [
            helper.make_node("Div", [source, step], [f"{name}/steps"], f"{name}/divide"),
            helper.make_node("Round", [f"{name}/steps"], [f"{name}/whole"], f"{name}/round"),
            helper.make_node("Add", [f"{name}/whole", offset], [f"{name}/moved"], f"{name}/move"),
            helper.make_node("Clip", [f"{name}/moved", *limits], [f"{name}/kept"], f"{name}/clip"),
            helper.make_node("Cast", [f"{name}/kept"], [name], f"{name}/cast", to=to),
        ]

    def _floats(self, source: str, name: str, parameters: _Parameters) -> list[onnx.NodeProto]:
        """Dequantize by arithmetic: the integers come from a graph input, or from operators on integers."""
        scale, zero, _, dtype = parameters
        step = self._constant(f"{name}/step", dtype.type(scale))
        to = helper.np_dtype_to_tensor_dtype(dtype)
        nodes = [helper.make_node("Cast", [source], [f"{name}/cast"], f"{name}/convert", to=to)]
        centred = f"{name}/cast"
        if zero:
            offset = self._constant(f"{name}/zero", dtype.type(zero))
            centred = f"{name}/centred"
            nodes.append(helper.make_node("Sub", [f"{name}/cast", offset], [centred], f"{name}/move"))
        return [*nodes, helper.make_node("Mul", [centred, step], [name], f"{name}/multiply")]

    # -- constants -----------------------------------------------------------------------------------------

    def _fold(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        blocked = any(a.name == "block_size" and a.i for a in node.attribute)
        if blocked or any(n not in self.constants for n in node.input if n):
            return [node]
        self._keep(_computed(node, self.constants))
        return []

    def _fold_quantize(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        blocked = any(a.name == "block_size" and a.i for a in node.attribute)
        if blocked or len(node.input) < 3 or any(n not in self.constants for n in node.input):
            return [node]
        values, scale, zero = (numpy_helper.to_array(self.constants[n]) for n in node.input)
        if zero.dtype.name not in _LIMITS:
            return [node]
        if scale.size > 1:
            shape = [1] * values.ndim
            shape[next((int(a.i) for a in node.attribute if a.name == "axis"), 1)] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        whole = np.rint(values / scale) + zero
        integers = np.clip(whole, *_LIMITS[zero.dtype.name]).astype(zero.dtype).reshape(values.shape)
        self._keep(numpy_helper.from_array(integers, node.output[0]))
        return []

    def _parameters(self, node: onnx.NodeProto) -> _Parameters | None:
        """Return scale, zero point, and dtypes of integers and floats; None unless constant scalars."""
        names = [n for n in node.input[1:] if n]
        if not names or any(n not in self.constants for n in names):
            return None
        arrays = [numpy_helper.to_array(self.constants[n]) for n in names]
        if any(a.size != 1 for a in arrays):
            return None
        # Without a zero point a Q gives uint8; what a DQ takes is not asked for.
        zero = arrays[1] if len(arrays) > 1 else np.zeros((), np.uint8)
        output = next((a.i for a in node.attribute if a.name == "output_dtype" and a.i), None)
        kind = zero.dtype.name
        if len(arrays) == 1 and output is not None:
            kind = helper.tensor_dtype_to_np_dtype(output).name
        if kind not in _LIMITS or arrays[0].dtype.kind != "f":
            return None
        return float(arrays[0].reshape(())), int(zero.reshape(())), kind, arrays[0].dtype

    def _constant(self, name: str, value: Any) -> str:
        if name not in self.constants:
            self._keep(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _keep(self, tensor: onnx.TensorProto) -> None:
        self.constants[tensor.name] = tensor
        self.graph.initializer.append(tensor)
