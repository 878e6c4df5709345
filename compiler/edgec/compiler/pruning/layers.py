"""How channels go through the operators that multiply and accumulate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from edgec.compiler.pruning.channels import Ids
from edgec.compiler.pruning.trace import (
    Axes,
    Contraction,
    Keep,
    Rule,
    Trace,
    integer,
    is_constant,
    label,
)


def _conv(t: Trace, node: ir.Node) -> None:
    x, w = _operands(node)
    if not is_constant(w) or is_constant(x):
        t.freeze_node(node, "has computed weights")
        return
    group, part, taken = integer(node, "group", 1), t.shape(w)[1], t.ids(x, 1)
    given, summed = t.ids(w, 0), t.ids(w, 1)
    assert given is not None
    why = f"{label(node)} (Conv) takes channels that must stay"
    if group == 1:
        t.tie(summed, taken, why)
    elif part == 1:  # depthwise: what it takes is what it gives
        t.tie(given, None if taken is None else np.repeat(taken, len(given) // group), why)
        _count_groups(t, node, taken)
    else:
        t.tie_rows(given, group)
        t.tie_rows(taken, group)
        t.tie(summed, None if taken is None else taken[:part], why)
    _finish(t, node, given)
    macs = _size(t.shape(node.outputs[0])) * _size(t.shape(w)[1:])
    _cost(t, node, macs, (given, summed), taken, given)


def _conv_transpose(t: Trace, node: ir.Node) -> None:
    x, w = _operands(node)
    if not is_constant(w) or is_constant(x):
        t.freeze_node(node, "has computed weights")
        return
    group, taken = integer(node, "group", 1), t.ids(x, 1)
    first, part = t.ids(w, 0), t.ids(w, 1)
    assert part is not None
    t.tie(first, taken, f"{label(node)} (ConvTranspose) takes channels that must stay")
    given: Ids | None = part
    if group > 1 and t.shape(w)[0] == group:  # depthwise
        t.channels.freeze(part, f"{label(node)} (ConvTranspose) gives them for each channel")
        given = None if taken is None else np.repeat(taken, len(part))
        _count_groups(t, node, taken)
    elif group > 1:
        t.tie_rows(taken, group)
        given = np.tile(part, group)
    _finish(t, node, given)
    _cost(t, node, _size(t.shape(x)) * _size(t.shape(w)[1:]), (taken, part), taken, given)


def _gemm(t: Trace, node: ir.Node) -> None:
    a, b = _operands(node)
    out = node.outputs[0]
    if integer(node, "transA", 0):
        t.freeze_node(node, "transposes its first input")
        return
    sums, gives = (1, 0) if integer(node, "transB", 0) else (0, 1)
    taken, given = t.ids(a, 1), t.ids(b, gives)
    t.tie(t.ids(b, sums), taken, f"{label(node)} (Gemm) takes channels that must stay")
    rows = t.of(a)[0]
    t.axes[out] = [rows, given]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        _tie_bias(t, node, bias)
    _cost(t, node, _size(t.shape(out)) * t.shape(a)[1], (rows, given, t.ids(b, sums)), taken, given)


def _tie_bias(t: Trace, node: ir.Node, bias: ir.Value) -> None:
    """Tie what a Gemm adds, which may be broadcast to its output."""
    axes, shape = t.of(node.outputs[0]), t.shape(bias)
    for own, size in enumerate(shape):
        axis = own + 2 - len(shape)
        if size > 1 and (axes[axis] is not None or not is_constant(bias)):
            t.tie(axes[axis], t.ids(bias, own), f"{label(node)} (Gemm) adds what must stay")


def _matmul(t: Trace, node: ir.Node) -> None:
    a, b = _operands(node)
    left, right = t.shape(a), t.shape(b)
    if min(len(left), len(right)) < 2 or is_constant(a):
        t.freeze_node(node, "has a vector or a constant on its left")
        return
    taken = t.ids(a, -1)
    t.tie(t.ids(b, -2), taken, f"{label(node)} (MatMul) takes channels that must stay")
    shape = t.shape(node.outputs[0])
    batch: Axes = [_batch(t, node, axis - len(shape)) for axis in range(len(shape) - 2)]
    axes: Axes = [*batch, t.of(a)[-2], t.ids(b, -1)]
    t.axes[node.outputs[0]] = axes
    _cost(t, node, _size(shape) * left[-1], (*axes, taken), taken, axes[-1])


def _batch(t: Trace, node: ir.Node, axis: int) -> Ids | None:
    """Return the channels of a batch axis of a product, given from the end."""
    found = [v for v in node.inputs if v is not None and len(t.shape(v)) >= -axis and t.shape(v)[axis] > 1]
    tracked = [t.ids(v, axis) for v in found]
    if not tracked:
        return None
    for other in tracked[1:]:
        t.tie(tracked[0], other, f"{label(node)} (MatMul) joins it with what must stay")
    return tracked[0] if all(ids is not None for ids in tracked) else None


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    first, second = node.inputs[0], node.inputs[1]
    assert first is not None
    assert second is not None
    return first, second


def _finish(t: Trace, node: ir.Node, given: Ids | None) -> None:
    """Tie the bias of a convolution, and give its output its channels."""
    x, bias, out = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None, node.outputs[0]
    assert x is not None
    if bias is not None:
        t.tie(t.ids(bias, 0), given, f"{label(node)} ({node.op_type}) gives what must stay")
    t.axes[out] = [t.of(x)[0], given, *[None] * (len(t.shape(out)) - 2)]
    for axis in range(2, len(t.shape(x))):
        t.freeze(x, f"{label(node)} ({node.op_type}) slides along it", [axis])


def _count_groups(t: Trace, node: ir.Node, taken: Ids | None) -> None:
    if taken is not None:
        t.rewrites.append(partial(_set_group, node, taken))


def _set_group(node: ir.Node, taken: Ids, keep: Keep) -> None:
    node.attributes["group"] = ir.AttrInt64("group", int(keep(taken).sum()))


def _cost(
    t: Trace, node: ir.Node, macs: int, axes: Sequence[Ids | None], taken: Ids | None, given: Ids | None
) -> None:
    shortened = tuple(ids for ids in axes if ids is not None)
    t.contractions.append(Contraction(node=node, macs=macs, axes=shortened, taken=taken, given=given))


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


LAYER_RULES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
