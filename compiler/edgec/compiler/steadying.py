"""What a transformer needs so that its products keep their accuracy in dynamic int8.

Kernels that give each row of activations a scale of its own hold rows of any size, but not channels that are
larger than the others in every row. Those come from normalisations: their scale goes to the weights. What is
left to see is judged row by row, because the next normalisation brings all rows to one size: a layer may be
exact for the few rows that are a hundred times larger, which hide the others in any sum of squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs
from edgec.compiler.passes.smooth_quant import smooth_activations
from edgec.compiler.products import is_product, is_transposed
from edgec.compiler.weight_scales import weight_scales

_ALPHA = 0.5  # 0.3 to 0.5 are within 1 dB on MiniLM; above, rows that no sample showed are lost
_FRAGILE_DB = 28.0  # MiniLM: one product at 25 dB, which costs half of all accuracy; the others above 30
_ROWS = 32  # of one sample
_TINY = 1e-12
_LEVELS = 255

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Steadied:
    """A model made ready for dynamic int8.

    Attributes:
        model: In fp32; it computes the same as before, to the last bit.
        smoothed: Activations whose channels were brought to similar sizes.
        fragile: Names of products that eight bits do not hold all the same, in the order of computation; a
            node without a name goes by its first output.
    """

    model: onnx.ModelProto
    smoothed: int
    fragile: tuple[str, ...]


def steadied(model: onnx.ModelProto, inputs: Iterable[Arrays]) -> Steadied:
    """Return a transformer with smoothed activations, and what of it should stay in float.

    Args:
        model: In fp32, weights inside; left as it is.
        inputs: Samples.
    """
    kept = list(inputs)
    smooth, changed = smooth_activations(model, kept, _ALPHA, normalized_only=True)
    found = row_snr_db(smooth, kept)
    return Steadied(
        model=smooth, smoothed=changed, fragile=tuple(n for n, db in found.items() if db < _FRAGILE_DB)
    )


def row_snr_db(model: onnx.ModelProto, inputs: Sequence[Arrays]) -> dict[str, float]:
    """Return the SNR of each product by constant weights in dynamic int8, all rows counting alike, in dB.

    Activations are asymmetric with one scale per row, weights symmetric with one per column, as LiteRT's
    kernels have them.

    Args:
        model: In fp32, weights inside.
        inputs: Samples; of each at most 32 rows are looked at.
    """
    weights = {t.name: t for t in model.graph.initializer}
    products = [n for n in model.graph.node if is_product(n, weights)]
    matrices = {n.output[0]: _columns(n, weights) for n in products}
    noise = {n.output[0]: 0.0 for n in products}
    given = {i.name for i in model.graph.input}
    wanted = dict.fromkeys(n.input[0] for n in products if n.input[0] not in given)
    with ReferenceProgram(with_outputs(model, list(wanted)), optimize=True) as program:
        for sample in inputs:
            values = {**sample, **program.run(sample)}
            for node in products:
                noise[node.output[0]] += _noise(values[node.input[0]], *matrices[node.output[0]])
    return {
        node.name or node.output[0]: float(-10 * np.log10(noise[node.output[0]] / len(inputs) + 1e-30))
        for node in products
    }


def _columns(
    node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weights of a product as [in, out], exact and rounded."""
    matrix = numpy_helper.to_array(weights[node.input[1]])
    matrix = matrix.T if is_transposed(node) else matrix
    scale = np.maximum(weight_scales(matrix, 1), _TINY)
    return matrix, np.asarray(np.rint(matrix / scale) * scale, np.float32)


def _noise(values: NDArray[Any], exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    """Return noise by signal of the rows of a product, their mean."""
    rows = values.reshape(-1, values.shape[-1])
    rows = rows[:: max(1, len(rows) // _ROWS)].astype(np.float32)
    low = np.minimum(rows.min(axis=1, keepdims=True), 0)
    high = np.maximum(rows.max(axis=1, keepdims=True), 0)
    scale = np.maximum((high - low) / _LEVELS, _TINY)
    zero = np.rint(-low / scale)
    integers = np.clip(np.rint(rows / scale) + zero, 0, _LEVELS) - zero
    product = rows @ exact
    error = np.square(product - (integers * scale) @ rounded).sum(axis=1)
    signal = np.square(product).sum(axis=1)
    return float(np.mean(error / np.maximum(signal, _TINY)))
