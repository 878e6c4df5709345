"""The documented rules of targets, checked on a graph without the target's own toolchain.

`lint_limits` holds a model against the limits that a target's file states, whatever the family.
`lint_tensorrt` adds the rules of TensorRT's ONNX parser and of explicit quantization in strongly typed
networks, as its documentation states them:

* ONNX operators: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md
* quantization: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
  and the reference of ``IQuantizeLayer`` and ``IDequantizeLayer``
* placement: https://docs.nvidia.com/deeplearning/tensorrt/tensorflow-quantization-toolkit/docs/docs/add_custom_qdq_cases.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgec.compiler.model import opset_of, real_inputs, shape_option
from edgec.compiler.places import (
    FLOATS,
    Place,
    Tensor,
    attributes_of,
    find_places,
    is_standard,
    schema_opset,
)
from edgec.targets import AttributeLimit, Limits, Target

_OLDEST_TENSORRT_OPSET = 9  # trt-opset: "minimum opset (official backward support) 9 and above"
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators whose first axis is a batch, whatever the model does with axes elsewhere.
_BATCHED = frozenset(
    {
        "AveragePool",
        "Conv",
        "ConvTranspose",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "MaxPool",
        "Resize",
    }
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule that a graph breaks.

    Attributes:
        rule: Name of the rule: ``zero-point``.
        node: Label of the node; ``(model)`` where the model as a whole is meant.
        message: What is wrong.
        severity: ``error``: the target refuses it or computes something else. ``warning``: it works, but
            slower or less exact than need be.
        fix: What to do about it.
    """

    rule: str
    node: str
    message: str
    severity: str
    fix: str


def lint_limits(model: onnx.ModelProto, limits: Limits) -> list[Finding]:
    """Return what of a model is outside the limits that a target's file states."""
    return list(_limit_findings(model, limits, find_places(model)))


def lint_tensorrt(model: onnx.ModelProto, target: Target) -> list[Finding]:
    """Return what of a model TensorRT would refuse or run badly; an empty list for a clean graph.

    Args:
        model: As it would be given to TensorRT's parser: typed, with Q/DQ or without.
        target: Of the family ``tensorrt``.
    """
    places = find_places(model)
    found = list(_limit_findings(model, target.limits, places))
    if 0 < opset_of(model) < _OLDEST_TENSORRT_OPSET:
        found.append(
            Finding(
                rule="opset",
                node="(model)",
                message=f"opset {opset_of(model)} is older than TensorRT's parser supports",
                severity="error",
                fix=f"export with opset_version={target.limits.max_opset or 20}",
            )
        )
    found += _domains(places)
    found += _dynamic_inputs(model)
    graph = _Graph(model, places)
    for place in places:
        for rule in _NODE_RULES:
            found += rule(place, graph)
    return found


# -- limits that target files state ------------------------------------------------------------------------


def _limit_findings(model: onnx.ModelProto, limits: Limits, places: Sequence[Place]) -> Iterator[Finding]:
    yield from _versions(model, limits)
    refused = dict(limits.refused_operators)
    refused_dtypes = dict(limits.refused_dtypes)
    for place in places:
        op = place.node.op_type
        if is_standard(place.node) and op in refused:
            yield _refusal("unsupported-operator", place, f"{op} is not supported", refused[op])
        elif is_standard(place.node) and limits.allowed_operators and op not in limits.allowed_operators:
            yield _refusal(
                "unsupported-operator",
                place,
                f"{op} is not among the operators that the target runs",
                "replace it, or leave it out of the exported model",
            )
        yield from _attribute_findings(model, place, limits.attributes)
        yield from _tensor_findings(place, limits, refused_dtypes)
    if limits.static_shapes:
        yield from _free_dimensions(model)


def _versions(model: onnx.ModelProto, limits: Limits) -> Iterator[Finding]:
    opset = opset_of(model)
    if limits.max_opset is not None and opset > limits.max_opset:
        yield Finding(
            rule="opset",
            node="(model)",
            message=f"opset {opset} is newer than the {limits.max_opset} that the target takes",
            severity="error",
            fix=f"export with opset_version={limits.max_opset}",
        )
    if limits.max_ir_version is not None and model.ir_version > limits.max_ir_version:
        yield Finding(
            rule="ir-version",
            node="(model)",
            message=f"IR version {model.ir_version} is newer than the target's {limits.max_ir_version}",
            severity="error",
            fix="edgec compile lowers it",
        )


