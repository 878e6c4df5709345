"""Models of one operator, written as TFLite, run by LiteRT and held against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.calibration import calibrate
from edgec.compiler.tflite import Mode, TfliteModel, write_tflite

Arrays = dict[str, NDArray[Any]]
CALIBRATION = 8


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
    kinds: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Return a model; `inputs` are float32 where `kinds` says nothing else."""
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info(n, (kinds or {}).get(n, TensorProto.FLOAT), list(s))
            for n, s in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnx.checker.check_model(inferred, full_check=True)
    return inferred


def samples_of(model: onnx.ModelProto, count: int = CALIBRATION, seed: int = 0) -> list[Arrays]:
    """Return random inputs of a model."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        sample = {}
        for value in model.graph.input:
            tensor = value.type.tensor_type
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            shape = [d.dim_value for d in tensor.shape.dim]
            numbers = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 3, shape)
            sample[value.name] = numbers.astype(dtype)
        result.append(sample)
    return result


def run_onnx(model: onnx.ModelProto, sample: Arrays) -> list[NDArray[Any]]:
    """Return the outputs by ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, sample)]


def run_tflite(model: TfliteModel, sample: Arrays, *, reference: bool = False) -> list[NDArray[Any]]:
    """Return the outputs by LiteRT as reals, in the source's layout; inputs are given in it too."""
    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(model_content=model.data, experimental_op_resolver_type=kind, num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    given = {}
    for tensor in model.inputs:
        array = sample[tensor.name].transpose(tensor.permutation)
        if tensor.scale is not None:
            info = np.iinfo(tensor.dtype)
            scaled = np.rint(array / tensor.scale) + (tensor.zero_point or 0)
            array = np.clip(scaled, info.min, info.max).astype(tensor.dtype)
        given[tensor.name] = np.ascontiguousarray(array)
    results = runner(**given)
    outputs = []
    for tensor in model.outputs:
        array = results[tensor.name]
        if tensor.scale is not None:
            array = (array.astype(np.float32) - (tensor.zero_point or 0)) * np.float32(tensor.scale)
        outputs.append(array.transpose(np.argsort(tensor.permutation)))
    return outputs


def snr_db(expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> float:
    """Return the signal-to-noise ratio over all outputs; 200 where they are equal."""
    for e, g in zip(expected, got, strict=True):
        assert e.shape == g.shape, f"{g.shape} instead of {e.shape}"
    signal = np.concatenate([e.reshape(-1).astype(np.float64) for e in expected])
    noise = signal - np.concatenate([g.reshape(-1).astype(np.float64) for g in got])
    if not np.any(noise):
        return 200.0
    return float(10 * np.log10(np.sum(signal**2) / np.sum(noise**2))) if np.any(signal) else -200.0


def builtins(model: TfliteModel) -> list[str]:
    """Return the builtin operators of a file in their order."""
    from edgec.compiler.tflite.flatbuffer import S, builtin_name

    parsed = S.ModelT.InitFromPackedBuf(model.data, 0)
    codes = [c.builtinCode for c in parsed.operatorCodes]
    return [builtin_name(codes[o.opcodeIndex]) for o in parsed.subgraphs[0].operators]


def quantized(model: onnx.ModelProto, mode: Mode = Mode.INT8, **options: Any) -> TfliteModel:
    """Return a model as integers, calibrated with the samples of `samples_of`."""
    table = calibrate(model, samples_of(model)) if mode.integer else None
    return write_tflite(model, mode=mode, table=table, **options)


def check(
    model: onnx.ModelProto,
    *,
    float_db: float = 90.0,
    int8_db: float | None = 25.0,
    float_fallback: bool = False,
) -> None:
    """Hold the float32 file, and the int8 file unless `int8_db` is None, against ONNX Runtime."""
    sample = samples_of(model, 1)[0]
    expected = run_onnx(model, sample)
    got = run_tflite(write_tflite(model), sample)
    assert snr_db(expected, got) >= float_db, f"float32: {snr_db(expected, got):.1f} dB"
    if int8_db is not None:
        written = quantized(model, float_fallback=float_fallback, io="int8")
        for reference in (True, False):
            if reference and not _REFERENCE_LACKS.isdisjoint(builtins(written)):
                continue
            got = run_tflite(written, sample, reference=reference)
            kernels = "reference" if reference else "fast"
            assert snr_db(expected, got) >= int8_db or _within_steps(written, expected, got), (
                f"int8, {kernels} kernels: {snr_db(expected, got):.1f} dB, {builtins(written)}"
            )


# What is registered for AUTO and not for BUILTIN_REF in ai-edge-litert 2.3.
_REFERENCE_LACKS = frozenset({"ELU", "DEPTH_TO_SPACE", "GELU", "HARD_SWISH"})
_STEPS = 3.0  # of the output; the rounding of the inputs included


def _within_steps(model: TfliteModel, expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> bool:
    """Whether all values are near in steps of their output: the ratio says nothing about few, small ones."""
    return all(
        float(np.abs(e - g).max(initial=0.0)) <= _STEPS * (t.scale or 0.0)
        for t, e, g in zip(model.outputs, expected, got, strict=True)
    )
