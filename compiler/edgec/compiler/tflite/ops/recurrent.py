"""Recurrent layers: one operator where TFLite has it, else unrolled."""

from __future__ import annotations

from dataclasses import replace

from edgec.compiler.tflite.fused_lstm import write_fused_lstm
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.modes import Mode
from edgec.compiler.tflite.recurrence import read_layer
from edgec.compiler.tflite.registry import operator
from edgec.compiler.tflite.unrolled import MAX_STEPS, write_unrolled

_PLAIN = "weights constant; default activations; layout 0; no clip, no peepholes, sequences of one length"
_STEP = ("FULLY_CONNECTED", "LOGISTIC", "TANH", "MUL", "ADD", "SPLIT", "UNPACK", "PACK")


@operator(
    "LSTM",
    tflite=("UNIDIRECTIONAL_SEQUENCE_LSTM", "SLICE", "REVERSE_V2", *_STEP),
    limits=f"{_PLAIN}; input_forget 0; at most {MAX_STEPS} steps where the last cell state is used",
    note="one operator per direction; unrolled where it is one step, where the last cell state is used, "
    "and in int16x8; int8 has cell states of int16 (tflite-runtime 2.14 refuses unrolled integers)",
)
def lower_lstm(lowering: Lowering, node: Node) -> None:
    """Write an LSTM of one or two directions."""
    node, layer = _used(lowering, node), read_layer(lowering, node)
    if not any(node.outputs):
        return
    cell_used = any(node.outputs[2:])
    wide = lowering.integer and lowering.mode is Mode.INT16X8
    if cell_used or wide or layer.steps == 1:
        write_unrolled(lowering, node, layer)
    else:
        write_fused_lstm(lowering, node, layer)


def _unroll(lowering: Lowering, node: Node) -> None:
    used, layer = _used(lowering, node), read_layer(lowering, node)
    if any(used.outputs):
        write_unrolled(lowering, used, layer)


def _used(lowering: Lowering, node: Node) -> Node:
    """Return a node without the names of outputs that nobody takes."""
    graph = lowering.graph
    taken = (o if o in graph.consumers or o in graph.outputs else "" for o in node.outputs)
    return replace(node, outputs=tuple(taken))


@operator(
    "GRU",
    tflite=(*_STEP, "SUB"),
    limits=f"{_PLAIN}; at most {MAX_STEPS} steps",
    note="unrolled; int8 has states of int16, which tflite-runtime 2.14 refuses",
)
def lower_gru(lowering: Lowering, node: Node) -> None:
    """Write a GRU of one or two directions, with its reset gate before or after the product."""
    _unroll(lowering, node)


@operator(
    "RNN",
    tflite=("FULLY_CONNECTED", "TANH", "ADD", "UNPACK", "PACK"),
    limits=f"{_PLAIN}; at most {MAX_STEPS} steps",
    note="unrolled; int8 has states of int16, which tflite-runtime 2.14 refuses",
)
def lower_rnn(lowering: Lowering, node: Node) -> None:
    """Write a plain recurrent layer of one or two directions."""
    _unroll(lowering, node)
