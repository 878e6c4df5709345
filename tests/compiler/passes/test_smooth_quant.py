"""Outliers of a transformer's activations move into its weights, and int8 keeps it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.compiler.networks import Arrays, cnn, lstm, mlp, model_of, samples, snr_db, transformer
from tests.compiler.networks import run as run_optimized

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.calibration import calibrate
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.passes.smooth_quant import channel_maxima, normalizes_products, smooth_activations
from edgec.compiler.quantization import quantize_static
from edgec.targets import load_target

OUTLIER = 200.0


def as_written(model: onnx.ModelProto, sample: Arrays) -> Arrays:
    with ReferenceProgram(model) as program:
        return dict(program.run(sample))


def int8_snr(model: onnx.ModelProto, base: onnx.ModelProto, *, pass_on: bool, target: str) -> float:
    scheme = load_target(target).quantization
    assert scheme is not None
    table = calibrate(base, samples(base, 24))
    quantized = quantize_static(base, table, scheme, pass_on=pass_on)
    pairs = [(run_optimized(model, s), run_optimized(quantized, s)) for s in samples(model, 8, seed=1)]
    wanted = [np.concatenate([a[0].ravel() for a, _ in pairs])]
    return snr_db(wanted, [np.concatenate([b[0].ravel() for _, b in pairs])])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_it_computes_the_same_to_the_last_bit(alpha: float) -> None:
    model = transformer(OUTLIER)
    smoothed, changed = smooth_activations(model, samples(model, 8), alpha)
    onnx.checker.check_model(smoothed)
    assert changed >= 3
    for sample in samples(model, 4, seed=2):
        assert np.array_equal(as_written(model, sample)["y"], as_written(smoothed, sample)["y"])


def test_a_normalization_takes_the_scale_and_a_residual_is_left_alone() -> None:
    model = transformer(OUTLIER)
    smoothed, _ = smooth_activations(model, samples(model, 8), 0.5)
    kinds = Counter(n.op_type for n in smoothed.graph.node)
    before = Counter(n.op_type for n in model.graph.node)
    # The two normalizations take theirs; what attention and GELU give has no constants to put it in.
    assert kinds["Mul"] - before["Mul"] <= 2
    gains = {t.name: numpy_helper.to_array(t) for t in smoothed.graph.initializer}
    assert gains["g1"].max() / gains["g1"].min() < OUTLIER / 4
    # With a second taker, the same normalization is not touched.
    shared = transformer(OUTLIER)
    residual = next(n for n in shared.graph.node if n.name == "residual1")
    residual.input[1] = "n1"
    smoothed, _ = smooth_activations(shared, samples(shared, 8), 0.5)
    gains = {t.name: numpy_helper.to_array(t) for t in smoothed.graph.initializer}
    assert gains["g1"].max() / gains["g1"].min() == OUTLIER
    for sample in samples(shared, 2):
        assert np.array_equal(as_written(shared, sample)["y"], as_written(smoothed, sample)["y"])


def test_normalization_in_many_nodes_and_gemm() -> None:
    rng = np.random.default_rng(0)
    gain = np.ones(8, np.float32)
    gain[5] = 300
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["m"]),
        helper.make_node("Add", ["offset", "m"], ["n"]),
        helper.make_node("Gemm", ["n", "w", "b"], ["y"], transB=1),
    ]
    weights: Arrays = {
        "gain": gain,
        "offset": rng.normal(size=8).astype(np.float32),
        "w": rng.normal(size=(4, 8)).astype(np.float32),
        "b": rng.normal(size=4).astype(np.float32),
    }
    model = model_of(nodes, {"x": [3, 8]}, ["y"], weights)
    smoothed, changed = smooth_activations(model, samples(model, 4), 0.5)
    assert changed == 1
    assert len(smoothed.graph.node) == 3
    new = {t.name: numpy_helper.to_array(t) for t in smoothed.graph.initializer}
    assert new["gain"][5] / np.median(new["gain"]) < 100
    for sample in samples(model, 4, seed=1):
        assert np.array_equal(as_written(model, sample)["y"], as_written(smoothed, sample)["y"])


def test_weights_that_others_take_are_copied() -> None:
    model = transformer(OUTLIER)
    node = next(n for n in model.graph.node if n.name == "matmul_q")
    node.input[1] = "wp"  # which the projection takes as well, from another activation
    smoothed, _ = smooth_activations(model, samples(model, 8), 0.5)
    for sample in samples(model, 4, seed=2):
        assert np.array_equal(as_written(model, sample)["y"], as_written(smoothed, sample)["y"])


def test_maxima_are_per_channel_over_all_samples() -> None:
    model = transformer(OUTLIER)
    inputs = samples(model, 3)
    found = channel_maxima(model, ["n1"], iter(inputs))["n1"]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.ValueInfoProto(name="n1"))
    values = np.concatenate([as_written(copy, s)["n1"] for s in inputs])
    assert found == pytest.approx(np.abs(values).max(axis=(0, 1)), rel=1e-5)


@pytest.mark.parametrize("target", ["cpu-x86_64", "cpu-arm64", "jetson-orin-nano-jp6"])
def test_int8_keeps_a_transformer_with_outliers(target: str) -> None:
    model = transformer(OUTLIER)
    smoothed, _ = smooth_activations(model, samples(model, 8), 0.5)
    plain = int8_snr(model, model, pass_on=True, target=target)
    smooth = int8_snr(model, smoothed, pass_on=False, target=target)
    assert smooth > plain + 6
    assert smooth > 20


def test_onnx_runtime_runs_it_in_integers(tmp_path: Path) -> None:
    import onnxruntime as ort

    model = transformer(OUTLIER)
    scheme = load_target("cpu-x86_64").quantization
    assert scheme is not None
    quantized = quantize_static(model, calibrate(model, samples(model, 8)), scheme, pass_on=False)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["MatMulIntegerToFloat"] == 6
    assert kinds["Gemm"] == 0
    assert kinds["QuantizeLinear"] == 4  # residuals are added in float


@pytest.mark.parametrize(
    ("model", "expected"),
    [(transformer(), True), (cnn(), False), (mlp(), False), (lstm(), False)],
    ids=["transformer", "cnn", "mlp", "lstm"],
)
def test_transformers_are_told_from_others(model: onnx.ModelProto, expected: bool) -> None:
    assert normalizes_products(model) is expected


def test_a_simplified_transformer_is_one_too() -> None:
    model = transformer()
    weights = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            node.op_type = "Gemm"
    assert normalizes_products(model)


@pytest.mark.slow
def test_a_build_smooths_a_transformer_by_itself(tmp_path: Path) -> None:
    path, data = tmp_path / "block.onnx", tmp_path / "data.npz"
    onnx.save(transformer(OUTLIER), path)
    np.savez(data, tokens=np.stack([s["tokens"] for s in samples(transformer(), 32)]))
    options = CompileOptions(workers=0, measure_s=0.05)
    built = compile_model(
        path, ["cpu-x86_64", "intel-cpu"], tmp_path / "out", calibration=data, options=options
    )
    for info in built.report["artifacts"]:
        found = next(c for c in info["candidates"] if c["precision"] == "int8")
        assert found["name"].endswith("int8 (smooth 0.5)")
        assert found["status"] in ("admissible", "winner"), found
