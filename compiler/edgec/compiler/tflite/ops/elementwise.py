"""Arithmetic, element by element, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgec.compiler.tflite import quantize
from edgec.compiler.tflite.flatbuffer import B, Quant, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import Layout, identity, padded
from edgec.compiler.tflite.lowering import NONE, Lowering
from edgec.compiler.tflite.modes import FLOAT_ONLY, NOT_INT16
from edgec.compiler.tflite.registry import NoIntegerKernel, Refused, operator

_MAX_RANK = 6  # of what broadcasting kernels take


def common_layout(lowering: Lowering, node: Node) -> Layout:
    """Return the layout that the inputs of a node share: that of the largest value of the output's rank."""
    rank = lowering.rank(node.outputs[0])
    if rank > _MAX_RANK:
        raise Refused(f"it works on {rank} axes", f"at most {_MAX_RANK} are supported: merge some by Reshape")
    values = [n for n in node.inputs if n and not lowering.is_constant(n) and lowering.rank(n) == rank]
    if not values:
        return identity(rank)
    return lowering.layout(max(values, key=lambda n: int(np.prod(lowering.shape(n)))))


def take_broadcast(
    lowering: Lowering, name: str, layout: Layout, rank: int, quant: Quant | str | None = "own"
) -> int:
    """Return an operand in a layout of the output's axes, which may be more than its own."""
    missing = rank - lowering.rank(name)
    own = layout if missing == 0 else padded(layout, missing)
    if quant == "own":
        return lowering.take(name, own)
    assert not isinstance(quant, str)
    return lowering.take(name, own, quant)


def binary(
    lowering: Lowering, node: Node, builtin: int, options: Any, inputs: Sequence[str] | None = None
) -> None:
    """Write a binary operator with the activation that follows fused into it."""
    layout = common_layout(lowering, node)
    rank = lowering.rank(node.outputs[0])
    taken = [take_broadcast(lowering, n, layout, rank) for n in inputs or node.inputs]
    output = node.outputs[0]
    if hasattr(options, "fusedActivationFunction") and lowering.is_float(output):
        output, options.fusedActivationFunction = lowering.fuse_activation(output)
    lowering.emit(builtin, taken, [lowering.give(output, layout)], options)


@operator("Add", tflite=("ADD",))
def lower_add(lowering: Lowering, node: Node) -> None:
    """Write a sum."""
    binary(lowering, node, B.ADD, S.AddOptionsT())


@operator("Sub", tflite=("SUB",))
def lower_sub(lowering: Lowering, node: Node) -> None:
    """Write a difference."""
    binary(lowering, node, B.SUB, S.SubOptionsT())


@operator("Mul", tflite=("MUL",))
def lower_mul(lowering: Lowering, node: Node) -> None:
    """Write a product."""
    binary(lowering, node, B.MUL, S.MulOptionsT())


@operator("Div", tflite=("DIV", "MUL"), limits="integer modes: by a constant", note="by a constant: MUL")
def lower_div(lowering: Lowering, node: Node) -> None:
    """Write a quotient; by a constant it is a product, which every kernel and NPU has."""
    divisor = lowering.graph.constants.get(node.inputs[1])
    if divisor is not None and divisor.dtype == np.float32 and divisor.all():
        name = f"{node.inputs[1]}/reciprocal"
        lowering.graph.constants[name] = (1.0 / divisor).astype(np.float32)
        binary(lowering, node, B.MUL, S.MulOptionsT(), (node.inputs[0], name))
    elif lowering.integer and lowering.is_float(node.inputs[0]):
        raise NoIntegerKernel("a quotient of two values")
    elif lowering.is_float(node.inputs[0]):
        binary(lowering, node, B.DIV, S.DivOptionsT())
    else:
        raise Refused("it divides integers", "compute it outside the model, or in float")


def _extreme(lowering: Lowering, node: Node, builtin: int) -> None:
    layout = common_layout(lowering, node)
    rank = lowering.rank(node.outputs[0])
    # The kernels compare the integers themselves: all must have the same parameters.
    quant = lowering.calibrated(node.outputs[0]) if lowering.quant(node.outputs[0]) else None
    taken = [take_broadcast(lowering, n, layout, rank, quant) for n in node.inputs]
    current = taken[0]
    if len(taken) == 1:
        lowering.alias(node.outputs[0], node.inputs[0], layout)
        return
    for index, other in enumerate(taken[1:], 1):
        if index == len(taken) - 1:
            made = lowering.give(node.outputs[0], layout, quant)
        else:
            shape = np.broadcast_shapes(
                lowering.file.tensors[current].shape, lowering.file.tensors[other].shape
            )
            dtype = lowering.file.tensors[current].dtype
            made = lowering.file.add_tensor(f"{node.outputs[0]}/{index}", shape, dtype, quant)
        lowering.emit(builtin, [current, other], [made], S.MaximumMinimumOptionsT())
        current = made


@operator("Max", tflite=("MAXIMUM",))
def lower_max(lowering: Lowering, node: Node) -> None:
    """Write the largest of one or more values."""
    _extreme(lowering, node, B.MAXIMUM)


@operator("Min", tflite=("MINIMUM",))
def lower_min(lowering: Lowering, node: Node) -> None:
    """Write the smallest of one or more values."""
    _extreme(lowering, node, B.MINIMUM)