def _refusal(rule: str, place: Place, message: str, fix: str) -> Finding:
    return Finding(rule=rule, node=place.label, message=message, severity="error", fix=fix)


def _attribute_findings(
    model: onnx.ModelProto, place: Place, limits: Sequence[AttributeLimit]
) -> Iterator[Finding]:
    mine = [rule for rule in limits if rule.operator == place.node.op_type]
    if not mine or not is_standard(place.node):
        return
    attributes = attributes_of(place.node, schema_opset(model, place.node))
    for rule in mine:
        value = attributes.get(rule.attribute)
        values = value if isinstance(value, list) else [] if value is None else [value]
        bad = [v for v in values if not _within(v, rule)]
        if bad:
            yield _refusal(
                "attribute",
                place,
                f"{rule.operator} with {rule.attribute}={value!r} is not supported",
                rule.reason,
            )


def _within(value: object, rule: AttributeLimit) -> bool:
    if rule.allowed and value not in rule.allowed:
        return False
    if isinstance(value, int | float):
        if rule.minimum is not None and value < rule.minimum:
            return False
        return rule.maximum is None or value <= rule.maximum
    return True


def _tensor_findings(place: Place, limits: Limits, refused: dict[str, str]) -> Iterator[Finding]:
    outputs = [t for t in place.outputs if t is not None]
    for tensor in (*(t for t in place.inputs if t is not None and t.origin == "input"), *outputs):
        if tensor.dtype in refused:
            yield _refusal("dtype", place, f"a tensor of it is {tensor.dtype}", refused[tensor.dtype])
        if limits.max_rank is not None and tensor.rank is not None and tensor.rank > limits.max_rank:
            yield _refusal(
                "rank",
                place,
                f"a tensor of it has {tensor.rank} axes, the target takes {limits.max_rank} at most",
                "reshape it to fewer axes before this operator",
            )
    computed = [t for t in place.inputs if t is not None and t.origin != "constant"]
    # Other operators shuffle axes about, whose first is no batch then: the target's compiler knows of them.
    batched = place.node.op_type in _BATCHED or any(t.origin == "input" for t in computed)
    if limits.max_batch is not None and computed and batched:
        for tensor in (t for t in outputs if t.dtype in FLOATS):
            first = tensor.shape[0] if tensor.shape and len(tensor.shape) >= 2 else None
            if isinstance(first, int) and first > limits.max_batch:
                yield _refusal(
                    "batch",
                    place,
                    f"its output has a batch above {limits.max_batch}, the most that the target takes",
                    f"export with a batch of {limits.max_batch}, or pin it with --shape",
                )


def _free_dimensions(model: onnx.ModelProto) -> Iterator[Finding]:
    for value in real_inputs(model):
        dims = value.type.tensor_type.shape.dim
        free = [d.dim_param or "?" for d in dims if not d.HasField("dim_value")]
        if free:
            yield _unpinned(value, free)


def _unpinned(value: onnx.ValueInfoProto, free: Sequence[str]) -> Finding:
    dims = value.type.tensor_type.shape.dim
    sizes = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "N" for d in dims]
    if not dims[0].HasField("dim_value"):
        sizes[0] = "1"
    open_sizes = dict.fromkeys(s for s in sizes if not s.isdigit())
    numbers = f" with numbers for {', '.join(open_sizes)}" if open_sizes else ""
    return Finding(
        rule="dynamic-shape",
        node="(model)",
        message=f"input {value.name!r} has dimensions that are not fixed: {', '.join(free)}",
        severity="error",
        fix=f"pin them: {shape_option(value.name, ','.join(sizes))}{numbers}",
    )


# -- TensorRT ----------------------------------------------------------------------------------------------


class _Graph:
    """Who makes and who takes each tensor."""

    def __init__(self, model: onnx.ModelProto, places: Sequence[Place]) -> None:
        self.model = model
        self.makers: dict[str, Place] = {n: p for p in places for n in p.node.output if n}
        self.takers: dict[str, list[Place]] = {}
        for place in places:
            for name in dict.fromkeys([*place.node.input, *(t.name for t in place.captured)]):
                self.takers.setdefault(name, []).append(place)

    def maker(self, tensor: Tensor | None) -> Place | None:
        """Return the node that makes a tensor."""
        return None if tensor is None else self.makers.get(tensor.name)

    def is_dequantized(self, tensor: Tensor | None) -> bool:
        """Whether a tensor comes out of a DequantizeLinear."""
        maker = self.maker(tensor)
        return maker is not None and maker.node.op_type == "DequantizeLinear"


