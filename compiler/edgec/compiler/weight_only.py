"""Compressed weights: matrices are int8 or int4 in the file and in memory, and the arithmetic stays in float.

For large products, such as those of transformers. It makes artifacts small and needs no calibration; it makes
nothing faster where arithmetic and not memory is the bottleneck, since every product first unpacks what it
takes. Embeddings have int8 rows with one scale each, in int4 too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.parity import Reference, float_reference
from edgec.compiler.passes.sort_nodes import sort_nodes
from edgec.compiler.products import (
    Rewriter,
    float_sizes,
    is_product,
    is_transposed,
    matrices_of,
    named,
    with_domain,
)
from edgec.compiler.quantization import lift_constants, raise_opset
from edgec.compiler.weight_scales import weight_scales
from edgec.errors import ConversionError

Form = Literal["nbits", "dequantize", "float"]

BITS = {"int8-weights": 8, "int4-weights": 4}
# Values that share a scale. int4 needs small blocks; for int8 larger ones cost half a decibel or two, and a
# tenth of the file less.
_BLOCKS = {8: 128, 4: 32}
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 256
# Of all weights, what products and embeddings have to hold, and how much, to be worth a candidate.
_MIN_SHARE = 0.5
_MIN_BYTES = 1 << 20
_DEQUANTIZE_OPSET = 21  # the first with blocks, and with int4
_MICROSOFT = "com.microsoft"
# Engines multiply by a scale before or after they add up a block, which rounds every weight once more. The
# largest error of all moves by that; the root mean square, which faults move first, gets no margin.
_PEAK_MARGIN = 2.0
# Of the largest value of a block, where the range of int4 may end: clipping the ends can cost less than it
# gains on the rest.
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)


def unsuitable(model: onnx.ModelProto) -> str | None:
    """Return why compressed weights would gain nothing, in words; None where they would."""
    mine = matrices_of(model.graph)
    sizes = float_sizes(model.graph)
    held = sum(sizes[name] for name in mine)
    total = sum(sizes.values())
    if held * 4 >= _MIN_BYTES and held >= _MIN_SHARE * total:
        return None
    share = held / total if total else 0.0
    return (
        f"products and embeddings hold {held * 4 / 1e6:.2g} MB, {share:.0%} of the weights: compressing them "
        f"is for models where they hold {_MIN_BYTES / 1e6:.2g} MB and {_MIN_SHARE:.0%} at least"
    )


def compress_weights(
    model: onnx.ModelProto, bits: int, form: Form, *, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """Return the model with the constant matrices of MatMul and Gemm, and embeddings, compressed.

    Blocks of weights in the direction of the sum share a scale: 128 of them symmetric in int8, 32 of them
    with a zero point in int4. Same arguments, same bytes.

    Args:
        model: In fp32, weights inside; left as it is.
        bits: 8 or 4.
        form: How a product is written: ``nbits`` as ONNX Runtime's MatMulNBits; ``dequantize`` as
            DequantizeLinear of opset 21 before it, which OpenVINO keeps; ``float`` with the values that the
            integers stand for, which is what the other two compute.
        exclude: Names of nodes to leave as they are; a node without a name goes by its first output.

    Raises:
        ConversionError: The weights are outside the model, no product is left to compress, or the opset
            cannot be raised.
    """
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ConversionError(
            "compressing weights needs them inside the model, and these are too large: use fp32"
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    lift_constants(copy.graph)
    if not _compressible(copy.graph, bits, frozenset(exclude)):
        raise ConversionError("no MatMul or Gemm with constant weights is left to compress: use fp32")
    if form == "dequantize":
        copy = raise_opset(copy, _DEQUANTIZE_OPSET)
        copy.ir_version = max(copy.ir_version, 10)
        lift_constants(copy.graph)
    _WRITERS[form](copy.graph, exclude, bits).run()
    if form == "nbits":
        with_domain(copy, _MICROSOFT)
    del copy.graph.value_info[:]  # it speaks of tensors that are gone
    return sort_nodes(copy)


def compressed_reference(
    model: onnx.ModelProto, bits: int, inputs: Sequence[Mapping[str, NDArray[Any]]]
) -> Reference:
    """Return what artifacts with compressed weights are held against: the values that the integers stand for.

    Args:
        model: In fp32, weights inside.
        bits: 8 or 4.
        inputs: Samples.
    """
    reference = float_reference(compress_weights(model, bits, "float"), inputs, "fp32")
    described = reference.description.replace("the source", f"the source with weights of {bits} bits", 1)
    return replace(
        reference,
        tolerance={
            name: replace(t, max_abs=_PEAK_MARGIN * t.max_abs) for name, t in reference.tolerance.items()
        },
        description=f"{described}, of the largest error {_PEAK_MARGIN:g} x that",
    )


def _compressible(graph: onnx.GraphProto, bits: int, exclude: frozenset[str]) -> bool:
    weights = {t.name: t for t in graph.initializer}
    products = [n for n in graph.node if is_product(n, weights) and not named(n) & exclude]
    rows = (weights[n.input[1]].dims[1 if is_transposed(n) else 0] for n in products)
    return any(block_of(r, bits) is not None for r in rows)


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A matrix of `rows` by `columns` in integers.

    Attributes:
        values: Unsigned, ``uint8[columns, blocks, block]``; rows beyond the last are the zero point.
        scales: ``float32[columns, blocks]``.
        zero_points: ``uint8[columns, blocks]``; the middle of the range where the integers are symmetric.
        bits: 8 or 4.
        rows: Of the matrix.
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]
    bits: int
    rows: int

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle of the range."""
        return bool((self.zero_points == 1 << (self.bits - 1)).all())

    def to_float(self) -> NDArray[np.float32]:
        """Return the matrix that the integers stand for, ``float32[rows, columns]``."""
        signed = self.values.astype(np.float32) - self.zero_points[..., None]
        columns = (signed * self.scales[..., None]).reshape(len(self.values), -1)
        return np.ascontiguousarray(columns[:, : self.rows].T)


