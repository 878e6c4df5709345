"""Pools."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import channels_last
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.ops.reduction import reduce
from edgec.compiler.tflite.registry import Refused, operator
from edgec.compiler.tflite.spatial import VALID, Window, padded_image, read_window


def _options(window: Window, padding: int) -> Any:
    options = S.Pool2DOptionsT()
    options.filterHeight, options.filterWidth = window.kernel
    options.strideH, options.strideW = window.strides
    options.padding = padding
    return options


def _window(lowering: Lowering, node: Node) -> Window:
    window = read_window(lowering, node, node.ints("kernel_shape", ()))
    if window.dilations != (1, 1):
        raise Refused("it has dilations", "use a pool without dilations")
    return window


@operator(
    "MaxPool",
    tflite=("MAX_POOL_2D", "PAD", "PADV2"),
    limits="1-D and 2-D; no dilations; no second output",
    note="pads that are not TFLite's SAME are explicit, with the lowest number",
)
def lower_max_pool(lowering: Lowering, node: Node) -> None:
    """Write a maximum pool; its input and output share their parameters, as the kernels require."""
    if any(node.outputs[1:]):
        raise Refused("it gives indices", "export the model without return_indices")
    window = _window(lowering, node)
    image, padding = padded_image(lowering, node.inputs[0], window, lowest=True)
    layout = channels_last(lowering.rank(node.outputs[0]))
    made = lowering.give(node.outputs[0], layout, lowering.file.tensors[image].quant)
    lowering.emit(B.MAX_POOL_2D, [image], [made], _options(window, padding))


@operator(
    "AveragePool",
    tflite=("AVERAGE_POOL_2D", "PAD", "MUL", "MEAN"),
    limits="1-D and 2-D; no dilations; ceil_mode only with count_include_pad=0",
    note="pads that are not TFLite's SAME are explicit; where they do not count, a MUL corrects the border",
)
def lower_average_pool(lowering: Lowering, node: Node) -> None:
    """Write an average pool.

    TFLite's SAME leaves padding out of the count, and an explicit PAD takes it in. In integers a pool over
    the whole image is a MEAN, whose output has a range of its own: means span less than what they are of.
    """
    window = _window(lowering, node)
    if lowering.integer and window.kernel == window.sizes and not window.padded:
        axes = tuple(range(2, lowering.rank(node.inputs[0])))
        reduce(lowering, node, B.MEAN, axes, keep=True)
        return
    counted = bool(node.attributes.get("count_include_pad", 0))
    output, layout = node.outputs[0], channels_last(lowering.rank(node.outputs[0]))
    if counted and node.attributes.get("ceil_mode", 0) and _reaches_out(node, window):
        raise Refused("it has ceil_mode and counts its padding", "export it with ceil_mode=0")
    image, padding = padded_image(lowering, node.inputs[0], window, same=not counted)
    quant = lowering.file.tensors[image].quant
    if counted or not window.padded or padding != VALID:
        made = lowering.give(output, layout, quant)
        lowering.emit(B.AVERAGE_POOL_2D, [image], [made], _options(window, padding))
        return
    source = lowering.file.tensors[image]
    shape = [source.shape[0], *window.output, source.shape[3]]
    whole = lowering.file.add_tensor(f"{output}/whole", shape, source.dtype, quant)
    lowering.emit(B.AVERAGE_POOL_2D, [image], [whole], _options(window, VALID))
    share = _border(window)
    factor = lowering.array(share, f"{output}/border", lowering.quant_of_array(share) if quant else None)
    lowering.emit(B.MUL, [whole, factor], [lowering.give(output, layout)], S.MulOptionsT())


def _reaches_out(node: Node, window: Window) -> bool:
    """Whether the last window of an axis lies partly beyond the pads that the model states."""
    pads = node.ints("pads", (0,) * 4)
    ends = pads[len(pads) // 2 :]
    return any(e > p for e, p in zip(window.ends[-len(ends) :], ends, strict=True))


def _border(window: Window) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return, per pixel of the output, kernel size / pixels of the input under it, as [1, h, w, 1]."""
    counts = []
    for size, kernel, stride, begin, output in zip(
        window.sizes, window.kernel, window.strides, window.begins, window.output, strict=True
    ):
        starts = np.arange(output) * stride - begin
        counts.append(np.minimum(starts + kernel, size) - np.maximum(starts, 0))
    factor = np.prod(window.kernel) / np.outer(counts[0], counts[1])
    return factor.astype(np.float32)[None, :, :, None]
