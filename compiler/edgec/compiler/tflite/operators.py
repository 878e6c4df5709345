"""The table of operators for the documentation: ``python -m edgec.compiler.tflite.operators > docs/...``."""

from __future__ import annotations

from edgec.compiler.tflite.modes import FLOAT_ONLY, Mode
from edgec.compiler.tflite.registry import Operator, operators

_HEAD = """\
# Operators of the TFLite writer

<!-- Made by: python -m edgec.compiler.tflite.operators > docs/tflite-operators.md -->

edgec writes TFLite files itself, straight from ONNX. This is every ONNX operator that it writes, the limits
within which it does, and the builtin operators that come out. `edgec check` names the nodes of
a model that are outside this table, all at once.

Every operator is written in the modes float32, float16 (weights) and dynamic (int8 weights, float
activations; Conv, Gemm, MatMul and recurrent layers compute in int8 there, everything else in float). The
columns *int8* and *int16x8* say whether it also has an integer kernel; where it has none, a full-integer file
is refused unless the node may stay in float.

Shapes are fixed. Images of four axes are NHWC in the file, inputs and outputs of the model included; values
of other ranks keep their axes. TRANSPOSE is written only where bytes have to move.

Constants alone, such as the shape computations of an exporter, are folded, and these patterns are recognised:
GELU by its Erf, hard swish by its HardSigmoid or Clip, layer normalisation in pieces, a bias added after
MatMul, activations after an operator that can take them in, and an NHWC image flattened before a fully
connected layer, whose weights are reordered instead.
"""


def table() -> str:
    """Return the page, in Markdown."""
    rows = [
        "| ONNX | TFLite | int8 | int16x8 | limits | notes |",
        "|---|---|---|---|---|---|",
        *map(_row, operators()),
    ]
    return _HEAD + "\n" + "\n".join(rows) + "\n"


def _row(operator: Operator) -> str:
    marks = ["yes" if mode in operator.modes else "no" for mode in (Mode.INT8, Mode.INT16X8)]
    assert operator.modes >= FLOAT_ONLY, f"{operator.name} must be written in every float mode"
    cells = [operator.name, ", ".join(operator.tflite) or "(none)", *marks, operator.limits, operator.note]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(table(), end="")
