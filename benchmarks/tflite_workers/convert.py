"""ONNX to TFLite by onnx2tf: in float, and in its own int8."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Convert ``source`` into the directory ``output``; answer with the files that were made.

    ``keep`` names inputs that keep their axes. With ``integer``, its full-integer and dynamic files are asked
    for too; ``samples`` has name, path of an ``.npy``, mean and standard deviation of each float input.
    """
    import onnx2tf

    integer = {
        "output_integer_quantized_tflite": True,
        "output_dynamic_range_quantized_tflite": True,
        "custom_input_op_name_np_data_path": request["samples"] or None,
    }
    onnx2tf.convert(
        input_onnx_file_path=request["source"],
        output_folder_path=request["output"],
        tflite_backend="flatbuffer_direct",
        keep_shape_absolutely_input_names=request["keep"] or None,
        copy_onnx_input_output_names_to_tflite=True,
        non_verbose=True,
        verbosity="error",
        **(integer if request["integer"] else {}),
    )
    files = sorted(str(p) for p in Path(request["output"]).glob("*.tflite"))
    return {"files": files, "tools": {"onnx2tf": version("onnx2tf")}}