def _input(place: Place, index: int) -> Tensor | None:
    return place.inputs[index] if index < len(place.inputs) else None


def _value(tensor: Tensor | None) -> NDArray[np.generic] | None:
    if tensor is None or tensor.constant is None:
        return None
    if tensor.constant.data_location == TensorProto.EXTERNAL:
        return None
    return np.asarray(numpy_helper.to_array(tensor.constant))


def _domains(places: Sequence[Place]) -> Iterator[Finding]:
    for place in places:
        if not is_standard(place.node):
            yield _refusal(
                "custom-operator",
                place,
                f"{place.node.op_type} of the domain {place.node.domain!r} is no standard ONNX operator",
                "export it as standard operators; edgec artifacts carry no TensorRT plugins",
            )


def _dynamic_inputs(model: onnx.ModelProto) -> Iterator[Finding]:
    # A free first axis, the batch, gets an optimization profile of 1; other free axes have no such default.
    for value in real_inputs(model):
        dims = value.type.tensor_type.shape.dim
        free = [d.dim_param or "?" for d in list(dims)[1:] if not d.HasField("dim_value")]
        if free:
            yield _unpinned(value, free)


def _is_pair(place: Place) -> bool:
    return is_standard(place.node) and place.node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _zero_point(place: Place, graph: _Graph) -> Iterator[Finding]:
    if not _is_pair(place):
        return
    zero = _input(place, 2)
    integer = place.inputs[0] if place.node.op_type == "DequantizeLinear" else place.outputs[0]
    known = zero if zero is not None and zero.dtype is not None else integer
    if known is not None and known.dtype is not None and known.dtype != "int8":
        bias = " (a quantized bias?)" if known.dtype == "int32" else ""
        yield _refusal(
            "quantized-dtype",
            place,
            f"it quantizes to {known.dtype}{bias}, TensorRT takes int8",
            "quantize symmetrically to int8, and leave biases in float",
        )
    if zero is None:
        return
    value = _value(zero)
    if value is None:
        yield _refusal(
            "zero-point",
            place,
            "its zero point is computed at run time",
            "make it a constant 0, or leave it out",
        )
    elif np.asarray(value, np.float64).any():
        yield _refusal(
            "zero-point",
            place,
            "its zero point is not 0, and TensorRT quantizes symmetrically",
            "quantize symmetrically: --target jetson does",
        )


def _scale(place: Place, graph: _Graph) -> Iterator[Finding]:
    if not _is_pair(place):
        return
    scale = _input(place, 1)
    if scale is None or scale.origin != "constant":
        yield _refusal(
            "scale-constant",
            place,
            "its scale is not a constant",
            "calibrate, and write the scale as an initializer: TensorRT has no run-time scales for int8",
        )
        return
    value = _value(scale)
    if value is None:
        return
    numbers = np.asarray(value, np.float64)
    if not np.isfinite(numbers).all() or (numbers <= 0).any():
        bad = numbers[~(np.isfinite(numbers) & (numbers > 0))][0]
        yield _refusal(
            "scale-positive",
            place,
            f"a scale is {bad:g}, TensorRT takes finite scales above 0 only",
            "give channels that are always zero any positive scale",
        )
    real = place.inputs[0] if place.node.op_type == "QuantizeLinear" else place.outputs[0]
    if real is not None and real.dtype in FLOATS and scale.dtype != real.dtype:
        yield _refusal(
            "scale-dtype",
            place,
            f"its scale is {scale.dtype} and its real numbers are {real.dtype}: strong typing wants one type",
            f"write the scale as {real.dtype}",
        )


