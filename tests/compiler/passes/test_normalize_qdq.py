"""Models that their author quantized take the form that an engine runs in int8, and compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tests.compiler.networks import mlp

from edgec.compiler.lint import lint_tensorrt
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.passes.normalize_qdq import normalize_qdq
from edgec.targets import load_target


def author_quantized(kind: str, *, weights: str, zero: int, spread: int) -> onnx.ModelProto:
    """Return two convolutions with a residual Add, NHWC ``image`` [1,6,6,3] to ``out``, as tf2onnx writes it.

    Args:
        kind: dtype of activations.
        weights: dtype of weights.
        zero: Their zero point.
        spread: Largest distance of a weight from it.
    """
    rng = np.random.default_rng(0)
    act_zero = 0 if kind == "uint8" else -128
    constants: dict[str, Any] = {
        "in_s": np.float32(1 / 255), "in_z": np.array(act_zero, kind),
        "a_s": np.float32(0.02), "a_z": np.array(act_zero, kind),
        "o_s": np.float32(0.05), "o_z": np.array(act_zero + 100, kind),
        "w_s": np.float32(0.004), "w_z": np.array(zero, weights), "i_z": np.array(0, np.int32),
        "b1_s": np.float32(0.004 / 255), "b2_s": np.float32(0.02 * 0.004),
        "w1": _weights(rng, (4, 3, 3, 3), weights, zero, spread),
        "w2": _weights(rng, (4, 4, 3, 3), weights, zero, spread),
        "b1": rng.integers(-9000, 9000, 4).astype(np.int32),
        "b2": rng.integers(-900, 900, 4).astype(np.int32),
    }  # fmt: skip

    def pair(source: str, name: str, prefix: str) -> list[onnx.NodeProto]:
        parameters = [f"{prefix}_s", f"{prefix}_z"]
        return [
            helper.make_node("QuantizeLinear", [source, *parameters], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [name]),
        ]

    def constant(name: str, scale: str, zero: str) -> onnx.NodeProto:
        return helper.make_node("DequantizeLinear", [name, scale, zero], [f"{name}_f"])

    pads = [1, 1, 1, 1]
    nodes = [
        *(constant(w, "w_s", "w_z") for w in ("w1", "w2")),
        *(constant(b, f"{b}_s", "i_z") for b in ("b1", "b2")),
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["nchw", "in_s", "in_z"], ["x"]),
        helper.make_node("Conv", ["x", "w1_f", "b1_f"], ["c1"], "conv1", pads=pads),
        helper.make_node("Relu", ["c1"], ["r1"]),
        *pair("r1", "a", "a"),
        helper.make_node("Conv", ["a", "w2_f", "b2_f"], ["c2"], "conv2", pads=pads),
        *pair("c2", "d", "o"),
        helper.make_node("Add", ["a", "d"], ["sum"], "add"),
        helper.make_node("QuantizeLinear", ["sum", "o_s", "o_z"], ["sum_q"]),
        helper.make_node("Transpose", ["sum_q"], ["out"], perm=[0, 2, 3, 1]),
    ]
    dtype = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}[kind]
    graph = helper.make_graph(
        nodes, "author", [helper.make_tensor_value_info("image", dtype, [1, 6, 6, 3])],
        [helper.make_tensor_value_info("out", dtype, [1, 6, 6, 4])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _weights(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str, zero: int, spread: int
) -> NDArray[Any]:
    return np.asarray((zero + rng.integers(-spread, spread + 1, shape)).clip(*_bounds(kind)), kind)


def _bounds(kind: str) -> tuple[int, int]:
    return int(np.iinfo(kind).min), int(np.iinfo(kind).max)


def run(model: onnx.ModelProto, kind: str, n: int = 4) -> NDArray[np.int32]:
    rng = np.random.default_rng(1)
    samples = [rng.integers(*_bounds(kind), (1, 6, 6, 3), endpoint=True).astype(kind) for _ in range(n)]
    with ReferenceProgram(model) as program:
        return np.stack([program.run({"image": s})["out"] for s in samples]).astype(np.int32)


@pytest.mark.parametrize("target", ["cpu-x86_64", "intel-cpu", "cpu-arm64"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize(("weights", "zero", "spread"), [("int8", 0, 127), ("uint8", 120, 100)])
def test_what_fits_computes_the_very_same(
    target: str, kind: str, weights: str, zero: int, spread: int
) -> None:
    model = author_quantized(kind, weights=weights, zero=zero, spread=spread)
    scheme = load_target(target).quantization
    assert scheme is not None
    normal, told = normalize_qdq(model, scheme)
    onnx.checker.check_model(normal)
    np.testing.assert_array_equal(run(normal, kind), run(model, kind))
    assert all("rounded anew" not in sentence for sentence in told)
    assert ("weights of 2 layers are int8 around 0, exactly" in " ".join(told)) == (weights == "uint8")
    _require_form(normal, scheme.activation_dtype)
    again, _ = normalize_qdq(normal, scheme)
    np.testing.assert_array_equal(run(again, kind), run(model, kind))


def _require_form(model: onnx.ModelProto, activations: str) -> None:
    """Every pair within the graph has the dtype that the engine wants; every weight is int8 around 0."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    ends = {i.name for i in model.graph.input} | {o.name for o in model.graph.output}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or {*node.input, *node.output} & ends:
            continue
        zero = constants[node.input[2]]
        if node.input[0] not in constants:
            assert zero.dtype.name == activations, node
        elif constants[node.input[0]].dtype != np.int32:
            assert zero.dtype == np.int8
            assert not zero.any()


