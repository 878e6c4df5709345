"""Recurrent layers step by step, of operators that every runtime has.

What goes in is multiplied by its weights for all steps at once; each step then adds the product of the state
before. With integers, states and gates are int16 and weights int8, whatever the file's activations are: an
error of int8 would be carried from step to step. Ranges inside need no calibration: products are bounded by
their weights, gates saturate beyond 8, and hidden states are at most 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgec.compiler.tflite import quantize
from edgec.compiler.tflite.flatbuffer import B, Quant, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.ops.convolution import add_weights
from edgec.compiler.tflite.recurrence import (
    Direction,
    Floats,
    Layer,
    first_states,
    give_last,
    give_sequence,
    unpack,
)
from edgec.compiler.tflite.registry import Refused

MAX_STEPS = 128  # a step is 8 to 14 operators
_SATURATED = 8.0  # beyond it, sigmoid and tanh differ from their limits by less than 0.0004
_LARGEST = 64.0  # of a product that another may take back below `_SATURATED`
_CELL = 32.0  # where calibration knows of nothing larger; cells that count go further
_FIXED = Quant((1 / 32768,), 0, "int16")  # of what sigmoid and tanh give
States = tuple[int | None, ...]


def write_unrolled(lowering: Lowering, node: Node, layer: Layer) -> None:
    """Write an LSTM, GRU or RNN of at most `MAX_STEPS` steps.

    Raises:
        Refused: There are more steps.
    """
    if layer.steps > MAX_STEPS:
        raise Refused(
            f"it has {layer.steps} steps, and unrolled layers have at most {MAX_STEPS}",
            "export one step with its states as inputs and outputs, or use an LSTM with states that start "
            "at zero and no output of its cell state, which is one operator",
        )
    ends = len(node.outputs)
    starts = [first_states(lowering, node, 5, layer)]
    if node.op == "LSTM":
        starts.append(first_states(lowering, node, 6, layer))
    runs = [
        _Unrolled(lowering, node, layer, direction).run([s[index] for s in starts])
        for index, direction in enumerate(layer.directions)
    ]
    last = [run[-1] if not d.reverse else run[0] for run, d in zip(runs, layer.directions, strict=True)]
    if node.outputs[0]:
        sequences = [_packed(lowering, node, [s[0] for s in run]) for run in runs]
        give_sequence(lowering, node.outputs[0], _as_held(lowering, node.outputs[0], sequences), layer)
    for index in range(1, ends):
        tensors = [_known(states[index - 1]) for states in last]
        if node.outputs[index]:
            give_last(lowering, node.outputs[index], _as_held(lowering, node.outputs[index], tensors))


def _known(tensor: int | None) -> int:
    assert tensor is not None  # after a step there is a state
    return tensor


def _packed(lowering: Lowering, node: Node, states: Sequence[int | None]) -> int:
    tensors = [_known(s) for s in states]
    source = lowering.file.tensors[tensors[0]]
    shape = (len(tensors), *source.shape)
    if len(tensors) == 1:
        return lowering.reshape(tensors[0], shape, node.name)
    made = lowering.file.add_tensor(f"{node.name}/states", shape, source.dtype, source.quant)
    options = S.PackOptionsT()
    options.valuesCount, options.axis = len(tensors), 0
    lowering.emit(B.PACK, tensors, [made], options)
    return made


def _as_held(lowering: Lowering, name: str, tensors: Sequence[int]) -> list[int]:
    """Return tensors as the file's own integers, where it computes with integers."""
    if not lowering.integer:
        return list(tensors)
    quant = lowering.calibrated(name)
    return [lowering.requantize(t, quant, name) for t in tensors]


