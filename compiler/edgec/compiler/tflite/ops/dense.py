"""Fully connected layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import identity
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.ops.attention import lower_batch_matmul
from edgec.compiler.tflite.ops.convolution import add_weights
from edgec.compiler.tflite.registry import Refused, operator


@operator("Gemm", tflite=("FULLY_CONNECTED",), limits="B constant; C constant, one value per column")
def lower_gemm(lowering: Lowering, node: Node) -> None:
    """Write alpha A B + beta C."""
    weights = lowering.constant(node, 1, "second matrix")
    alpha, beta = (float(node.attributes.get(n, 1.0)) for n in ("alpha", "beta"))
    columns = weights if node.attributes.get("transB", 0) else weights.T
    bias = lowering.optional_constant(node, 2, "third matrix")
    if bias is not None and bias.size not in (1, columns.shape[0]):
        raise Refused("its third matrix has other values in each row", "add it by an Add instead")
    vector: NDArray[np.float32] = np.zeros(columns.shape[0], np.float32)
    if bias is not None:
        vector = np.asarray(vector + np.float32(beta) * bias.reshape(-1), np.float32)
    layout = (1, 0) if node.attributes.get("transA", 0) else (0, 1)
    _connect(lowering, node, columns * np.float32(alpha), vector, layout, node.outputs[0])


@operator(
    "MatMul",
    tflite=("FULLY_CONNECTED", "BATCH_MATMUL"),
    limits="of floats; at most 5 axes",
    note="by a constant matrix: FULLY_CONNECTED, else BATCH_MATMUL",
)
def lower_matmul(lowering: Lowering, node: Node) -> None:
    """Write a product with a constant matrix, and the bias that an Add after it brings; or of two values."""
    weights = lowering.graph.constants.get(node.inputs[1])
    rank = lowering.rank(node.inputs[0])
    if weights is None or weights.ndim != 2 or rank < 2 or weights.dtype != np.float32:
        lower_batch_matmul(lowering, node)
        return
    bias, output = np.zeros(weights.shape[1], np.float32), node.outputs[0]
    added = lowering.follow(output, "Add")
    if added is not None:
        vector = _vector(lowering, added, output, weights.shape[1])
        if vector is not None:
            lowering.done.add(added.name)
            bias, output = vector, added.outputs[0]
    layout = lowering.layout(node.inputs[0])
    if sorted(layout) != list(range(rank)) or layout[-1] != rank - 1:
        layout = identity(rank)
    _connect(lowering, node, weights.T, bias, layout, output)


def _vector(lowering: Lowering, added: Node, product: str, size: int) -> NDArray[np.float32] | None:
    other = added.inputs[1] if added.inputs[0] == product else added.inputs[0]
    array = lowering.graph.constants.get(other)
    if array is None or array.ndim > lowering.rank(product) or array.size not in (1, size):
        return None
    if array.size > 1 and array.shape[-1] != size:
        return None
    return np.broadcast_to(array.reshape(-1), (size,)).astype(np.float32)


def _connect(
    lowering: Lowering,
    node: Node,
    columns: NDArray[np.float32],
    bias: NDArray[np.float32],
    layout: tuple[int, ...],
    output: str,
) -> None:
    """Write a fully connected layer of weights [out, in]."""
    x = node.inputs[0]
    if columns.dtype != np.float32 or not (np.isfinite(columns).all() and np.isfinite(bias).all()):
        raise Refused("its weights are not finite float32", "convert the model to float32 first")
    if x in lowering.column_order:
        columns = columns[:, lowering.column_order[x]]
    output, activation = lowering.fuse_activation(output)
    tensor = lowering.take(x, layout)
    w, b = add_weights(lowering, node, np.ascontiguousarray(columns), bias, tensor, 0)
    options = S.FullyConnectedOptionsT()
    options.fusedActivationFunction = activation
    options.keepNumDims = len(layout) > 2
    options.asymmetricQuantizeInputs = lowering.hybrid
    after = (0, 1) if layout == (1, 0) else layout
    lowering.emit(B.FULLY_CONNECTED, [tensor, w, b], [lowering.give(output, after)], options)
