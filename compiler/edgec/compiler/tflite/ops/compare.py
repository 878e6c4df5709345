"""Comparisons, logic, choices by them, and what else exporters compute masks with."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import identity
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.modes import FLOAT_ONLY, NOT_INT16
from edgec.compiler.tflite.ops.elementwise import binary, common_layout, take_broadcast
from edgec.compiler.tflite.ops.shape import full_layout
from edgec.compiler.tflite.registry import Refused, operator

_COMPARISONS: dict[str, tuple[int, Any]] = {
    "Equal": (B.EQUAL, S.EqualOptionsT),
    "Greater": (B.GREATER, S.GreaterOptionsT),
    "GreaterOrEqual": (B.GREATER_EQUAL, S.GreaterEqualOptionsT),
    "Less": (B.LESS, S.LessOptionsT),
    "LessOrEqual": (B.LESS_EQUAL, S.LessEqualOptionsT),
    "Xor": (B.NOT_EQUAL, S.NotEqualOptionsT),
    "And": (B.LOGICAL_AND, S.LogicalAndOptionsT),
    "Or": (B.LOGICAL_OR, S.LogicalOrOptionsT),
}
_COMPARED = 4  # axes that the kernels broadcast


@operator(
    *_COMPARISONS,
    tflite=(
        "EQUAL",
        "NOT_EQUAL",
        "GREATER",
        "GREATER_EQUAL",
        "LESS",
        "LESS_EQUAL",
        "LOGICAL_AND",
        "LOGICAL_OR",
    ),
    limits=f"at most {_COMPARED} axes",
    modes=NOT_INT16,
)
def lower_comparison(lowering: Lowering, node: Node) -> None:
    """Write a comparison; kernels bring int8 of different scales together themselves."""
    rank = lowering.rank(node.outputs[0])
    if rank > _COMPARED:
        raise Refused(f"it compares {rank} axes", f"at most {_COMPARED} are supported: merge some by Reshape")
    builtin, options = _COMPARISONS[node.op]
    binary(lowering, node, builtin, options())


@operator("Not", tflite=("LOGICAL_NOT",))
def lower_not(lowering: Lowering, node: Node) -> None:
    """Write a negation."""
    layout = lowering.layout(node.inputs[0])
    taken = lowering.take(node.inputs[0], layout)
    lowering.emit(B.LOGICAL_NOT, [taken], [lowering.give(node.outputs[0], layout)], S.LogicalNotOptionsT())


@operator("Where", tflite=("SELECT_V2",), limits="at most 5 axes")
def lower_where(lowering: Lowering, node: Node) -> None:
    """Write a choice; both sides get the output's parameters, since the kernel copies integers."""
    condition, *sides = node.inputs
    output = node.outputs[0]
    layout, rank = common_layout(lowering, node), lowering.rank(output)
    quant = lowering.calibrated(output) if lowering.integer and lowering.is_float(output) else None
    chosen = take_broadcast(lowering, condition, layout, rank)
    taken = [take_broadcast(lowering, n, layout, rank, quant) for n in sides]
    lowering.emit(B.SELECT_V2, [chosen, *taken], [lowering.give(output, layout, quant)], S.SelectV2OptionsT())


@operator("Sign", tflite=("SIGN",), limits="floats", modes=FLOAT_ONLY)
def lower_sign(lowering: Lowering, node: Node) -> None:
    """Write -1, 0 or 1."""
    if not lowering.is_float(node.inputs[0]):
        raise Refused("it takes integers", "compute it in float")
    layout = lowering.layout(node.inputs[0])
    taken = lowering.take(node.inputs[0], layout)
    lowering.emit(B.SIGN, [taken], [lowering.give(node.outputs[0], layout)])


