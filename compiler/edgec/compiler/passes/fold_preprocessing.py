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
    tensor = value.type.tensor_type
    operators = _operators(steps, start, tensor.elem_type, len(tensor.shape.dim))
    if not operators:
        return None
    first = any(isinstance(step, Layout) and step.order.endswith("CHW") for step in steps[start:])
    return _Fold(value.name, [index for index, _ in own[start:]], operators, first)


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


def _operators(steps: list[InputStep], start: int, dtype: int, rank: int) -> list[_Operator] | None:
    """Return what replaces the steps from `start` on; None where they cannot move.

    Args:
        steps: Of one input.
        start: Index of the first to move, which takes uint8[h, w, c].
        dtype: Element type that the model takes.
        rank: Axes that the model takes.
    """
    made: list[_Operator] = []
    now: int = TensorProto.UINT8
    transpose: list[_Operator] = []
    for index, step in enumerate(steps[start:], start):
        if isinstance(step, Normalize):
            made += _cast(now, TensorProto.FLOAT) + _affine(step)
            now = TensorProto.FLOAT
        elif isinstance(step, Dtype) and step.to in ("float32", "float16"):
            to = TensorProto.FLOAT if step.to == "float32" else TensorProto.FLOAT16
            made += _cast(now, to)
            now = to
        elif isinstance(step, Color) and _swaps(steps, index):
            made.append(_Operator("Gather", np.array([2, 1, 0], np.int64), {"axis": rank - 1}))
        elif isinstance(step, Layout):
            # Last, so that all the others work on channels that come last, as their constants do.
            lead = list(range(rank - 3))
            permutation = [*lead, rank - 1, rank - 3, rank - 2]
            transpose = [_Operator("Transpose", None, {"perm": permutation})] if "CHW" in step.order else []
        else:
            return None
    return made + transpose if now == dtype and rank in (3, 4) else None


def _cast(now: int, to: int) -> list[_Operator]:
    return [] if now == to else [_Operator("Cast", None, {"to": to})]


def _affine(step: Normalize) -> list[_Operator]:
    factor, shift = normalize_constants(step)
    scale = [_Operator("Mul", factor, {})] if (factor != 1).any() else []
    return scale + ([_Operator("Add", shift, {})] if shift.any() else [])


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
