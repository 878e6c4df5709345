"""Load a TFLite file, and run it once; in a process of its own, for a wrong file ends it."""

from __future__ import annotations

from typing import Any

import numpy as np


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Run ``file`` on inputs of ones with ``package``: ``ai_edge_litert`` or ``tflite_runtime``."""
    if request["package"] == "tflite_runtime":
        from tflite_runtime.interpreter import Interpreter
    else:
        from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=request["file"], num_threads=1)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.ones(detail["shape"], detail["dtype"]))
    interpreter.invoke()
    outputs = [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
    return {"finite": all(bool(np.isfinite(o).all()) for o in outputs)}
