"""Scales of weights: those that an author rounded already are rounded no second time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tests.compiler import networks
from tests.compiler.test_quantization import SCHEMES
from tests.compiler.tflite import harness

from edgec.compiler.calibration import calibrate
from edgec.compiler.converters import Quantities
from edgec.compiler.fake_quantization import fake_quantized
from edgec.compiler.products import symmetric
from edgec.compiler.quantization import quantize_static
from edgec.compiler.tflite import Mode
from edgec.compiler.tflite.quantize import quantize_weights
from edgec.compiler.weight_only import compress
from edgec.compiler.weight_scales import peaks, weight_scales


def on_grid(rng: np.random.Generator, shape: tuple[int, ...], step: float, most: int) -> NDArray[np.float32]:
    """Return weights as a framework dequantizes its integers: in float32, with a product more."""
    integers = rng.integers(-most, most + 1, shape).astype(np.float32)
    factors = rng.uniform(0.5, 2, (shape[0], *[1] * (len(shape) - 1))).astype(np.float32)
    return integers * np.float32(step) * factors


def off(weights: NDArray[np.float32], scales: NDArray[np.float32]) -> float:
    """Return how far weights are from whole steps, in steps."""
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    steps = rows / np.where(scales > 0, scales, 1)[:, None]
    return float(np.abs(steps - np.rint(steps)).max(initial=0))


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 6), st.integers(1, 90), st.integers(1, 3)),
    st.floats(1e-6, 1e3),
    st.integers(1, 127),
)
def test_weights_on_any_grid_are_exact(
    seed: int, shape: tuple[int, int, int], step: float, most: int
) -> None:
    weights = on_grid(np.random.default_rng(seed), shape, step, most)
    scales = weight_scales(weights, 0)
    usual = peaks(weights, 0) / 127
    assert off(weights, scales) < 2e-4
    assert (scales <= usual * 2.0001).all()
    assert (scales >= usual * 0.9999).all()
    integers, quant = quantize_weights(weights, 0)
    again = integers * np.asarray(quant.scale, np.float32).reshape(-1, 1, 1)
    np.testing.assert_allclose(again, weights, rtol=1e-6, atol=2e-9 * 127)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(6, 300), st.integers(31, 127))
def test_weights_that_were_never_rounded_have_the_usual_scale(
    seed: int, channels: int, count: int, largest: int
) -> None:
    weights = np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)
    for axis in (1, None):
        usual = (peaks(weights, axis) / largest).astype(np.float32)
        np.testing.assert_array_equal(weight_scales(weights, axis, largest=largest), usual)


def test_each_channel_is_looked_at_alone() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 40)).astype(np.float32)
    weights[1] = rng.integers(-100, 101, 40) * np.float32(0.03)
    weights[1, 7] = np.float32(-3)
    weights[2] = 0
    scales = weight_scales(weights, 0)
    assert scales[1:3].tolist() == [pytest.approx(0.03), 0]
    np.testing.assert_array_equal(scales[[0, 3]], (np.abs(weights).max(axis=1) / 127)[[0, 3]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spoils_no_other_channel(bad: float) -> None:
    weights = np.array([[bad, 1.0, 2.0], [0.5, 1.0, 1.5]], np.float32)
    scales = weight_scales(weights, 0)
    assert not np.isfinite(scales[0])
    assert off(weights[1:], scales[1:]) < 1e-5


def test_too_many_steps_are_no_grid_of_eight_bits() -> None:
    weights = np.arange(-200, 201, dtype=np.float32)[None] * np.float32(0.01)
    assert weight_scales(weights, 0)[0] == np.float32(weights.max() / 127)
    assert weight_scales(weights, 0, largest=200)[0] == pytest.approx(0.01)


def test_wide_and_empty_grids_are_found_behind_many_zeros() -> None:
    weights = np.zeros((2, 5000), np.float32)
    weights[0, [4990, 4991, 4998]] = np.float32(0.1) * np.array([3, 50, -71], np.float32)
    assert weight_scales(weights, 0).tolist() == [pytest.approx(0.1), 0]
    assert weight_scales(np.zeros((3, 0), np.float32), 0).tolist() == [0, 0, 0]


def rounded_network(steps: int) -> onnx.ModelProto:
    """Return the small classifier with the weights of its layers on one grid per tensor."""
    model = networks.cnn()
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim > 1:
            step = np.float32(np.abs(weights).max() / steps)
            tensor.CopyFrom(numpy_helper.from_array(np.rint(weights / step) * step, tensor.name))
    return model


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1}


def dequantized(model: onnx.ModelProto, source: str) -> NDArray[np.float32]:
    """Return weights as a Q/DQ graph has them: integers behind a DequantizeLinear, or a pair of both."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    given = {("QuantizeLinear", source), ("DequantizeLinear", f"{source}_quantized")}
    node = next(n for n in model.graph.node if (n.op_type, n.input[0]) in given)
    stored, scale = constants[node.input[0]], constants[node.input[1]]
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    scale = scale.reshape([-1 if i == axis and scale.ndim else 1 for i in range(stored.ndim)])
    if stored.dtype == np.int8:
        return np.asarray(stored * scale, np.float32)
    return np.asarray(np.rint(stored / scale).clip(-128, 127) * scale, np.float32)


