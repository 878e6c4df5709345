"""Layers as matrices: rows of inputs, rows of outputs, and weights between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A layer whose output is a matrix times its input, and a bias.

    With g groups, each of k inputs and o outputs, what it computes at one position of one sample is
    ``y[g, o] = sum over k of w[g, o, k] x[g, k] + b[g, o]``.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul with constant weights.
        weight: The weights as they are in the graph.
        bias_name: Of the constant that is added to the output, by the node or by an Add after it; None
            where there is none yet, or there is none that can be changed.
        can_shift: Whether a bias can be given, where there is none.
    """

    node: onnx.NodeProto
    weight: Array
    bias_name: str | None
    can_shift: bool

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(_attribute(self.node, "group", 1))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial sizes of the kernel; empty for products of matrices."""
        return tuple(self.weight.shape[2:]) if "Conv" in self.node.op_type else ()

    def matrix(self) -> NDArray[np.float64]:
        """Return the weights, ``float64[g, o, k]``; k runs over channels, then over the kernel."""
        w, g = self.weight.astype(np.float64), self.groups
        kind = self.node.op_type
        if kind == "Conv":
            return w.reshape(g, w.shape[0] // g, -1)
        if kind == "ConvTranspose":
            flipped = np.flip(w, axis=tuple(range(2, w.ndim))).reshape(g, w.shape[0] // g, w.shape[1], -1)
            return np.ascontiguousarray(flipped.transpose(0, 2, 1, 3)).reshape(g, w.shape[1], -1)
        return (w if self._transposed else w.T)[None]

    def unmatrix(self, matrix: NDArray[np.float64]) -> Array:
        """Return what `matrix` made of weights as weights again."""
        w, g = self.weight, self.groups
        if self.node.op_type == "Conv":
            made = matrix.reshape(w.shape)
        elif self.node.op_type == "ConvTranspose":
            parts = matrix.reshape(g, w.shape[1], w.shape[0] // g, -1).transpose(0, 2, 1, 3)
            made = np.flip(parts.reshape(w.shape), axis=tuple(range(2, w.ndim)))
        else:
            made = matrix[0] if self._transposed else matrix[0].T
        return np.ascontiguousarray(made.astype(w.dtype))

    def inputs(self, x: Array, picked: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what the layer takes at some positions of its output, ``float32[positions, g, k]``."""
        kind = self.node.op_type
        if kind in ("Gemm", "MatMul"):
            return np.asarray(x.reshape(-1, 1, x.shape[-1])[picked], np.float32)
        windows = self._windows(np.asarray(x))
        spatial = len(self.kernel)
        # [n, c, *out, *kernel]: positions first, then channels, then the kernel
        moved = np.moveaxis(windows, 1, 1 + spatial)
        at = np.unravel_index(picked, moved.shape[: 1 + spatial])
        rows = moved[at]
        return np.asarray(rows.reshape(len(picked), self.groups, -1), np.float32)

    def outputs(self, y: Array, picked: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what the layer gives at some positions, ``float32[positions, g, o]``."""
        last = y if self.node.op_type in ("Gemm", "MatMul") else np.moveaxis(y, 1, -1)
        rows = last.reshape(-1, last.shape[-1])[picked]
        return np.asarray(rows.reshape(len(picked), self.groups, -1), np.float32)

    def positions(self, y: Array) -> int:
        """Return at how many positions an output was computed."""
        channels = y.shape[-1] if self.node.op_type in ("Gemm", "MatMul") else y.shape[1]
        return int(y.size // max(1, channels))

    @property
    def _transposed(self) -> bool:
        return self.node.op_type == "Gemm" and bool(_attribute(self.node, "transB", 0))

    def _windows(self, x: Array) -> Array:
        kernel, rank = self.kernel, len(self.kernel)
        strides = list(_attribute(self.node, "strides", [1] * rank))
        dilations = list(_attribute(self.node, "dilations", [1] * rank))
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        pads = _pads(self.node, x.shape[2:], strides, reach)
        if self.node.op_type == "ConvTranspose":
            x, pads = _stuffed(self.node, x, strides, reach, pads)
            strides = [1] * rank
        x = _padded(x, pads)
        axes = tuple(range(2, 2 + rank))
        windows = np.lib.stride_tricks.sliding_window_view(x, tuple(reach), axes)
        steps = tuple(slice(None, None, s) for s in strides)
        inner = tuple(slice(None, None, d) for d in dilations)
        return windows[(slice(None), slice(None), *steps, *inner)]


def linear_layers(model: onnx.ModelProto) -> dict[str, Linear]:
    """Return the layers of a graph whose weights nobody else uses, by the name of their output."""
    weights = {t.name: t for t in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {o.name for o in model.graph.output}
    found = {}
    for node in model.graph.node:
        layer = _layer(node, weights, users, outputs)
        if layer is not None:
            found[node.output[0]] = layer
    return found


def _layer(
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    users: Mapping[str, list[onnx.NodeProto]],
    outputs: set[str],
) -> Linear | None:
    if node.op_type not in LAYERS or node.domain not in ("", "ai.onnx") or node.input[0] in weights:
        return None
    tensor = weights.get(node.input[1])
    if tensor is None or tensor.data_type not in _FLOATS or len(users[tensor.name]) > 1:
        return None
    if node.op_type in ("Gemm", "MatMul") and len(tensor.dims) != 2:
        return None
    plain = all(_attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if node.op_type == "Gemm" and (not plain or _attribute(node, "transA", 0)):
        return None
    if _attribute(node, "output_shape", None) is not None:
        return None
    bias, can_shift = _bias(node, weights, users, outputs)
    return Linear(node=node, weight=numpy_helper.to_array(tensor), bias_name=bias, can_shift=can_shift)


def _bias(
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    users: Mapping[str, list[onnx.NodeProto]],
    outputs: set[str],
) -> tuple[str | None, bool]:
    """Return the constant that a layer's output is shifted by, and whether it can have one."""
    if node.op_type != "MatMul":
        name = node.input[2] if len(node.input) > 2 else ""
        if not name:
            return None, True
        own = name in weights and len(users[name]) == 1 and len(weights[name].dims) == 1
        return (name, True) if own else (None, False)
    takers = users.get(node.output[0], [])
    if node.output[0] in outputs or len(takers) != 1 or takers[0].op_type != "Add":
        return None, False
    other = next((n for n in takers[0].input if n != node.output[0]), "")
    own = other in weights and len(users[other]) == 1 and len(weights[other].dims) == 1
    return (other, True) if own else (None, False)


def _pads(
    node: onnx.NodeProto, size: tuple[int, ...], strides: list[int], reach: list[int]
) -> list[tuple[int, int]]:
    rank, mode = len(size), _attribute(node, "auto_pad", b"NOTSET").decode()
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for n, s, r in zip(size, strides, reach, strict=True):
            total = max(0, r - s) if node.op_type == "ConvTranspose" else max(0, (-(-n // s) - 1) * s + r - n)
            small, large = total // 2, total - total // 2
            found.append((small, large) if mode == "SAME_UPPER" else (large, small))
        return found
    pads = list(_attribute(node, "pads", [0] * 2 * rank)) if mode == "NOTSET" else [0] * 2 * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _stuffed(
    node: onnx.NodeProto, x: Array, strides: list[int], reach: list[int], pads: list[tuple[int, int]]
) -> tuple[Array, list[tuple[int, int]]]:
    """Return a transposed convolution's input with zeros between, and the pads of its plain form."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)]
    stuffed = np.zeros((*x.shape[:2], *sizes), x.dtype)
    stuffed[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    extra = list(_attribute(node, "output_padding", [0] * len(reach)))
    return stuffed, [(r - 1 - a, r - 1 - b + e) for r, (a, b), e in zip(reach, pads, extra, strict=True)]


def _padded(x: Array, pads: list[tuple[int, int]]) -> Array:
    """Return an array with zeros around its spatial axes; negative pads cut."""
    cuts = tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape[2:], pads, strict=True))
    x = x[(slice(None), slice(None), *cuts)]
    return np.pad(x, [(0, 0), (0, 0), *((max(0, a), max(0, b)) for a, b in pads)])


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
