"""Preprocessing moves into the graph, so that the device passes the camera frame as it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.artifact import Pipeline
from edgec.artifact.steps import (
    Color,
    Decode,
    Dtype,
    InputStep,
    Layout,
    Normalize,
    ReconstructionError,
)
from edgec.compiler.model import opset_of, real_inputs, walk_nodes
from edgec.runtime.pipeline import normalize_constants

_FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def fold_preprocessing(model: onnx.ModelProto, pipeline: Pipeline) -> tuple[onnx.ModelProto, Pipeline] | None:
    """Return the model with the end of its preprocessing in the graph, and what is left of the pipeline.

    For each input whose steps start with `decode`:

    1. Its last steps are `normalize`, `dtype` to a float and `layout`, and what comes before them is
       uint8[h, w, c]: they become Cast, Mul, Add and Transpose, and the input becomes uint8[n, h, w, c],
       of the same name.
    2. A `color` step between RGB and BGR among or right before these becomes a Gather.
    3. `decode`, `resize` and `crop` stay outside. Where one of them follows a step of case 1, or another
       step does, such as `quantize`: left as it is.
    4. The input is what `reconstruction_error` compares with, or is an output as well: left as it is.

    None where no input can be folded. Results are the same within float rounding: the graph computes
    x * factor + shift in float32, as the step does, with the same constants.
    """
    inputs = real_inputs(model)
    if opset_of(model) < 7:  # before, Mul and Add do not broadcast
        return None
    folds = [fold for value in inputs if (fold := _find(model, pipeline, value, len(inputs) == 1))]
    if not folds:
        return None
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    for fold in folds:
        _insert(folded.graph, fold)
    gone = {index for fold in folds for index in fold.indices}
    return folded, Pipeline(
        preprocess=tuple(step for index, step in enumerate(pipeline.preprocess) if index not in gone),
        postprocess=pipeline.postprocess,
        labels=pipeline.labels,
        sources=pipeline.sources,
    )


class _Operator(NamedTuple):
    """A node to insert.

    Attributes:
        type: Its operator.
        constant: Its second input; None where it has one input.
        attributes: As ONNX names them.
    """

    type: str
    constant: NDArray[Any] | None
    attributes: dict[str, Any]


class _Fold(NamedTuple):
    """What moves into the graph.

    Attributes:
        input: Name of the graph input.
        indices: Of the steps that move, in `Pipeline.preprocess`.
        operators: That take their place, in order.
        channels_first: Whether the model takes [n, c, h, w].
    """

    input: str
    indices: list[int]
    operators: list[_Operator]
    channels_first: bool


def _find(model: onnx.ModelProto, pipeline: Pipeline, value: onnx.ValueInfoProto, only: bool) -> _Fold | None:
    """Return what of an input's steps can move; None where nothing can."""
    own = [
        (index, step)
        for index, step in enumerate(pipeline.preprocess)
        if isinstance(step, InputStep) and (step.input == value.name or (step.input is None and only))
    ]
    steps = [step for _, step in own]
    if not steps or not isinstance(steps[0], Decode) or _is_compared(model, pipeline, value.name, only):
        return None
    start = next((i for i, s in enumerate(steps) if isinstance(s, Normalize | Dtype | Layout)), len(steps))
    while isinstance(steps[start - 1], Color) and _swaps(steps, start - 1):
        start -= 1
    tail = steps[start:]
    if not all(_can_move(step) or _swaps(steps, i) for i, step in enumerate(tail, start)):
        return None
    first = any(isinstance(step, Layout) and step.order.endswith("CHW") for step in tail)
    operators = _operators(tail, value.type.tensor_type, first)
    return _Fold(value.name, [index for index, _ in own[start:]], operators, first) if operators else None


def _is_compared(model: onnx.ModelProto, pipeline: Pipeline, name: str, only: bool) -> bool:
    """Whether something else than the graph's nodes reads the prepared input."""
    return any(output.name == name for output in model.graph.output) or any(
        isinstance(step, ReconstructionError) and (step.input == name or (step.input is None and only))
        for step in pipeline.postprocess
    )


