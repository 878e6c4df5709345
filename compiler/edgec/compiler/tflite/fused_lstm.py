"""LSTMs as UNIDIRECTIONAL_SEQUENCE_LSTM: one operator per direction, however long the sequence.

The operator keeps its states in variable tensors from one call to the next. An ONNX LSTM starts anew in every
call: a SLICE writes the states it starts from into the variable tensors, before the operator runs.

Integers are those of LiteRT's quantizer: int8 inputs, outputs and weights, and cell states of int16
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgec.compiler.tflite import quantize
from edgec.compiler.tflite.flatbuffer import B, Quant, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.recurrence import (
    Direction,
    Floats,
    Layer,
    first_states,
    give_last,
    give_sequence,
)
from edgec.compiler.weight_scales import weight_scales

_TANH = 4  # ActivationFunctionType
_ORDER = (0, 2, 3, 1)  # TFLite's gates input, forget, cell, output among ONNX's input, output, forget, cell
_ABSENT = -1
_CELL = 2.0**-10  # scale of cell states, of which a power of two is asked for; it reaches 32


def write_fused_lstm(lowering: Lowering, node: Node, layer: Layer) -> None:
    """Write an LSTM of which nobody takes the cell state, in one of the modes float and int8."""
    x = node.inputs[0]
    batch_first = layer.batch > 1 and lowering.layout(x) == (1, 0, 2)
    tensor = lowering.take(x, (1, 0, 2) if batch_first else (0, 1, 2))
    hidden, cell = (first_states(lowering, node, i, layer) for i in (5, 6))
    quant = _state_quant(lowering, node, hidden)
    wide = None if quant is None else _cell_quant(lowering, node)
    sequence_name, *others = node.outputs
    sequences, lasts = [], []
    for index, direction in enumerate(layer.directions):
        states = (
            _variable(lowering, node, layer, hidden[index], quant, "hidden"),
            _variable(lowering, node, layer, cell[index], wide, "cell"),
        )
        source = _reversed(lowering, tensor, node, batch_first) if direction.reverse else tensor
        made = _write(lowering, node, direction, source, states, quant, batch_first)
        lasts.append(_last(lowering, node, made, layer, batch_first) if others else made)
        sequences.append(_reversed(lowering, made, node, batch_first) if direction.reverse else made)
    give_sequence(lowering, sequence_name, sequences, layer, batch_first=batch_first)
    if others:
        give_last(lowering, others[0], lasts)


def _state_quant(lowering: Lowering, node: Node, hidden: Sequence[int | None]) -> Quant | None:
    """Return the parameters of outputs and hidden states, which the kernel wants to be the same."""
    if not lowering.integer:
        return None
    name = next(o for o in node.outputs if o)
    if hidden[0] is None:
        return lowering.calibrated(name)
    ranges = [quantize.reals(lowering.calibrated(n)) for n in (name, node.inputs[5])]
    return quantize.from_range(min(low for low, _ in ranges), max(high for _, high in ranges), "int8")


def _cell_quant(lowering: Lowering, node: Node) -> Quant:
    """Return the parameters of cell states, which reach as far as those that a call starts from."""
    scale, given = _CELL, node.input(6)
    if given and not lowering.is_constant(given):
        reach = max(abs(end) for end in quantize.reals(lowering.calibrated(given)))
        while scale * 2**15 < reach:
            scale *= 2
    return Quant((scale,), 0, "int16")


def _variable(
    lowering: Lowering, node: Node, layer: Layer, start: int | None, quant: Quant | None, what: str
) -> int:
    """Return a variable tensor into which the state that a call starts from is written in every call."""
    shape, file = (layer.batch, layer.hidden), lowering.file
    dtype = "float32" if quant is None else quant.dtype
    name = f"{node.name}/{what}"
    if start is None:
        zero = np.full(shape, 0 if quant is None else quant.zero_point, dtype)
        start = file.add_constant(f"{name}/zero", zero, quant)
    elif quant is not None and file.tensors[start].quant != quant:
        start = lowering.requantize(start, quant, name)
    made = file.add_tensor(name, shape, dtype, quant, variable=True)
    begin, size = lowering.int32([0, 0], f"{name}/begin"), lowering.int32(shape, f"{name}/size")
    lowering.emit(B.SLICE, [start, begin, size], [made], S.SliceOptionsT())
    return made


def _write(
    lowering: Lowering,
    node: Node,
    direction: Direction,
    source: int,
    states: tuple[int, int],
    quant: Quant | None,
    batch_first: bool,
) -> int:
    file = lowering.file
    taken = file.tensors[source]
    bias = direction.bias + direction.recurrent_bias
    weights = [_matrix(lowering, _gate(direction.weights, g), node, "weights") for g in _ORDER]
    recurrent = [_matrix(lowering, _gate(direction.recurrent, g), node, "recurrent") for g in _ORDER]
    biases = [
        _bias(lowering, _gate(bias, g), node, taken.quant, file.tensors[w].quant)
        for g, w in zip(_ORDER, weights, strict=True)
    ]
    peepholes, projection, layer_norm = [_ABSENT] * 3, [_ABSENT] * 2, [_ABSENT] * 4
    options = S.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction, options.timeMajor = _TANH, not batch_first
    options.cellClip = options.projClip = 0.0
    options.asymmetricQuantizeInputs = lowering.hybrid
    options.diagonalRecurrentTensors = False
    hidden = direction.recurrent.shape[1]
    dtype = "float32" if quant is None else quant.dtype
    made = file.add_tensor(f"{node.name}/states", (*taken.shape[:2], hidden), dtype, quant)
    file.add_operation(
        B.UNIDIRECTIONAL_SEQUENCE_LSTM,
        [source, *weights, *recurrent, *peepholes, *biases, *projection, *states, *layer_norm],
        [made],
        options,
        intermediates=() if quant is None else _intermediates(lowering, node, quant),
    )
    return made


def _gate(array: Floats, gate: int) -> Floats:
    size = len(array) // 4
    return np.ascontiguousarray(array[gate * size : (gate + 1) * size])


def _matrix(lowering: Lowering, matrix: Floats, node: Node, what: str) -> int:
    """Add weights: the kernels of integers know one scale per matrix."""
    name = f"{node.name}/{what}"
    if lowering.integer or lowering.hybrid:
        scale = max(float(weight_scales(matrix, None)), float(np.float32(1e-9)))
        quant = Quant((scale,), 0, "int8")
        return lowering.array(np.maximum(quantize.to_integers(matrix, quant), -127), name, quant)
    return lowering.array(matrix, name)


def _bias(lowering: Lowering, bias: Floats, node: Node, source: Quant | None, weights: Quant | None) -> int:
    if not lowering.integer or source is None or weights is None:
        return lowering.array(bias, f"{node.name}/bias")
    integers, quant = quantize.quantize_bias(bias, source.scale[0], weights, "int32")
    return lowering.array(integers, f"{node.name}/bias", quant)


def _intermediates(lowering: Lowering, node: Node, state: Quant) -> tuple[int, ...]:
    """Add the tensors that tell the kernel its scales; those of gates matter to layer normalisation alone."""
    gate = Quant((2.0**-12,), 0, "int16")
    names = ("input", "forget", "cell", "output")
    gates = [lowering.file.add_tensor(f"{node.name}/gate/{n}", (0,), "int16", gate) for n in names]
    return (*gates, lowering.file.add_tensor(f"{node.name}/effective", (0,), "int8", state))


def _reversed(lowering: Lowering, tensor: int, node: Node, batch_first: bool) -> int:
    source = lowering.file.tensors[tensor]
    made = lowering.file.add_tensor(f"{node.name}/reversed", source.shape, source.dtype, source.quant)
    axis = lowering.int32([1 if batch_first else 0], f"{node.name}/time")
    lowering.emit(B.REVERSE_V2, [tensor, axis], [made], S.ReverseV2OptionsT())
    return made


def _last(lowering: Lowering, node: Node, tensor: int, layer: Layer, batch_first: bool) -> int:
    """Return the last step of a sequence, as [batch, hidden]."""
    source = lowering.file.tensors[tensor]
    time = 1 if batch_first else 0
    begin, size = [0, 0, 0], list(source.shape)
    begin[time], size[time] = layer.steps - 1, 1
    made = lowering.file.add_tensor(f"{node.name}/last", size, source.dtype, source.quant)
    constants = [lowering.int32(begin, f"{node.name}/begin"), lowering.int32(size, f"{node.name}/size")]
    lowering.emit(B.SLICE, [tensor, *constants], [made], S.SliceOptionsT())
    return lowering.reshape(made, (layer.batch, layer.hidden), node.name)