@operator(
    "Pow",
    tflite=("POW", "MUL", "SQRT", "RSQRT"),
    limits="integer modes: the exponent is the constant 2 or 3",
)
def lower_pow(lowering: Lowering, node: Node) -> None:
    """Write a power; small whole ones are products."""
    exponent = lowering.graph.constants.get(node.inputs[1])
    power = float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else None
    x, output = node.inputs[0], node.outputs[0]
    layout = common_layout(lowering, node)
    if power in (2.0, 3.0):
        base = lowering.take(x, layout)
        if power == 3.0:
            square = _square(lowering, base, output)
            lowering.emit(B.MUL, [square, base], [lowering.give(output, layout)], S.MulOptionsT())
        else:
            lowering.emit(B.MUL, [base, base], [lowering.give(output, layout)], S.MulOptionsT())
    elif lowering.integer:
        raise NoIntegerKernel("a power other than 2 and 3")
    elif power in (0.5, -0.5):
        builtin = B.SQRT if power == 0.5 else B.RSQRT
        lowering.emit(builtin, [lowering.take(x, layout)], [lowering.give(output, layout)])
    else:
        rank = lowering.rank(output)
        taken = [take_broadcast(lowering, n, layout, rank) for n in node.inputs]
        lowering.emit(B.POW, taken, [lowering.give(output, layout)], S.PowOptionsT())


def _square(lowering: Lowering, base: int, name: str) -> int:
    """Return the square of a tensor, which the calibration has not seen: its range follows from the base."""
    tensor = lowering.file.tensors[base]
    quant = None
    if tensor.quant is not None:
        info = np.iinfo(tensor.quant.dtype)
        ends = [(i - tensor.quant.zero_point) * tensor.quant.scale[0] for i in (info.min, info.max)]
        quant = quantize.from_range(0.0, max(abs(e) for e in ends) ** 2, tensor.quant.dtype)
    made = lowering.file.add_tensor(f"{name}/square", tensor.shape, tensor.dtype, quant)
    lowering.emit(B.MUL, [base, base], [made], S.MulOptionsT())
    return made


def _unary(lowering: Lowering, node: Node, builtin: int, options: Any = None) -> None:
    layout = lowering.layout(node.inputs[0])
    x = lowering.take(node.inputs[0], layout)
    lowering.emit(builtin, [x], [lowering.give(node.outputs[0], layout)], options)


@operator("Abs", tflite=("ABS",))
def lower_abs(lowering: Lowering, node: Node) -> None:
    """Write the magnitude."""
    _unary(lowering, node, B.ABS, S.AbsOptionsT())


@operator("Exp", tflite=("EXP",), modes=NOT_INT16)
def lower_exp(lowering: Lowering, node: Node) -> None:
    """Write the exponential."""
    _unary(lowering, node, B.EXP, S.ExpOptionsT())


@operator("Log", tflite=("LOG",), modes=FLOAT_ONLY)
def lower_log(lowering: Lowering, node: Node) -> None:
    """Write the logarithm."""
    _unary(lowering, node, B.LOG)


@operator("Sqrt", tflite=("SQRT",), modes=FLOAT_ONLY)
def lower_sqrt(lowering: Lowering, node: Node) -> None:
    """Write the square root."""
    _unary(lowering, node, B.SQRT)


@operator("Sin", tflite=("SIN",), modes=FLOAT_ONLY)
def lower_sin(lowering: Lowering, node: Node) -> None:
    """Write the sine."""
    _unary(lowering, node, B.SIN)


@operator("Cos", tflite=("COS",), modes=FLOAT_ONLY)
def lower_cos(lowering: Lowering, node: Node) -> None:
    """Write the cosine."""
    _unary(lowering, node, B.COS, S.CosOptionsT())


@operator("Floor", tflite=("FLOOR",), modes=FLOAT_ONLY)
def lower_floor(lowering: Lowering, node: Node) -> None:
    """Write the next integer below."""
    _unary(lowering, node, B.FLOOR)


@operator("Ceil", tflite=("CEIL",), modes=FLOAT_ONLY)
def lower_ceil(lowering: Lowering, node: Node) -> None:
    """Write the next integer above."""
    _unary(lowering, node, B.CEIL)


@operator("Round", tflite=("ROUND",), modes=FLOAT_ONLY)
def lower_round(lowering: Lowering, node: Node) -> None:
    """Write the nearest integer, the even one of two."""
    _unary(lowering, node, B.ROUND)


@operator("Neg", tflite=("MUL",))
def lower_neg(lowering: Lowering, node: Node) -> None:
    """Write the negative as a product with -1: NEG has no integer kernel."""
    _scaled(lowering, node, -1.0)


def _scaled(lowering: Lowering, node: Node, factor: float) -> None:
    name = f"{node.outputs[0]}/factor"
    dtype = lowering.graph.dtype(node.inputs[0])
    lowering.graph.constants[name] = np.array(factor, dtype)
    layout = lowering.layout(node.inputs[0])
    taken = [lowering.take(node.inputs[0], layout), lowering.take(name)]
    lowering.emit(B.MUL, taken, [lowering.give(node.outputs[0], layout)], S.MulOptionsT())


@operator("Reciprocal", tflite=("DIV",), modes=FLOAT_ONLY)
def lower_reciprocal(lowering: Lowering, node: Node) -> None:
    """Write 1 / x."""
    name = f"{node.outputs[0]}/one"
    lowering.graph.constants[name] = np.array(1.0, np.float32)
    layout = lowering.layout(node.inputs[0])
    options = S.DivOptionsT()
    options.fusedActivationFunction = NONE
    taken = [lowering.take(name), lowering.take(node.inputs[0], layout)]
    lowering.emit(B.DIV, taken, [lowering.give(node.outputs[0], layout)], options)
