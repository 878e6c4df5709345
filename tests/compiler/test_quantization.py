from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.compiler import networks

from edgec.compiler.calibration import CalibrationTable, calibrate
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.quantization import quantize_static
from edgec.compiler.ranges import METHODS
from edgec.errors import CalibrationError, ConversionError
from edgec.targets import QuantizationScheme

X86 = QuantizationScheme(
    activation_dtype="uint8",
    activation_symmetric=False,
    weight_dtype="int8",
    weight_symmetric=True,
    per_channel=True,
    bias_dtype="int32",
    io_dtype="float32",
)
ARM = QuantizationScheme(
    activation_dtype="int8",
    activation_symmetric=False,
    weight_dtype="int8",
    weight_symmetric=True,
    per_channel=True,
    bias_dtype="int32",
    io_dtype="float32",
)
TENSORRT = QuantizationScheme(
    activation_dtype="int8",
    activation_symmetric=True,
    weight_dtype="int8",
    weight_symmetric=True,
    per_channel=True,
    bias_dtype="float32",
    io_dtype="float32",
    residual_one_input=True,
    weight_qdq=True,
)
SCHEMES = {"x86": X86, "arm": ARM, "tensorrt": TENSORRT}
NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "cnn": networks.cnn,
    "residual": networks.residual,
    "mlp": networks.mlp,
    "lstm": networks.lstm,
    "upsampler": networks.upsampler,
    "camera": networks.camera,
}


def table_of(model: onnx.ModelProto) -> CalibrationTable:
    return calibrate(model, networks.samples(model, 24))


def quantized(model: onnx.ModelProto, scheme: QuantizationScheme = X86, **options: object) -> onnx.ModelProto:
    return quantize_static(model, table_of(model), scheme, **options)  # type: ignore[arg-type]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def producer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    return next((n for n in model.graph.node if tensor in n.output), None)


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(n for n in model.graph.node if n.name == name)
    return found


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def is_dequantized(model: onnx.ModelProto, tensor: str) -> bool:
    node = producer(model, tensor)
    return node is not None and node.op_type == "DequantizeLinear"


# -- every network, every scheme ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantized_network_is_valid_and_computes_nearly_the_same(name: str, scheme: str) -> None:
    model = NETWORKS[name]()
    result = quantized(model, SCHEMES[scheme])
    onnx.checker.check_model(result, full_check=True)
    assert operators(result)["QuantizeLinear"] > 0
    fresh = networks.samples(model, 4, seed=9)
    wanted = [networks.run(model, s)[0] for s in fresh]
    got = [networks.run(result, s)[0] for s in fresh]
    assert networks.snr_db(wanted, got) > 25


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_range_method_serves_every_scheme(method: str, scheme: str) -> None:
    model = networks.residual()
    result = quantized(model, SCHEMES[scheme], method=method)
    sample = networks.samples(model, 1, seed=9)[0]
    assert networks.snr_db(networks.run(model, sample), networks.run(result, sample)) > 20


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_interface_and_source_are_left_as_they_are(name: str, scheme: str) -> None:
    model = NETWORKS[name]()
    before = model.SerializeToString(deterministic=True)
    result = quantized(model, SCHEMES[scheme])
    assert model.SerializeToString(deterministic=True) == before
    assert [i.name for i in result.graph.input] == [i.name for i in model.graph.input]
    assert list(result.graph.output) == list(model.graph.output)
    assert [i.type for i in result.graph.input] == [i.type for i in model.graph.input]


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_takes_the_same_graph(name: str) -> None:
    ov = pytest.importorskip("openvino")
    model = NETWORKS[name]()
    result = quantized(model, X86)
    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(result.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    sample = networks.samples(model, 1, seed=9)[0]
    got = [np.asarray(v) for v in compiled(sample).values()]
    assert networks.snr_db(networks.run(model, sample), got) > 25


SCRIPT = """
import hashlib, sys
from edgec.compiler.calibration import calibrate
from edgec.compiler.quantization import quantize_static
from tests.compiler import networks
from tests.compiler.test_quantization import SCHEMES
model = networks.residual()
table = calibrate(model, networks.samples(model, 4))
for scheme in SCHEMES.values():
    result = quantize_static(model, table, scheme)
    print(hashlib.sha256(result.SerializeToString(deterministic=True)).hexdigest())
"""


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes_in_every_process() -> None:
    seen = set()
    for seed in ("0", "1"):  # sets of strings have another order in each
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1
    assert len(seen.pop().split()) == 3


def test_nothing_is_printed_or_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = list(logging.root.handlers)
    quantized(networks.upsampler())
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == 0


# -- ONNX Runtime and OpenVINO -----------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "kind"), [("x86", np.uint8), ("arm", np.int8)])
def test_activations_and_weights_have_the_dtypes_of_the_scheme(scheme: str, kind: type) -> None:
    result = quantized(networks.cnn(), SCHEMES[scheme])
    for node in result.graph.node:
        if node.op_type == "QuantizeLinear":
            assert constant(result, node.input[2]).dtype == kind
    for name in ("conv1", "conv2", "head"):
        weights = producer(result, node_named(result, name).input[1])
        assert weights is not None
        quantized_weights = constant(result, weights.input[0])
        assert quantized_weights.dtype == np.int8
        assert constant(result, weights.input[1]).shape == (quantized_weights.shape[0],)
        assert not constant(result, weights.input[2]).any()
        bias = producer(result, node_named(result, name).input[2])
        assert bias is not None
        assert constant(result, bias.input[0]).dtype == np.int32


def test_int8_kernels_run_from_the_first_layer_to_the_last() -> None:
    import onnxruntime as ort

    result = quantized(networks.cnn())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with pytest.MonkeyPatch.context() as patch:
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as directory:
            patch.chdir(directory)
            options.optimized_model_filepath = "optimized.onnx"
            ort.InferenceSession(result.SerializeToString(), options, providers=["CPUExecutionProvider"])
            fused = operators(onnx.load(Path(directory) / "optimized.onnx"))
    assert fused["QLinearConv"] == 2
    assert fused["QGemm"] == 1
    assert fused["Conv"] == fused["Gemm"] == fused["Relu"] == fused["Clip"] == 0
    assert fused["QuantizeLinear"] == 1


def test_a_fully_connected_result_is_not_rounded_to_eight_bits() -> None:
    model = networks.cnn()
    result = quantized(model)
    last = producer(result, "scores")
    assert last is not None
    assert last.op_type == "Gemm"


def test_a_clip_that_leaves_zero_out_is_kept() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Clip", ["c", "low", "high"], ["y"], "clip"),
    ]
    weights = {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "low": np.array(0.5, np.float32),
        "high": np.array(3.0, np.float32),
    }
    model = networks.model_of(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)
    result = quantized(model)
    sample = networks.samples(model, 1, seed=9)[0]
    assert float(networks.run(result, sample)[0].min()) >= 0.49


