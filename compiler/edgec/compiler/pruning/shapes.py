"""How channels go through the operators that move and cut: reshapes, concatenations, slices, pools."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from edgec.compiler.pruning.channels import Ids
from edgec.compiler.pruning.trace import (
    Axes,
    Keep,
    Rule,
    Trace,
    constant,
    integer,
    integers,
    is_constant,
    label,
    set_constant,
)


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _transpose(t: Trace, node: ir.Node) -> None:
    x = _data(node)
    if is_constant(x):
        t.freeze_node(node, "takes a constant")
        return
    order = integers(node, "perm") or list(reversed(range(len(t.shape(x)))))
    t.axes[node.outputs[0]] = [t.of(x)[axis] for axis in order]


def _regroup(t: Trace, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes merge, and split where that leaves whole channels."""
    x, out = _data(node), node.outputs[0]
    if is_constant(x):
        t.freeze_node(node, "takes a constant")
        return
    axes: Axes = [None] * len(t.shape(out))
    for into, made in _blocks(t.shape(x), t.shape(out)):
        tracked = [a for a in into if t.of(x)[a] is not None]
        if not tracked:
            continue
        ids = t.of(x)[tracked[0]]
        assert ids is not None
        if len(tracked) == 1 and len(made) == 1:
            axes[made[0]] = _spread(ids, tracked[0], into, t.shape(x))
        elif len(tracked) == len(into) == 1:
            axis = _kept_axis(made, into[0] == max(a for a, n in enumerate(t.shape(x)) if n > 1))
            axes[axis] = _tied(t, ids, axis, made, t.shape(out))
        else:
            t.freeze(x, f"{label(node)} ({node.op_type}) mixes it with other axes", tracked)
    t.axes[out] = axes
    if node.op_type == "Reshape" and any(ids is not None for ids in axes):
        _set_sizes(t, node, 1, axes)


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the axes of two shapes, those of size 1 left out, so that each pair has as many elements."""
    left = [a for a, n in enumerate(old) if n > 1]
    right = [a for a, n in enumerate(new) if n > 1]
    found: list[tuple[list[int], list[int]]] = []
    while left or right:
        into, made = left[:1], right[:1]
        sizes = [old[left[0]] if left else 1, new[right[0]] if right else 1]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                into.append(left[len(into)])
                sizes[0] *= old[into[-1]]
            else:
                made.append(right[len(made)])
                sizes[1] *= new[made[-1]]
        left, right = left[len(into) :], right[len(made) :]
        found.append((into, made))
    return found


def _spread(ids: Ids, axis: int, into: Sequence[int], shape: Sequence[int]) -> Ids:
    """Return the channels of the axis that several are merged into, one of which has channels."""
    before = int(np.prod([shape[a] for a in into if a < axis], dtype=np.int64))
    after = int(np.prod([shape[a] for a in into if a > axis], dtype=np.int64))
    return np.tile(np.repeat(ids, after), before)


def _kept_axis(made: Sequence[int], last: bool) -> int:
    """Return which of the axes that a channel axis is split into has the channels.

    The last axis of a tensor is split into heads, [heads, size], or into queries, keys and values of heads,
    [3, heads, size]: whole heads stay or go. Others are split for a channel shuffle, [groups, size]: the same
    channel of every group stays or goes.
    """
    if not last:
        return made[-1]
    return made[0] if len(made) == 2 else made[1]


def _tied(t: Trace, ids: Ids, axis: int, made: Sequence[int], shape: Sequence[int]) -> Ids:
    """Tie all channels of the same position on one of the axes that they are split into."""
    position = made.index(axis)
    sizes = [shape[a] for a in made]
    rows = np.moveaxis(ids.reshape(sizes), position, 0).reshape(shape[axis], -1)
    for column in rows.T[1:]:
        t.channels.tie(rows[:, 0], column)
    return np.asarray(rows[:, 0])


def _set_sizes(t: Trace, node: ir.Node, index: int, axes: Axes) -> None:
    """Have a constant of sizes follow what is kept; sizes that are computed keep everything."""
    sizes = constant(node, index)
    if sizes is None:
        t.freeze(node.outputs[0], f"{label(node)} ({node.op_type}) computes its shape")
        return
    t.rewrites.append(partial(_write_sizes, node, index, sizes, axes))


def _write_sizes(node: ir.Node, index: int, sizes: np.ndarray, axes: Axes, keep: Keep) -> None:
    written = sizes.copy()
    for axis, ids in enumerate(axes):
        if ids is not None and written[axis] > 0:
            written[axis] = int(keep(ids).sum())
    set_constant(node, index, written)


def _concat(t: Trace, node: ir.Node) -> None:
    out = node.outputs[0]
    rank = len(t.shape(out))
    along = integer(node, "axis", 0) % rank
    values = [v for v in node.inputs if v is not None]
    axes: Axes = []
    for axis in range(rank):
        if axis == along:
            axes.append(np.concatenate([_certain(t, v, axis, node) for v in values]))
            continue
        found = [None if not is_constant(v) and t.of(v)[axis] is None else t.ids(v, axis) for v in values]
        for other in found[1:]:
            t.tie(found[0], other, f"{label(node)} (Concat) joins it with what must stay")
        axes.append(found[0] if all(ids is not None for ids in found) else None)
    t.axes[out] = axes


def _certain(t: Trace, value: ir.Value, axis: int, node: ir.Node) -> Ids:
    """Return the channels of an axis; those of a fixed one are new, and frozen."""
    found = t.ids(value, axis)
    if found is None:
        found = t.channels.new(t.shape(value)[axis])
        t.channels.freeze(found, f"{label(node)} (Concat) takes it from what must stay")
    return found


def _split(t: Trace, node: ir.Node) -> None:
    x = _data(node)
    rank = len(t.shape(x))
    along, start = integer(node, "axis", 0) % rank, 0
    parts: list[Ids] = []
    ids = t.of(x)[along] if not is_constant(x) else None
    for out in node.outputs:
        axes: Axes = [None if is_constant(x) else found for found in t.of(x)]
        size = t.shape(out)[along]
        axes[along] = None if ids is None else ids[start : start + size]
        parts += [] if ids is None else [ids[start : start + size]]
        start += size
        t.axes[out] = axes
    if is_constant(x):
        t.freeze_node(node, "takes a constant")
    elif ids is not None:
        t.rewrites.append(partial(_write_parts, node, t.opset, parts))


def _write_parts(node: ir.Node, opset: int, parts: Sequence[Ids], keep: Keep) -> None:
    sizes = [int(keep(part).sum()) for part in parts]
    if opset < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    node.attributes.pop("num_outputs", None)
    set_constant(node, 1, np.array(sizes, np.int64))


def _slice(t: Trace, node: ir.Node) -> None:
    x, out = _data(node), node.outputs[0]
    rank, shape = len(t.shape(x)), t.shape(x)
    starts, ends, axes, steps = (constant(node, i) for i in (1, 2, 3, 4))
    read = (starts, ends, axes, steps)
    computed = any(v is not None and r is None for v, r in zip(node.inputs[1:], read, strict=False))
    if starts is None or ends is None or computed or is_constant(x):
        t.freeze_node(node, "is cut where it is computed")
        return
    along = [int(a) % rank for a in (axes if axes is not None else range(len(starts)))]
    given: Axes = list(t.of(x))
    for i, axis in enumerate(along):
        ids = given[axis]
        if ids is None:
            continue
        if steps is not None and steps[i] != 1:
            t.freeze(x, f"{label(node)} (Slice) takes every n-th of it", [axis])
            given[axis] = None
            continue
        first, last, _ = slice(int(starts[i]), int(ends[i])).indices(shape[axis])
        given[axis] = ids[first:last]
        t.rewrites.append(partial(_write_bounds, node, i, ids, (first, last)))
    t.axes[out] = given


def _write_bounds(node: ir.Node, index: int, ids: Ids, bounds: tuple[int, int], keep: Keep) -> None:
    kept = keep(ids)
    for which, bound in zip((1, 2), bounds, strict=True):
        values = constant(node, which)
        assert values is not None
        changed = values.copy()
        changed[index] = int(kept[:bound].sum())
        set_constant(node, which, changed)


def _gather(t: Trace, node: ir.Node) -> None:
    x, indices = _data(node), node.inputs[1]
    assert indices is not None
    rank, picked = len(t.shape(x)), constant(node, 1)
    along = integer(node, "axis", 0) % rank
    axes = [t.ids(x, a) if a != along else t.of(x)[a] for a in range(rank)]
    ids, middle = axes[along], len(t.shape(indices))
    found: Axes = [None] * middle
    if ids is not None:
        if picked is not None and picked.ndim == 1:
            found = [ids[picked]]
            t.rewrites.append(partial(_write_picked, node, ids, picked % len(ids)))
        else:
            t.freeze(x, f"{label(node)} (Gather) picks from it", [along])
    elif is_constant(x):
        t.freeze(x, f"{label(node)} (Gather) picks from it", [along])
    t.axes[node.outputs[0]] = [*axes[:along], *found, *axes[along + 1 :]]


def _write_picked(node: ir.Node, ids: Ids, picked: np.ndarray, keep: Keep) -> None:
    kept = keep(ids)
    places = np.cumsum(kept) - 1
    set_constant(node, 1, places[picked[kept[picked]]].astype(np.int64))


def _same_size(t: Trace, node: ir.Node) -> None:
    """Pools, Resize, Pad: axes that keep their size keep their channels."""
    x, out = _data(node), node.outputs[0]
    if is_constant(x) or len([o for o in node.outputs if o.name]) > 1:
        t.freeze_node(node, "gives positions too" if len(node.outputs) > 1 else "takes a constant")
        return
    old, new = t.shape(x), t.shape(out)
    axes: Axes = []
    for axis, ids in enumerate(t.of(x)):
        same = axis < 2 if "Pool" in node.op_type else old[axis] == new[axis]
        if ids is not None and not same:
            t.freeze(x, f"{label(node)} ({node.op_type}) changes its size", [axis])
        axes.append(ids if same else None)
    t.axes[out] = axes
    if node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3] is not None:
        if integers(node, "axes") is not None:
            t.freeze_node(node, "names the axes of its sizes")
        else:
            _set_sizes(t, node, 3, axes)
    if node.op_type == "Pad" and len(node.inputs) > 1 and constant(node, 1) is None:
        t.freeze_node(node, "computes its pads")


SHAPE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _regroup),
    **dict.fromkeys(
        (
            "AveragePool",
            "GlobalAveragePool",
            "GlobalLpPool",
            "GlobalMaxPool",
            "LpPool",
            "MaxPool",
            "Pad",
            "Resize",
            "Upsample",
        ),
        _same_size,
    ),
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
