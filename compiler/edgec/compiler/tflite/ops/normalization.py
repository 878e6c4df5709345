"""Normalisation by the statistics of the value at hand; what trained statistics do is a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import Layout, identity
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.modes import FLOAT_ONLY
from edgec.compiler.tflite.registry import Refused, operator

_EPSILON = 1e-5  # ONNX's default
_STANDARDISE = ("MEAN", "SQUARED_DIFFERENCE", "RSQRT", "SUB", "MUL", "ADD")
_IN_FLOAT = "variances span more than int8 can tell apart: in float, next to integers"


class _Steps:
    """Float operators one after another on one tensor."""

    def __init__(self, lowering: Lowering, name: str) -> None:
        self.lowering, self.name = lowering, name

    def shape(self, tensor: int) -> tuple[int, ...]:
        return self.lowering.file.tensors[tensor].shape

    def _made(self, shape: Sequence[int]) -> int:
        return self.lowering.file.add_tensor(f"{self.name}/step", shape, "float32")

    def constant(self, array: NDArray[np.float32], what: str) -> int:
        return self.lowering.array(np.asarray(array, np.float32), f"{self.name}/{what}")

    def binary(self, builtin: int, a: int, b: int) -> int:
        options = {B.ADD: S.AddOptionsT, B.SUB: S.SubOptionsT, B.MUL: S.MulOptionsT, B.DIV: S.DivOptionsT}
        made = self._made(np.broadcast_shapes(self.shape(a), self.shape(b)))
        kind = options.get(builtin, S.SquaredDifferenceOptionsT)
        self.lowering.emit(builtin, [a, b], [made], kind())
        return made

    def unary(self, builtin: int, a: int) -> int:
        made = self._made(self.shape(a))
        self.lowering.emit(builtin, [a], [made], S.AbsOptionsT() if builtin == B.ABS else None)
        return made

    def reduce(self, builtin: int, a: int, axes: Sequence[int]) -> int:
        made = self._made([1 if i in axes else d for i, d in enumerate(self.shape(a))])
        options = S.ReducerOptionsT()
        options.keepDims = True
        positions = self.lowering.int32(sorted(axes), f"{self.name}/axes")
        self.lowering.emit(builtin, [a, positions], [made], options)
        return made

    def standardised(self, a: int, axes: Sequence[int], epsilon: float) -> int:
        """Return ``(a - mean) / sqrt(variance + epsilon)``."""
        mean = self.reduce(B.MEAN, a, axes)
        variance = self.reduce(B.MEAN, self.binary(B.SQUARED_DIFFERENCE, a, mean), axes)
        shifted = self.binary(B.ADD, variance, self.constant(np.array(epsilon, np.float32), "epsilon"))
        return self.binary(B.MUL, self.binary(B.SUB, a, mean), self.unary(B.RSQRT, shifted))


def _full(lowering: Lowering, name: str) -> Layout:
    layout, rank = lowering.layout(name), lowering.rank(name)
    return layout if sorted(layout) == list(range(rank)) else identity(rank)


def _hold(lowering: Lowering, output: str, tensor: int, layout: Layout) -> None:
    lowering.file.rename(tensor, output)
    lowering.hold(output, tensor, layout, None)


def _require_one_output(node: Node) -> None:
    if any(node.outputs[1:]):
        raise Refused("its mean or deviation is used", "compute these by ReduceMean")


@operator("LayerNormalization", tflite=_STANDARDISE, limits="one output", modes=FLOAT_ONLY, note=_IN_FLOAT)
def lower_layer_normalization(lowering: Lowering, node: Node) -> None:
    """Write a normalisation over the last axes; its scale and bias are constants or values."""
    _require_one_output(node)
    x, output = node.inputs[0], node.outputs[0]
    rank = lowering.rank(x)
    first = int(node.attributes.get("axis", -1)) % rank
    layout = _full(lowering, x)
    steps = _Steps(lowering, output)
    axes = [i for i, a in enumerate(layout) if a >= first]
    epsilon = float(node.attributes.get("epsilon", _EPSILON))
    tensor = steps.standardised(lowering.take(x, layout, None), axes, epsilon)
    for builtin, name in ((B.MUL, node.inputs[1]), (B.ADD, node.input(2))):
        if name:
            missing = rank - lowering.rank(name)
            own = tuple(a - missing if a >= missing else -1 for a in layout)
            tensor = steps.binary(builtin, tensor, lowering.take(name, own, None))
    _hold(lowering, output, tensor, layout)


@operator("InstanceNormalization", tflite=_STANDARDISE, modes=FLOAT_ONLY, note=_IN_FLOAT)
def lower_instance_normalization(lowering: Lowering, node: Node) -> None:
    """Write a normalisation of each channel of each sample."""
    x, output = node.inputs[0], node.outputs[0]
    layout = _full(lowering, x)
    steps = _Steps(lowering, output)
    axes = [i for i, a in enumerate(layout) if a >= 2]
    epsilon = float(node.attributes.get("epsilon", _EPSILON))
    tensor = steps.standardised(lowering.take(x, layout, None), axes, epsilon)
    tensor = _per_channel(lowering, node, steps, tensor, layout)
    _hold(lowering, output, tensor, layout)


def _per_channel(lowering: Lowering, node: Node, steps: _Steps, tensor: int, layout: Layout) -> int:
    shape = [-1 if a == 1 else 1 for a in layout]
    scale = lowering.constant(node, 1, "scale").reshape(shape)
    bias = lowering.constant(node, 2, "bias").reshape(shape)
    tensor = steps.binary(B.MUL, tensor, steps.constant(scale, "scale"))
    return steps.binary(B.ADD, tensor, steps.constant(bias, "bias"))


@operator("LpNormalization", tflite=("MUL", "ABS", "SUM", "SQRT", "DIV"), modes=FLOAT_ONLY)
def lower_lp_normalization(lowering: Lowering, node: Node) -> None:
    """Write a division by the norm along an axis."""
    x, output = node.inputs[0], node.outputs[0]
    axis = int(node.attributes.get("axis", -1)) % lowering.rank(x)
    layout = _full(lowering, x)
    steps = _Steps(lowering, output)
    tensor = lowering.take(x, layout, None)
    if int(node.attributes.get("p", 2)) == 1:
        norm = steps.reduce(B.SUM, steps.unary(B.ABS, tensor), [layout.index(axis)])
    else:
        square = steps.binary(B.MUL, tensor, tensor)
        norm = steps.unary(B.SQRT, steps.reduce(B.SUM, square, [layout.index(axis)]))
    _hold(lowering, output, steps.binary(B.DIV, tensor, norm), layout)