def test_matmul_with_a_bias_becomes_one_quantized_gemm() -> None:
    result = quantized(networks.mlp())
    assert operators(result)["Gemm"] == 2
    assert operators(result)["MatMul"] == operators(result)["Add"] == 0


def test_recurrent_layers_stay_in_float() -> None:
    result = quantized(networks.lstm())
    assert not any(is_dequantized(result, n) for n in node_named(result, "lstm").input)
    assert is_dequantized(result, node_named(result, "head").input[0])


def test_the_head_of_a_camera_model_is_not_quantized_twice() -> None:
    result = quantized(networks.camera())
    for name in ("scaling", "shifting"):
        assert not any(is_dequantized(result, n) for n in node_named(result, name).input)


def test_narrow_weights_use_seven_bits() -> None:
    wide, narrow = (quantized(networks.cnn(), narrow_weights=n) for n in (False, True))
    for model, largest in ((wide, 127), (narrow, 64)):
        weights = producer(model, node_named(model, "conv1").input[1])
        assert weights is not None
        values = constant(model, weights.input[0]).astype(int)
        assert np.abs(values).max() == largest


@pytest.mark.parametrize("exclude", ["conv2", "c2"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_excluded_node_stays_in_float(scheme: str, exclude: str) -> None:
    result = quantized(networks.cnn(), SCHEMES[scheme], exclude=[exclude])
    node = node_named(result, "conv2")
    assert not is_dequantized(result, node.input[1])
    assert is_dequantized(result, node_named(result, "conv1").input[1])


def test_what_an_excluded_layer_gives_is_not_rounded_to_be_added() -> None:
    result = quantized(networks.residual(), exclude=["conv2"])
    assert not any(is_dequantized(result, n) for n in node_named(result, "conv2").input[1:])
    assert "c2" in node_named(result, "add1").input
    assert is_dequantized(result, node_named(result, "conv3").input[0])
    assert all(is_dequantized(result, n) for n in node_named(result, "add2").input)


def test_an_average_is_scaled_by_its_own_range() -> None:
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("AveragePool", ["r"], ["p"], "pool", kernel_shape=[16, 16]),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "head"], ["y"], "head"),
    ]
    weights = {
        "w": rng.normal(size=(8, 3, 1, 1)).astype(np.float32),
        "head": rng.normal(size=(8, 4)).astype(np.float32),
    }
    model = networks.model_of(nodes, {"image": [1, 3, 16, 16]}, ["y"], weights)
    table, result = table_of(model), quantized(model)
    for layer in ("pool", "flatten"):
        taken = producer(result, f"{node_named(result, layer).output[0]}")
        assert taken is not None
    pair = producer(result, node_named(result, "head").input[0])
    assert pair is not None
    low, high = table.range("f")
    assert float(constant(result, pair.input[1])) == pytest.approx((high - low) / 255)
    assert high < table.range("r")[1] / 2


