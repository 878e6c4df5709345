"""Opset and IR version as a target takes them."""

from __future__ import annotations

import onnx

from edgec.compiler.model import first_line, opset_of
from edgec.errors import PassError
from edgec.targets import Limits


def fit_limits(model: onnx.ModelProto, limits: Limits) -> onnx.ModelProto:
    """Return the model in an opset and IR version that the target takes.

    1. An opset above `max_opset` is converted down to it.
    2. An IR version above `max_ir_version` is lowered to it: what later ones added is metadata.
    3. A model within both is returned as it is.

    Raises:
        PassError: An operator has no form in the older opset.
    """
    opset = opset_of(model)
    if limits.max_opset is not None and opset > limits.max_opset:
        model = _converted(model, opset, limits.max_opset)
    if limits.max_ir_version is not None and model.ir_version > limits.max_ir_version:
        lowered = onnx.ModelProto()
        lowered.CopyFrom(model)
        lowered.ir_version = limits.max_ir_version
        return lowered
    return model


def _converted(model: onnx.ModelProto, opset: int, wanted: int) -> onnx.ModelProto:
    try:
        converted = onnx.version_converter.convert_version(model, wanted)
        onnx.checker.check_model(converted)
    except (
        RuntimeError,
        onnx.version_converter.ConvertError,
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
    ) as e:
        raise PassError(
            f"the model's opset {opset} is newer than the {wanted} that the target takes, and cannot be "
            f"converted down ({first_line(str(e))}): export it with opset_version={wanted}"
        ) from e
    return converted
