"""What LSTM, GRU and RNN share: their parameters, states at the start, and outputs of both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.tflite.flatbuffer import B, Quant, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import Layout
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.registry import Refused

Floats = NDArray[np.float32]
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One direction of a recurrent layer.

    Attributes:
        weights: Of the input, [gates * hidden, input].
        recurrent: Of the state before, [gates * hidden, hidden].
        bias: Added to the input's product, [gates * hidden].
        recurrent_bias: Added to the state's product.
        reverse: Whether it goes from the last step to the first.
    """

    weights: Floats
    recurrent: Floats
    bias: Floats
    recurrent_bias: Floats
    reverse: bool


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A recurrent layer.

    Attributes:
        directions: One or two.
        hidden: Size of a state.
        steps: Length of the sequence.
        batch: How many sequences.
    """

    directions: tuple[Direction, ...]
    hidden: int
    steps: int
    batch: int


def read_layer(lowering: Lowering, node: Node) -> Layer:
    """Return the parameters of an LSTM, GRU or RNN.

    Raises:
        Refused: It has what none of TFLite's operators has.
    """
    _require_plain(lowering, node)
    weights = _parameter(lowering, node, 1, "weights")
    recurrent = _parameter(lowering, node, 2, "recurrent weights")
    count, rows, hidden = recurrent.shape
    bias = _parameter(lowering, node, 3, "bias") if node.input(3) else np.zeros((count, 2 * rows), np.float32)
    direction = node.text("direction", "forward")
    steps, batch, _ = lowering.shape(node.inputs[0])
    return Layer(
        directions=tuple(
            Direction(
                weights=weights[d],
                recurrent=recurrent[d],
                bias=bias[d, :rows],
                recurrent_bias=bias[d, rows:],
                reverse=direction == "reverse" or d == 1,
            )
            for d in range(count)
        ),
        hidden=hidden,
        steps=steps,
        batch=batch,
    )


def _parameter(lowering: Lowering, node: Node, index: int, what: str) -> Floats:
    array = lowering.constant(node, index, what)
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise Refused(f"its {what} are not finite float32", "convert the model to float32 first")
    return array


def _require_plain(lowering: Lowering, node: Node) -> None:
    if node.attributes.get("layout", 0):
        raise Refused("its batch comes first (layout=1)", "export it with layout=0")
    if node.input(7):
        raise Refused("it has peepholes", "train it without peepholes")
    if node.attributes.get("clip", 0.0):
        raise Refused("it clips what goes into its activations", "train it without clip")
    if node.attributes.get("input_forget", 0):
        raise Refused("it couples the input gate to the forget gate", "train it with both gates")
    usual = _ACTIVATIONS[node.op]
    given = [
        v.decode() if isinstance(v, bytes) else str(v) for v in node.attributes.get("activations", usual)
    ]
    if any(given[i : i + len(usual)] != usual for i in range(0, len(given), len(usual))):
        raise Refused(f"its activations are {', '.join(given)}", f"use {', '.join(usual)}")
    if node.input(4):
        lengths = lowering.constant(node, 4, "lengths of sequences")
        if (lengths != lowering.shape(node.inputs[0])[0]).any():
            raise Refused("its sequences have several lengths", "give each sequence in full")


def first_states(lowering: Lowering, node: Node, index: int, layer: Layer) -> list[int | None]:
    """Return the [batch, hidden] tensor that each direction starts from; None where that is zero.

    They are as the value is in the file: float, or integers where it was computed or given so.
    """
    name = node.input(index)
    if not name or (lowering.is_constant(name) and not lowering.graph.constants[name].any()):
        return [None for _ in layer.directions]
    tensor = lowering.take(name, (0, 1, 2))
    source = lowering.file.tensors[tensor]
    shape = (layer.batch, layer.hidden)
    if len(layer.directions) == 1:
        return [lowering.reshape(tensor, shape, name)]
    made: list[int] = [
        lowering.file.add_tensor(f"{name}/{d}", shape, source.dtype, source.quant) for d in (0, 1)
    ]
    unpack(lowering, tensor, made)
    return list(made)


def unpack(lowering: Lowering, tensor: int, made: Sequence[int]) -> None:
    """Write the parts of a tensor along its first axis."""
    options = S.UnpackOptionsT()
    options.num, options.axis = len(made), 0
    lowering.emit(B.UNPACK, [tensor], made, options)


def give_sequence(
    lowering: Lowering, name: str, tensors: Sequence[int], layer: Layer, *, batch_first: bool = False
) -> None:
    """Hold the hidden states of all steps, a [steps, batch, hidden] tensor per direction, as one value."""
    if not name:
        return
    tensor = _side_by_side(lowering, tensors, name)
    order: Layout = (2, 0, 1, 3) if batch_first else (0, 2, 1, 3)
    _hold(lowering, name, tensor, order)


def give_last(lowering: Lowering, name: str, tensors: Sequence[int]) -> None:
    """Hold the states after the last step, a [batch, hidden] tensor per direction, as one value."""
    if name:
        _hold(lowering, name, _side_by_side(lowering, tensors, name), (1, 0, 2))


def _side_by_side(lowering: Lowering, tensors: Sequence[int], name: str) -> int:
    if len(tensors) == 1:
        return tensors[0]
    first = lowering.file.tensors[tensors[0]]
    shape = (*first.shape[:-1], sum(lowering.file.tensors[t].shape[-1] for t in tensors))
    made = lowering.file.add_tensor(f"{name}/both", shape, first.dtype, first.quant)
    options = S.ConcatenationOptionsT()
    options.axis = len(shape) - 1
    lowering.emit(B.CONCATENATION, tensors, [made], options)
    return made


def _hold(lowering: Lowering, name: str, tensor: int, layout: Layout) -> None:
    shape = tuple(lowering.shape(name)[a] for a in layout)
    quant: Quant | None = lowering.file.tensors[tensor].quant
    lowering.hold(name, lowering.reshape(tensor, shape, name), layout, quant)
