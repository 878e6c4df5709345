"""Versions of operators: the lowest whose kernel takes what an operator is given.

After LiteRT's ``tflite/tools/versioning/op_version.cc``, with one departure: a fully connected layer with one
scale per row stays at the version of int8, since `tflite-runtime` 2.14 runs it and knows no newer version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgec.compiler.tflite.flatbuffer import Tensor

_ALWAYS_FIRST = frozenset(
    {"RESHAPE", "ELU", "HARD_SWISH", "PRELU", "SQUEEZE", "EXPAND_DIMS", "CAST", "NEG", "POW", "DIV", "TILE"}
)
_NO_INT16 = frozenset({"RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE"})


def operator_version(
    name: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], options: Any
) -> int:
    """Return the version of one operator, by its tensors and options."""
    dtypes = [t.dtype if t is not None else "" for t in inputs]
    special = _SPECIAL.get(name)
    if special is not None:
        return special(dtypes, inputs, outputs, options)
    return _by_dtype(name, dtypes[0] if dtypes else outputs[0].dtype)


def _by_dtype(name: str, dtype: str) -> int:
    if name in _ALWAYS_FIRST:
        return 1
    if dtype == "int8":
        return 2
    if dtype == "int16":
        return 2 if name in _NO_INT16 else 3
    return 1


Tensors = Sequence["Tensor | None"]


def _conv(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    x, w = inputs[0], inputs[1]
    assert x is not None
    assert w is not None
    if w.shape[3] != x.shape[3]:
        return 6  # grouped
    return _weighted(dtypes, w, integer16=4, integer=3, hybrid_channels=5, hybrid=2, first=1)


def _depthwise(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    first = 2 if (options.dilationHFactor, options.dilationWFactor) != (1, 1) else 1
    return _weighted(dtypes, inputs[1], integer16=5, integer=3, hybrid_channels=6, hybrid=4, first=first)


def _fully_connected(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    unbiased = len(inputs) < 3 or inputs[2] is None
    shape = 6 if unbiased else 5 if options.keepNumDims else 1
    by_row = inputs[1] is not None and inputs[1].quant is not None and len(inputs[1].quant.scale) > 1
    if dtypes[0] == "int16":
        return 12 if by_row else 7  # tflite-runtime 2.14 computes zeros by rows, without a word
    if dtypes[1] == "int8" and dtypes[0] == "float32":
        # Runtimes before version 12 compute it with the first row's scale for all, without a word.
        if by_row:
            return 12
        return 9 if options.asymmetricQuantizeInputs else max(3, shape)
    return max(shape, 4 if dtypes[0] == "int8" else 1)


def _weighted(
    dtypes: list[str],
    w: Tensor | None,
    *,
    integer16: int,
    integer: int,
    hybrid_channels: int,
    hybrid: int,
    first: int,
) -> int:
    assert w is not None
    if dtypes[0] == "int16":
        return integer16
    if dtypes[0] == "int8":
        return integer
    if dtypes[1] == "int8":
        return hybrid_channels if w.quant is not None and len(w.quant.scale) > 1 else hybrid
    return first


def _transpose_conv(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    if options.fusedActivationFunction:
        return 4
    if len(inputs) > 3 and inputs[3] is not None:
        return 3
    return 2 if dtypes[2] == "int8" else 1


def _resize(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    if options.halfPixelCenters or (options.alignCorners and hasattr(options, "newHeight")):
        return 3
    return 2 if dtypes[0] in ("int8", "int16") else 1


def _quantize(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    if outputs[0].dtype == "int16" or dtypes[0] == "int16":
        return 2
    return 1 if dtypes[0] == "float32" else 2


def _dequantize(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    return {"float16": 3, "int16": 3, "int8": 2}.get(dtypes[0], 1)


def _binary(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    return {"int8": 2, "int16": 4}.get(dtypes[0], 1)


def _gather(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    return {"int8": 2, "bool": 3, "int16": 4}.get(dtypes[0], 1)


def _select(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    return 1


def _broadcast(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    return {"int8": 2, "int16": 3}.get(dtypes[0], 2)


def _batch_matmul(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    if dtypes[0] == "float32" and dtypes[1] == "int8":
        return 4
    return {"int8": 2, "int16": 3}.get(dtypes[0], 1)


def _split_sizes(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    return 2 if dtypes[0] in ("int8", "int16") else 1


def _comparison(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    return 2 if dtypes[0] == "int8" else 1


def _lstm(dtypes: list[str], inputs: Tensors, outputs: Sequence[Tensor], options: Any) -> int:
    if dtypes[0] == "float32" and dtypes[4] == "int8":
        return 3 if options.asymmetricQuantizeInputs else 2
    return 1


_SPECIAL = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "RESIZE_BILINEAR": _resize,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "ADD": _binary,
    "SUB": _binary,
    "MUL": _binary,
    "GATHER": _gather,
    "SELECT_V2": _select,
    "BROADCAST_TO": _broadcast,
    "BATCH_MATMUL": _batch_matmul,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
    "SPLIT_V": _split_sizes,
    **dict.fromkeys(
        ("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"),
        _comparison,
    ),
}
