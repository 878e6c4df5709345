"""TFLite -> ONNX by tf2onnx."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Convert ``source`` to ``output`` in the operator set ``opset``; quantized tensors become Q/DQ."""
    import tf2onnx

    tf2onnx.convert.from_tflite(request["source"], opset=request["opset"], output_path=request["output"])
    return {"tools": {name: version(name) for name in ("tf2onnx", "tensorflow_cpu")}}
