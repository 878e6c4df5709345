"""What of a model the TFLite writer refuses, and what an NPU leaves to its CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx

from edgec.compiler.lint import Finding, lint_limits
from edgec.compiler.passes.fold_constant_dequantize import is_quantized
from edgec.compiler.places import find_places
from edgec.compiler.tflite import Mode, unsupported
from edgec.errors import ConversionError
from edgec.targets import Target

_OUTSIDE = "unsupported-operator"
_QUANTIZED = Finding(
    rule="tflite-writer",
    node="(model)",
    message="its author quantized it, and TFLite files are written from float models and calibrated ranges",
    severity="error",
    fix="compile the float model that it was quantized from, with --calibration; a TFLite file that it was "
    "converted from runs as it is, without edgec",
)


def lint_litert(model: onnx.ModelProto, target: Target) -> list[Finding]:
    """Return the rules that a model breaks; an error is what cannot be compiled.

    Args:
        model: As its author wrote it, or simplified.
        target: Of the family ``litert``.
    """
    limits = [_softened(f, target) for f in lint_npu(model, target)]
    if is_quantized(model):
        return [*limits, _QUANTIZED]
    # Without fixed shapes, the writer has nothing more to say.
    unpinned = any(f.severity == "error" and f.rule == "dynamic-shape" for f in limits)
    return limits if unpinned else [*limits, *_writer_findings(model, target)]


def lint_npu(model: onnx.ModelProto, target: Target) -> list[Finding]:
    """Return what of a model is outside the limits of a target, as its operators are written."""
    flat = {
        place.label
        for place in find_places(model)
        if place.node.op_type == "ConvTranspose"
        and place.outputs[0] is not None
        and place.outputs[0].rank == 3
    }
    found = lint_limits(model, target.limits)
    # A 1-D transposed convolution is written as a convolution and a RESHAPE, whatever its stride.
    return [f for f in found if f.node not in flat or "ConvTranspose with strides=" not in f.message]


def _softened(finding: Finding, target: Target) -> Finding:
    """Turn what is missing on the NPU, and not in a TFLite file, into a warning."""
    if finding.rule != _OUTSIDE or target.limits.refused_operators:
        return finding
    return replace(
        finding,
        severity="warning",
        message=finding.message.replace("the target runs", "the NPU runs: its CPU gets it"),
        fix="replace it where speed matters, or leave it out of the exported model",
    )


def _writer_findings(model: onnx.ModelProto, target: Target) -> Iterator[Finding]:
    scheme = target.quantization
    full = scheme is not None and scheme.full_integer
    try:
        refused = unsupported(model, Mode.INT8 if full else Mode.FLOAT32)
    except ConversionError as e:
        yield Finding(
            rule="tflite-writer",
            node="(model)",
            message=str(e),
            severity="error",
            fix="export the model again with fixed shapes and float32 inputs",
        )
        return
    labels = {p.node.name or p.node.output[0]: p.label for p in find_places(model)}
    for one in refused:
        yield Finding(
            rule="tflite-writer",
            node=labels.get(one.node, one.node),
            message=f"{one.operator} cannot be written as TFLite: {one.reason}",
            severity="error",
            fix=one.fix,
        )
