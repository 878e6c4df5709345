"""Keras files and SavedModel directories, through TensorFlow and tf2onnx in their own environment."""

from __future__ import annotations

from edgec.compiler.ingest._kinds import Request, Taken
from edgec.compiler.ingest._workers import OPSET, take_in_environment


def take(request: Request) -> Taken:
    """Convert a Keras model or a SavedModel, and run it.

    Raises:
        MissingEnvironmentError: There is no TensorFlow.
        UnsupportedModelError: TensorFlow or tf2onnx refuses it.
        ConversionError: The worker crashes, or takes too long.
    """
    return take_in_environment(request, "tf2onnx", "from_keras", OPSET)