@pytest.mark.parametrize(
    ("name", "per_channel", "narrow"),
    [
        ("x86", True, False),
        ("x86", True, True),
        ("x86", False, False),
        ("arm", True, False),
        ("tensorrt", True, False),
        ("tensorrt", False, False),
    ],
)
def test_every_scheme_keeps_an_authors_weights(name: str, per_channel: bool, narrow: bool) -> None:
    model = rounded_network(51 if narrow else 101)
    table = calibrate(model, iter(networks.samples(model, 4)))
    made = quantize_static(
        model, table, replace(SCHEMES[name], per_channel=per_channel), narrow_weights=narrow
    )
    weights = weights_of(model)
    for layer in ("w1", "w2"):
        np.testing.assert_allclose(dequantized(made, layer), weights[layer], rtol=1e-5, atol=1e-7)
    ratios = [networks.snr_db(networks.run(model, s), networks.run(made, s)) for s in networks.samples(model)]
    assert np.median(ratios) > 54  # 42 to 53 where they are rounded to another grid


def test_weights_of_no_grid_have_the_scales_of_the_quantizer() -> None:
    model = networks.cnn()
    table = calibrate(model, iter(networks.samples(model, 4)))
    made = quantize_static(model, table, SCHEMES["x86"])
    constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for layer in ("w1", "w2"):
        usual = (peaks(weights_of(model)[layer], 0) / 127).astype(np.float32)
        np.testing.assert_array_equal(constants[f"{layer}_scale"], usual)


def test_the_reference_of_files_of_integers_keeps_an_authors_weights() -> None:
    model = rounded_network(101)
    table = calibrate(model, iter(networks.samples(model, 4)))
    reference = weights_of(fake_quantized(model, Quantities(table=table)))
    for name, weights in weights_of(model).items():
        np.testing.assert_allclose(reference[name], weights, rtol=1e-5, atol=1e-7)


def test_files_of_integers_keep_an_authors_weights() -> None:
    rng = np.random.default_rng(3)
    weights = rng.integers(-90, 91, (16, 24)).astype(np.float32) * np.float32(0.013)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense", transB=1)]
    bias = rng.normal(size=16).astype(np.float32)
    model = harness.model_of(nodes, {"x": [1, 24]}, ["y"], {"w": weights, "b": bias})
    whole = weights_in(harness.quantized(model).data)
    np.testing.assert_allclose(whole, weights, rtol=1e-5, atol=1e-7)
    dynamic = weights_in(harness.quantized(model, Mode.DYNAMIC).data)
    np.testing.assert_allclose(dynamic, weights, rtol=1e-5, atol=1e-7)


def weights_in(data: bytes) -> NDArray[np.float32]:
    """Return the one int8 matrix of a TFLite file, as floats."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    (found,) = (
        d for d in interpreter.get_tensor_details() if d["dtype"] is np.int8 and tuple(d["shape"]) == (16, 24)
    )
    integers: NDArray[np.int8] = interpreter.get_tensor(found["index"])
    return np.asarray(integers * found["quantization_parameters"]["scales"].reshape(-1, 1), np.float32)


def test_dynamic_and_weight_only_integers_keep_an_authors_weights() -> None:
    weights = on_grid(np.random.default_rng(5), (40, 64), 0.02, 99)
    integers, scales = symmetric(weights, axis=1)
    np.testing.assert_allclose(integers * scales, weights, rtol=1e-5, atol=1e-7)
    packed = compress(np.ascontiguousarray(weights.T), 8, 32)
    again = (packed.values.astype(np.float32) - packed.zero_points[..., None]) * packed.scales[..., None]
    np.testing.assert_allclose(again.reshape(40, 64), weights, rtol=1e-5, atol=1e-7)
