"""Products of two values that are computed at run time: what attention is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import Layout, identity
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.registry import Refused, operator

_MAX_RANK = 5  # of what BATCH_MATMUL takes


def lower_batch_matmul(lowering: Lowering, node: Node) -> None:
    """Write a MatMul of two values, or of values whose constant is no matrix.

    1. The second operand is taken with its last two axes swapped (``adj_y``) where that is how it lies, or
       where bytes have to move anyway: kernels walk along its rows.
    2. An operand of one axis gets a second one, which the output lacks.
    """
    left, right = node.inputs[0], node.inputs[1]
    ranks = lowering.rank(left), lowering.rank(right)
    if max(ranks) > _MAX_RANK or min(ranks) == 0:
        raise Refused(f"it multiplies {ranks[0]} axes by {ranks[1]}", f"use 1 to {_MAX_RANK} axes")
    if not lowering.is_float(left):
        raise Refused("it multiplies integers", "compute it in float, or outside the model")
    a, b, swapped = _left(lowering, left), *_right(lowering, right)
    output = node.outputs[0]
    made = lowering.give(output, identity(lowering.rank(output)))
    given = lowering.file.tensors[made]
    result = made
    if min(ranks) == 1:
        shape = _product_shape(lowering.file.tensors[a].shape, lowering.file.tensors[b].shape, swapped)
        result = lowering.file.add_tensor(f"{output}/matrix", shape, given.dtype, given.quant)
    _multiply(lowering, a, b, result, swapped)
    if result != made:
        lowering.hold(
            output, lowering.reshape(result, given.shape, output), identity(len(given.shape)), given.quant
        )


def _left(lowering: Lowering, name: str) -> int:
    rank = lowering.rank(name)
    return lowering.take(name, identity(rank) if rank > 1 else (-1, 0))


def _right(lowering: Lowering, name: str) -> tuple[int, bool]:
    """Return the second operand, and whether its last two axes are swapped."""
    rank = lowering.rank(name)
    if rank == 1:
        return lowering.take(name, (0, -1)), False
    straight = identity(rank)
    swapped = (*straight[:-2], rank - 1, rank - 2)
    if lowering.is_constant(name) or lowering.layout(name) == straight:
        return lowering.take(name, straight), False
    return lowering.take(name, swapped), True


def _product_shape(a: Sequence[int], b: Sequence[int], swapped: bool) -> tuple[int, ...]:
    batch = np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2]))
    return (*batch, a[-2], b[-2] if swapped else b[-1])


def _multiply(lowering: Lowering, a: int, b: int, result: int, swapped: bool) -> None:
    options = S.BatchMatMulOptionsT()
    options.adjX, options.adjY, options.asymmetricQuantizeInputs = False, swapped, False
    lowering.emit(B.BATCH_MATMUL, [a, b], [result], options)


@operator(
    "Einsum",
    tflite=("BATCH_MATMUL", "RESHAPE", "TRANSPOSE"),
    limits="two operands; no index twice in one of them, none summed over in one alone, no ellipsis",
)
def lower_einsum(lowering: Lowering, node: Node) -> None:
    """Write an Einsum as one product of batches of matrices."""
    first, second, result = _terms(node)
    x, y = node.inputs
    sizes = dict(zip(first + second, lowering.shape(x) + lowering.shape(y), strict=True))
    batch = [i for i in result if i in first and i in second]
    rows = [i for i in result if i in first and i not in second]
    columns = [i for i in result if i in second and i not in first]
    summed = [i for i in first if i in second and i not in result]
    a = _matrices(lowering, x, first, [batch, rows, summed], sizes)
    b = _matrices(lowering, y, second, [batch, columns, summed], sizes)
    order = [*batch, *rows, *columns]
    layout = tuple(result.index(i) for i in order)
    output = node.outputs[0]
    made = lowering.give(output, layout)
    given = lowering.file.tensors[made]
    shape = [_size(batch, sizes), _size(rows, sizes), _size(columns, sizes)]
    product = lowering.file.add_tensor(f"{output}/product", shape, given.dtype, given.quant)
    _multiply(lowering, a, b, product, swapped=True)
    lowering.hold(output, lowering.reshape(product, given.shape, output), layout, given.quant)


def _terms(node: Node) -> tuple[str, str, str]:
    """Return the indices of both operands and of the result.

    Raises:
        Refused: They are none that one product of matrices computes.
    """
    equation = node.text("equation", "").replace(" ", "")
    left, _, result = equation.partition("->")
    terms = left.split(",")
    fix = "export it as MatMul, Transpose and Reshape"
    if len(terms) != 2 or "->" not in equation or "." in equation:
        raise Refused(f"its equation is {equation!r}", fix)
    first, second = terms
    if any(len(set(t)) != len(t) for t in (first, second, result)):
        raise Refused(f"an index is there twice in {equation!r}", fix)
    if set(first) ^ set(second) != (set(first) ^ set(second)) & set(result):
        raise Refused(f"{equation!r} sums over an index of one operand alone", fix)
    return first, second, result


def _matrices(
    lowering: Lowering, name: str, term: str, groups: Sequence[Sequence[str]], sizes: dict[str, int]
) -> int:
    """Return a value as [batch, rows, columns], each of several of its axes."""
    layout: Layout = tuple(term.index(i) for group in groups for i in group)
    tensor = lowering.take(name, layout)
    shape = tuple(_size(group, sizes) for group in groups)
    if lowering.file.tensors[tensor].shape == shape:
        return tensor
    return lowering.reshape(tensor, shape, name)


def _size(indices: Sequence[str], sizes: dict[str, int]) -> int:
    return math.prod(sizes[i] for i in indices)
