"""Operators that move values and compute nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgec.compiler.tflite.flatbuffer import B, Quant, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import (
    Layout,
    gathered,
    identity,
    padded,
    reshaped,
    significant,
    tensor_shape,
    transposed,
    without_axes,
)
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.modes import NOT_INT16
from edgec.compiler.tflite.registry import Refused, operator

_SLICE_FOREVER = np.iinfo(np.int32).max


def full_layout(lowering: Lowering, name: str) -> Layout:
    """Return the layout of a value where it has all of the value's axes, else the identity."""
    layout, rank = lowering.layout(name), lowering.rank(name)
    return layout if sorted(layout) == list(range(rank)) else identity(rank)


@operator("Identity", "Dropout", tflite=(), limits="Dropout: in evaluation mode, without mask")
def lower_identity(lowering: Lowering, node: Node) -> None:
    """Give the same tensor another name."""
    if any(node.outputs[1:]):
        raise Refused("its mask is used", "export the model in evaluation mode")
    lowering.alias(node.outputs[0], node.inputs[0], lowering.layout(node.inputs[0]))


@operator("Transpose", tflite=("TRANSPOSE",), limits="6 axes", note="written only where bytes move")
def lower_transpose(lowering: Lowering, node: Node) -> None:
    """Give the same tensor another layout; who needs the axes in order makes a TRANSPOSE of it."""
    x = node.inputs[0]
    perm = node.ints("perm", tuple(reversed(range(lowering.rank(x)))))
    lowering.alias(node.outputs[0], x, transposed(full_layout_of_alias(lowering, x), perm))


def full_layout_of_alias(lowering: Lowering, name: str) -> Layout:
    """Return the layout of the tensor a value was computed in, made to have all of the value's axes."""
    layout = lowering.layout(name)
    if set(range(lowering.rank(name))) <= set(layout):
        return layout
    raise Refused("its input lacks axes", "simplify the model first")


@operator(
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    tflite=("RESHAPE",),
    note="with TRANSPOSE where an NHWC image is flattened for anything but a fully connected layer",
)
def lower_reshape(lowering: Lowering, node: Node) -> None:
    """Write a RESHAPE, in the tensor's own layout where no byte has to move for it."""
    x, output = node.inputs[0], node.outputs[0]
    source, target = lowering.shape(x), lowering.shape(output)
    quant = lowering.present_quant(x)
    layout = lowering.layout(x)
    after = reshaped(source, target, layout)
    if after is not None:
        tensor = lowering.take(x, layout, quant)
    elif _weights_can_follow(lowering, node):
        tensor, after = lowering.take(x, layout, quant), identity(len(target))
        lowering.column_order[output] = _columns(source, layout)
    else:
        moved = gathered(source, target, layout)
        tensor, after = lowering.take(x, moved, quant), reshaped(source, target, moved)
        assert after is not None
    shape = tensor_shape(target, after)
    if lowering.file.tensors[tensor].shape != shape:
        tensor = lowering.reshape(tensor, shape, output)
    lowering.hold(output, tensor, after, quant)


def _weights_can_follow(lowering: Lowering, node: Node) -> bool:
    """Whether an image flattened in the wrong order only meets weights, whose rows can be reordered."""
    x, output = node.inputs[0], node.outputs[0]
    source, target = lowering.shape(x), lowering.shape(output)
    if len(target) != 2 or target[0] != source[0] or output in lowering.graph.outputs:
        return False
    if significant(source, lowering.layout(x))[:1] != (0,) and source[0] != 1:
        return False
    takers = lowering.graph.consumers.get(output, [])
    return bool(takers) and all(
        t.op in ("Gemm", "MatMul")
        and t.inputs[0] == output
        and lowering.is_constant(t.inputs[1])
        and lowering.rank(t.inputs[1]) == 2
        and not t.attributes.get("transA", 0)
        for t in takers
    )


def _columns(shape: tuple[int, ...], layout: Layout) -> Any:
    """Return which column in ONNX's order each column of the flattened tensor is."""
    order = np.arange(int(np.prod(shape[1:]))).reshape(shape[1:])
    return order.transpose([a - 1 for a in layout if a > 0]).reshape(-1)


@operator("Concat", tflite=("CONCATENATION",), note="inputs of other quantization: QUANTIZE")
def lower_concat(lowering: Lowering, node: Node) -> None:
    """Write a concatenation along one axis of the common layout."""
    output = node.outputs[0]
    values = [n for n in node.inputs if not lowering.is_constant(n)]
    sizes = {n: int(np.prod(lowering.shape(n))) for n in values}
    layouts: dict[Layout, int] = {}
    for name in values:
        layout = full_layout(lowering, name)
        layouts[layout] = layouts.get(layout, 0) + sizes[name]
    common = max(layouts, key=lambda layout: layouts[layout])
    quants = {lowering.quant(n) for n in node.inputs}
    quant = quants.pop() if len(quants) == 1 else lowering.calibrated(output)
    options = S.ConcatenationOptionsT()
    options.axis = common.index(int(node.attributes["axis"]) % lowering.rank(output))
    taken = [lowering.take(n, common, quant) for n in node.inputs]
    lowering.emit(B.CONCATENATION, taken, [lowering.give(output, common, quant)], options)


