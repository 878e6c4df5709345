"""Layouts: which axis of an ONNX value each axis of a tensor in the file holds.

A layout is a tuple: ``(0, 2, 3, 1)`` is an NCHW value kept as NHWC. ``-1`` is an axis of length one that the
value does not have: a 1-D convolution keeps its NCW values as ``(0, -1, 2, 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Layout = tuple[int, ...]


def identity(rank: int) -> Layout:
    """Return the layout of a tensor that keeps the value's own axes."""
    return tuple(range(rank))


def channels_last(rank: int) -> Layout:
    """Return the layout in which images go through convolutions and pools; always of four axes.

    Raises:
        ValueError: The value is none of [n, c], [n, c, w] and [n, c, h, w].
    """
    match rank:
        case 2:
            return (0, -1, -1, 1)
        case 3:
            return (0, -1, 2, 1)
        case 4:
            return (0, 2, 3, 1)
        case _:
            raise ValueError(f"no image has {rank} axes")


def tensor_shape(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """Return the shape of the tensor that holds a value of `shape`."""
    return tuple(1 if axis < 0 else shape[axis] for axis in layout)


def significant(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """Return the value's axes longer than one in the order of the tensor: what decides the order of bytes."""
    return tuple(axis for axis in layout if axis >= 0 and shape[axis] != 1)


def is_flat(shape: Sequence[int], layout: Layout) -> bool:
    """Whether the tensor's bytes are in the value's own order."""
    order = significant(shape, layout)
    return order == tuple(sorted(order))


def permutation(shape: Sequence[int], source: Layout, target: Layout) -> tuple[int, ...] | None:
    """Return what TRANSPOSE takes to go from one layout to another; None where the ranks differ.

    Axes of length one match each other where their own names do not.
    """
    if len(source) != len(target):
        return None
    free = list(range(len(source)))
    found: list[int] = []
    for axis in target:
        match = [i for i in free if source[i] == axis] or [
            i for i in free if _is_one(shape, source[i]) and _is_one(shape, axis)
        ]
        if not match:
            return None
        found.append(match[0])
        free.remove(match[0])
    return tuple(found)


def _is_one(shape: Sequence[int], axis: int) -> bool:
    return axis < 0 or shape[axis] == 1


def transposed(layout: Layout, perm: Sequence[int]) -> Layout:
    """Return the layout that makes a tensor of X one of ``Y = transpose(X, perm)`` without moving a byte."""
    where = {axis: index for index, axis in enumerate(perm)}
    return tuple(-1 if axis < 0 else where[axis] for axis in layout)


def without_axes(layout: Layout, axes: Sequence[int]) -> Layout:
    """Return the layout after some axes of the value are gone, from the tensor as well."""
    gone = set(axes)
    return tuple(
        axis if axis < 0 else axis - sum(a < axis for a in gone) for axis in layout if axis not in gone
    )


def reshaped(shape: Sequence[int], target: Sequence[int], layout: Layout) -> Layout | None:
    """Return the layout that makes a tensor of a value one of the value reshaped to `target`.

    No byte moves where axes merge that lie side by side in the tensor, or where one is split: an NHWC
    [n, c, h, w] becomes [n, h * w, c] of [n, c, h * w]. None where bytes would have to move.
    """
    order = significant(shape, layout)
    result: list[int] = []
    starts: dict[int, list[int]] = {}
    inside: set[int] = set()
    for old, new in _blocks(shape, target):
        if old:
            starts[old[0]] = new
            inside |= set(old[1:])
            at = order.index(old[0])
            if list(order[at : at + len(old)]) != old:
                return None
    for axis in order:
        if axis not in inside:
            result += starts[axis]
    for axis in range(len(target)):
        if target[axis] == 1:
            position = next((i for i, other in enumerate(result) if other > axis), len(result))
            result.insert(position, axis)
    return tuple(result)


def gathered(shape: Sequence[int], target: Sequence[int], layout: Layout) -> Layout:
    """Return the nearest layout in which a value can be reshaped to `target` without moving a byte.

    Axes that merge come together, in the value's order, where the first of them is.
    """
    blocks = {axis: old for old, _ in _blocks(shape, target) for axis in old}
    result: list[int] = []
    for axis in significant(shape, layout):
        result += [a for a in blocks[axis] if a not in result]
    return (*(a for a in range(len(shape)) if shape[a] == 1), *result)


def _blocks(shape: Sequence[int], target: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the shortest runs of axes longer than one of both shapes that hold as many elements."""
    old = [a for a, size in enumerate(shape) if size != 1]
    new = [a for a, size in enumerate(target) if size != 1]
    while old or new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (have := _size(shape, left)) != (want := _size(target, right)):
            if have < want:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        yield left, right


def _size(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[a] for a in axes)


def padded(layout: Layout, missing: int) -> Layout:
    """Return a layout for a value that lacks the first `missing` axes that `layout` speaks of."""
    return tuple(axis - missing if axis >= missing else -1 for axis in layout)
