"""LiteRT: the payload is a TFLite file, written straight from ONNX; for some NPUs, compiled further.

On CPUs, the file's inputs and outputs are the source's. For NPUs they are in the form that these take: images
with their channels last and, on microcontrollers, integers. The recipe says so under ``boundary``, for
applications that feed the file themselves; edgec's runtime reads it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from edgec.artifact import EngineSpec, atomic_write
from edgec.compiler.converters import Converted, Prepared, Quantities, fallback_spec
from edgec.compiler.edgetpu import compile_for_edgetpu
from edgec.compiler.environments import EnvironmentStore
from edgec.compiler.environments.onnx2tf import convert_with_onnx2tf
from edgec.compiler.fake_quantization import PRODUCTS
from edgec.compiler.lint_litert import lint_npu
from edgec.compiler.tflite import Mode, TfliteModel, TfliteTensor, UnsupportedOperatorsError, write_tflite
from edgec.compiler.vela import compile_for_ethos_u
from edgec.errors import ConversionError, MissingEnvironmentError
from edgec.targets import Engine, Target

FILE = "model.tflite"
_MODES = {
    "fp32": Mode.FLOAT32,
    "fp16": Mode.FLOAT16,
    "int8": Mode.INT8,
    "int16x8": Mode.INT16X8,
    "int8-dynamic": Mode.DYNAMIC,
}
# Operators with graphs inside, which onnx2tf does not take, either.
_BODIES = ("If", "Loop", "Scan")
_NOT_RUN = (
    "the NPU's delegate takes what it can of the file on the device: its numerics are proven on the CPU "
    "here; placement and speed on the NPU are not"
)


class LiteRtConverter:
    """Writes ``model.tflite``."""

    precisions = ("fp32", "fp16", "int8", "int16x8", "int8-dynamic")
    # The file is made of the float model and its ranges, not of a Q/DQ graph.
    quantizes = True

    def prepare(self, model: onnx.ModelProto, precision: str, target: Target) -> onnx.ModelProto:
        """Return the model itself: precision is a matter of the file."""
        return model

    def convert(self, prepared: Prepared, engine: Engine, target: Target, directory: Path) -> Converted:
        """Write the file and, where the target has a compiler for its NPU, what that makes of it."""
        if prepared.weights_from is not None:
            raise ConversionError("a TFLite file holds at most 2 GB, and the model's weights are larger")
        _require_limits(prepared.model, target)
        notes: tuple[str, ...] = ()
        try:
            written = _write(prepared, engine, target)
        except UnsupportedOperatorsError as e:
            written = _by_onnx2tf(prepared, engine, directory, e)
            notes = (f"LiteRT's file was written by onnx2tf, because edgec's writer has no {_lacking(e)}",)
        path = directory / FILE
        with atomic_write(path) as file:
            file.write(written.data)
        spec = EngineSpec(
            name=engine.name,
            version=engine.version,
            device=engine.device,
            precision=prepared.precision,
            files=(FILE,),
        )
        plain = Converted(
            files={FILE: path},
            engine=spec,
            fallback=fallback_spec(target, prepared.precision, (FILE,)),
            recipe=_recipe(written),
            not_run=() if engine.device == "CPU" else (_NOT_RUN,),
            notes=notes,
        )
        if engine.device == "ethos-u":
            return compile_for_ethos_u(plain, target, directory)
        if engine.device == "edgetpu":
            return compile_for_edgetpu(plain, target, directory)
        return plain

    def version(self) -> str:
        """Return edgec's own version: the writer is part of it."""
        return version("edgec")


def _require_limits(model: onnx.ModelProto, target: Target) -> None:
    # Operators outside the NPU's list are the CPU's, which its compiler or delegate says.
    broken = [
        f"{f.node}: {f.message} ({f.fix})"
        for f in lint_npu(model, target)
        if f.severity == "error" and f.rule != "unsupported-operator"
    ]
    if broken:
        raise ConversionError(f"{target.name} cannot run the model: {'; '.join(broken)}")