class _Unrolled:
    """One direction of a layer."""

    def __init__(self, lowering: Lowering, node: Node, layer: Layer, direction: Direction) -> None:
        self._lowering, self._node, self._layer, self._direction = lowering, node, layer, direction
        self._rows = (layer.batch, layer.hidden)
        self._cell = _CELL

    def run(self, states: Sequence[int | None]) -> list[States]:
        """Write all steps; return the states after each, in the order of the sequence."""
        direction, hidden = self._direction, self._layer.hidden
        step, bias = self._kind()
        products = self._inputs(bias)
        order = range(self._layer.steps)
        self._cell = self._cell_bound(states)
        current: States = tuple(self._wide(s, b) for s, b in zip(states, (1.0, self._cell), strict=False))
        after: dict[int, States] = {}
        for index in reversed(order) if direction.reverse else order:
            current = after[index] = step(products[index], current, hidden)
        return [after[index] for index in order]

    def _cell_bound(self, states: Sequence[int | None]) -> float:
        """Return the largest cell state of an LSTM that calibration has seen, where it can have seen any."""
        lowering, last = self._lowering, self._node.outputs[2:]
        if not lowering.integer or len(states) < 2:
            return _CELL
        seen = [_reach(lowering.calibrated(name)) for name in last if name]
        present = None if states[1] is None else lowering.file.tensors[states[1]].quant
        return max([*seen, _CELL] if present is None else [*seen, _CELL, _reach(present)])

    def _kind(self) -> tuple[Callable[[int, States, int], States], Floats]:
        """Return what writes one step, and the bias of the input's product."""
        direction, hidden = self._direction, self._layer.hidden
        if self._node.op == "GRU":
            both = direction.bias + direction.recurrent_bias
            if self._node.attributes.get("linear_before_reset", 0):
                bias = np.concatenate([both[: 2 * hidden], direction.bias[2 * hidden :]])
                return self._gru_reset_after, bias
            return self._gru_reset_before, both
        bias = direction.bias + direction.recurrent_bias
        return (self._lstm if self._node.op == "LSTM" else self._rnn), bias

    # -- steps -------------------------------------------------------------------------------------------

    def _lstm(self, product: int, states: States, hidden: int) -> States:
        state, cell = states
        before = self._sum(product, self._recurrent(state, 0, 4 * hidden))
        gates, candidate = self._split(before, [3 * hidden, hidden])
        input_gate, output_gate, forget_gate = self._split(self._sigmoid(gates), [hidden] * 3)
        kept = self._product(input_gate, self._tanh(candidate), 1.0)
        if cell is None:
            after = self._as(kept, self._cell)
        else:
            after = self._add(self._product(forget_gate, cell, self._cell), kept, self._cell)
        return self._product(output_gate, self._tanh(after), 1.0), after

    def _rnn(self, product: int, states: States, hidden: int) -> States:
        return (self._tanh(self._sum(product, self._recurrent(states[0], 0, hidden))),)

    def _gru_reset_after(self, product: int, states: States, hidden: int) -> States:
        (state,) = states
        first, second = self._split(product, [2 * hidden, hidden])
        bias = self._direction.recurrent_bias[2 * hidden :]
        if state is None:
            update, reset = self._split(self._sigmoid(self._as(first, _SATURATED)), [hidden] * 2)
            inner = self._constant(np.broadcast_to(bias, self._rows))
        else:
            zeros = np.zeros(2 * hidden, np.float32)
            recurrent = self._connected(state, self._direction.recurrent, np.concatenate([zeros, bias]))
            gates, inner = self._split(recurrent, [2 * hidden, hidden])
            update, reset = self._split(self._sigmoid(self._sum(first, gates)), [hidden] * 2)
        scaled = self._product(reset, inner, self._bound(inner))
        return (self._mixed(update, self._tanh(self._sum(second, scaled)), state),)

    def _gru_reset_before(self, product: int, states: States, hidden: int) -> States:
        (state,) = states
        first, second = self._split(product, [2 * hidden, hidden])
        gates = self._sigmoid(self._sum(first, self._recurrent(state, 0, 2 * hidden)))
        update, reset = self._split(gates, [hidden] * 2)
        kept = None if state is None else self._product(reset, state, self._bound(state))
        inner = self._sum(second, self._recurrent(kept, 2 * hidden, 3 * hidden))
        return (self._mixed(update, self._tanh(inner), state),)

    def _mixed(self, update: int, new: int, old: int | None) -> int:
        """Return ``(1 - update) * new + update * old``."""
        if old is None:
            return self._subtract(new, self._product(update, new, 1.0), 1.0)
        bound = max(self._bound(old), 1.0)
        difference = self._subtract(old, new, bound + 1.0)
        return self._add(new, self._product(update, difference, bound + 1.0), bound)

    # -- operators ---------------------------------------------------------------------------------------

    def _inputs(self, bias: Floats) -> list[int]:
        """Return the product of each step's input with the weights, as [batch, gates * hidden]."""
        lowering, x = self._lowering, self._node.inputs[0]
        quant = None
        if lowering.integer:
            present = lowering.quant(x)
            assert present is not None
            quant = _symmetric(_reach(present))
        tensor = lowering.take(x, (0, 1, 2), quant)
        made = self._connected(tensor, self._direction.weights, bias)
        source = lowering.file.tensors[made]
        if self._layer.steps == 1:
            return [lowering.reshape(made, source.shape[1:], self._node.name)]
        parts = [self._made(source.shape[1:], source.quant) for _ in range(self._layer.steps)]
        unpack(lowering, made, parts)
        return parts

    def _recurrent(self, state: int | None, start: int, end: int) -> int | None:
        if state is None:
            return None
        weights = np.ascontiguousarray(self._direction.recurrent[start:end])
        return self._connected(state, weights, np.zeros(end - start, np.float32))

    def _connected(self, tensor: int, weights: Floats, bias: Floats) -> int:
        """Return ``tensor @ weights.T + bias``."""
        lowering = self._lowering
        source = lowering.file.tensors[tensor]
        bound = np.abs(weights).sum(axis=1) * self._bound(tensor) + np.abs(bias)
        shape = (*source.shape[:-1], len(weights))
        quant = _symmetric(min(float(bound.max()), _LARGEST)) if lowering.integer else None
        made = self._made(shape, quant)
        w, b = add_weights(lowering, self._node, weights, bias, tensor, 0)
        options = S.FullyConnectedOptionsT()
        options.keepNumDims = len(shape) > 2
        options.asymmetricQuantizeInputs = lowering.file.tensors[w].dtype == "int8" and not lowering.integer
        lowering.emit(B.FULLY_CONNECTED, [tensor, w, b], [made], options)
        return made

    def _sum(self, a: int, b: int | None) -> int:
        """Return what goes into a sigmoid or tanh."""
        return self._as(a, _SATURATED) if b is None else self._add(a, b, _SATURATED)

    def _add(self, a: int, b: int, bound: float) -> int:
        options = S.AddOptionsT()
        options.potScaleInt16 = False
        return self._binary(B.ADD, a, b, bound, options)

    def _subtract(self, a: int, b: int, bound: float) -> int:
        options = S.SubOptionsT()
        options.potScaleInt16 = False
        return self._binary(B.SUB, a, b, bound, options)

    def _product(self, a: int, b: int, bound: float) -> int:
        return self._binary(B.MUL, a, b, bound, S.MulOptionsT())

    def _binary(self, builtin: int, a: int, b: int, bound: float, options: Any) -> int:
        shape = self._lowering.file.tensors[a].shape
        made = self._made(shape, _symmetric(bound) if self._lowering.integer else None)
        self._lowering.emit(builtin, [a, b], [made], options)
        return made

    def _sigmoid(self, tensor: int) -> int:
        return self._activation(B.LOGISTIC, tensor)

    def _tanh(self, tensor: int) -> int:
        return self._activation(B.TANH, tensor)

    def _activation(self, builtin: int, tensor: int) -> int:
        shape = self._lowering.file.tensors[tensor].shape
        made = self._made(shape, _FIXED if self._lowering.integer else None)
        self._lowering.emit(builtin, [tensor], [made])
        return made

    def _split(self, tensor: int, sizes: list[int]) -> list[int]:
        source, lowering = self._lowering.file.tensors[tensor], self._lowering
        made = [self._made((*source.shape[:-1], size), source.quant) for size in sizes]
        axis = lowering.int32(len(source.shape) - 1, f"{self._node.name}/axis")
        options: Any
        if len(set(sizes)) == 1:
            options = S.SplitOptionsT()
            options.numSplits = len(sizes)
            lowering.emit(B.SPLIT, [axis, tensor], made, options)
            return made
        options = S.SplitVOptionsT()
        options.numSplits = len(sizes)
        lengths = lowering.int32(sizes, f"{self._node.name}/sizes")
        lowering.emit(B.SPLIT_V, [tensor, lengths, axis], made, options)
        return made

    def _wide(self, state: int | None, bound: float) -> int | None:
        """Return a state that the layer starts from, in integers as int16."""
        if state is None or not self._lowering.integer:
            return state
        present = self._lowering.file.tensors[state].quant
        reach = bound if present is None else max(bound, _reach(present))
        return self._lowering.requantize(state, _symmetric(reach), f"{self._node.name}/start")

    def _as(self, tensor: int, bound: float) -> int:
        if not self._lowering.integer:
            return tensor
        return self._lowering.requantize(tensor, _symmetric(bound), self._node.name)

    def _constant(self, array: Floats) -> int:
        quant = _symmetric(float(np.abs(array).max(initial=0.0))) if self._lowering.integer else None
        return self._lowering.array(np.ascontiguousarray(array), f"{self._node.name}/bias", quant)

    def _bound(self, tensor: int) -> float:
        quant = self._lowering.file.tensors[tensor].quant
        return 1.0 if quant is None else _reach(quant)

    def _made(self, shape: Sequence[int], quant: Quant | None) -> int:
        dtype = "float32" if quant is None else quant.dtype
        return self._lowering.file.add_tensor(f"{self._node.name}/step", shape, dtype, quant)


def _symmetric(bound: float) -> Quant:
    """Return int16 parameters; the scale is a power of two where the bound is one, as old kernels ask."""
    return Quant((float(np.float32(max(bound, 1e-6) / 32768)),), 0, "int16")


def _reach(quant: Quant) -> float:
    """Return the largest magnitude that integers of some parameters stand for."""
    return max(abs(end) for end in quantize.reals(quant))