@operator("Softplus", tflite=("RELU", "ABS", "MUL", "EXP", "ADD", "LOG"), modes=FLOAT_ONLY)
def lower_softplus(lowering: Lowering, node: Node) -> None:
    """Write ``max(x, 0) + log(1 + exp(-|x|))``, which never overflows."""
    x, output = node.inputs[0], node.outputs[0]
    layout = lowering.layout(x)
    source = lowering.take(x, layout)
    shape = lowering.file.tensors[source].shape

    def step(builtin: int, inputs: list[int], options: Any = None) -> int:
        made = lowering.file.add_tensor(f"{output}/step", shape, "float32")
        lowering.emit(builtin, inputs, [made], options)
        return made

    constants = [lowering.array(np.array(v, np.float32), f"{output}/constant") for v in (-1.0, 1.0)]
    negative = step(B.MUL, [step(B.ABS, [source], S.AbsOptionsT()), constants[0]], S.MulOptionsT())
    small = step(
        B.LOG, [step(B.ADD, [step(B.EXP, [negative], S.ExpOptionsT()), constants[1]], S.AddOptionsT())]
    )
    made = lowering.give(output, layout)
    lowering.emit(B.ADD, [step(B.RELU, [source]), small], [made], S.AddOptionsT())


@operator("CumSum", tflite=("CUMSUM",), limits="axis constant; floats and int32, int64", modes=FLOAT_ONLY)
def lower_cumsum(lowering: Lowering, node: Node) -> None:
    """Write a running sum."""
    x, output = node.inputs[0], node.outputs[0]
    axis = int(lowering.constant(node, 1, "axis").reshape(-1)[0]) % lowering.rank(x)
    layout = full_layout(lowering, x)
    options = S.CumsumOptionsT()
    options.exclusive = bool(node.attributes.get("exclusive", 0))
    options.reverse = bool(node.attributes.get("reverse", 0))
    position = lowering.int32(layout.index(axis), f"{output}/axis")
    lowering.emit(B.CUMSUM, [lowering.take(x, layout), position], [lowering.give(output, layout)], options)


@operator("Trilu", tflite=("MUL",), limits="k constant; floats without infinity")
def lower_trilu(lowering: Lowering, node: Node) -> None:
    """Write a triangle of a matrix as a product with zeros and ones."""
    x, output = node.inputs[0], node.outputs[0]
    if not lowering.is_float(x):
        raise Refused("it takes integers", "compute it in float, or outside the model")
    k = lowering.optional_constant(node, 1, "k")
    rows, columns = lowering.shape(x)[-2:]
    cut = np.triu if node.attributes.get("upper", 1) else np.tril
    mask = f"{output}/triangle"
    lowering.graph.constants[mask] = cut(np.ones((rows, columns), np.float32), 0 if k is None else int(k))
    binary(lowering, node, B.MUL, S.MulOptionsT(), (x, mask))


@operator(
    "TopK",
    tflite=("TOPK_V2", "CAST"),
    limits="k constant; the largest, along the last axis",
    modes=NOT_INT16,
)
def lower_top_k(lowering: Lowering, node: Node) -> None:
    """Write the largest values along the last axis, in order, and where they are."""
    x = node.inputs[0]
    rank = lowering.rank(x)
    if int(node.attributes.get("axis", -1)) % rank != rank - 1 or not node.attributes.get("largest", 1):
        raise Refused("it is not the largest along the last axis", "transpose or negate its input")
    k = int(lowering.constant(node, 1, "k").reshape(-1)[0])
    source = lowering.take(x, identity(rank))
    values, indices = node.outputs
    quant = lowering.file.tensors[source].quant
    shape = (*lowering.shape(x)[:-1], k)
    tensor = lowering.file.tensors[source]
    made = lowering.file.add_tensor(values or f"{indices}/values", shape, tensor.dtype, quant)
    found = lowering.file.add_tensor(f"{node.name}/int32", shape, "int32")
    count = lowering.int32(k, f"{node.name}/k")
    lowering.emit(B.TOPK_V2, [source, count], [made, found], S.TopKV2OptionsT())
    if values:
        lowering.hold(values, made, identity(rank), quant)
    if indices:
        lowering.emit(B.CAST, [found], [lowering.give(indices, identity(rank), None)], S.CastOptionsT())