def test_an_excluded_matmul_is_found_by_its_own_name() -> None:
    result = quantized(networks.mlp(), exclude=["dense1"])
    assert not any(is_dequantized(result, n) for n in node_named(result, "dense1").input)
    assert is_dequantized(result, node_named(result, "dense2").input[1])


def test_a_node_that_saw_infinities_stays_in_float() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "first"),
        helper.make_node("Log", ["a"], ["l"], "log"),
        helper.make_node("Gemm", ["l", "w"], ["y"], "second"),
    ]
    model = networks.model_of(nodes, {"x": [1, 6]}, ["y"], {"w": rng.normal(size=(6, 6)).astype(np.float32)})
    result = quantized(model)
    assert is_dequantized(result, node_named(result, "first").input[0])
    assert not is_dequantized(result, node_named(result, "second").input[0])


def test_nodes_without_names_and_old_opsets_are_served() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"]),
    ]
    weights = {
        "w": rng.normal(size=(3, 3, 3, 3)).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float32),
        "w2": rng.normal(size=(3, 3, 3, 3)).astype(np.float32),
    }
    model = networks.model_of(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights, opset=11)
    for scheme, opset in ((X86, 13), (TENSORRT, 19)):
        result = quantized(model, scheme)
        assert result.opset_import[0].version == opset
        assert operators(result)["DequantizeLinear"] >= 4


def test_weights_in_constant_nodes_are_quantized() -> None:
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], "weights", value=weights),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
    ]
    result = quantized(networks.model_of(nodes, {"x": [1, 3, 8, 8]}, ["y"]))
    assert is_dequantized(result, node_named(result, "conv").input[1])


@pytest.mark.parametrize("shape", [(), (1,), (1, 4), (4,)])
def test_every_shape_of_a_gemm_bias_is_served(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    model = networks.model_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", transB=1)],
        {"x": [2, 6]},
        ["y"],
        {
            "w": rng.normal(size=(4, 6)).astype(np.float32),
            "b": np.asarray(rng.normal(size=shape), np.float32),
        },
    )
    sample = networks.samples(model, 1, seed=9)[0]
    for scheme in SCHEMES.values():
        result = quantized(model, scheme)
        assert networks.snr_db(networks.run(model, sample), networks.run(result, sample)) > 30


# -- TensorRT ----------------------------------------------------------------------------------------------


def test_tensorrt_gets_symmetric_pairs_float_biases_and_opset_19() -> None:
    result = quantized(networks.cnn(), TENSORRT)
    assert result.opset_import[0].version == 19
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero, scale = constant(result, node.input[2]), constant(result, node.input[1])
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (scale > 0).all()
            assert np.isfinite(scale).all()
    for name in ("conv1", "conv2", "head"):
        node = node_named(result, name)
        weights = producer(result, node.input[1])
        assert weights is not None
        assert constant(result, weights.input[1]).ndim == 1
        quantizer = producer(result, weights.input[0])
        assert quantizer is not None
        assert constant(result, quantizer.input[0]).dtype == np.float32
        assert constant(result, node.input[2]).dtype == np.float32


def bottleneck(*, relu: bool = False, pads: int = 0) -> onnx.ModelProto:
    """A residual Add that a convolution takes."""
    rng = np.random.default_rng(5)
    weights = {name: rng.standard_normal((4, 4, 1, 1)).astype(np.float32) for name in ("w0", "w1", "w2")}
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], "stem"),
        helper.make_node("Relu", ["c0"], ["r0"], "relu"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], "project"),
        helper.make_node("Add", ["c1", "r0"], ["a1"], "add"),
        *([helper.make_node("Relu", ["a1"], ["r1"], "relu1")] if relu else []),
        helper.make_node("Conv", ["r1" if relu else "a1", "w2"], ["features"], "head", pads=[pads] * 4),
    ]
    return networks.model_of(nodes, {"image": [1, 4, 8, 8]}, ["features"], weights)


