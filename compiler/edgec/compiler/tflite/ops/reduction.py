"""Reductions over axes, global pools among them."""

from __future__ import annotations

from typing import Any

from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import Layout, identity, without_axes
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.modes import FLOAT_ONLY
from edgec.compiler.tflite.registry import Refused, operator


def reduced_axes(lowering: Lowering, node: Node) -> tuple[int, ...]:
    """Return the axes that a reduction removes, each from 0 up."""
    rank = lowering.rank(node.inputs[0])
    if node.input(1):
        axes = [int(a) for a in lowering.constant(node, 1, "axes").reshape(-1)]
    else:
        axes = list(node.ints("axes", ()))
    if not axes and not node.attributes.get("noop_with_empty_axes", 0):
        axes = list(range(rank))
    return tuple(sorted({a % rank for a in axes}))


def reduce(
    lowering: Lowering,
    node: Node,
    builtin: int,
    axes: tuple[int, ...],
    *,
    keep: bool,
    same_numbers: bool = False,
) -> None:
    """Write a reduction; the layout stays, without the axes that are gone."""
    x, output = node.inputs[0], node.outputs[0]
    if not axes:
        lowering.alias(output, x, lowering.layout(x))
        return
    layout = _reducible(lowering, x, axes)
    tensor = lowering.take(x, layout)
    after = layout if keep else without_axes(layout, axes)
    quant: Any = lowering.file.tensors[tensor].quant if same_numbers else "own"
    made = lowering.give(output, after, quant)
    emit_reduction(lowering, builtin, tensor, [layout.index(a) for a in axes], made, keep=keep)


def emit_reduction(
    lowering: Lowering, builtin: int, tensor: int, positions: list[int], made: int, *, keep: bool
) -> None:
    """Append a reduction over axes of a tensor."""
    options = S.ReducerOptionsT()
    options.keepDims = keep
    name = lowering.file.tensors[made].name
    axes = lowering.int32(sorted(positions), f"{name}/axes")
    lowering.emit(builtin, [tensor, axes], [made], options)


def _reducible(lowering: Lowering, name: str, axes: tuple[int, ...]) -> Layout:
    layout = lowering.layout(name)
    if set(range(lowering.rank(name))) <= set(layout):
        return layout
    return identity(lowering.rank(name))


def _keeps(node: Node) -> bool:
    return bool(node.attributes.get("keepdims", 1))


@operator("ReduceMean", tflite=("MEAN",))
def lower_mean(lowering: Lowering, node: Node) -> None:
    """Write a mean."""
    reduce(lowering, node, B.MEAN, reduced_axes(lowering, node), keep=_keeps(node))


@operator("ReduceSum", tflite=("SUM",))
def lower_sum(lowering: Lowering, node: Node) -> None:
    """Write a sum."""
    reduce(lowering, node, B.SUM, reduced_axes(lowering, node), keep=_keeps(node))


@operator("ReduceMax", tflite=("REDUCE_MAX",))
def lower_reduce_max(lowering: Lowering, node: Node) -> None:
    """Write a maximum; the kernel compares the integers themselves."""
    reduce(lowering, node, B.REDUCE_MAX, reduced_axes(lowering, node), keep=_keeps(node), same_numbers=True)


@operator("ReduceMin", tflite=("REDUCE_MIN",))
def lower_reduce_min(lowering: Lowering, node: Node) -> None:
    """Write a minimum; the kernel compares the integers themselves."""
    reduce(lowering, node, B.REDUCE_MIN, reduced_axes(lowering, node), keep=_keeps(node), same_numbers=True)


@operator("ReduceProd", tflite=("REDUCE_PROD",), modes=FLOAT_ONLY)
def lower_prod(lowering: Lowering, node: Node) -> None:
    """Write a product."""
    reduce(lowering, node, B.REDUCE_PROD, reduced_axes(lowering, node), keep=_keeps(node))


@operator("ReduceSumSquare", "ReduceL2", tflite=("MUL", "SUM", "SQRT"), modes=FLOAT_ONLY)
def lower_sum_square(lowering: Lowering, node: Node) -> None:
    """Write a sum of squares, and for ReduceL2 its root."""
    x, output = node.inputs[0], node.outputs[0]
    axes = reduced_axes(lowering, node)
    layout = _reducible(lowering, x, axes)
    tensor = lowering.take(x, layout)
    square = lowering.file.add_tensor(f"{output}/square", lowering.file.tensors[tensor].shape, "float32")
    lowering.emit(B.MUL, [tensor, tensor], [square], S.MulOptionsT())
    after = layout if _keeps(node) else without_axes(layout, axes)
    made = lowering.give(output, after)
    positions = [layout.index(a) for a in axes]
    if node.op == "ReduceSumSquare":
        emit_reduction(lowering, B.SUM, square, positions, made, keep=_keeps(node))
        return
    total = lowering.file.add_tensor(f"{output}/sum", lowering.file.tensors[made].shape, "float32")
    emit_reduction(lowering, B.SUM, square, positions, total, keep=_keeps(node))
    lowering.emit(B.SQRT, [total], [made])


def _spatial(lowering: Lowering, node: Node) -> tuple[int, ...]:
    return tuple(range(2, lowering.rank(node.inputs[0])))


@operator("GlobalAveragePool", tflite=("MEAN",))
def lower_global_average_pool(lowering: Lowering, node: Node) -> None:
    """Write the mean of each channel."""
    reduce(lowering, node, B.MEAN, _spatial(lowering, node), keep=True)


@operator("GlobalMaxPool", tflite=("REDUCE_MAX",))
def lower_global_max_pool(lowering: Lowering, node: Node) -> None:
    """Write the maximum of each channel."""
    reduce(lowering, node, B.REDUCE_MAX, _spatial(lowering, node), keep=True, same_numbers=True)


@operator(
    "ArgMax",
    "ArgMin",
    tflite=("ARG_MAX", "ARG_MIN"),
    limits="the first index of equal values",
)
def lower_arg(lowering: Lowering, node: Node) -> None:
    """Write the index of the largest or smallest value along an axis."""
    if node.attributes.get("select_last_index", 0):
        raise Refused("it gives the last index of equal values", "export it with select_last_index=0")
    x, output = node.inputs[0], node.outputs[0]
    axis = int(node.attributes.get("axis", 0)) % lowering.rank(x)
    layout = _reducible(lowering, x, (axis,))
    tensor = lowering.take(x, layout)
    after = without_axes(layout, (axis,))
    position = lowering.int32(layout.index(axis), f"{output}/axis")
    largest = node.op == "ArgMax"
    options = S.ArgMaxOptionsT() if largest else S.ArgMinOptionsT()
    options.outputType = S.TensorType.INT64
    shape = [d for i, d in enumerate(lowering.file.tensors[tensor].shape) if i != layout.index(axis)]
    builtin = B.ARG_MAX if largest else B.ARG_MIN
    if not _keeps(node):
        lowering.emit(builtin, [tensor, position], [lowering.give(output, after, None)], options)
        return
    made = lowering.file.add_tensor(f"{output}/dropped", shape, "int64")
    lowering.emit(builtin, [tensor, position], [made], options)
    wide = tuple(1 if a == axis or a < 0 else lowering.shape(x)[a] for a in layout)
    lowering.hold(output, lowering.reshape(made, wide, output), layout, None)
