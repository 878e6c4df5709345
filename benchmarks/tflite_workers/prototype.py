"""ONNX to full-integer TFLite by the prototype of edgec's writer, a module that the request names."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import numpy as np
import onnx


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Write ``source`` to ``output`` by ``module``; ``samples`` is an ``.npz`` by input, samples first."""
    spec = spec_from_file_location("prototype_of_the_writer", request["module"])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with np.load(request["samples"]) as arrays:
        columns = {name: arrays[name] for name in arrays}
    count = len(next(iter(columns.values())))
    samples = [{name: column[i] for name, column in columns.items()} for i in range(count)]
    model = module.fold_pre(request["source"])
    _name_global_pools(model)
    module.W(model, module.ranges(model, samples)).build(request["output"])
    return {"samples": count}


def _name_global_pools(model: onnx.ModelProto) -> None:
    """Make AveragePool over the whole image GlobalAveragePool, the only one that the prototype has."""
    sizes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][2:]
        for v in (*model.graph.value_info, *model.graph.input)
    }
    for node in model.graph.node:
        attributes = {a.name: list(a.ints) for a in node.attribute}
        whole = node.op_type == "AveragePool" and attributes["kernel_shape"] == sizes[node.input[0]]
        if whole and not any(attributes.get("pads", [])):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
