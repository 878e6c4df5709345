"""Resizing of images: ONNX has many ways to number pixels, TFLite has three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import channels_last
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.registry import Refused, operator

Coordinates = NDArray[np.float64]
_TOLERANCE = 1e-4  # of a pixel; ONNX's scales are float32
_WAYS = ((False, False), (False, True), (True, False))  # align_corners, half_pixel_centers


@operator(
    "Resize",
    "Upsample",
    tflite=("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR", "GATHER"),
    limits="modes nearest and linear over the last one or two axes; sizes constant; linear: coordinates that "
    "equal one of TFLite's (half_pixel, align_corners, asymmetric), without antialiasing",
    note="nearest whose pixels are none of TFLite's: a GATHER per axis",
)
def lower_resize(lowering: Lowering, node: Node) -> None:
    """Write a resize whose pixels are the same as ONNX's, compared number by number."""
    x, output = node.inputs[0], node.outputs[0]
    rank = lowering.rank(x)
    source, target = lowering.shape(x), lowering.shape(output)
    mode = node.text("mode", "nearest")
    if rank not in (3, 4) or source[:2] != target[:2]:
        raise Refused("it resizes other axes than height and width", "only the last axes can be resized")
    if mode not in ("nearest", "linear"):
        raise Refused(f"its mode is {mode}", "use the mode nearest or linear")
    if node.attributes.get("antialias", 0):
        raise Refused("it filters against aliasing", "export it with antialias=0")
    axes = [_coordinates(lowering, node, axis) for axis in range(2, rank)]
    sizes, wanted = list(source[2:]), list(target[2:])
    if rank == 3:
        axes, sizes, wanted = [np.zeros(1), *axes], [1, *sizes], [1, *wanted]
    tensor = lowering.take(x, channels_last(rank), lowering.present_quant(x))
    if mode == "linear":
        _bilinear(lowering, output, tensor, axes, sizes, wanted)
    else:
        _nearest(lowering, node, output, tensor, axes, sizes, wanted)


def _coordinates(lowering: Lowering, node: Node, axis: int) -> Coordinates:
    """Return where in the input each output pixel of an axis lies, as ONNX defines it."""
    before, after = lowering.shape(node.inputs[0])[axis], lowering.shape(node.outputs[0])[axis]
    scale = _scale(lowering, node, axis, before, after)
    index = np.arange(after, dtype=np.float64)
    match node.text(
        "coordinate_transformation_mode", "asymmetric" if node.op == "Upsample" else "half_pixel"
    ):
        case "half_pixel":
            return (index + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            adjustment = after / (scale * before)
            return before / 2 * (1 - adjustment) + (index + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (index + 0.5) / scale - 0.5 if after > 1 else np.zeros(1)
        case "align_corners":
            return index * (before - 1) / (after - 1) if after > 1 else np.zeros(1)
        case "asymmetric":
            return index / scale
        case other:
            raise Refused(
                f"its coordinate_transformation_mode is {other}",
                "use half_pixel, align_corners or asymmetric",
            )


def _scale(lowering: Lowering, node: Node, axis: int, before: int, after: int) -> float:
    scales = lowering.optional_constant(node, 1 if node.op == "Upsample" else 2, "scales")
    if scales is None or scales.size == 0:
        return after / before
    axes = node.ints("axes", range(lowering.rank(node.inputs[0])))
    return float(scales[list(axes).index(axis)]) if axis in axes else 1.0


def _tflite(before: int, after: int, corners: bool, centers: bool) -> Coordinates:
    index = np.arange(after, dtype=np.float64)
    scale = (before - 1) / (after - 1) if corners and after > 1 else before / after
    return (index + 0.5) * scale - 0.5 if centers else index * scale


def _bilinear(
    lowering: Lowering, output: str, tensor: int, axes: list[Coordinates], sizes: list[int], wanted: list[int]
) -> None:
    for corners, centers in _WAYS:
        same = all(
            np.allclose(
                np.clip(mine, 0, size - 1),
                np.clip(_tflite(size, want, corners, centers), 0, size - 1),
                atol=_TOLERANCE,
                rtol=0,
            )
            for mine, size, want in zip(axes, sizes, wanted, strict=True)
        )
        if same:
            options = S.ResizeBilinearOptionsT()
            options.alignCorners, options.halfPixelCenters = corners, centers
            _emit(lowering, B.RESIZE_BILINEAR, output, tensor, wanted, options)
            return
    raise Refused(
        "its pixels lie elsewhere than TFLite's", "use half_pixel, align_corners, or whole scales with sizes"
    )


def _nearest(
    lowering: Lowering,
    node: Node,
    output: str,
    tensor: int,
    axes: list[Coordinates],
    sizes: list[int],
    wanted: list[int],
) -> None:
    rounding = node.text("nearest_mode", "floor" if node.op == "Upsample" else "round_prefer_floor")
    indices = [
        np.clip(_ROUNDINGS[rounding](c), 0, size - 1).astype(np.int32)
        for c, size in zip(axes, sizes, strict=True)
    ]
    for corners, centers in _WAYS:
        if all(
            np.array_equal(mine, _tflite_pixels(size, want, corners, centers))
            for mine, size, want in zip(indices, sizes, wanted, strict=True)
        ):
            options = S.ResizeNearestNeighborOptionsT()
            options.alignCorners, options.halfPixelCenters = corners, centers
            _emit(lowering, B.RESIZE_NEAREST_NEIGHBOR, output, tensor, wanted, options)
            return
    for position, index in enumerate(indices, 1):
        source = lowering.file.tensors[tensor]
        shape = [len(index) if i == position else d for i, d in enumerate(source.shape)]
        gather = S.GatherOptionsT()
        gather.axis = position
        if position == 2:
            made = lowering.give(output, channels_last(lowering.rank(output)), source.quant)
        else:
            made = lowering.file.add_tensor(f"{output}/rows", shape, source.dtype, source.quant)
        lowering.emit(B.GATHER, [tensor, lowering.int32(index, f"{output}/pixels")], [made], gather)
        tensor = made


# ONNX evaluates in float32, where 1.9999999 is 2: a hair decides which pixel is nearest.
_HAIR = 1e-6
_ROUNDINGS: dict[str, Callable[[Coordinates], Coordinates]] = {
    "round_prefer_floor": lambda c: np.ceil(c - 0.5 - _HAIR),
    "round_prefer_ceil": lambda c: np.floor(c + 0.5 + _HAIR),
    "floor": lambda c: np.floor(c + _HAIR),
    "ceil": lambda c: np.ceil(c - _HAIR),
}


def _tflite_pixels(before: int, after: int, corners: bool, centers: bool) -> NDArray[np.int32]:
    """Return the pixels that TFLite's kernels take, computed in float32 as they do."""
    index = np.arange(after, dtype=np.float32)
    scale = np.float32((before - 1) / (after - 1) if corners and after > 1 else before / after)
    place = (index + np.float32(0.5 if centers else 0.0)) * scale
    pixel = np.floor(place + np.float32(0.5)) if corners else np.floor(place)
    pixels: NDArray[np.int32] = np.clip(pixel, 0, before - 1).astype(np.int32)
    return pixels


def _emit(
    lowering: Lowering, builtin: int, output: str, tensor: int, wanted: list[int], options: Any
) -> None:
    made = lowering.give(output, channels_last(lowering.rank(output)), lowering.file.tensors[tensor].quant)
    lowering.emit(builtin, [tensor, lowering.int32(wanted, f"{output}/size")], [made], options)
