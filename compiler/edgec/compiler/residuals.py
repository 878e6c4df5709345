"""Ranges of what a residual Add takes: what its Relu takes away again needs no levels.

A branch that ends in a convolution has both signs, and half of it is large and negative only where the sum
is negative too, which the Relu behind the Add makes zero. Quantized by its own range, most of its 256
levels say how far below zero a zero was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.calibration import CalibrationTable
from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs
from edgec.compiler.ranges import TensorStatistics

Arrays = Mapping[str, NDArray[Any]]

_MOST_VALUES = 1 << 19  # of each operand, over all samples
_FLOORS = np.linspace(0.02, 1.0, 50)  # of the smallest value
_WORTH = 0.95  # a range that stays longer than this is left as it is
_LEVELS = 255


def with_floors(
    model: onnx.ModelProto, table: CalibrationTable, inputs: Sequence[Arrays]
) -> CalibrationTable:
    """Return the table with a floor for what only a residual Add before a Relu takes.

    For Relu(x + y), the floor of x is where raising the smaller values to it, plus the rounding of the
    others to 256 levels above it, changes least of what the Relu gives.

    Args:
        model: The calibrated one.
        table: Of it; left as it is.
        inputs: Samples, at least one.
    """
    sums = _sums(model, table)
    if not sums:
        return table
    floors: dict[str, TensorStatistics] = {}
    with ReferenceProgram(with_outputs(model, list(dict.fromkeys(n for s in sums for n in s)))) as program:
        kept: dict[str, list[NDArray[np.float32]]] = {}
        for sample in inputs:
            values = program.run(sample)
            for pair in sums:
                if values[pair[0]].shape == values[pair[1]].shape:
                    for name in pair:
                        kept.setdefault(name, []).append(_thinned(values[name], len(inputs)))
    for pair in sums:
        if any(name not in kept for name in pair):
            continue
        first, second = (np.concatenate(kept[name]) for name in pair)
        for name, own, other in ((pair[0], first, second), (pair[1], second, first)):
            statistics = table.tensors[name]
            floor = _floor(own, other, statistics)
            if floor is not None and _only_taker(model, name):
                floors[name] = replace(statistics, floor=floor)
    return replace(table, tensors={**table.tensors, **floors})


def _sums(model: onnx.ModelProto, table: CalibrationTable) -> list[tuple[str, str]]:
    """Return the operands of every Add of two activations whose result only a Relu takes."""
    found = []
    for node in model.graph.node:
        if node.op_type != "Add" or node.input[0] == node.input[1] or not _only_taker(model, node.output[0]):
            continue
        (taker,) = _takers(model, node.output[0])
        known = all(name in table.tensors and not table.tensors[name].nonfinite for name in node.input)
        if taker.op_type == "Relu" and known:
            found.append((node.input[0], node.input[1]))
    return found


def _takers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def _only_taker(model: onnx.ModelProto, name: str) -> bool:
    return len(_takers(model, name)) == 1 and all(o.name != name for o in model.graph.output)


def _thinned(array: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """Return values spread over an array: the same places of every array of that size."""
    flat = array.reshape(-1)
    step = max(1, -(-flat.size * samples // _MOST_VALUES))
    return flat[:: step | 1].copy()  # odd, so that it does not keep to one column of an image


def _floor(
    own: NDArray[np.float32], other: NDArray[np.float32], statistics: TensorStatistics
) -> float | None:
    """Return the floor of one operand; None where its whole range matters."""
    low, high = statistics.minimum, max(statistics.maximum, 0.0)
    if low >= 0.0:
        return None
    total = own + other
    exact = np.maximum(total, 0.0)
    seen = int(np.count_nonzero(total > 0.0))
    candidates = low * _FLOORS
    errors = []
    for floor in candidates:
        raised = np.maximum(np.maximum(own, np.float32(floor)) + other, 0.0)
        rounding = seen * ((high - floor) / _LEVELS) ** 2 / 12
        errors.append(float(np.square(raised - exact, dtype=np.float64).sum()) + rounding)
    best = float(candidates[int(np.argmin(errors))])
    return best if best > _WORTH * low else None
