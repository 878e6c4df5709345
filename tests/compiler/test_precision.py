from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.compiler import networks
from tests.compiler.test_quantization import NETWORKS, TENSORRT, X86

from edgec.compiler.calibration import calibrate
from edgec.compiler.precision import to_fp16
from edgec.compiler.quantization import quantize_static
from edgec.errors import ConversionError


def run_as_written(model: onnx.ModelProto, sample: networks.Arrays) -> list[np.ndarray]:
    """Run node by node: ONNX Runtime's own optimizations are wrong about Q/DQ with float16 scales."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, sample)]


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = inferred.graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return found | {t.name: t.data_type for t in graph.initializer}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_half_network_is_valid_and_computes_nearly_the_same(name: str) -> None:
    model = NETWORKS[name]()
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    for sample in networks.samples(model, 3, seed=9):
        assert networks.snr_db(networks.run(model, sample), networks.run(half, sample)) > 50


@pytest.mark.parametrize("build", [networks.cnn, networks.residual, networks.mlp])
def test_every_float_inside_is_half_and_the_interface_is_not(build: Callable[[], onnx.ModelProto]) -> None:
    model = build()
    half = to_fp16(model)
    assert list(half.graph.input) == list(model.graph.input)
    assert list(half.graph.output) == list(model.graph.output)
    outside = {v.name for v in (*half.graph.input, *half.graph.output)}
    found = types(half)
    assert {kind for name, kind in found.items() if name not in outside} == {TensorProto.FLOAT16}


def test_the_interface_becomes_half_on_request() -> None:
    half = to_fp16(networks.cnn(), keep_io=False)
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert half.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_a_node_can_stay_in_single_precision() -> None:
    model = networks.cnn()
    half = to_fp16(model, keep_fp32=["conv2"])
    found = types(half)
    conv = next(n for n in half.graph.node if n.name == "conv2")
    assert {found[n] for n in conv.input} == {TensorProto.FLOAT}
    sample = networks.samples(model, 1, seed=9)[0]
    assert networks.snr_db(networks.run(model, sample), networks.run(half, sample)) > 50


@pytest.mark.parametrize("name", NETWORKS)
def test_pairs_become_half_with_the_rest(name: str) -> None:
    model = NETWORKS[name]()
    explicit = quantize_static(model, calibrate(model, networks.samples(model, 24)), TENSORRT)
    half = to_fp16(explicit)
    onnx.checker.check_model(half, full_check=True)
    found = types(half)
    pairs = [n for n in half.graph.node if n.op_type == "QuantizeLinear"]
    assert pairs
    assert {found[n.input[1]] for n in pairs} == {TensorProto.FLOAT16}
    sample = networks.samples(model, 1, seed=9)[0]
    assert networks.snr_db(run_as_written(explicit, sample), run_as_written(half, sample)) > 25


def test_scales_do_not_vanish_in_half_precision() -> None:
    model = networks.cnn()
    weights = next(t for t in model.graph.initializer if t.name == "w1")
    array = numpy_helper.to_array(weights).copy()
    array[3] *= 1e-12
    weights.CopyFrom(numpy_helper.from_array(array, "w1"))
    half = to_fp16(quantize_static(model, calibrate(model, networks.samples(model, 4)), TENSORRT))
    tensors = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type == "QuantizeLinear":
            assert (tensors[node.input[1]] > 0).all()
    sample = networks.samples(model, 1, seed=9)[0]
    assert np.isfinite(run_as_written(half, sample)[0]).all()


def test_stored_integers_keep_their_meaning() -> None:
    model = networks.cnn()
    stored = quantize_static(model, calibrate(model, networks.samples(model, 4)), X86)
    half = to_fp16(stored)
    onnx.checker.check_model(half, full_check=True)
    assert half.opset_import[0].version == 19


def test_weights_beyond_the_range_saturate() -> None:
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"], "mul")]
    model = networks.model_of(nodes, {"x": [1, 2]}, ["y"], {"w": np.array([1e6, -1e6], np.float32)})
    (y,) = networks.run(to_fp16(model), {"x": np.array([[0.5, 0.5]], np.float32)})
    assert y.tolist() == [[32752.0, -32752.0]]


def test_bodies_of_subgraphs_are_typed_too() -> None:
    def body(name: str, weight: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Mul", ["x", weight], [f"{name}_y"], name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 2])],
        )

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], "greater"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=body("a", "w1"), else_branch=body("b", "w2")),
    ]
    weights = {
        "zero": np.array(0, np.float32),
        "w1": np.array([[2, 3]], np.float32),
        "w2": np.array([[-1, 1]], np.float32),
    }
    model = networks.model_of(nodes, {"x": [1, 2]}, ["y"], weights)
    half = to_fp16(model)
    for x, y in (([[1, 2]], [[2, 6]]), ([[-1, -2]], [[1, -2]])):
        assert networks.run(half, {"x": np.array(x, np.float32)})[0].tolist() == y


def test_the_source_is_left_alone_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    model = networks.cnn()
    before = model.SerializeToString(deterministic=True)
    first, second = to_fp16(model), to_fp16(model)
    assert model.SerializeToString(deterministic=True) == before
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0


def test_weights_outside_the_model_are_refused() -> None:
    model = networks.cnn()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ConversionError, match="too large"):
        to_fp16(model)
