"""TFLite models run by LiteRT with its reference kernels, and their ONNX form by tf2onnx."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgec.artifact import TensorSpec
from edgec.compiler.environments import call_worker, get_environment
from edgec.compiler.ingest._kinds import Arrays, Request, Taken
from edgec.compiler.ingest._workers import OPSET, SAMPLES, result_of, worker
from edgec.compiler.model import first_line
from edgec.errors import ModelError, UnsupportedModelError
from edgec.errors.extras import needs_extra
from edgec.evaluation import synthetic_inputs

_LONGEST = 160
_LARGEST = 2**31  # a flatbuffer has 32-bit offsets


def take(request: Request) -> Taken:
    """Convert a TFLite file, and run it.

    Raises:
        ModelError: It is no TFLite, or is damaged.
        UnsupportedModelError: LiteRT or tf2onnx refuses it.
        MissingEnvironmentError: There is no tf2onnx.
    """
    request.progress(f"running {request.source.name} with LiteRT's reference kernels")
    interpreter = _interpreter(request.source)
    specs = [_spec(d) for d in interpreter.get_input_details()]
    inputs: list[Arrays] = [dict(s) for s in synthetic_inputs(specs, SAMPLES, seed=0)]
    outputs = [_run(interpreter, specs, sample) for sample in inputs]
    environment = get_environment("tf2onnx")
    python = request.store.python(environment)
    request.progress("converting it to ONNX with tf2onnx")
    answer = call_worker(
        python,
        worker("from_tflite"),
        {"source": str(request.source.resolve()), "output": str(request.output), "opset": OPSET},
        timeout_s=request.timeout_s,
        what="tf2onnx",
    )
    tools = result_of(answer, request.source, "tf2onnx")["tools"]
    return Taken(tools=tools, inputs=inputs, outputs=outputs, rounds=_is_hybrid(interpreter))


def _interpreter(path: Path) -> Any:
    with needs_extra("reading TFLite", "litert"):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    if path.stat().st_size >= _LARGEST:
        raise ModelError(f"{path} is larger than a TFLite file can be")
    try:
        interpreter = Interpreter(
            str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1
        )
    except ValueError as e:  # what it raises for whatever is wrong with a file
        raise ModelError(f"{path} is refused by LiteRT: {_brief(e)}") from e
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as e:
        unknown = "unresolved custom op" in str(e)
        fix = "edgec takes no custom operators: leave them out of the model, and compute them before it"
        raise UnsupportedModelError(
            f"{path} is refused by LiteRT: {_brief(e)}{f' ({fix})' if unknown else ''}"
        ) from e
    return interpreter


def _brief(error: Exception) -> str:
    line = first_line(str(error))  # it strings together the same complaint about every tensor
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _spec(details: dict[str, Any]) -> TensorSpec:
    return TensorSpec(details["name"], details["dtype"].__name__, tuple(int(n) for n in details["shape"]))


def _run(interpreter: Any, specs: Sequence[TensorSpec], sample: Arrays) -> Arrays:
    for details, spec in zip(interpreter.get_input_details(), specs, strict=True):
        interpreter.set_tensor(details["index"], sample[spec.name])
    try:
        interpreter.invoke()
    except (RuntimeError, ValueError) as e:
        raise UnsupportedModelError(f"LiteRT fails on the model: {_brief(e)}") from e
    return {d["name"]: interpreter.get_tensor(d["index"]).copy() for d in interpreter.get_output_details()}


def _is_hybrid(interpreter: Any) -> bool:
    """Return whether weights are int8 and activations float: LiteRT quantizes those in each call."""
    quantized = [d for d in interpreter.get_tensor_details() if d["quantization_parameters"]["scales"].size]
    floats = all(d["dtype"].__name__ == "float32" for d in interpreter.get_input_details())
    integers = {d["name"] for d in quantized if d["dtype"].__name__ == "int8"}
    return (
        floats
        and bool(integers)
        and not any(o["op_name"] == "QUANTIZE" for o in interpreter._get_ops_details())
    )
