"""Convolutions, their transposes, and batch normalisation, which is a depthwise one of size one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.tflite import quantize
from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import channels_last
from edgec.compiler.tflite.lowering import NONE, Lowering
from edgec.compiler.tflite.registry import Refused, operator
from edgec.compiler.tflite.spatial import VALID, Window, pad_image, padded_image, read_window

_LARGEST_STRIDE = 3  # of a convolution that every NPU takes
_EPSILON = 1e-5  # ONNX's default of BatchNormalization


def add_weights(
    lowering: Lowering,
    node: Node,
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    input_tensor: int,
    axis: int,
    *,
    hybrid: bool = True,
) -> tuple[int, int]:
    """Add the weights and bias of a node as its mode stores them; return both tensors.

    Args:
        lowering: Where to write.
        node: Whose they are.
        weights: As TFLite lays them out.
        bias: One value per index of `axis`.
        input_tensor: What the weights are multiplied by.
        axis: Of the weights that belongs to the output's channels.
        hybrid: Whether there is a kernel for int8 weights and float activations.
    """
    name = node.input(1) or node.outputs[0]
    quant = lowering.file.tensors[input_tensor].quant
    if quant is not None:
        dtype = "int64" if quant.dtype == "int16" else "int32"
        integers, scales = quantize.quantize_weights(
            weights, axis, bias=bias, input_scale=quant.scale[0], bias_bits=32
        )
        summed, bias_scales = quantize.quantize_bias(bias, quant.scale[0], scales, dtype)
        return lowering.array(integers, name, scales), lowering.array(summed, f"{name}/bias", bias_scales)
    if lowering.hybrid and hybrid:
        integers, scales = quantize.quantize_weights(weights, axis)
        return lowering.array(integers, name, scales), lowering.array(bias, f"{name}/bias")
    return lowering.array(weights, name), lowering.array(bias, f"{name}/bias")


def float_weights(lowering: Lowering, node: Node) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the constant weights and bias of a node; the bias is None where it has none.

    Raises:
        Refused: They are no constants of float32, or hold NaN or infinity.
    """
    weights = lowering.constant(node, 1, "weights")
    bias = lowering.optional_constant(node, 2, "bias")
    for array in (weights, bias):
        if array is not None and (array.dtype != np.float32 or not np.isfinite(array).all()):
            raise Refused("its weights are not finite float32", "convert the model to float32 first")
    return weights, bias


@operator(
    "Conv",
    tflite=("CONV_2D", "DEPTHWISE_CONV_2D", "PAD"),
    limits="1-D and 2-D; weights and bias constant; pads not negative",
)
def lower_conv(lowering: Lowering, node: Node) -> None:
    """Write a Conv: depthwise where each group has one input channel, else dense or grouped."""
    weights, bias = float_weights(lowering, node)
    window = read_window(lowering, node, weights.shape[2:])
    if weights.ndim == 3:
        weights = weights[:, :, None, :]
    groups = int(node.attributes.get("group", 1))
    if bias is None:
        bias = np.zeros(weights.shape[0], np.float32)
    output, activation = lowering.fuse_activation(node.outputs[0])
    if groups == 1 and lowering.rank(node.inputs[0]) == 3 and window.strides[1] > _LARGEST_STRIDE:
        folded = _fold_stride(lowering, node, weights, window)
        if folded is not None:
            image, weights, window = folded
            _emit_conv(lowering, node, image, weights, bias, False, VALID, window, output, activation)
            return
    image, padding = padded_image(lowering, node.inputs[0], window)
    depthwise = groups > 1 and weights.shape[1] == 1
    _emit_conv(lowering, node, image, weights, bias, depthwise, padding, window, output, activation)


