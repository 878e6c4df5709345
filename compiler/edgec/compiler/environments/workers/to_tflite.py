"""ONNX -> float TFLite by onnx2tf."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Convert ``source`` into the directory ``output``; answer with the path of the float32 file.

    Four-dimensional inputs become NHWC; ``keep`` names inputs that stay as they are.
    """
    import onnx2tf

    onnx2tf.convert(
        input_onnx_file_path=request["source"],
        output_folder_path=request["output"],
        tflite_backend="flatbuffer_direct",
        keep_shape_absolutely_input_names=request["keep"] or None,
        copy_onnx_input_output_names_to_tflite=True,
        non_verbose=True,
        verbosity="error",
    )
    (made,) = Path(request["output"]).glob("*_float32.tflite")
    return {"file": str(made), "tools": {"onnx2tf": version("onnx2tf")}}
