"""Activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgec.compiler.tflite import quantize
from edgec.compiler.tflite.flatbuffer import B, Quant, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import Layout, padded
from edgec.compiler.tflite.lowering import RELU6, Lowering
from edgec.compiler.tflite.modes import FLOAT_ONLY, NOT_INT16
from edgec.compiler.tflite.registry import Refused, operator


def _simple(
    lowering: Lowering, node: Node, builtin: int, options: Any = None, fixed: Quant | None = None
) -> None:
    layout = lowering.layout(node.inputs[0])
    x = lowering.take(node.inputs[0], layout)
    made = (
        lowering.give(node.outputs[0], layout, fixed)
        if fixed is not None and lowering.integer
        else lowering.give(node.outputs[0], layout)
    )
    lowering.emit(builtin, [x], [made], options)


@operator("Relu", tflite=("RELU",), note="fused into the operator before it where that has the option")
def lower_relu(lowering: Lowering, node: Node) -> None:
    """Write a ReLU that nothing before it could take in."""
    _simple(lowering, node, B.RELU)


@operator(
    "Clip",
    tflite=("RELU6", "RELU_N1_TO_1", "RELU", "MAXIMUM", "MINIMUM"),
    limits="bounds constant",
    note="fused where the operator before it has the option; integers saturate at its bounds",
)
def lower_clip(lowering: Lowering, node: Node) -> None:
    """Write a Clip; in integers the output's range saturates at its bounds where they enclose zero."""
    low, high = lowering.clip_bounds(node)
    x, output = node.inputs[0], node.outputs[0]
    layout = lowering.layout(x)
    if lowering.saturates and lowering.is_float(x) and low <= 0.0 <= high:
        bounded = lowering.calibrated(output)
        lowering.hold(output, lowering.take(x, layout, bounded), layout, bounded)
        return
    builtin = {(0.0, 6.0): B.RELU6, (-1.0, 1.0): B.RELU_N1_TO_1, (0.0, np.inf): B.RELU}.get((low, high))
    if builtin is not None and lowering.is_float(x):
        _simple(lowering, node, builtin)
        return
    quant = lowering.calibrated(output) if lowering.quant(x) else None
    _clip(lowering, lowering.take(x, layout, quant), low, high, output, layout, quant)


def _clip(
    lowering: Lowering,
    tensor: int,
    low: float,
    high: float,
    output: str,
    layout: Layout,
    quant: Quant | None,
) -> None:
    bounds = [
        (builtin, bound) for builtin, bound in ((B.MAXIMUM, low), (B.MINIMUM, high)) if np.isfinite(bound)
    ]
    if not bounds:
        lowering.hold(output, tensor, layout, quant)
        return
    source = lowering.file.tensors[tensor]
    for index, (builtin, bound) in enumerate(bounds):
        last = index == len(bounds) - 1
        made = (
            lowering.give(output, layout, quant)
            if last
            else lowering.file.add_tensor(f"{output}/below", source.shape, source.dtype, source.quant)
        )
        constant = lowering.array(np.array(bound, lowering.graph.dtype(output)), f"{output}/bound", quant)
        lowering.emit(builtin, [tensor, constant], [made], S.MaximumMinimumOptionsT())
        tensor = made


@operator("LeakyRelu", tflite=("LEAKY_RELU",))
def lower_leaky_relu(lowering: Lowering, node: Node) -> None:
    """Write a leaky ReLU."""
    options = S.LeakyReluOptionsT()
    options.alpha = float(node.attributes.get("alpha", 0.01))
    _simple(lowering, node, B.LEAKY_RELU, options)


@operator("PRelu", tflite=("PRELU",), limits="slope constant", modes=NOT_INT16)
def lower_prelu(lowering: Lowering, node: Node) -> None:
    """Write a ReLU with a learned slope."""
    x, slope = node.inputs
    lowering.constant(node, 1, "slope")
    layout = lowering.layout(x)
    missing = lowering.rank(x) - lowering.rank(slope)
    shared = layout if missing == 0 else padded(layout, missing)
    alpha = lowering.take(slope, shared[1:] if shared[0] < 0 else shared)
    lowering.emit(B.PRELU, [lowering.take(x, layout), alpha], [lowering.give(node.outputs[0], layout)])


@operator("Elu", tflite=("ELU",), limits="alpha = 1", modes=NOT_INT16)
def lower_elu(lowering: Lowering, node: Node) -> None:
    """Write an ELU."""
    if node.attributes.get("alpha", 1.0) != 1.0:
        raise Refused("its alpha is not 1", "use an ELU with alpha 1, or LeakyRelu")
    _simple(lowering, node, B.ELU)


@operator("Sigmoid", tflite=("LOGISTIC",))
def lower_sigmoid(lowering: Lowering, node: Node) -> None:
    """Write a sigmoid."""
    _simple(lowering, node, B.LOGISTIC, fixed=quantize.probabilities(lowering.activation_dtype))


@operator("Tanh", tflite=("TANH",))
def lower_tanh(lowering: Lowering, node: Node) -> None:
    """Write a hyperbolic tangent."""
    _simple(lowering, node, B.TANH, fixed=quantize.tanh_range(lowering.activation_dtype))


@operator("Gelu", tflite=("GELU",), modes=NOT_INT16, note="also recognised by its Erf pattern")
def lower_gelu(lowering: Lowering, node: Node) -> None:
    """Write a GELU."""
    options = S.GeluOptionsT()
    options.approximate = node.text("approximate", "none") == "tanh"
    _simple(lowering, node, B.GELU, options)