@pytest.mark.parametrize(
    ("model", "operands"),
    [
        (bottleneck(), [False, True]),
        (bottleneck(relu=True), [True, True]),  # the sum has no sign, so no zero point
        (bottleneck(pads=1), [True, True]),  # zeros beside the sum
    ],
)
def test_the_branch_that_ends_in_a_residual_add_stays_in_float_where_a_zero_point_goes(
    model: onnx.ModelProto, operands: list[bool]
) -> None:
    result = quantized(model, replace(X86, residual_one_input=True))
    assert [is_dequantized(result, i) for i in node_named(result, "add").input] == operands
    plain = quantized(model, X86)
    assert all(is_dequantized(plain, i) for i in node_named(plain, "add").input)
    onnx.checker.check_model(result, full_check=True)
    sample = networks.samples(model, 1, seed=9)[0]
    assert networks.snr_db(networks.run(model, sample), networks.run(result, sample)) > 25


def test_tensorrt_graphs_compute_the_same_with_optimizations() -> None:
    # ONNX Runtime would round their float biases, were it not kept from it.
    model = networks.cnn()
    result, sample = quantized(model, TENSORRT), networks.samples(model, 1)[0]
    found = []
    for optimize in (False, True):
        with ReferenceProgram(result, optimize=optimize) as program:
            found.append(program.run(sample))
    for name, exact in found[0].items():
        np.testing.assert_allclose(found[1][name], exact, rtol=0, atol=1e-5)


def test_a_residual_add_has_one_dequantized_input_the_skip_branch() -> None:
    result = quantized(networks.residual(), TENSORRT)
    first, second = node_named(result, "add1"), node_named(result, "add2")
    assert [is_dequantized(result, n) for n in first.input] == [False, True]
    assert first.input[0] == "c2"
    # Both branches end in a convolution: the longer one is what TensorRT fuses the Add into.
    assert [is_dequantized(result, n) for n in second.input] == [True, False]
    assert second.input[1] == "c4"


def test_no_two_consumers_share_a_pair() -> None:
    result = quantized(networks.residual(), TENSORRT)
    taken = Counter(name for node in result.graph.node for name in node.input)
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert taken[node.output[0]] == 1


def test_transposed_convolutions_are_quantized_along_their_output_channels() -> None:
    result = quantized(networks.upsampler(), TENSORRT)
    weights = producer(result, node_named(result, "up").input[1])
    assert weights is not None
    assert helper.get_attribute_value(weights.attribute[0]) == 1
    assert constant(result, weights.input[1]).shape == (3,)


def test_dead_channels_have_a_legal_scale() -> None:
    model = networks.cnn()
    weights = next(t for t in model.graph.initializer if t.name == "w1")
    array = numpy_helper.to_array(weights).copy()
    array[2] = 0
    weights.CopyFrom(numpy_helper.from_array(array, "w1"))
    result = quantized(model, TENSORRT)
    pair = producer(result, node_named(result, "conv1").input[1])
    assert pair is not None
    assert constant(result, pair.input[1])[2] > 0


# -- what cannot be quantized ------------------------------------------------------------------------------


def test_a_model_without_layers_is_refused() -> None:
    model = networks.model_of([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": [1, 4]}, ["y"])
    with pytest.raises(ConversionError, match="no Conv, Gemm or MatMul"):
        quantized(model)


def test_a_table_of_another_model_is_refused() -> None:
    with pytest.raises(CalibrationError, match="inputs x: calibrate again"):
        quantize_static(networks.cnn(), table_of(networks.mlp()), X86)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown range method 'max'"):
        quantized(networks.cnn(), method="max")


def test_full_integer_schemes_are_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ConversionError, match="full-integer"):
        quantized(networks.cnn(), replace(ARM, full_integer=True))


def test_half_precision_sources_have_nothing_to_quantize() -> None:
    weights = {"w": np.ones((4, 4), np.float16)}
    model = networks.model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")],
        {"x": [1, 4]},
        ["y"],
        weights,
        input_type=TensorProto.FLOAT16,
        output_type=TensorProto.FLOAT16,
    )
    table = calibrate(
        model, [{"x": np.random.default_rng(i).normal(size=(1, 4)).astype(np.float16)} for i in range(4)]
    )
    with pytest.raises(ConversionError, match="no Conv, Gemm or MatMul"):
        quantize_static(model, table, X86)