@operator("Split", tflite=("SPLIT", "SPLIT_V"))
def lower_split(lowering: Lowering, node: Node) -> None:
    """Write a split along one axis."""
    x = node.inputs[0]
    layout = full_layout(lowering, x)
    axis = int(node.attributes.get("axis", 0)) % lowering.rank(x)
    tensor = lowering.take(x, layout, lowering.present_quant(x))
    quant = lowering.file.tensors[tensor].quant
    sizes = [lowering.shape(o)[axis] for o in node.outputs]
    made = [lowering.give(o, layout, quant) for o in node.outputs]
    position = lowering.int32(layout.index(axis), f"{node.name}/axis")
    options: Any
    if len(set(sizes)) == 1:
        options = S.SplitOptionsT()
        options.numSplits = len(sizes)
        lowering.emit(B.SPLIT, [position, tensor], made, options)
        return
    options = S.SplitVOptionsT()
    options.numSplits = len(sizes)
    lowering.emit(B.SPLIT_V, [tensor, lowering.int32(sizes, f"{node.name}/sizes"), position], made, options)


@operator("Slice", tflite=("SLICE", "STRIDED_SLICE"), limits="starts, ends, axes and steps constant")
def lower_slice(lowering: Lowering, node: Node) -> None:
    """Write a slice; with steps it is a strided one."""
    x, output = node.inputs[0], node.outputs[0]
    starts = [int(v) for v in lowering.constant(node, 1, "starts")]
    axes_given = lowering.optional_constant(node, 3, "axes")
    steps_given = lowering.optional_constant(node, 4, "steps")
    axes = range(len(starts)) if axes_given is None else [int(a) for a in axes_given]
    steps = [1] * len(starts) if steps_given is None else [int(s) for s in steps_given]
    sizes, rank = lowering.shape(x), lowering.rank(x)
    begins, strides = [0] * rank, [1] * rank
    for axis, start, step in zip(axes, starts, steps, strict=True):
        axis %= rank
        first = start + sizes[axis] if start < 0 else start
        begins[axis] = min(max(first, 0), sizes[axis] - (1 if step < 0 else 0))
        strides[axis] = step
    emit_slice(lowering, x, output, begins, strides)


def emit_slice(lowering: Lowering, x: str, output: str, begins: list[int], strides: list[int]) -> None:
    """Write a slice of a value from `begins` on, as long as the output's shape says."""
    layout = full_layout(lowering, x)
    tensor = lowering.take(x, layout, lowering.present_quant(x))
    quant = lowering.file.tensors[tensor].quant
    shape = lowering.shape(output)
    made = lowering.give(output, layout, quant)
    begin = lowering.int32([begins[a] for a in layout], f"{output}/begin")
    if set(strides) == {1} or not strides:
        size = lowering.int32([shape[a] for a in layout], f"{output}/size")
        lowering.emit(B.SLICE, [tensor, begin, size], [made], S.SliceOptionsT())
        return
    options = S.StridedSliceOptionsT()
    ends, options.endMask = [], 0
    for position, axis in enumerate(layout):
        end = begins[axis] + shape[axis] * strides[axis]
        if end < 0:  # runs past the first element, for which no index stands: -1 is the last
            options.endMask |= 1 << position
            end = 0
        ends.append(min(end, lowering.shape(x)[axis]))
    options.beginMask = options.ellipsisMask = options.newAxisMask = options.shrinkAxisMask = 0
    constants = [
        begin,
        lowering.int32(ends, f"{output}/end"),
        lowering.int32([strides[a] for a in layout], f"{output}/strides"),
    ]
    lowering.emit(B.STRIDED_SLICE, [tensor, *constants], [made], options)