def compress(matrix: NDArray[np.float32], bits: int, block: int) -> Compressed:
    """Return a matrix ``[rows, columns]`` in integers; every column is cut into blocks of `block` rows."""
    rows, columns = matrix.shape
    blocks = -(-rows // block)
    padded = np.zeros((columns, blocks * block), np.float32)
    padded[:, :rows] = matrix.T
    cut = padded.reshape(columns, blocks, block)
    values, scales, zeros = _int8(cut) if bits == 8 else _int4(cut)
    return Compressed(values=values, scales=scales, zero_points=zeros, bits=bits, rows=rows)


def _int8(cut: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    scales = _usable(weight_scales(cut.reshape(-1, cut.shape[2]), 0).reshape(cut.shape[:2]))
    values = (np.clip(np.rint(cut / scales[..., None]), -127, 127) + 128).astype(np.uint8)
    return values, scales, np.full(scales.shape, 128, np.uint8)


def _int4(cut: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Quantize with a zero point, over the range among `_SHRINKS` that has the least squared error."""
    low, high = np.minimum(cut.min(axis=2), 0), np.maximum(cut.max(axis=2), 0)
    least = np.full(low.shape, np.inf)
    best = _four_bits(cut, low, high)
    for shrink in _SHRINKS:
        values, scales, zeros = _four_bits(cut, low * np.float32(shrink), high * np.float32(shrink))
        error = (values.astype(np.float32) - zeros[..., None]) * scales[..., None] - cut
        squared = np.square(error, dtype=np.float64).sum(axis=2)
        better = squared < least
        least[better] = squared[better]
        best[0][better], best[1][better], best[2][better] = values[better], scales[better], zeros[better]
    return best


def _four_bits(
    cut: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    scales = _usable((high - low) / np.float32(15))
    zeros = np.clip(np.rint(-low / scales), 0, 15)
    values = np.clip(np.rint(cut / scales[..., None]) + zeros[..., None], 0, 15)
    return values.astype(np.uint8), scales, zeros.astype(np.uint8)


def _usable(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    # A block of zeros, or of numbers too small for a scale, is zeros at any scale.
    return np.where(scales >= np.finfo(np.float32).tiny, scales, np.float32(1)).astype(np.float32)


class _Writer(Rewriter):
    """Compresses each matrix once."""

    def __init__(self, graph: onnx.GraphProto, exclude: Collection[str], bits: int) -> None:
        super().__init__(graph, exclude)
        self._bits = bits

    def _replace_product(self, node: onnx.NodeProto) -> None:
        stem, matrix = self._matrix(node)
        block = block_of(len(matrix), self._bits)
        if block is None:
            self._nodes.append(node)
            return
        self._write_product(node, stem, matrix, block)
        self._add_bias(node)

    @abstractmethod
    def _write_product(
        self, node: onnx.NodeProto, stem: str, matrix: NDArray[np.float32], block: int
    ) -> None:
        """Add the nodes of the product itself."""


def block_of(rows: int, bits: int) -> int | None:
    """Return how many rows of a matrix share a scale; None where neither engine has a kernel for it.

    The same in every form, so that all forms compute the same. OpenVINO wants blocks that divide the rows, or
    one scale per column; ONNX Runtime wants 16, 32, 64, 128 or 256 of them, the last block filled up.
    """
    block = _BLOCKS[bits]
    while block > _SMALLEST_BLOCK and rows % block:
        block //= 2
    if rows % block == 0:
        return block
    whole = max(_SMALLEST_BLOCK, 1 << (rows - 1).bit_length())
    return whole if whole <= _LARGEST_BLOCK else None


class _NBits(_Writer):
    """Writes MatMulNBits of ONNX Runtime, which unpacks to float32 unless told otherwise."""

    def _write_product(
        self, node: onnx.NodeProto, stem: str, matrix: NDArray[np.float32], block: int
    ) -> None:
        made = compress(matrix, self._bits, block)
        names = [f"{stem}/int{self._bits}", f"{stem}/block_scale"]
        self._store(names[0], _packed(made.values, self._bits))
        self._store(names[1], made.scales.reshape(-1))
        if not made.symmetric:
            names.append(f"{stem}/block_zero_point")
            self._store(names[2], _packed(_even(made.zero_points, self._bits), self._bits).reshape(-1))
        self._add(
            "MatMulNBits",
            [node.input[0], *names],
            [self._unbiased(node)],
            node.name or node.output[0],
            _MICROSOFT,
            K=len(matrix),
            N=matrix.shape[1],
            bits=self._bits,
            block_size=made.values.shape[2],
        )


class _Dequantize(_Writer):
    """Writes DequantizeLinear before MatMul."""

    def _write_product(
        self, node: onnx.NodeProto, stem: str, matrix: NDArray[np.float32], block: int
    ) -> None:
        real = f"{stem}/dequantized"
        if f"{stem}/int{self._bits}" not in self._made:
            self._dequantize(stem, compress(matrix, self._bits, block), real)
        name = node.name or node.output[0]
        self._add("MatMul", [node.input[0], real], [self._unbiased(node)], name)

    def _dequantize(self, stem: str, made: Compressed, real: str) -> None:
        middle = 1 << (self._bits - 1)
        columns = made.values.reshape(len(made.values), -1)[:, : made.rows]
        # Signed where a zero point of 0 says all; unsigned otherwise.
        signed = made.symmetric
        values = columns.T.astype(np.int16) - (middle if signed else 0)
        kind = {
            (8, True): TensorProto.INT8,
            (8, False): TensorProto.UINT8,
            (4, True): TensorProto.INT4,
            (4, False): TensorProto.UINT4,
        }[self._bits, signed]
        whole = made.scales.shape[1] == 1
        scales = made.scales[:, 0] if whole else made.scales.T
        zeros = made.zero_points[:, 0] if whole else made.zero_points.T
        names = [f"{stem}/int{self._bits}", f"{stem}/block_scale"]
        self._made[names[0]] = _tensor(names[0], kind, values)
        self._store(names[1], scales)
        if not signed:
            names.append(f"{stem}/block_zero_point")
            self._made[names[2]] = _tensor(names[2], kind, zeros.astype(np.int16))
        attributes: dict[str, Any] = {"axis": 1} if whole else {"axis": 0, "block_size": made.values.shape[2]}
        self._add("DequantizeLinear", names, [real], f"{stem}/dequantize", **attributes)


class _Float(_Writer):
    """Writes the values that the integers stand for."""

    def _write_product(
        self, node: onnx.NodeProto, stem: str, matrix: NDArray[np.float32], block: int
    ) -> None:
        real = f"{stem}/dequantized"
        if real not in self._made:
            self._store(real, compress(matrix, self._bits, block).to_float())
        name = node.name or node.output[0]
        self._add("MatMul", [node.input[0], real], [self._unbiased(node)], name)


_WRITERS: dict[Form, type[_Writer]] = {"nbits": _NBits, "dequantize": _Dequantize, "float": _Float}


def _even(zeros: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return zero points with an even number per column, so that two of four bits fill a byte."""
    return np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))) if bits == 4 else zeros


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return two values of four bits per byte, the lower half first."""
    return values if bits == 8 else np.asarray(values[..., 0::2] | (values[..., 1::2] << 4), np.uint8)


def _tensor(name: str, kind: int, values: NDArray[np.int16]) -> TensorProto:
    if kind in (TensorProto.INT8, TensorProto.UINT8):
        return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)
    flat = values.reshape(-1) & 0xF
    flat = np.pad(flat, (0, flat.size % 2)).astype(np.uint8)
    return helper.make_tensor(
        name, kind, list(values.shape), (flat[0::2] | (flat[1::2] << 4)).tobytes(), raw=True
    )
