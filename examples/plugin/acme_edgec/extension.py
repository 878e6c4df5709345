"""A pass and a converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from edgec.artifact import EngineSpec
from edgec.compiler.converters import Converted, Prepared
from edgec.compiler.onnx_payload import GRAPH, WEIGHTS, write_onnx_payload
from edgec.errors import ConversionError
from edgec.targets import Engine, Target


def multiply_by_reciprocals(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the model with ``Div(x, c)`` as ``Mul(x, 1 / c)``; None where there is none.

    c is a float32 constant without zeros that no other node uses. Dividing is slow on our gateway's CPU.
    The result differs by rounding only, which edgec checks.
    """
    constants = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    uses = [name for node in model.graph.node for name in node.input]
    changed = False
    for node in model.graph.node:
        if node.op_type != "Div" or node.input[1] not in constants or uses.count(node.input[1]) > 1:
            continue
        divisor = constants[node.input[1]]
        values = numpy_helper.to_array(divisor)
        if not np.all(values):
            continue
        divisor.CopyFrom(numpy_helper.from_array(np.float32(1) / values, divisor.name))
        node.op_type = "Mul"
        changed = True
    return model if changed else None


class OptimizedConverter:
    """Has ONNX Runtime optimize the graph once, here, so that the gateway need not at every start.

    What runs the result is edgec's own backend for ONNX Runtime: no code of this package is needed there.
    """

    precisions = ("fp32", "int8")
    backend = "onnxruntime"

    def prepare(self, model: onnx.ModelProto, precision: str, target: Target) -> onnx.ModelProto:
        """Return the model as it is; quantized ones are made by edgec."""
        return model

    def convert(self, prepared: Prepared, engine: Engine, target: Target, directory: Path) -> Converted:
        """Write the optimized graph and its weights."""
        if prepared.weights_from is not None:
            raise ConversionError("models above 2 GB cannot be optimized ahead of time: use cpu-x86_64")
        optimized = directory / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Beyond this level graphs are made for one kind of CPU.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
        try:
            ort.InferenceSession(
                prepared.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # the binding's exceptions share no base but Exception
            raise ConversionError(f"ONNX Runtime {ort.__version__} cannot optimize the model: {e}") from e
        files = write_onnx_payload(onnx.load(optimized), directory)
        optimized.unlink()
        spec = EngineSpec(
            name="onnxruntime",
            # Fused operators are ONNX Runtime's own: an older release may not have them.
            version=f">={ort.__version__},<2",
            device=engine.device,
            precision=prepared.precision,
            files=tuple(name for name in (GRAPH, WEIGHTS) if name in files),
        )
        return Converted(files=files, engine=spec)

    def version(self) -> str:
        """Return ONNX Runtime's version, which shapes the graph."""
        return str(ort.__version__)
