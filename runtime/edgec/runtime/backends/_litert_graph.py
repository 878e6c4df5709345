"""What LiteRT's list of operators says: in which precision they compute, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Operators that do a model's arithmetic; what the others compute in hardly matters. All have the
# activation as their first input and the weights, or the other factor, as their second.
_ARITHMETIC = {
    "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "LSTM",
    "RNN", "SVDF",
}  # fmt: skip
# Activation first, weights second, in the order of the operator's tensors.
_PRECISIONS = {
    ("float32", "float32"): "fp32",
    ("float16", "float16"): "fp16",
    ("float32", "float16"): "fp32",  # weights are widened as they are read
    ("float32", "int8"): "int8-dynamic",
    ("float32", "uint8"): "int8-dynamic",
    ("int8", "int8"): "int8",
    ("uint8", "uint8"): "int8",
    ("int16", "int8"): "int16x8",
}
_DELEGATE = "DELEGATE"
Operator = Mapping[str, Any]


def precisions_of(operators: Sequence[Operator]) -> dict[str, int]:
    """Return how many operators that do arithmetic compute in which precision.

    Of a model without any such operator: of all its operators, by what they take.
    """
    own = [o for o in operators if o["op_name"] != _DELEGATE]
    working = [o for o in own if o["op_name"] in _ARITHMETIC]
    pairs = (_operands(o) for o in working)
    precisions = [_PRECISIONS[pair] for pair in pairs if pair in _PRECISIONS]
    if not working:
        alike = ((kind, kind) for o in own for kind, _ in [_operands(o)])
        precisions = [_PRECISIONS[pair] for pair in alike if pair in _PRECISIONS]
    return dict(Counter(precisions))


def place(operators: Sequence[Operator], device: str) -> dict[str, int]:
    """Return how many of the file's own operators run where.

    Args:
        operators: As the interpreter tells them before its tensors are allocated: then the delegates in
            them are those that the application named, and not XNNPACK, whose place is the CPU.
        device: What the application's delegate drives.
    """
    own = [o for o in operators if o["op_name"] != _DELEGATE]
    taken = len(_delegated(own, [o for o in operators if o["op_name"] == _DELEGATE]))
    places = {device: taken, "CPU": len(own) - taken} if taken else {"CPU": len(own)}
    return {name: count for name, count in places.items() if count}


def left_behind(operators: Sequence[Operator]) -> list[str]:
    """Return the file's operators that no delegate took: ``["SOFTMAX (operator 30)"]``."""
    own = [o for o in operators if o["op_name"] != _DELEGATE]
    taken = _delegated(own, [o for o in operators if o["op_name"] == _DELEGATE])
    return [f"{o['op_name']} (operator {o['index']})" for o in own if o["index"] not in taken]


def _delegated(own: Sequence[Operator], delegates: Sequence[Operator]) -> set[int]:
    """Return the operators that delegates replaced: those between what they give and what they take."""
    producers = {int(tensor): o for o in own for tensor in o["outputs"]}
    found: set[int] = set()
    for delegate in delegates:
        taken = {int(tensor) for tensor in delegate["inputs"]}
        waiting = [int(tensor) for tensor in delegate["outputs"]]
        while waiting:
            producer = producers.get(waiting.pop())
            if producer is None or producer["index"] in found:
                continue
            found.add(producer["index"])
            waiting += [int(tensor) for tensor in producer["inputs"] if int(tensor) not in taken]
    return found


def _operands(operator: Operator) -> tuple[str, str]:
    kinds = [np.dtype(kind).name for kind in operator["operand_types"][:2]]
    return kinds[0] if kinds else "", kinds[1] if len(kinds) > 1 else ""
