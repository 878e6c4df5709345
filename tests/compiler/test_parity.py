"""Parity: a converter's faults are found, honest rounding is not one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.compiler.networks import cnn

from edgec.compiler.calibration import calibrate
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import (
    Run,
    check_parity,
    first_divergence,
    float_reference,
    output_steps,
    parity_sentence,
    quantized_reference,
)
from edgec.compiler.quantization import quantize_static
from edgec.targets import load_target

Arrays = Mapping[str, NDArray[Any]]
Fault = Callable[[onnx.ModelProto], None]


def images(n: int) -> list[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(7)
    return [{"image": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(n)]


def changed(model: onnx.ModelProto, fault: Fault) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    fault(copy)
    return copy


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    tensors: dict[str, onnx.TensorProto] = {t.name: t for t in model.graph.initializer}
    return tensors[name]


def replace_weight(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> None:
    weight(model, name).CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))


def swap_channels(model: onnx.ModelProto) -> None:
    w = numpy_helper.to_array(weight(model, "w2")).copy()
    w[:, [0, 1]] = w[:, [1, 0]]
    replace_weight(model, "w2", w)


def wrong_padding(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == "conv2")
    pads = next(a for a in node.attribute if a.name == "pads")
    pads.ints[:] = [0, 0, 2, 2]


def lost_bias(model: onnx.ModelProto) -> None:
    replace_weight(model, "b1", np.zeros(8, np.float32))


def bf16_weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        bits = (value.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(bits, tensor.name))


def test_the_same_computation_in_another_order_passes() -> None:
    reference = float_reference(cnn(), images(3), "fp32")
    with ReferenceProgram(cnn(), optimize=True) as optimized:
        parity = check_parity(optimized.run, reference)
    assert parity.passed, parity_sentence(parity)


def test_the_tolerance_follows_the_precision() -> None:
    tolerances = [
        float_reference(cnn(), images(1), p).tolerance["scores"].max_abs for p in ("fp32", "fp16", "bf16")
    ]
    assert tolerances[0] * 100 < tolerances[1] < tolerances[2] / 4


@pytest.mark.parametrize(
    ("fault", "tensor"),
    [(swap_channels, "c2"), (wrong_padding, "c2"), (lost_bias, "c1"), (bf16_weights, "c1")],
)
def test_a_fault_of_the_converter_is_found_where_it_is(fault: Fault, tensor: str) -> None:
    reference = float_reference(cnn(), images(2), "fp32")

    def convert(model: onnx.ModelProto) -> Run:
        return ReferenceProgram(changed(model, fault), optimize=True).run

    parity = check_parity(convert(cnn()), reference)
    assert not parity.passed
    assert "leaves its tolerance" in parity_sentence(parity)
    assert first_divergence(reference, convert) == tensor


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_never_passes(value: float) -> None:
    reference = float_reference(cnn(), images(1), "fp32")
    assert not check_parity(lambda _: {"scores": np.full((1, 5), value, np.float32)}, reference).passed


def quantized() -> onnx.ModelProto:
    scheme = load_target("cpu-x86_64").quantization
    assert scheme is not None
    return quantize_static(cnn(), calibrate(cnn(), images(16)), scheme)


def test_fused_integer_kernels_pass_against_their_own_graph() -> None:
    model = quantized()
    with ReferenceProgram(model, optimize=True) as fused:
        parity = check_parity(fused.run, quantized_reference(model, images(4)))
    assert parity.passed, parity_sentence(parity)


def wrong_zero_point(model: onnx.ModelProto) -> None:
    name = next(
        n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "image"
    )
    zero = numpy_helper.to_array(weight(model, name))
    replace_weight(model, name, np.asarray(zero - 8, zero.dtype))
    for node in model.graph.node:  # only the quantizer is wrong, what dequantizes is right
        if node.op_type == "DequantizeLinear" and name in node.input:
            model.graph.initializer.append(numpy_helper.from_array(zero, "right"))
            node.input[2] = "right"


def halved_scale(model: onnx.ModelProto) -> None:
    names = [n.input[1] for n in model.graph.node if n.op_type == "DequantizeLinear" and "c1" in n.input[0]]
    name = (
        names[0] if names else next(n.input[1] for n in model.graph.node if n.op_type == "DequantizeLinear")
    )
    replace_weight(model, name, numpy_helper.to_array(weight(model, name)) / 2)


@pytest.mark.parametrize("fault", [wrong_zero_point, halved_scale])
def test_a_fault_in_an_integer_graph_is_found(fault: Fault) -> None:
    model = quantized()
    broken = changed(model, fault)
    with ReferenceProgram(broken, optimize=True) as program:
        assert not check_parity(program.run, quantized_reference(model, images(4))).passed


def test_steps_are_those_of_quantized_outputs_only() -> None:
    assert output_steps(cnn()) == {}