def _axis(place: Place, graph: _Graph) -> Iterator[Finding]:
    scale = _input(place, 1)
    data = _input(place, 0)
    if not _is_pair(place) or scale is None or data is None or not scale.shape:
        return
    if len(scale.shape) == 1 and scale.shape[0] == 1:
        return
    axis = attributes_of(place.node, schema_opset(graph.model, place.node)).get("axis", 1)
    assert isinstance(axis, int)
    if len(scale.shape) != 1 or data.shape is None:
        return
    if not -len(data.shape) <= axis < len(data.shape) or data.shape[axis] not in (scale.shape[0], None):
        yield _refusal(
            "axis",
            place,
            f"{scale.shape[0]} scales do not fit axis {axis} of {data.name!r} with shape {list(data.shape)}",
            "one scale per output channel, along the axis that counts them",
        )
        return
    if place.node.op_type == "QuantizeLinear" and data.origin != "constant":
        yield _refusal(
            "axis",
            place,
            f"the activation {data.name!r} has one scale per channel, TensorRT has that for weights only",
            "quantize activations per tensor",
        )
    if place.node.op_type == "DequantizeLinear":
        yield from _weight_axis(place, axis % len(data.shape), len(data.shape), graph)


def _weight_axis(place: Place, axis: int, rank: int, graph: _Graph) -> Iterator[Finding]:
    for layer in graph.takers.get(place.node.output[0], []):
        if layer.node.op_type not in _LAYERS or list(layer.node.input).index(place.node.output[0]) != 1:
            continue
        transposed = bool(attributes_of(layer.node, schema_opset(graph.model, layer.node)).get("transB", 0))
        wanted = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if transposed else 1, "MatMul": rank - 1}
        if axis != wanted[layer.node.op_type]:
            yield _refusal(
                "axis",
                place,
                f"the weights of {layer.label!r} are quantized along axis {axis}, its output channels are "
                f"axis {wanted[layer.node.op_type]}",
                "one scale per output channel",
            )


def _pairs(place: Place, graph: _Graph) -> Iterator[Finding]:
    if not _is_pair(place):
        return
    if place.node.op_type == "QuantizeLinear":
        takers = graph.takers.get(place.node.output[0], [])
        odd = [t.label for t in takers if t.node.op_type != "DequantizeLinear"]
        if odd or not takers:
            yield _refusal(
                "pair",
                place,
                "its int8 result does not go to a DequantizeLinear alone",
                "explicit quantization is made of Q and DQ in pairs",
            )
    elif (data := place.inputs[0]) is not None and data.origin != "constant":
        maker = graph.maker(data)
        if maker is None or maker.node.op_type != "QuantizeLinear":
            yield _refusal(
                "pair",
                place,
                "its integers are neither constant nor made by a QuantizeLinear",
                "explicit quantization is made of Q and DQ in pairs",
            )
        else:
            yield from _same_scale(maker, place)


def _same_scale(quantize: Place, dequantize: Place) -> Iterator[Finding]:
    one, two = (_value(_input(p, 1)) for p in (quantize, dequantize))
    if one is not None and two is not None and not np.array_equal(one, two):
        yield Finding(
            rule="pair",
            node=dequantize.label,
            message=f"its scale {_shown(two)} is not the {_shown(one)} of {quantize.label!r} before it",
            severity="warning",
            fix="give both ends of a pair the same scale",
        )


def _residual(place: Place, graph: _Graph) -> Iterator[Finding]:
    if place.node.op_type != "Add" or not is_standard(place.node):
        return
    if any(t is None or t.origin == "constant" for t in place.inputs):
        return
    if not all(graph.is_dequantized(t) for t in place.inputs):
        return
    if any(_ends_in_layer(t, graph) for t in place.inputs):
        yield Finding(
            rule="residual",
            node=place.label,
            message="both inputs of a residual Add are dequantized: it cannot fuse into the layer before it",
            severity="error",
            fix="leave the branch that ends in the layer in float, and quantize the skip branch only",
        )


def _ends_in_layer(tensor: Tensor | None, graph: _Graph) -> bool:
    dequantize = graph.maker(tensor)
    quantize = graph.maker(dequantize.inputs[0]) if dequantize is not None else None
    layer = graph.maker(quantize.inputs[0]) if quantize is not None else None
    return layer is not None and layer.node.op_type in _LAYERS


def _bias(place: Place, graph: _Graph) -> Iterator[Finding]:
    if place.node.op_type in ("Conv", "ConvTranspose", "Gemm") and graph.is_dequantized(_input(place, 2)):
        yield _refusal(
            "bias",
            place,
            "its bias is quantized",
            "leave biases in float: TensorRT adds them at the accumulator",
        )


