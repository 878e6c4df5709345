"""A float TFLite file to an int8 one by ai-edge-quantizer, as its documentation shows."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Quantize ``source`` to ``output`` by the recipe ``recipe``; ``samples`` is an ``.npz`` by input.

    Each array of ``samples`` has the samples along its first axis, in the layout of the file.
    """
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(request["source"])
    tool.load_quantization_recipe(getattr(recipe, request["recipe"])())
    calibration = None
    if tool.need_calibration:
        with np.load(request["samples"]) as arrays:
            names = list(arrays)
            columns = [arrays[name] for name in names]
        samples = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        calibration = tool.calibrate({request["signature"]: samples})
    tool.quantize(calibration).export_model(request["output"])
    return {"tools": {"ai-edge-quantizer": version("ai-edge-quantizer")}}
