"""What stays in fp32 when the rest becomes fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from tests.compiler.networks import Arrays, cnn, lstm, model_of, run, samples, snr_db, transformer

from edgec.artifact import Artifact
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.autocast import kept_in_fp32, sensitive_layers
from edgec.compiler.calibration import calibrate
from edgec.compiler.precision import to_fp16
from edgec.errors import ConversionError
from edgec.runtime import load
from edgec.targets import host_features


def in_half(model: onnx.ModelProto, sample: Arrays) -> list[np.ndarray]:
    """Run with every tensor rounded to its type: ONNX Runtime's CPU kernels take fp16 as fp32 inside."""
    with np.errstate(over="ignore", invalid="ignore"):
        return [np.asarray(v) for v in ReferenceEvaluator(model).run(None, dict(sample))]


def loud() -> onnx.ModelProto:
    """A product whose result, and the square of it, are beyond float16, and a root that brings it back."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "wide"),
        helper.make_node("Mul", ["m", "m"], ["q"], "square"),
        helper.make_node("Add", ["q", "one"], ["a"], "shift"),
        helper.make_node("Sqrt", ["a"], ["r"], "root"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "narrow"),
    ]
    weights: Arrays = {
        "w": rng.normal(size=(16, 16)).astype(np.float32) * 200,
        "one": np.array([1], np.float32),
        "v": rng.normal(size=(16, 4)).astype(np.float32) / 100,
    }
    return model_of(nodes, {"x": [2, 16]}, ["y"], weights)


def test_what_overflows_in_float16_is_kept_and_the_rest_is_not() -> None:
    model = loud()
    found = kept_in_fp32(model, calibrate(model, samples(model, 8)))
    assert set(found) == {"square", "shift", "root"}
    assert "float16 ends at 65504" in found["square"]
    (sample,) = samples(model, 1, seed=9)
    wanted = run(model, sample)
    assert not np.isfinite(in_half(to_fp16(model), sample)[0]).all()
    kept = to_fp16(model, keep_fp32=found)
    onnx.checker.check_model(kept, full_check=True)
    assert snr_db(wanted, in_half(kept, sample)) > 50
    types = {t.name: t.data_type for t in kept.graph.initializer}
    assert types["w"] == types["v"] == TensorProto.FLOAT16


def test_an_input_beyond_float16_reaches_the_node_that_needs_it() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "small"], ["s"], "scale"),
        helper.make_node("MatMul", ["s", "w"], ["y"], "product"),
    ]
    weights = {"small": np.array([1e-4], np.float32), "w": np.eye(4, dtype=np.float32)}
    model = model_of(nodes, {"x": [1, 4]}, ["y"], weights)
    sample = {"x": np.array([[1e6, 2e6, -3e6, 5.0]], np.float32)}
    found = kept_in_fp32(model, calibrate(model, [sample]))
    assert set(found) == {"scale"}
    kept = to_fp16(model, keep_fp32=found)
    assert snr_db(run(model, sample), in_half(kept, sample)) > 50


def test_an_output_that_is_kept_is_not_rounded() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["y"], "exp")]
    model = model_of(nodes, {"x": [1, 4]}, ["y"])
    sample = {"x": np.array([[12, 13, 14, 15]], np.float32)}
    assert np.array_equal(run(model, sample)[0], run(to_fp16(model, keep_fp32=["exp"]), sample)[0])


def test_constants_and_sums_beyond_float16_are_found_without_a_table() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["a"], "mul"),
        helper.make_node("Add", ["a", "epsilon"], ["y"], "add"),
    ]
    weights = {"large": np.array([1e6], np.float32), "epsilon": np.array([1e-12], np.float32)}
    found = kept_in_fp32(model_of(nodes, {"x": [1, 4]}, ["y"], weights), None)
    assert "1e+06" in found["mul"]
    assert "takes for zero" in found["add"]
    sums = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "sum")],
        {"x": [1, 512]},
        ["y"],
        {"w": np.tile(np.array([[20.0], [-20.0]], np.float32), (256, 2))},
    )
    sample = {"x": np.linspace(0, 10, 512, dtype=np.float32)[None]}
    assert "on the way" in kept_in_fp32(sums, calibrate(sums, [sample]))["sum"]


def test_sensitive_operators_stay() -> None:
    assert {"norm1", "norm2", "softmax"} <= set(kept_in_fp32(transformer(), None))
    assert kept_in_fp32(lstm(), None)["lstm"] == "is recurrent, so that errors grow"
    assert not kept_in_fp32(cnn(), None)


def test_a_model_with_bodies_is_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["b"], "relu")],
        "body",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 2])],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], "sum", keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], "cast", to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], "branch", then_branch=body, else_branch=body),
    ]
    with pytest.raises(ConversionError, match="bodies of branch"):
        kept_in_fp32(model_of(nodes, {"x": [1, 2]}, ["y"]), None)


@pytest.mark.parametrize("model", [transformer(), lstm()], ids=["transformer", "lstm"])
def test_it_computes_nearly_the_same(model: onnx.ModelProto) -> None:
    half = to_fp16(model, keep_fp32=kept_in_fp32(model, None))
    onnx.checker.check_model(half, full_check=True)
    (sample,) = samples(model, 1)
    assert snr_db(run(model, sample), run(half, sample)) > 50


def test_a_layer_that_takes_outliers_is_sensitive() -> None:
    model = cnn()
    data = samples(model, 8)
    assert sensitive_layers(model, calibrate(model, data), "minmax") == ()
    data[0]["image"][0, 0, 0, 0] = 1000.0
    assert sensitive_layers(model, calibrate(model, data), "minmax") == ("conv1",)


def _built(model: onnx.ModelProto, target: str, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    options = CompileOptions(precision="mixed", workers=0, measure_s=0.05, max_drop=None, objective="size")
    built = compile_model(path, [target], output=tmp_path / "out", options=options)
    return dict(built.report["artifacts"][0]), built.artifacts[0]


@pytest.mark.slow
def test_a_jetson_gets_int8_with_fp16_beside_it(tmp_path: Path) -> None:
    info, path = _built(transformer(), "jetson", tmp_path)
    assert info["precision"] == "mixed"
    with Artifact.open(path) as artifact:
        graph = onnx.load_from_string(bytes(artifact.view("model.onnx")))
    assert sum(n.op_type == "QuantizeLinear" for n in graph.graph.node) == 12
    wide = next(t for t in graph.graph.initializer if list(t.dims) == [64, 16])
    assert wide.data_type == TensorProto.FLOAT16
    softmax = next(n for n in graph.graph.node if n.op_type == "Softmax")
    cast = next(n for n in graph.graph.node if softmax.input[0] in n.output)
    assert (cast.op_type, cast.attribute[0].i) == ("Cast", TensorProto.FLOAT)


@pytest.mark.slow
def test_openvino_mixes_int8_with_bf16(tmp_path: Path) -> None:
    if not {"avx512_bf16", "amx_bf16"} & set(host_features()):
        pytest.skip("this CPU has no bf16")
    info, path = _built(transformer(), "intel-cpu", tmp_path)
    candidate = next(c for c in info["candidates"] if c["precision"] == "mixed")
    assert candidate["status"] in ("winner", "admissible"), candidate
    with load(path) as session:
        if info["precision"] == "mixed":
            assert session.precisions["int8"] == 6
            assert session.precisions["bf16"] >= 1