def test_onnx_runtime_gets_weights_that_do_not_fit_with_a_zero_point() -> None:
    model = author_quantized("uint8", weights="uint8", zero=90, spread=165)
    scheme = load_target("cpu-x86_64").quantization
    assert scheme is not None
    normal, told = normalize_qdq(model, scheme)
    assert "weights of 2 layers are int8 with a zero point, exactly as before" in " ".join(told)
    np.testing.assert_array_equal(run(normal, "uint8"), run(model, "uint8"))
    assert not any(numpy_helper.to_array(t).dtype == np.uint8 for t in normal.graph.initializer if t.dims)


def test_weights_that_do_not_fit_are_rounded_by_channel_and_biases_follow() -> None:
    model = author_quantized("uint8", weights="uint8", zero=90, spread=165)
    scheme = load_target("intel-cpu").quantization
    assert scheme is not None
    normal, told = normalize_qdq(model, scheme)
    assert "weights of 2 layers are int8 around 0, rounded anew" in " ".join(told)
    assert "biases of 2 layers" in " ".join(told)
    assert np.abs(run(normal, "uint8") - run(model, "uint8")).max() <= 2
    _require_form(normal, "uint8")


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_tensorrt_gets_symmetric_int8_over_the_authors_ranges(kind: str) -> None:
    model = author_quantized(kind, weights="uint8", zero=120, spread=100)
    target = load_target("jetson")
    assert target.quantization is not None
    assert [f for f in lint_tensorrt(model, target) if f.severity == "error"]
    normal, told = normalize_qdq(model, target.quantization)
    onnx.checker.check_model(normal)
    assert [f for f in lint_tensorrt(normal, target) if f.severity == "error"] == []
    assert any("symmetric int8 over the author's ranges" in sentence for sentence in told)
    assert [i.type.tensor_type.elem_type for i in (*normal.graph.input, *normal.graph.output)] == [
        i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)
    ]
    expected, actual = run(model, kind).astype(float), run(normal, kind).astype(float)
    error, signal = np.mean((actual - expected) ** 2), np.var(expected)
    assert 10 * np.log10(signal / error) > 30


def test_a_float_model_stays_what_it_is() -> None:
    scheme = load_target("cpu-x86_64").quantization
    assert scheme is not None
    model = mlp()
    assert normalize_qdq(model, scheme) == (model, ())
