"""ONNX Runtime: the payload is the ONNX graph and its weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx

from edgec.artifact import EngineSpec
from edgec.compiler.converters import Converted, Prepared
from edgec.compiler.onnx_payload import GRAPH, WEIGHTS, write_onnx_payload
from edgec.compiler.passes.fit_limits import fit_limits
from edgec.compiler.precision import to_fp16
from edgec.compiler.weight_only import BITS, compress_weights
from edgec.targets import Engine, Target


class OnnxRuntimeConverter:
    """Writes ``model.onnx`` and ``weights.bin``."""

    precisions = ("fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "mixed")

    def prepare(self, model: onnx.ModelProto, precision: str, target: Target) -> onnx.ModelProto:
        """Return the model itself, its fp16 form with fp32 inputs and outputs, or one with MatMulNBits."""
        if precision in BITS:
            return compress_weights(model, BITS[precision], "nbits")
        return to_fp16(model) if precision == "fp16" else model

    def to_half(self, model: onnx.ModelProto, target: Target, keep_fp32: Collection[str]) -> onnx.ModelProto:
        """Return the model typed float16, but for nodes that are to stay in fp32."""
        del target
        return to_fp16(model, keep_fp32=keep_fp32)

    def convert(self, prepared: Prepared, engine: Engine, target: Target, directory: Path) -> Converted:
        """Write the members, in an opset and IR version that the target's oldest release loads."""
        model = fit_limits(prepared.model, target.limits)
        files = write_onnx_payload(model, directory, prepared.weights_from)
        spec = EngineSpec(
            name=engine.name,
            version=engine.version,
            device=engine.device,
            precision=prepared.precision,
            files=tuple(name for name in (GRAPH, WEIGHTS) if name in files),
        )
        return Converted(files=files, engine=spec)

    def version(self) -> str:
        """Return ONNX's version: the payload is ONNX, whatever runs it later."""
        return str(onnx.__version__)
