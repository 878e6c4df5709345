"""What changes a model in fp32 so that int8 loses less of it: equalised channels, corrected biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgec.compiler.model import walk_nodes
from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs

Arrays = Mapping[str, NDArray[Any]]

# f(s x) = s f(x) for s > 0, channel by channel.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
_MOST_BITS = 16  # of a scale


def equalize_channels(model: onnx.ModelProto, inputs: Sequence[Arrays]) -> tuple[onnx.ModelProto, int]:
    """Move scale between convolutions, so that the channels between them have similar ranges.

    The rule, for Conv, then any of Relu, LeakyRelu and pools with no other taker, then Conv: output channel c
    of the first is divided by s, input channel c of the second multiplied by it. What is between has one
    scale for all channels in int8, so s makes up for their different ranges: wholly where the second is
    depthwise, whose weights have a scale per channel; else half of it goes to the weights, as in Nagel et
    al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, with measured
    ranges of activations for those of the first weights. Every s is a power of two, so the model computes
    the same to the last bit.

    Args:
        model: In fp32, weights inside; left as it is.
        inputs: Samples, from which ranges are taken.

    Returns:
        The model, and how many pairs of layers were changed.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    pairs = _pairs(copy)
    if not pairs:
        return copy, 0
    ranges = _channel_ranges(copy, [pair.first.output[0] for pair in pairs], inputs)
    weights = {t.name: t for t in copy.graph.initializer}
    changed = 0
    for pair in pairs:
        scales = _scales(pair, ranges[pair.first.output[0]], weights)
        if np.all(scales == 1.0):
            continue
        changed += 1
        for name in (n for n in pair.first.input[1:3] if n):
            array = numpy_helper.to_array(weights[name])
            _replace(weights[name], array / scales.reshape(-1, *[1] * (array.ndim - 1)))
        name = pair.second.input[1]
        array = numpy_helper.to_array(weights[name])
        spatial = [1] * (array.ndim - 2)
        shape = (-1, 1, *spatial) if pair.depthwise else (1, -1, *spatial)
        _replace(weights[name], array * scales.reshape(shape))
    return copy, changed


def shift_biases(
    model: onnx.ModelProto, shifts: Mapping[str, NDArray[np.float64]]
) -> tuple[onnx.ModelProto, int]:
    """Add to the biases of Conv and Gemm layers what quantization takes from their outputs on average.

    Args:
        model: In fp32, weights inside; left as it is.
        shifts: By name of the node: ``float64[channels]``; see `edgec.compiler.explain.mean_shifts`.

    Returns:
        The model, and how many biases were changed.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {t.name: t for t in copy.graph.initializer}
    changed = 0
    for node in copy.graph.node:
        shift = shifts.get(node.name or node.output[0])
        if shift is None or not np.any(shift):
            continue
        bias = np.zeros(len(shift), np.float32)
        if len(node.input) > 2 and node.input[2]:
            old = weights.get(node.input[2])
            if old is None or list(old.dims) != [len(shift)] or _attribute(node, "beta", 1.0) != 1.0:
                continue
            bias = numpy_helper.to_array(old)
        name = f"{node.output[0]}/corrected_bias"
        copy.graph.initializer.append(numpy_helper.from_array((bias + shift).astype(np.float32), name))
        del node.input[2:]
        node.input.append(name)
        changed += 1
    used = {name for node in walk_nodes(copy.graph) for name in node.input}
    used.update(o.name for o in copy.graph.output)
    kept = [t for t in copy.graph.initializer if t.name in used]
    if len(kept) < len(copy.graph.initializer):
        del copy.graph.initializer[:]
        copy.graph.initializer.extend(kept)
    return copy, changed


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two convolutions with nothing between them that a scale does not pass."""

    first: onnx.NodeProto
    second: onnx.NodeProto
    depthwise: bool


def _pairs(model: onnx.ModelProto) -> list[_Pair]:
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    uses: dict[str, list[onnx.NodeProto]] = {}
    for node in walk_nodes(graph):
        for name in node.input:
            uses.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    found = []
    for first in graph.node:
        if not _is_own_conv(first, weights, uses):
            continue
        tensor = first.output[0]
        while tensor not in outputs and len(uses.get(tensor, ())) == 1:
            taker = uses[tensor][0]
            if taker.op_type in _HOMOGENEOUS and len(taker.output) == 1:
                tensor = taker.output[0]
                continue
            channels = int(weights[first.input[1]].dims[0])
            group = int(_attribute(taker, "group", 1))
            fits = _is_own_conv(taker, weights, uses) and taker.input[0] == tensor
            if fits and group in (1, channels) and (group == 1 or channels > 1):
                found.append(_Pair(first=first, second=taker, depthwise=group == channels > 1))
            break
    return found


def _is_own_conv(
    node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], uses: Mapping[str, list[onnx.NodeProto]]
) -> bool:
    """Whether a node is a Conv with float weights that no other node uses."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    return all(
        name in weights and len(uses[name]) == 1 and weights[name].data_type == onnx.TensorProto.FLOAT
        for name in node.input[1:]
        if name
    )


def _channel_ranges(
    model: onnx.ModelProto, names: Sequence[str], inputs: Sequence[Arrays]
) -> dict[str, NDArray[np.float64]]:
    """Return the largest magnitude of each channel of tensors: before a Relu, what passes it."""
    ranges: dict[str, NDArray[np.float64]] = {}
    takers = {n.input[0]: n for n in model.graph.node if n.op_type == "Relu"}
    with ReferenceProgram(with_outputs(model, list(dict.fromkeys(names)))) as program:
        for sample in inputs:
            values = program.run(sample)
            for name in names:
                value = np.maximum(values[name], 0.0) if name in takers else np.abs(values[name])
                largest = value.max(axis=tuple(a for a in range(value.ndim) if a != 1)).astype(np.float64)
                ranges[name] = np.maximum(ranges.get(name, 0.0), largest)
    return ranges


def _scales(
    pair: _Pair, activation: NDArray[np.float64], weights: Mapping[str, onnx.TensorProto]
) -> NDArray[np.float32]:
    array = np.abs(numpy_helper.to_array(weights[pair.second.input[1]]).astype(np.float64))
    axis = 0 if pair.depthwise else 1
    weight = array.max(axis=tuple(a for a in range(array.ndim) if a != axis))
    alive = (activation > 0) & (weight > 0)
    if not alive.any():
        return np.ones(len(activation), np.float32)
    safe = np.where(alive, activation, 1.0)
    wanted = safe if pair.depthwise else np.sqrt(safe / np.where(alive, weight, 1.0))
    bits = np.log2(wanted)
    bits = np.where(alive, bits - np.median(bits[alive]), 0.0)
    scales: NDArray[np.float32] = np.exp2(np.clip(np.rint(bits), -_MOST_BITS, _MOST_BITS)).astype(np.float32)
    return scales


def _replace(tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), tensor.name))


def _attribute(node: onnx.NodeProto, name: str, default: float) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