def _fold_stride(
    lowering: Lowering, node: Node, weights: NDArray[np.float32], window: Window
) -> tuple[int, NDArray[np.float32], Window] | None:
    """Return a 1-D convolution of a long stride as one of stride 1: its image, weights and window.

    [1, q * s, c] lies in memory as [1, q, s * c]. None where the input has a rest that no window reaches.
    """
    stride, extent, steps = window.strides[1], window.extent[1], window.output[1]
    taps = -(-extent // stride)
    right = (steps + taps - 1) * stride - window.sizes[1] - window.begins[1]
    if right < 0:
        return None
    image = lowering.take(node.inputs[0], channels_last(3))
    if window.begins[1] or right:
        image = pad_image(lowering, image, (0, window.begins[1]), (0, right), node.inputs[0])
    batch, _, width, channels = lowering.file.tensors[image].shape
    image = lowering.reshape(image, (batch, 1, width // stride, stride * channels), node.inputs[0])
    outputs, inputs = weights.shape[:2]
    filled = np.zeros((outputs, inputs, taps * stride), np.float32)
    filled[:, :, : extent : window.dilations[1]] = weights[:, :, 0]
    parts = filled.reshape(outputs, inputs, taps, stride).transpose(0, 3, 1, 2)
    folded = parts.reshape(outputs, stride * inputs, 1, taps)
    sizes = (1, width // stride)
    return image, folded, Window((1, taps), (1, 1), (1, 1), (0, 0), (0, 0), sizes, window.output)


def _emit_conv(
    lowering: Lowering,
    node: Node,
    image: int,
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    depthwise: bool,
    padding: int,
    window: Window,
    output: str,
    activation: int,
) -> None:
    options: Any
    if depthwise:
        laid_out, axis, builtin = weights.transpose(1, 2, 3, 0), 3, B.DEPTHWISE_CONV_2D
        options = S.DepthwiseConv2DOptionsT()
        options.depthMultiplier = weights.shape[0] // lowering.file.tensors[image].shape[3]
    else:
        laid_out, axis, builtin = weights.transpose(0, 2, 3, 1), 0, B.CONV_2D
        options = S.Conv2DOptionsT()
    options.strideH, options.strideW = window.strides
    options.dilationHFactor, options.dilationWFactor = window.dilations
    options.padding, options.fusedActivationFunction = padding, activation
    w, b = add_weights(lowering, node, laid_out, bias, image, axis)
    made = lowering.give(output, channels_last(lowering.rank(output)))
    lowering.emit(builtin, [image, w, b], [made], options)


@operator(
    "BatchNormalization",
    tflite=("DEPTHWISE_CONV_2D",),
    limits="inference; 2 to 4 axes; parameters constant",
    note="fold it into the convolution before it where there is one: the simplifier does",
)
def lower_batch_normalization(lowering: Lowering, node: Node) -> None:
    """Write x * scale + shift per channel as a depthwise convolution, whose bias is exact in integers."""
    names = ("scale", "bias", "mean", "variance")
    scale, bias, mean, variance = (lowering.constant(node, i, n) for i, n in enumerate(names, 1))
    if node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
        raise Refused("it is in training mode", "export the model in evaluation mode")
    rank = lowering.rank(node.inputs[0])
    if rank not in (2, 3, 4):
        raise Refused(f"it works on {rank} axes", "2 to 4 axes are supported")
    factor = scale.astype(np.float64) / np.sqrt(variance + node.attributes.get("epsilon", _EPSILON))
    shift = (bias - mean * factor).astype(np.float32)
    weights = factor.astype(np.float32).reshape(-1, 1, 1, 1)
    output, activation = lowering.fuse_activation(node.outputs[0])
    image = lowering.take(node.inputs[0], channels_last(rank))
    _, height, width, _ = lowering.file.tensors[image].shape
    sizes = (height, width)
    window = Window((1, 1), (1, 1), (1, 1), (0, 0), (0, 0), sizes, sizes)
    _emit_conv(lowering, node, image, weights, shift, True, VALID, window, output, activation)


@operator(
    "ConvTranspose",
    tflite=("TRANSPOSE_CONV", "CONV_2D", "SLICE"),
    limits="1-D and 2-D; weights and bias constant; output_padding below the stride",
    note="groups and dilations: a dense kernel with zeros; 1-D with a stride: CONV_2D and RESHAPE",
)
def lower_conv_transpose(lowering: Lowering, node: Node) -> None:
    """Write the whole transposed convolution, then cut off what ONNX's pads remove."""
    weights, bias = float_weights(lowering, node)
    weights = _dense(weights, int(node.attributes.get("group", 1)))
    if weights.ndim == 3:
        weights = weights[:, :, None, :]
    count = lowering.rank(node.inputs[0]) - 2
    if count not in (1, 2):
        raise Refused(f"it works on {count} spatial axes", "1-D and 2-D are supported")
    weights = _dilated(weights, _pair(node.ints("dilations", (1,) * count), 1))
    strides = _pair(node.ints("strides", (1,) * count), 1)
    kernel = weights.shape[2:]
    layout = channels_last(lowering.rank(node.inputs[0]))
    image = lowering.take(node.inputs[0], layout)
    batch, *sizes = lowering.file.tensors[image].shape[:3]
    final = _pair(lowering.shape(node.outputs[0])[2:], 1)
    begins = _transposed_begins(node, sizes, final, kernel, strides)
    whole = [(i - 1) * s + k for i, s, k in zip(sizes, strides, kernel, strict=True)]
    wide = [max(w, b + f) for w, b, f in zip(whole, begins, final, strict=True)]
    if any(w - p >= s and s > 1 for w, p, s in zip(wide, whole, strides, strict=True)) or min(begins) < 0:
        raise Refused("its output_padding reaches the stride", "pad the output with a Pad instead")
    if bias is None:
        bias = np.zeros(weights.shape[1], np.float32)
    if count == 1 and strides[1] > 1:
        _subpixel(lowering, node, image, weights[:, :, 0], bias, strides[1], begins[1])
        return
    cut = list(wide) != list(final)
    output, activation = lowering.fuse_activation(node.outputs[0])
    # Older kernels have no activation: it is an operator of its own, or the end of the integers' range.
    separate = NONE if lowering.saturates else activation
    w, b = add_weights(lowering, node, weights.transpose(1, 2, 3, 0), bias, image, 0, hybrid=False)
    shape = [batch, *wide, weights.shape[1]]
    options = S.TransposeConvOptionsT()
    options.strideH, options.strideW = strides
    options.padding = VALID
    quant = lowering.calibrated(output) if lowering.integer else None
    if cut or separate != NONE:
        dtype = lowering.graph.dtype(output) if quant is None else quant.dtype
        made = lowering.file.add_tensor(f"{output}/whole", shape, dtype, quant)
    else:
        made = lowering.give(output, layout, quant)
    lowering.emit(B.TRANSPOSE_CONV, [lowering.int32(shape, f"{output}/shape"), w, image, b], [made], options)
    if separate != NONE:
        made = _activate(lowering, made, separate, output, layout, last=not cut)
    if cut:
        ends = lowering.int32([batch, *final, weights.shape[1]], f"{output}/size")
        begin = lowering.int32([0, *begins, 0], f"{output}/begin")
        cut_out = lowering.give(output, layout, quant)
        lowering.emit(B.SLICE, [made, begin, ends], [cut_out], S.SliceOptionsT())


def _subpixel(
    lowering: Lowering,
    node: Node,
    image: int,
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    stride: int,
    begin: int,
) -> None:
    """Write a 1-D transposed convolution as a convolution that gives `stride` pixels as channels.

    With o = q * stride + r, ``y[o] = sum_j x[q - j] w[j * stride + r]``; [1, q, r * c] is [1, q * r, c] as it
    lies in memory (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
    It computes as much as TRANSPOSE_CONV, and NPUs have it for every stride.
    """
    inputs, outputs, kernel = weights.shape
    taps = -(-kernel // stride)
    filled = np.zeros((inputs, outputs, taps * stride), np.float32)
    filled[:, :, :kernel] = weights
    parts = filled.reshape(inputs, outputs, taps, stride)[:, :, ::-1]
    dense = parts.transpose(3, 1, 2, 0).reshape(stride * outputs, 1, taps, inputs)
    batch, _, width, _ = lowering.file.tensors[image].shape
    final = lowering.shape(node.outputs[0])[2]
    left = max(taps - 1 - begin // stride, 0)
    right = max(-(-(begin + final) // stride) - width, 0)
    output, activation = lowering.fuse_activation(node.outputs[0])
    if left or right:
        image = pad_image(lowering, image, (0, left), (0, right), output)
    steps = left + width + right - taps + 1
    offset = begin - (taps - 1 - left) * stride
    quant = lowering.calibrated(output) if lowering.integer else None
    dtype = lowering.graph.dtype(output) if quant is None else quant.dtype
    made = lowering.file.add_tensor(f"{output}/steps", (batch, 1, steps, stride * outputs), dtype, quant)
    options = S.Conv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    options.padding, options.fusedActivationFunction = VALID, activation
    w, b = add_weights(lowering, node, dense, np.tile(bias, stride), image, 0)
    lowering.emit(B.CONV_2D, [image, w, b], [made], options)
    made = lowering.reshape(made, (batch, 1, steps * stride, outputs), output)
    layout = channels_last(3)
    if steps * stride == final:
        lowering.hold(output, made, layout, quant)
        return
    ends = lowering.int32([batch, 1, final, outputs], f"{output}/size")
    begins = lowering.int32([0, 0, offset, 0], f"{output}/begin")
    lowering.emit(B.SLICE, [made, begins, ends], [lowering.give(output, layout, quant)], S.SliceOptionsT())


def _activate(
    lowering: Lowering, tensor: int, activation: int, output: str, layout: tuple[int, ...], *, last: bool
) -> int:
    source = lowering.file.tensors[tensor]
    if last:
        made = lowering.give(output, layout, source.quant)
    else:
        made = lowering.file.add_tensor(f"{output}/activated", source.shape, source.dtype, source.quant)
    builtin = {1: B.RELU, 2: B.RELU_N1_TO_1, 3: B.RELU6}[activation]
    lowering.emit(builtin, [tensor], [made])
    return made


def _pair(values: tuple[int, ...], first: int) -> tuple[int, int]:
    return (first, values[0]) if len(values) == 1 else (values[0], values[1])


def _transposed_begins(
    node: Node,
    sizes: list[int],
    final: tuple[int, int],
    kernel: tuple[int, ...],
    strides: tuple[int, int],
) -> tuple[int, int]:
    """Return how many rows and columns ONNX cuts off before the first one."""
    count = len(node.ints("pads", ())) // 2
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", "") and "output_shape" not in node.attributes:
        return _pair(node.ints("pads", (0,) * 4)[:count], 0) if count else (0, 0)
    if auto == "VALID":
        return (0, 0)
    extra = _pair(node.ints("output_padding", (0, 0)), 0)
    totals = [
        s * (i - 1) + p + k - f for s, i, p, k, f in zip(strides, sizes, extra, kernel, final, strict=True)
    ]
    halves = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
    return halves[0], halves[1]


def _dense(weights: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """Return the weights [in, out, ...] of one group that computes what `groups` of them do."""
    if groups == 1:
        return weights
    inputs, outputs = weights.shape[:2]
    dense = np.zeros((inputs, outputs * groups, *weights.shape[2:]), np.float32)
    each = inputs // groups
    for group in range(groups):
        rows = slice(group * each, (group + 1) * each)
        dense[rows, group * outputs : (group + 1) * outputs] = weights[rows]
    return dense


def _dilated(weights: NDArray[np.float32], dilations: tuple[int, int]) -> NDArray[np.float32]:
    """Return a kernel with zeros between its points."""
    if dilations == (1, 1):
        return weights
    sizes = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weights.shape[:2], *sizes), np.float32)
    wide[:, :, :: dilations[0], :: dilations[1]] = weights
    return wide