def _swaps(steps: list[InputStep], index: int) -> bool:
    """Whether the `color` step at `index` only changes the order of three channels."""
    step = steps[index]
    before = next(
        s.color if isinstance(s, Decode) else s.order
        for s in reversed(steps[:index])
        if isinstance(s, Decode | Color)
    )
    return isinstance(step, Color) and {before, step.order} == {"RGB", "BGR"}


def _can_move(step: InputStep) -> bool:
    return isinstance(step, Normalize | Layout) or (isinstance(step, Dtype) and step.to in _FLOATS)


def _operators(
    steps: list[InputStep], tensor: onnx.TypeProto.Tensor, channels_first: bool
) -> list[_Operator] | None:
    """Return what does the work of `steps` on uint8[n, h, w, c]; None where it is nothing, or no fit.

    The order is for speed: on channels that come last, ONNX Runtime's Mul takes 20 times as long as on
    channels first, and TensorRT takes bytes only where a Cast comes first.

    Args:
        steps: That can move.
        tensor: What the model takes.
        channels_first: Whether that is [n, c, h, w].
    """
    rank = len(tensor.shape.dim)
    if rank not in (3, 4):
        return None
    axis = rank - 3 if channels_first else rank - 1
    width = 0 if channels_first else tensor.shape.dim[rank - 2].dim_value
    now: int = TensorProto.UINT8
    made: list[_Operator] = []
    for step in steps:
        to = _FLOATS[step.to] if isinstance(step, Dtype) else tensor.elem_type
        to = TensorProto.FLOAT if isinstance(step, Normalize) else to
        if to != now and not isinstance(step, Layout):
            made.append(_Operator("Cast", None, {"to": to}))
            now = to
        if isinstance(step, Color):
            made.append(_Operator("Gather", np.array([2, 1, 0], np.int64), {"axis": axis}))
        elif isinstance(step, Normalize):
            made += _affine(step, channels_first, width)
    if now != tensor.elem_type:
        return None
    if channels_first:
        permutation = [*range(axis), rank - 1, rank - 3, rank - 2]
        after_cast = 1 if made and made[0].type == "Cast" else 0
        made.insert(after_cast, _Operator("Transpose", None, {"perm": permutation}))
    return made


def _affine(step: Normalize, channels_first: bool, width: int) -> list[_Operator]:
    factor, shift = normalize_constants(step)
    scale = [_Operator("Mul", _spread(factor, channels_first, width), {})] if (factor != 1).any() else []
    offset = [_Operator("Add", _spread(shift, channels_first, width), {})] if shift.any() else []
    return scale + offset


def _spread(values: NDArray[Any], channels_first: bool, width: int) -> NDArray[Any]:
    """Return per-channel values in a shape that broadcasts fast: [1], [c, 1, 1] or [w, c]."""
    if (values == values[0]).all():
        return values[:1]
    if channels_first:
        return values.reshape(-1, 1, 1)
    return np.tile(values, (width, 1)) if width else values


def _insert(graph: onnx.GraphProto, fold: _Fold) -> None:
    """Put the operators between the graph input and what reads it."""
    taken = {name for node in walk_nodes(graph) for name in (*node.input, *node.output)}
    stem = f"{fold.input}_prepared"
    while any(name.startswith(stem) for name in taken):
        stem += "_"
    for node in walk_nodes(graph):
        for at, name in enumerate(node.input):
            if name == fold.input:
                node.input[at] = stem
    nodes = []
    name = fold.input
    for number, operator in enumerate(fold.operators, 1):
        result = stem if number == len(fold.operators) else f"{stem}_{number}"
        inputs = [name]
        if operator.constant is not None:
            inputs.append(f"{stem}_constant_{number}")
            graph.initializer.append(numpy_helper.from_array(operator.constant, inputs[1]))
        nodes.append(helper.make_node(operator.type, inputs, [result], name=result, **operator.attributes))
        name = result
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    _take_frames(next(i for i in graph.input if i.name == fold.input), fold.channels_first)


def _take_frames(value: onnx.ValueInfoProto, channels_first: bool) -> None:
    """Make a graph input uint8 with channels last, in place."""
    tensor = value.type.tensor_type
    tensor.elem_type = TensorProto.UINT8
    if channels_first:
        *lead, channels, height, width = list(tensor.shape.dim)
        del tensor.shape.dim[:]
        tensor.shape.dim.extend([*lead, height, width, channels])
