"""How channels go through the operators: all rules, and those of elementwise operators and normalizations."""

from __future__ import annotations

import onnx_ir as ir

from edgec.compiler.pruning.channels import Ids
from edgec.compiler.pruning.layers import LAYER_RULES
from edgec.compiler.pruning.shapes import SHAPE_RULES
from edgec.compiler.pruning.trace import Rule, Trace, constant, integer, integers, is_constant, label

_UNARY = (
    "Abs",
    "Acos",
    "Asin",
    "Atan",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
)
_BROADCAST = (
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
)
_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)


def _unary(t: Trace, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    if is_constant(x):
        t.freeze_node(node, "takes a constant")
        return
    for out in node.outputs:
        t.axes[out] = list(t.of(x))


def _broadcast(t: Trace, node: ir.Node) -> None:
    rank = len(t.shape(node.outputs[0]))
    t.axes[node.outputs[0]] = [_joined(t, node, axis - rank) for axis in range(rank)]


def _joined(t: Trace, node: ir.Node, axis: int) -> Ids | None:
    """Tie the axes that broadcasting lays on each other, given from the end."""
    size = t.shape(node.outputs[0])[axis]
    if size == 1:
        return None
    full = [v for v in node.inputs if v is not None and len(t.shape(v)) >= -axis and t.shape(v)[axis] == size]
    if any(not is_constant(v) and t.of(v)[axis] is None for v in full):
        for value in full:
            if t.of(value)[axis] is not None:
                t.freeze(value, f"{label(node)} ({node.op_type}) joins it with what must stay", [axis])
        return None
    found = [ids for v in full if (ids := t.ids(v, axis)) is not None]
    for ids in found[1:]:
        t.channels.tie(found[0], ids)
    return found[0]


def _per_channel(t: Trace, node: ir.Node) -> None:
    """Batch and instance normalization: parameters go with the channels on axis 1."""
    x = node.inputs[0]
    assert x is not None
    if len([out for out in node.outputs if out.name]) > 1:
        t.freeze_node(node, "is in training mode")
        return
    for parameter in node.inputs[1:]:
        if parameter is not None:
            t.tie(t.ids(parameter, 0), t.ids(x, 1), f"{label(node)} ({node.op_type}) has computed parameters")
    t.axes[node.outputs[0]] = list(t.of(x))


def _along(t: Trace, node: ir.Node) -> None:
    """Softmax and LayerNormalization: what they sum over stays."""
    x = node.inputs[0]
    assert x is not None
    rank = len(t.shape(x))
    first = integer(node, "axis", -1 if node.op_type == "LayerNormalization" or t.opset >= 13 else 1) % rank
    several = node.op_type == "LayerNormalization" or t.opset < 13
    summed = range(first, rank) if several else (first,)
    t.freeze(x, f"{label(node)} ({node.op_type}) sums over it", summed)
    for parameter in node.inputs[1:]:
        if parameter is not None:
            t.freeze(parameter, f"{label(node)} ({node.op_type}) sums over it")
    t.axes[node.outputs[0]] = list(t.of(x))


def _reduce(t: Trace, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    rank, kept = len(t.shape(x)), integer(node, "keepdims", 1)
    axes = integers(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant(node, 1)
        if given is None:
            t.freeze_node(node, "computes its axes")
            return
        axes = given.ravel().tolist()
    if not axes and integer(node, "noop_with_empty_axes", 0):
        t.axes[node.outputs[0]] = list(t.of(x))
        return
    summed = {a % rank for a in axes} if axes else set(range(rank))
    t.freeze(x, f"{label(node)} ({node.op_type}) sums over it", sorted(summed))
    found = [None if axis in summed else ids for axis, ids in enumerate(t.of(x))]
    t.axes[node.outputs[0]] = [ids for axis, ids in enumerate(found) if kept or axis not in summed]


RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization"), _along),
    **LAYER_RULES,
    **SHAPE_RULES,
}
"""By operator of the default domain."""
