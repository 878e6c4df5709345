"""Q/DQ graphs that an author made take the form in which a target's engine runs them in int8.

Frameworks quantize in their own ways: TFLite of 2018 has uint8 weights with a zero point, later ones int8
activations; engines fuse their own ways only, and run the rest in float without a word. What is rewritten
here computes the same, up to rounding where the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.passes.fold_constant_dequantize import _drop_unused
from edgec.compiler.passes.sort_nodes import sort_nodes
from edgec.targets import QuantizationScheme

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LAYOUT = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_EIGHT = ("int8", "uint8")
_LARGEST = 127
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
_TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


def normalize_qdq(
    model: onnx.ModelProto, scheme: QuantizationScheme
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a quantized model in the form that `scheme` asks for, and what was done, in sentences.

    1. Weights of Conv, ConvTranspose, Gemm and MatMul: int8 with the zero point 0. With the same scale where
       every integer fits, which changes nothing; else the channels where one does not get a scale of their
       own, and are rounded anew. Where the scheme takes weights with a zero point (ONNX Runtime multiplies
       them fast enough), uint8 that does not fit is moved by 128 instead. Behind an explicit Q and DQ where
       the scheme wants that.
    2. Biases: int32 with the scale of input times weights, or float where the scheme has no quantized bias.
    3. Activations, asymmetric: int8 and uint8 become the scheme's dtype, the zero point moved by 128, which
       changes nothing. Symmetric: int8 with the zero point 0, over a range that holds the author's.
    4. Graph inputs and outputs keep their dtype. Where the scheme has no zero points, they are dequantized
       and quantized by Cast and arithmetic.
    5. Where a residual Add may have one dequantized input only (TensorRT), the other loses its pair.
    6. What changes the layout of integers only changes that of floats: it goes behind the DequantizeLinear,
       or before the QuantizeLinear that gives a graph output. Behind that of a graph input a pair follows, so
       that the first layer stays in int8, unless the scheme has no zero points.

    A model without quantized activations, or in another opset than 13 or later, is returned as it is.

    Args:
        model: With explicit Q/DQ, weights inside; left as it is.
        scheme: The target's.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < 13:
        return model, ()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewriter = _Rewriter(copy, scheme)
    rewriter.run()
    if not rewriter.done:
        return model, ()
    del copy.graph.node[:]
    copy.graph.node.extend(rewriter.nodes)
    del copy.graph.value_info[:]  # it speaks of tensors that are gone
    _drop_unused(copy.graph)
    return sort_nodes(copy), tuple(rewriter.sentences())


@dataclass
class _Rewriter:
    model: onnx.ModelProto
    scheme: QuantizationScheme
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = list(self.model.graph.node)
        self.constants = {t.name: t for t in self.model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.outputs = {o.name for o in self.model.graph.output}
        self.takers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.input):
                self.takers.setdefault(name, []).append((node, position))

    def run(self) -> None:
        if not any(n.op_type == "QuantizeLinear" and n.input[0] not in self.constants for n in self.nodes):
            return
        while any(self._move_layout(node) for node in self.nodes):
            self._count("moved")
        for node in [n for n in self.nodes if n.op_type == "QuantizeLinear"]:
            self._activation(node)
        for node in [n for n in self.nodes if n.op_type == "DequantizeLinear"]:
            if node.input[0] not in self.constants:
                self._boundary_input(node)
            elif self._array(node.input[0]).dtype.name in _EIGHT:
                self._weights(node)
        for node in [n for n in self.nodes if n.op_type == "DequantizeLinear"]:
            if node.input[0] in self.constants and self._array(node.input[0]).dtype == np.int32:
                self._bias(node)
        if self.scheme.residual_one_input and self.scheme.weight_qdq:
            for node in [n for n in self.nodes if n.op_type == "Add"]:
                self._residual(node)

    def sentences(self) -> Iterator[str]:
        told = {
            "exact": "weights of {} layers are int8 around 0, exactly as before",
            "rounded": "weights of {} layers are int8 around 0, rounded anew in channels that did not fit",
            "moved_weights": "weights of {} layers are int8 with a zero point, exactly as before",
            "shifted": "{} activations have the engine's dtype, exactly as before",
            "symmetric": "{} activations are symmetric int8 over the author's ranges",
            "bias": "biases of {} layers are as the engine takes them",
            "arithmetic": "{} inputs and outputs are scaled by arithmetic",
            "moved": "{} changes of layout are made in float, exactly as before",
            "residual": "{} residual branches stay in float up to their Add",
        }
        for what, count in self.done.items():
            yield f"the author's quantization: {told[what].format(count)}"

    def _move_layout(self, node: onnx.NodeProto) -> bool:
        """Move one layout operator out of a pair; return whether it was one."""
        if node.op_type not in _LAYOUT or node.input[0] in self.constants:
            return False
        takers = self.takers.get(node.output[0], [])
        if (
            len(takers) == 1
            and takers[0][0].op_type == "DequantizeLinear"
            and not self._per_axis(takers[0][0])
        ):
            self._swap(node, takers[0][0])
            if takers[0][0].input[0] not in self.makers and not self.scheme.activation_symmetric:
                self._quantize_again(node, takers[0][0])
            return True
        maker = self.makers.get(node.input[0])
        alone = maker is not None and len(self.takers[node.input[0]]) == 1
        if (
            alone
            and maker is not None
            and maker.op_type == "QuantizeLinear"
            and node.output[0] in self.outputs
            and not takers
            and not self._per_axis(maker)
        ):
            self._swap(maker, node)
            return True
        return False

    def _quantize_again(self, layout: onnx.NodeProto, like: onnx.NodeProto) -> None:
        """Put a pair with the parameters of a DequantizeLinear behind a layout operator."""
        name = layout.output[0]
        between, integers = f"{name}/float", f"{name}/integers"
        layout.output[0] = between
        quantize = helper.make_node("QuantizeLinear", [between, *like.input[1:]], [integers])
        dequantize = helper.make_node("DequantizeLinear", [integers, *like.input[1:]], [name])
        self.nodes += [quantize, dequantize]
        self.makers |= {between: layout, integers: quantize, name: dequantize}
        self.takers |= {between: [(quantize, 0)], integers: [(dequantize, 0)]}

    def _per_axis(self, node: onnx.NodeProto) -> bool:
        parameters = self._parameters(node)
        return parameters is None or parameters[0].size != 1

    def _swap(self, first: onnx.NodeProto, second: onnx.NodeProto) -> None:
        """Let `second` come before `first`, which it is the only taker of."""
        source, last, between = first.input[0], second.output[0], f"{second.output[0]}/layout"
        second.input[0], second.output[0] = source, between
        first.input[0], first.output[0] = between, last
        self.takers[source] = [(n, i) for n, i in self.takers[source] if n is not first] + [(second, 0)]
        self.takers[between] = [(first, 0)]
        self.makers[between], self.makers[last] = second, first

    # -- activations ---------------------------------------------------------------------------------------

    def _activation(self, quantize: onnx.NodeProto) -> None:
        parameters = self._parameters(quantize)
        if parameters is None or quantize.input[0] in self.constants:
            return
        scale, zero = parameters
        pairs = [n for n, _ in self.takers.get(quantize.output[0], [])]
        inner = quantize.output[0] not in self.outputs and all(
            n.op_type == "DequantizeLinear" and self._same(n, parameters) for n in pairs
        )
        kind = zero.dtype.name
        if not self.scheme.activation_symmetric:
            if inner and kind != self.scheme.activation_dtype and zero.size == 1:
                moved = int(zero.reshape(())) + (128 if kind == "int8" else -128)
                self._set([quantize, *pairs], scale, np.asarray(moved, self.scheme.activation_dtype))
                self._count("shifted")
        elif inner and zero.size == 1:
            low, high = _LIMITS[kind]
            reach = max(int(zero.reshape(())) - low, high - int(zero.reshape(())))
            if kind != "int8" or zero.any():
                symmetric = np.asarray(scale * np.float32(reach / _LARGEST), scale.dtype)
                self._set([quantize, *pairs], symmetric, np.asarray(0, np.int8))
                self._count("symmetric")
        elif zero.size == 1 and (kind != "int8" or zero.any()):
            self._quantize_by_arithmetic(quantize, scale, zero)

    def _boundary_input(self, node: onnx.NodeProto) -> None:
        """Rewrite a DequantizeLinear whose integers come from a graph input."""
        parameters = self._parameters(node)
        if parameters is None or not self.scheme.activation_symmetric or self._is_inner(node):
            return
        scale, zero = parameters
        if zero.size != 1 or (zero.dtype == np.int8 and not zero.any()):
            return
        name = node.output[0]
        self._replace(
            node,
            helper.make_node("Cast", [node.input[0]], [f"{name}/cast"], to=TensorProto.FLOAT),
            helper.make_node(
                "Sub",
                [f"{name}/cast", self._constant(f"{name}/zero", zero.astype(np.float32))],
                [f"{name}/centred"],
            ),
            helper.make_node(
                "Mul",
                [f"{name}/centred", self._constant(f"{name}/step", scale)],
                [name],
                node.name,
            ),
        )
        self._count("arithmetic")

    def _quantize_by_arithmetic(self, node: onnx.NodeProto, scale: NDArray[Any], zero: NDArray[Any]) -> None:
        name, kind = node.output[0], zero.dtype.name
        low, high = (
            self._constant(f"{name}/{n}", np.float32(v)) for n, v in zip("lh", _LIMITS[kind], strict=True)
        )
        self._replace(
            node,
            helper.make_node(
                "Div", [node.input[0], self._constant(f"{name}/step", scale)], [f"{name}/steps"]
            ),
            helper.make_node("Round", [f"{name}/steps"], [f"{name}/round"]),
            helper.make_node(
                "Add",
                [f"{name}/round", self._constant(f"{name}/zero", zero.astype(np.float32))],
                [f"{name}/moved"],
            ),
            helper.make_node("Clip", [f"{name}/moved", low, high], [f"{name}/kept"]),
            helper.make_node("Cast", [f"{name}/kept"], [name], node.name, to=_TYPES[kind]),
        )
        self._count("arithmetic")

    def _is_inner(self, dequantize: onnx.NodeProto) -> bool:
        maker = self.makers.get(dequantize.input[0])
        return maker is not None and maker.op_type == "QuantizeLinear"

    def _residual(self, add: onnx.NodeProto) -> None:
        """Drop the pair between a layer and an Add whose inputs are both dequantized."""
        branches = [self.makers.get(name) for name in add.input]
        if not all(b is not None and b.op_type == "DequantizeLinear" and self._is_inner(b) for b in branches):
            return
        for position, dequantize in enumerate(branches):
            assert dequantize is not None
            quantize = self.makers[dequantize.input[0]]
            layer = self.makers.get(quantize.input[0])
            alone = len(self.takers[dequantize.output[0]]) == 1 and len(self.takers[quantize.output[0]]) == 1
            if alone and layer is not None and layer.op_type in _WEIGHTED:
                add.input[position] = quantize.input[0]
                self.nodes = [n for n in self.nodes if n is not quantize and n is not dequantize]
                self._count("residual")
                return

    # -- constants -----------------------------------------------------------------------------------------

    def _weights(self, node: onnx.NodeProto) -> None:
        takers = self.takers.get(node.output[0], [])
        parameters = self._parameters(node)
        if parameters is None or not takers:
            return
        scale, zero = parameters
        values = self._array(node.input[0]).astype(np.int32)
        shape = _along(values.ndim, _axis(node, values.ndim), scale.size)
        integers = values - zero.astype(np.int32).reshape(
            _along(values.ndim, _axis(node, values.ndim), zero.size)
        )
        if any(n.op_type not in _WEIGHTED or position != 1 for n, position in takers):
            if self.scheme.activation_symmetric and zero.any():
                self._fold(node, np.asarray(integers * scale.reshape(shape), scale.dtype))
            return
        fits = self._array(node.input[0]).dtype == np.int8 and not zero.any()
        explicit = self.scheme.weight_qdq
        if fits and not explicit:
            return
        axis = _axis(node, values.ndim)
        large = np.abs(integers).max(initial=0) > _LARGEST
        if large and self.scheme.weight_zero_point and not explicit:
            self._shift_weights(node, scale, zero)
            return
        if large:
            axis = _output_axis(takers[0][0], values.ndim)
            others = tuple(i for i in range(values.ndim) if i != axis)
            largest = np.abs(integers).max(axis=others)
            wider = np.maximum(largest / np.float64(_LARGEST), 1.0)
            full = np.broadcast_to(scale.reshape(shape), values.shape).max(axis=others)
            column = _along(values.ndim, axis, wider.size)
            integers = np.rint(integers / wider.reshape(column)).astype(np.int32)
            scale = (full * wider).astype(scale.dtype)
            self._count("rounded")
        elif not fits:
            self._count("exact")
        stem = node.output[0]
        new_zero = np.zeros(scale.shape, np.int8)
        if explicit:
            weights = integers * scale.reshape(_along(values.ndim, axis, scale.size)).astype(np.float32)
            name = f"{stem}/int8"
            source = self._constant(f"{stem}/weights", weights.astype(np.float32))
            inputs = [
                source,
                self._constant(f"{stem}/scale", scale),
                self._constant(f"{stem}/zero", new_zero),
            ]
            quantize = helper.make_node("QuantizeLinear", inputs, [name], f"{stem}/quantize", axis=axis)
            self.nodes.insert(0, quantize)
            self.makers[name] = quantize
            del node.input[:]
            node.input.extend([name, *inputs[1:]])
        else:
            del node.input[:]
            node.input.extend(
                [
                    self._constant(f"{stem}/int8", integers.astype(np.int8)),
                    self._constant(f"{stem}/scale", scale),
                    self._constant(f"{stem}/zero", new_zero),
                ]
            )
        _set_axis(node, axis)

    def _shift_weights(self, node: onnx.NodeProto, scale: NDArray[Any], zero: NDArray[Any]) -> None:
        """Move uint8 weights and their zero point by 128, to int8."""
        values = self._array(node.input[0])
        if values.dtype != np.uint8:
            return
        stem = node.output[0]
        moved = [(a.astype(np.int32) - 128).astype(np.int8) for a in (values, zero)]
        del node.input[:]
        node.input.extend(
            [
                self._constant(f"{stem}/int8", moved[0]),
                self._constant(f"{stem}/scale", scale),
                self._constant(f"{stem}/zero", moved[1]),
            ]
        )
        self._count("moved_weights")

    def _bias(self, node: onnx.NodeProto) -> None:
        parameters = self._parameters(node)
        if parameters is None:
            return
        scale, zero = parameters
        values = self._array(node.input[0]).astype(np.float64)
        real = (values - zero) * scale.astype(np.float64)
        if self.scheme.bias_dtype == "float32":
            self._fold(node, real.astype(np.float32))
            self._count("bias")
            return
        layers = [n for n, position in self.takers.get(node.output[0], []) if position == 2]
        step = self._accumulator_step(layers[0]) if layers and layers[0].op_type in _WEIGHTED else None
        if step is None or np.allclose(step, scale, rtol=1e-5, atol=0):
            return
        step = np.broadcast_to(step, real.shape).astype(np.float32)
        integers = np.clip(np.rint(real / step), -(2**31), 2**31 - 1).astype(np.int32)
        stem = node.output[0]
        del node.input[:]
        node.input.extend(
            [
                self._constant(f"{stem}/int32", integers),
                self._constant(f"{stem}/scale", step),
                self._constant(f"{stem}/zero", np.zeros(step.shape, np.int32)),
            ]
        )
        _set_axis(node, 0)
        self._count("bias")

    def _accumulator_step(self, layer: onnx.NodeProto) -> NDArray[Any] | None:
        """Return the scale of input times weights; None where one of them is not quantized."""
        steps = []
        for name in layer.input[:2]:
            maker = self.makers.get(name)
            parameters = self._parameters(maker) if maker is not None else None
            if maker is None or maker.op_type != "DequantizeLinear" or parameters is None:
                return None
            steps.append(parameters[0].astype(np.float64))
        return np.asarray(steps[0] * steps[1])

    # -- the graph -----------------------------------------------------------------------------------------

    def _parameters(self, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the scale and the zero point of a Q or DQ; None where they are not constant."""
        if len(node.input) < 3 or any(name not in self.constants for name in node.input[1:3]):
            return None
        return self._array(node.input[1]), self._array(node.input[2])

    def _same(self, node: onnx.NodeProto, parameters: tuple[NDArray[Any], NDArray[Any]]) -> bool:
        mine = self._parameters(node)
        return mine is not None and all(np.array_equal(a, b) for a, b in zip(mine, parameters, strict=True))

    def _array(self, name: str) -> NDArray[Any]:
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def _constant(self, name: str, value: Any) -> str:
        tensor = numpy_helper.from_array(np.asarray(value), name)
        self.constants[name] = tensor
        self.model.graph.initializer.append(tensor)
        return name

    def _set(self, nodes: list[onnx.NodeProto], scale: NDArray[Any], zero: NDArray[Any]) -> None:
        stem = nodes[0].output[0]
        names = [self._constant(f"{stem}/scale", scale), self._constant(f"{stem}/zero", zero)]
        for node in nodes:
            del node.input[1:]
            node.input.extend(names)

    def _fold(self, node: onnx.NodeProto, value: NDArray[Any]) -> None:
        self.nodes = [n for n in self.nodes if n is not node]
        self.makers.pop(node.output[0])
        self._constant(node.output[0], value)

    def _replace(self, node: onnx.NodeProto, *others: onnx.NodeProto) -> None:
        at = next(i for i, n in enumerate(self.nodes) if n is node)
        self.nodes[at : at + 1] = others
        self.makers[node.output[0]] = others[-1]

    def _count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1


def _axis(node: onnx.NodeProto, rank: int) -> int:
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
    return axis % rank if rank else 0


def _set_axis(node: onnx.NodeProto, axis: int) -> None:
    kept = [a for a in node.attribute if a.name != "axis"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("axis", axis)])


def _along(rank: int, axis: int, size: int) -> list[int]:
    """Return the shape in which `size` values lie along an axis; of one value, one that fits everywhere."""
    if size == 1:
        return [1] * rank
    return [size if i == axis else 1 for i in range(rank)]


def _output_axis(layer: onnx.NodeProto, rank: int) -> int:
    transposed = any(a.name == "transB" and a.i for a in layer.attribute)
    if layer.op_type == "Conv" or (layer.op_type == "Gemm" and transposed):
        return 0
    return rank - 1 if layer.op_type == "MatMul" else 1