def _typed(place: Place, graph: _Graph) -> Iterator[Finding]:
    """Inputs that share a type variable in the operator's schema must have one float type."""
    if not is_standard(place.node):
        return
    try:
        schema = onnx.defs.get_schema(place.node.op_type, schema_opset(graph.model, place.node), "")
    except onnx.defs.SchemaError:
        return
    variables: dict[str, dict[str, str]] = {}
    for index, tensor in enumerate(place.inputs):
        if tensor is None or tensor.dtype not in FLOATS or not schema.inputs:
            continue
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        variables.setdefault(formal.type_str, {})[tensor.name] = tensor.dtype
    for types in variables.values():
        if len(set(types.values())) > 1:
            yield _refusal(
                "dtype-consistency",
                place,
                f"its inputs are of different types: {', '.join(f'{n} {t}' for n, t in types.items())}",
                "a strongly typed network casts nothing by itself: cast one of them",
            )


def _uint8(place: Place, graph: _Graph) -> Iterator[Finding]:
    if _is_pair(place):
        return
    for tensor in place.inputs:
        if tensor is not None and tensor.dtype == "uint8" and place.node.op_type != "Cast":
            yield _refusal(
                "uint8",
                place,
                "it computes with a uint8 tensor, and TensorRT has uint8 at its inputs only",
                "cast to float first",
            )


def _max_pool(place: Place, graph: _Graph) -> Iterator[Finding]:
    if place.node.op_type == "MaxPool" and len(place.node.output) > 1 and place.node.output[1]:
        yield _refusal(
            "maxpool-indices",
            place,
            "its Indices output is used",
            "TensorRT gives no indices: use Resize to unpool",
        )


# operators.md: "must be an initializer", by operator and input.
_CONSTANT_INPUTS = {
    "CumSum": (1,),
    "InstanceNormalization": (1, 2),
    "Slice": (3,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}


def _constant_inputs(place: Place, graph: _Graph) -> Iterator[Finding]:
    if not is_standard(place.node):
        return
    for index in _CONSTANT_INPUTS.get(place.node.op_type, ()):
        tensor = _input(place, index)
        if tensor is not None and tensor.origin != "constant":
            yield _refusal(
                "constant-input",
                place,
                f"its input {tensor.name!r} must be a constant",
                "fold constants when exporting, or fix the shapes that it depends on",
            )


def _recurrent(place: Place, graph: _Graph) -> Iterator[Finding]:
    if place.node.op_type not in ("LSTM", "GRU", "RNN"):
        return
    attributes = attributes_of(place.node, schema_opset(graph.model, place.node))
    names = attributes.get("activations")
    if attributes.get("direction") != "bidirectional" or not isinstance(names, list):
        return
    half = len(names) // 2
    if names[:half] != names[half:]:
        yield _refusal(
            "recurrent-activations",
            place,
            "its two directions have different activations",
            "use the same activations both ways, or two layers of one direction each",
        )


def _einsum(place: Place, graph: _Graph) -> Iterator[Finding]:
    if place.node.op_type != "Einsum":
        return
    equation = str(attributes_of(place.node, schema_opset(graph.model, place.node)).get("equation", ""))
    terms = equation.split("->")[0].replace(" ", "").split(",")
    if "..." in equation or any(len(set(t)) < len(t) for t in terms):
        yield _refusal(
            "einsum",
            place,
            f"the equation {equation!r} has an ellipsis or a diagonal",
            "write it with MatMul, Transpose and ReduceSum",
        )


def _weights(place: Place, graph: _Graph) -> Iterator[Finding]:
    if place.node.op_type not in _LAYERS:
        return
    for tensor in place.inputs:
        value = _value(tensor)
        if tensor is None or value is None or tensor.dtype not in FLOATS:
            continue
        if not np.isfinite(np.asarray(value, np.float64)).all():
            yield _refusal(
                "finite-weights",
                place,
                f"the weights {tensor.name!r} hold NaN or infinity",
                "a weight beyond 65504 has no float16 form: keep this node in fp32",
            )


_NODE_RULES: tuple[Callable[[Place, _Graph], Iterator[Finding]], ...] = (
    _zero_point,
    _scale,
    _axis,
    _pairs,
    _residual,
    _bias,
    _typed,
    _uint8,
    _max_pool,
    _constant_inputs,
    _recurrent,
    _einsum,
    _weights,
)


def _shown(value: NDArray[np.generic]) -> str:
    flat = value.reshape(-1)
    return str(flat[0]) if flat.size == 1 else f"{flat[0]}, ... ({flat.size} values)"