def _write(prepared: Prepared, engine: Engine, target: Target) -> TfliteModel:
    quantities = prepared.quantities or Quantities()
    integer = _MODES[prepared.precision].integer
    scheme = target.quantization
    if integer and quantities.table is None:
        raise ConversionError("a TFLite file of integers is written from the float model and its ranges")
    if integer and scheme is None:
        raise ConversionError(f"{target.name} states no scheme for {prepared.precision}")
    exclude = set(quantities.exclude)
    full = scheme is not None and scheme.full_integer
    if integer and quantities.products_only and not full:
        exclude |= {
            node.name or node.output[0] for node in prepared.model.graph.node if node.op_type not in PRODUCTS
        }
    return write_tflite(
        prepared.model,
        mode=_MODES[prepared.precision],
        table=quantities.table if integer else None,
        method=quantities.method,
        io=scheme.io_dtype if integer and scheme is not None else "float32",
        exclude=exclude,
        float_fallback=integer and not full,
        keep_layout=engine.device == "CPU",
    )


def _by_onnx2tf(
    prepared: Prepared, engine: Engine, directory: Path, lacking: UnsupportedOperatorsError
) -> TfliteModel:
    """Return what onnx2tf makes of a model that the writer refuses; parity is its proof.

    It is for floats on the CPU only: its integers fail on most models.

    Raises:
        ConversionError: It is not for this candidate, not installed, or refuses the model too.
    """
    graph = prepared.model.graph
    foreign = any(node.domain not in ("", "ai.onnx") or node.op_type in _BODIES for node in graph.node)
    if prepared.precision != "fp32" or engine.device != "CPU" or prepared.environments is None or foreign:
        raise lacking
    with TemporaryDirectory(dir=directory.parent) as scratch:
        source = Path(scratch, "model.onnx")
        onnx.save(prepared.model, source)
        try:
            made = convert_with_onnx2tf(
                source,
                source.parent,
                EnvironmentStore(prepared.environments),
                keep=[value.name for value in graph.input],
                timeout_s=prepared.timeout_s,
            )
        except MissingEnvironmentError as e:
            raise ConversionError(
                f"{lacking}\n- or have onnx2tf write it, in fp32: edgec doctor --install onnx2tf"
            ) from e
        data = made.read_bytes()
    from ai_edge_litert.interpreter import Interpreter  # here, because it is seldom needed

    interpreter = Interpreter(model_content=data)
    given, gives = (
        {d["name"]: d for d in details}
        for details in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    return TfliteModel(
        data=data,
        inputs=tuple(_placed(value, given) for value in graph.input),
        outputs=tuple(_placed(value, gives) for value in graph.output),
    )


def _placed(value: onnx.ValueInfoProto, details: Mapping[str, Mapping[str, Any]]) -> TfliteTensor:
    """Return how a tensor of onnx2tf's file lies to the source's: channels may have become last."""
    found = details.get(value.name)
    shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    has = () if found is None else tuple(int(n) for n in found["shape"])
    last = (0, *range(2, len(shape)), 1) if len(shape) > 2 else ()
    for order in (tuple(range(len(shape))), last):
        if found is not None and has == tuple(shape[axis] for axis in order):
            dtype = np.dtype(found["dtype"]).name
            return TfliteTensor(
                name=value.name, dtype=dtype, shape=has, source_shape=shape, permutation=order
            )
    raise ConversionError(f"onnx2tf gives {value.name!r} the shape {list(has)}, the source has {list(shape)}")


def _lacking(error: UnsupportedOperatorsError) -> str:
    return ", ".join(dict.fromkeys(u.operator for u in error.found))


def _recipe(written: TfliteModel) -> dict[str, Any]:
    """Return what lies between the source's inputs and outputs and the file's; empty where nothing does."""
    tensors = (*written.inputs, *written.outputs)
    boundary = {t.name: _boundary(t) for t in tensors if t.moved or t.scale is not None}
    return {"boundary": boundary} if boundary else {}


def _boundary(tensor: TfliteTensor) -> dict[str, Any]:
    entry: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.moved:
        entry["permutation"] = list(tensor.permutation)
    if tensor.scale is not None:
        entry |= {"scale": tensor.scale, "zero_point": tensor.zero_point}
    return entry