@operator(
    "Pad",
    tflite=("PAD", "PADV2", "MIRROR_PAD"),
    limits="modes constant and reflect; pads constant and not negative",
)
def lower_pad(lowering: Lowering, node: Node) -> None:
    """Write a padding."""
    x, output = node.inputs[0], node.outputs[0]
    rank, layout = lowering.rank(x), full_layout(lowering, x)
    mode = node.text("mode", "constant")
    amounts = [int(p) for p in lowering.constant(node, 1, "pads")]
    given = lowering.optional_constant(node, 3, "axes")
    axes = list(range(rank)) if given is None else [int(a) % rank for a in given]
    if min(amounts, default=0) < 0:
        raise Refused("it has negative pads", "crop with Slice instead")
    if mode not in ("constant", "reflect"):
        raise Refused(f"its mode is {mode}", "use the mode constant or reflect")
    pads = np.zeros((rank, 2), np.int32)
    for index, axis in enumerate(axes):
        pads[axis] = amounts[index], amounts[index + len(axes)]
    value = lowering.optional_constant(node, 2, "value")
    fill = 0.0 if value is None else float(value.reshape(-1)[0])
    table = lowering.int32(pads[list(layout)], f"{output}/pads")
    real = lowering.is_float(x)
    if mode == "constant" and fill != 0.0:
        quant = lowering.calibrated(output) if lowering.integer and real else None
        tensor = lowering.take(x, layout, quant)
        array = np.array([np.clip(fill, *_finite(lowering, x))], lowering.graph.dtype(x))
        constant = lowering.array(array, f"{output}/value", quant)
        made = lowering.give(output, layout, quant)
        lowering.emit(B.PADV2, [tensor, table, constant], [made], S.PadV2OptionsT())
        return
    tensor = lowering.take(x, layout)
    made = lowering.give(output, layout, lowering.file.tensors[tensor].quant)
    if mode == "constant":
        lowering.emit(B.PAD, [tensor, table], [made], S.PadOptionsT())
        return
    options = S.MirrorPadOptionsT()
    options.mode = S.MirrorPadMode.REFLECT
    lowering.emit(B.MIRROR_PAD, [tensor, table], [made], options)


def _finite(lowering: Lowering, name: str) -> tuple[float, float]:
    dtype = np.dtype(lowering.graph.dtype(name))
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


@operator("Expand", tflite=("BROADCAST_TO",), limits="shape constant")
def lower_expand(lowering: Lowering, node: Node) -> None:
    """Write a broadcast."""
    x, output = node.inputs[0], node.outputs[0]
    rank = lowering.rank(output)
    missing = rank - lowering.rank(x)
    layout = full_layout(lowering, x) if missing == 0 else identity(rank)
    quant = lowering.present_quant(x)
    tensor = lowering.take(x, layout if missing == 0 else padded(layout, missing), quant)
    wanted = tensor_shape(lowering.shape(output), layout)
    if lowering.file.tensors[tensor].shape == wanted:
        lowering.hold(output, tensor, layout, quant)
        return
    made = lowering.give(output, layout, quant)
    shape = lowering.int32(wanted, f"{output}/shape")
    lowering.emit(B.BROADCAST_TO, [tensor, shape], [made], S.BroadcastToOptionsT())


@operator("Tile", tflite=("TILE",), limits="repeats constant")
def lower_tile(lowering: Lowering, node: Node) -> None:
    """Write a repetition."""
    x, output = node.inputs[0], node.outputs[0]
    layout = full_layout(lowering, x)
    repeats = lowering.constant(node, 1, "repeats")
    tensor = lowering.take(x, layout, lowering.present_quant(x))
    made = lowering.give(output, layout, lowering.file.tensors[tensor].quant)
    times = lowering.int32([int(repeats[a]) for a in layout], f"{output}/repeats")
    lowering.emit(B.TILE, [tensor, times], [made], S.TileOptionsT())


@operator(
    "Gather", tflite=("GATHER", "SLICE"), limits="indices not negative where they are computed at run time"
)
def lower_gather(lowering: Lowering, node: Node) -> None:
    """Write a selection of rows; indices that count from the end are made to count from the start."""
    x, indices, output = node.inputs[0], node.inputs[1], node.outputs[0]
    axis = int(node.attributes.get("axis", 0)) % lowering.rank(x)
    layout = full_layout(lowering, x)
    begin = _run_start(lowering, indices, lowering.shape(x)[axis])
    if begin is not None and not lowering.is_constant(x):
        _gather_run(lowering, x, output, axis, begin, lowering.rank(indices))
        return
    if lowering.rank(indices) != 1:
        layout = identity(lowering.rank(x))
    quant: Quant | None = lowering.quant(x) if lowering.is_constant(x) else lowering.present_quant(x)
    tensor = lowering.take(x, layout, quant)
    options = S.GatherOptionsT()
    options.axis = layout.index(axis)
    after = layout if lowering.rank(indices) == 1 else identity(lowering.rank(output))
    made = lowering.give(output, after, quant)
    lowering.emit(B.GATHER, [tensor, _indices(lowering, indices, lowering.shape(x)[axis])], [made], options)


