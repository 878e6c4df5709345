"""Biases that several nodes take."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from tests.compiler.networks import Arrays, cnn, model_of, run, samples, snr_db
from tests.compiler.test_quantization import X86

from edgec.compiler.calibration import calibrate
from edgec.compiler.passes.split_biases import split_biases
from edgec.compiler.quantization import quantize_static


def shared() -> onnx.ModelProto:
    """Two convolutions with one bias, which is added at the end too."""
    rng = np.random.default_rng(0)
    weights: Arrays = {
        "w1": rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 5,
        "w2": rng.normal(size=(8, 8, 3, 3)).astype(np.float32) * 3,
        "b": rng.normal(size=8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b"], ["c2"], "conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Add", ["r2", "b"], ["y"], "add"),
    ]
    return model_of(nodes, {"x": [1, 8, 8, 8]}, ["y"], weights)


def optimized(model: onnx.ModelProto, path: Path) -> Counter[str]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(path).graph.node)


def test_every_convolution_becomes_integer(tmp_path: Path) -> None:
    model = shared()
    table = calibrate(model, samples(model, 8))
    assert optimized(quantize_static(model, table, X86), tmp_path / "before.onnx")["Conv"] == 1
    split = split_biases(model)
    onnx.checker.check_model(split, full_check=True)
    quantized = quantize_static(split, table, X86)
    found = optimized(quantized, tmp_path / "after.onnx")
    assert (found["QLinearConv"], found["Conv"]) == (2, 0)
    (sample,) = samples(model, 1, seed=3)
    assert np.array_equal(run(model, sample)[0], run(split, sample)[0])
    assert snr_db(run(model, sample), run(quantized, sample)) > 30


def test_the_source_stays_and_a_model_without_shared_biases_is_returned() -> None:
    model = shared()
    before = model.SerializeToString(deterministic=True)
    split_biases(model)
    assert model.SerializeToString(deterministic=True) == before
    other = cnn()
    assert split_biases(other) is other