@operator(
    "HardSwish",
    tflite=("HARD_SWISH",),
    modes=NOT_INT16,
    note="also recognised as x * HardSigmoid(x) and as x * Clip(x + 3, 0, 6) / 6",
)
def lower_hard_swish(lowering: Lowering, node: Node) -> None:
    """Write a hard swish."""
    _simple(lowering, node, B.HARD_SWISH, S.HardSwishOptionsT())


@operator("HardSigmoid", tflite=("ADD", "MUL", "MAXIMUM", "MINIMUM"), limits="alpha > 0", modes=NOT_INT16)
def lower_hard_sigmoid(lowering: Lowering, node: Node) -> None:
    """Write ``clip(alpha x + beta, 0, 1)`` as ``alpha * clip(x + beta / alpha, 0, 1 / alpha)``."""
    alpha = float(node.attributes.get("alpha", 0.2))
    beta = float(node.attributes.get("beta", 0.5))
    if alpha <= 0:
        raise Refused("its alpha is not positive", "use a positive alpha")
    x, output = node.inputs[0], node.outputs[0]
    layout = lowering.layout(x)
    taken = lowering.take(x, layout)
    source = lowering.file.tensors[taken]
    quant = quantize.from_range(0.0, 1 / alpha, source.dtype) if lowering.integer else None
    shifted = lowering.file.add_tensor(f"{output}/shifted", source.shape, source.dtype, quant)
    options = S.AddOptionsT()
    if abs(alpha - 1 / 6) < 1e-6:
        options.fusedActivationFunction = RELU6
    lowering.emit(B.ADD, [taken, _scalar(lowering, beta / alpha, output)], [shifted], options)
    if quant is None and options.fusedActivationFunction != RELU6:
        for builtin, bound, word in ((B.MAXIMUM, 0.0, "above"), (B.MINIMUM, 1 / alpha, "below")):
            made = lowering.file.add_tensor(f"{output}/{word}", source.shape, source.dtype)
            lowering.emit(
                builtin, [shifted, _scalar(lowering, bound, output)], [made], S.MaximumMinimumOptionsT()
            )
            shifted = made
    made = lowering.give(output, layout)
    lowering.emit(B.MUL, [shifted, _scalar(lowering, alpha, output)], [made], S.MulOptionsT())


def _scalar(lowering: Lowering, value: float, name: str) -> int:
    array = np.array(value, np.float32)
    quant = lowering.quant_of_array(array) if lowering.integer else None
    return lowering.array(array, f"{name}/constant", quant)


def _along_last(lowering: Lowering, node: Node, builtin: int, options: Any, fixed: Quant) -> None:
    """Write an operator that works along the last axis of the tensor."""
    x, output = node.inputs[0], node.outputs[0]
    axis = int(node.attributes.get("axis", -1)) % lowering.rank(x)
    layout = lowering.layout(x)
    if axis not in layout:
        raise Refused("it works along an axis that is not kept", "simplify the model first")
    # Only where the axis is not last already do bytes move.
    moved = (*(a for a in layout if a != axis), axis)
    taken = lowering.take(x, moved)
    lowering.emit(
        builtin, [taken], [lowering.give(output, moved, fixed if lowering.integer else None)], options
    )


@operator("Softmax", tflite=("SOFTMAX",), note="along an axis that is not last: with TRANSPOSE")
def lower_softmax(lowering: Lowering, node: Node) -> None:
    """Write a softmax."""
    options = S.SoftmaxOptionsT()
    options.beta = 1.0
    fixed = quantize.probabilities(lowering.activation_dtype)
    _along_last(lowering, node, B.SOFTMAX, options, fixed)


@operator("LogSoftmax", tflite=("LOG_SOFTMAX",), modes=NOT_INT16, note="as Softmax")
def lower_log_softmax(lowering: Lowering, node: Node) -> None:
    """Write the logarithm of a softmax."""
    _along_last(lowering, node, B.LOG_SOFTMAX, S.LogSoftmaxOptionsT(), quantize.LOG_SOFTMAX)


@operator("Erf", tflite=("EXP", "MUL", "ADD", "DIV"), modes=FLOAT_ONLY, note="to 2e-7; in a Gelu: GELU")
def lower_erf(lowering: Lowering, node: Node) -> None:
    """Write the error function after Abramowitz and Stegun, 7.1.26."""
    layout = lowering.layout(node.inputs[0])
    x = lowering.take(node.inputs[0], layout)
    shape, output = lowering.file.tensors[x].shape, node.outputs[0]

    def compute(builtin: int, inputs: list[int], options: Any = None) -> int:
        made = lowering.file.add_tensor(f"{output}/step", shape, "float32")
        lowering.emit(builtin, inputs, [made], options)
        return made

    def times(a: int, b: int) -> int:
        return compute(B.MUL, [a, b], S.MulOptionsT())

    def plus(a: int, value: float) -> int:
        return compute(B.ADD, [a, _scalar(lowering, value, output)], S.AddOptionsT())

    size = compute(B.ABS, [x], S.AbsOptionsT())
    one = _scalar(lowering, 1.0, output)
    t = compute(B.DIV, [one, plus(times(size, _scalar(lowering, 0.3275911, output)), 1.0)], S.DivOptionsT())
    series = times(t, _scalar(lowering, 1.061405429, output))
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = times(plus(series, coefficient), t)
    bell = compute(B.EXP, [times(times(x, x), _scalar(lowering, -1.0, output))], S.ExpOptionsT())
    positive = compute(B.SUB, [one, times(series, bell)], S.SubOptionsT())
    sign = compute(B.RELU_N1_TO_1, [times(x, _scalar(lowering, 1e30, output))])
    lowering.emit(B.MUL, [positive, sign], [lowering.give(output, layout)], S.MulOptionsT())