def _run_start(lowering: Lowering, name: str, size: int) -> int | None:
    """Return where constant indices start that follow each other, as a Slice would take them."""
    array = lowering.graph.constants.get(name)
    if array is None or array.ndim > 1 or array.size == 0:
        return None
    flat = np.where(array < 0, array + size, array).reshape(-1)
    return int(flat[0]) if np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size)) else None


def _gather_run(lowering: Lowering, x: str, output: str, axis: int, begin: int, rank: int) -> None:
    """Write the rows from `begin` on as a SLICE, which NPUs have; a single index drops its axis."""
    layout = full_layout(lowering, x)
    tensor = lowering.take(x, layout, lowering.present_quant(x))
    source = lowering.file.tensors[tensor]
    length = lowering.shape(output)[axis] if rank else 1
    begins = [begin if a == axis else 0 for a in layout]
    sizes = [length if a == axis else d for a, d in zip(layout, source.shape, strict=True)]
    made = lowering.file.add_tensor(f"{output}/rows", sizes, source.dtype, source.quant)
    constants = [lowering.int32(begins, f"{output}/begin"), lowering.int32(sizes, f"{output}/size")]
    lowering.emit(B.SLICE, [tensor, *constants], [made], S.SliceOptionsT())
    after = layout
    if rank == 0:
        after = without_axes(layout, (axis,))
        made = lowering.reshape(made, tensor_shape(lowering.shape(output), after), output)
    lowering.hold(output, made, after, source.quant)


def _indices(lowering: Lowering, name: str, size: int) -> int:
    array = lowering.graph.constants.get(name)
    if array is None:
        return lowering.take(name, identity(lowering.rank(name)))
    return lowering.int32(np.where(array < 0, array + size, array), name)


@operator(
    "DepthToSpace",
    tflite=("DEPTH_TO_SPACE", "GATHER"),
    modes=NOT_INT16,
    note="mode CRD: with a GATHER of channels",
)
def lower_depth_to_space(lowering: Lowering, node: Node) -> None:
    """Write channels as blocks of pixels."""
    x, output = node.inputs[0], node.outputs[0]
    block = int(node.attributes["blocksize"])
    tensor = lowering.take(x, (0, 2, 3, 1), lowering.present_quant(x))
    source = lowering.file.tensors[tensor]
    if node.text("mode", "DCR") == "CRD":
        channels = source.shape[3]
        order = np.arange(channels).reshape(-1, block * block).T.reshape(-1)
        sorted_ = lowering.file.add_tensor(f"{output}/sorted", source.shape, source.dtype, source.quant)
        options = S.GatherOptionsT()
        options.axis = 3
        indices = lowering.int32(order, f"{output}/order")
        lowering.emit(B.GATHER, [tensor, indices], [sorted_], options)
        tensor = sorted_
    made = lowering.give(output, (0, 2, 3, 1), source.quant)
    options = S.DepthToSpaceOptionsT()
    options.blockSize = block
    lowering.emit(B.DEPTH_TO_SPACE, [tensor], [made], options)


@operator("SpaceToDepth", tflite=("SPACE_TO_DEPTH",), modes=NOT_INT16)
def lower_space_to_depth(lowering: Lowering, node: Node) -> None:
    """Write blocks of pixels as channels."""
    x = node.inputs[0]
    tensor = lowering.take(x, (0, 2, 3, 1), lowering.present_quant(x))
    made = lowering.give(node.outputs[0], (0, 2, 3, 1), lowering.file.tensors[tensor].quant)
    options = S.SpaceToDepthOptionsT()
    options.blockSize = int(node.attributes["blocksize"])
    lowering.emit(B.SPACE_TO_DEPTH, [tensor], [made], options)


@operator("Cast", tflite=("CAST", "QUANTIZE"), limits="between dtypes that TFLite has")
def lower_cast(lowering: Lowering, node: Node) -> None:
    """Write a conversion; integers of eight bits are quantized values of scale one already."""
    x, output = node.inputs[0], node.outputs[0]
    layout = lowering.layout(x)
    source, target = lowering.graph.dtype(x), lowering.graph.dtype(output)
    if source == target:
        lowering.alias(output, x, layout)
        return
    if lowering.integer and target == "float32" and source in ("uint8", "int8"):
        tensor = lowering.take(x, layout, None)
        zero = -128 if source == "uint8" and lowering.activation_dtype == "int8" else 0
        exact = Quant((1.0,), zero, lowering.activation_dtype)
        if lowering.file.tensors[tensor].quant is None:
            lowering.file.tensors[tensor].quant = Quant((1.0,), 0, source)
        lowering.emit(B.QUANTIZE, [tensor], [lowering.give(output, layout, exact)], S.QuantizeOptionsT())
        return
    tensor = lowering.take(x, layout, None)
    lowering.emit(B.CAST, [tensor], [lowering.give(output, layout, None)], S.CastOptionsT())
