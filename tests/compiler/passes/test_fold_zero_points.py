from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.compiler import networks

from edgec.compiler.calibration import calibrate
from edgec.compiler.passes.fold_zero_points import fold_zero_points
from edgec.compiler.quantization import quantize_static
from edgec.targets import load_target

OPENVINO = load_target("intel-cpu").quantization
assert OPENVINO is not None


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


def bottlenecks(*, biases: bool = True) -> onnx.ModelProto:
    """A layer without activation, a residual bottleneck around it, as MobileNetV2 has them, and a Gemm."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], "stem", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1", *(["b1"] if biases else [])], ["c1"], "project1"),
        helper.make_node("Conv", ["c1", "w2", *(["b2"] if biases else [])], ["c2"], "expand"),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "depthwise", pads=[1] * 4, group=12),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("Conv", ["r3", "w4"], ["c4"], "project2"),
        helper.make_node("Add", ["c1", "c4"], ["a1"], "add"),
        helper.make_node("Conv", ["a1", "w5"], ["c5"], "head"),
        helper.make_node("Flatten", ["c5"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w6"], ["scores"], "classify", transB=1),
    ]
    weights = {
        "w0": normal(rng, 8, 3, 3, 3),
        "w1": normal(rng, 6, 8, 1, 1),
        "b1": normal(rng, 6),
        "w2": normal(rng, 12, 6, 1, 1),
        "b2": normal(rng, 12),
        "w3": normal(rng, 12, 1, 3, 3),
        "w4": normal(rng, 6, 12, 1, 1),
        "w5": normal(rng, 2, 6, 1, 1),
        "w6": normal(rng, 5, 2 * 8 * 8),
    }
    used = {name for node in nodes for name in node.input}
    return networks.model_of(
        nodes, {"image": [1, 3, 8, 8]}, ["scores"], {n: w for n, w in weights.items() if n in used}
    )


def in_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    assert OPENVINO is not None
    return quantize_static(model, calibrate(model, networks.samples(model, 24)), OPENVINO)


def zero_points(model: onnx.ModelProto) -> dict[str, int]:
    """Return the zero points of activations that are not 0, by the tensor that is quantized."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {n.input[0]: constants[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    return {name: int(zero) for name, zero in found.items() if zero.any()}


def test_biases_take_the_zero_points_of_bottlenecks() -> None:
    before = in_int8(bottlenecks())
    assert set(zero_points(before)) == {"image", "c1", "a1", "c5", "flat"}
    after = fold_zero_points(before)
    onnx.checker.check_model(after, full_check=True)
    # Of the image, padding is not shifted with it; what Flatten takes is not looked at.
    assert set(zero_points(after)) == {"image", "c5", "flat"}


@pytest.mark.parametrize("biases", [True, False])
def test_what_is_computed_stays_the_same(biases: bool) -> None:
    model = bottlenecks(biases=biases)
    before = in_int8(model)
    after = fold_zero_points(before)
    assert zero_points(after) != zero_points(before)
    for sample in networks.samples(model, 8, seed=9):
        wanted, got = networks.run(before, sample), networks.run(after, sample)
        assert networks.snr_db(wanted, got) > 35
        assert networks.snr_db(networks.run(model, sample), got) > 25


def test_every_integer_stays_the_same() -> None:
    before = in_int8(bottlenecks())
    after = fold_zero_points(before)
    names = [
        n.output[0] for n in before.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in ("c1", "a1")
    ]
    for model in (before, after):
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    sample = networks.samples(before, 1, seed=9)[0]
    for wanted, got in zip(networks.run(before, sample)[1:], networks.run(after, sample)[1:], strict=True):
        apart = np.abs(wanted.astype(np.int32) - got.astype(np.int32))
        assert wanted.std() > 10
        assert apart.max() <= 1  # biases are rounded, and so are halves
        assert (apart > 0).mean() < 0.02


@pytest.mark.parametrize(("pads", "kept"), [(0, {"image"}), (1, {"image", "c0"})])
def test_padding_keeps_a_zero_point(pads: int, kept: set[str]) -> None:
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], "first"),
        helper.make_node("Conv", ["c0", "w1"], ["features"], "second", pads=[pads] * 4),
    ]
    weights = {"w0": normal(rng, 4, 3, 3, 3), "w1": normal(rng, 4, 4, 3, 3)}
    model = in_int8(networks.model_of(nodes, {"image": [1, 3, 8, 8]}, ["features"], weights))
    assert set(zero_points(fold_zero_points(model))) & {"image", "c0"} == kept


def test_an_output_of_the_graph_keeps_its_values() -> None:
    before = in_int8(bottlenecks())
    before.graph.output.append(helper.make_tensor_value_info("c1", onnx.TensorProto.FLOAT, [1, 6, 8, 8]))
    after = fold_zero_points(before)
    assert "c1" in zero_points(after)
    sample = networks.samples(before, 1, seed=9)[0]
    assert networks.snr_db(networks.run(before, sample)[1:], networks.run(after, sample)[1:]) > 60


def test_a_sum_of_two_quantized_operands_keeps_its_zero_point() -> None:
    model = bottlenecks()
    x86 = load_target("cpu-x86_64").quantization
    assert x86 is not None
    before = quantize_static(model, calibrate(model, networks.samples(model, 24)), x86)
    assert fold_zero_points(before) is before


@pytest.mark.parametrize("make", [networks.mlp, networks.lstm, bottlenecks])
def test_a_float_model_is_left_as_it_is(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    assert fold_zero_points(model) is model


def test_the_model_that_is_given_is_left_as_it_is() -> None:
    before = in_int8(bottlenecks())
    kept = before.SerializeToString(deterministic=True)
    first, second = fold_zero_points(before), fold_zero_points(before)
    assert before.SerializeToString(deterministic=True) == kept
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_openvino_computes_the_same() -> None:
    ov = pytest.importorskip("openvino")
    model = bottlenecks()
    before = in_int8(model)
    core = ov.Core()
    results = [
        core.compile_model(core.read_model(m.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for m in (before, fold_zero_points(before))
    ]
    for sample in networks.samples(model, 4, seed=9):
        wanted, got = ([np.asarray(v) for v in r(sample).values()] for r in results)
        assert networks.snr_db(wanted, got) > 30
