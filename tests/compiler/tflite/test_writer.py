"""Whole files: layouts at the boundary, modes, determinism, what is refused, the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.compiler.tflite.harness import (
    builtins,
    model_of,
    quantized,
    run_onnx,
    run_tflite,
    samples_of,
    snr_db,
)

from edgec.compiler.calibration import calibrate
from edgec.compiler.tflite import Mode, UnsupportedOperatorsError, unsupported, write_tflite
from edgec.compiler.tflite.operators import table as operator_table
from edgec.errors import CalibrationError, ConversionError

node = helper.make_node


def normal(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype(np.float32)


def residual() -> onnx.ModelProto:
    """A small network with all that a convolutional one has: strides, a residual, depthwise, a classifier."""
    constants = {
        "w1": normal(8, 3, 3, 3),
        "b1": normal(8, seed=1),
        "w2": normal(8, 1, 3, 3, seed=2),
        "w3": normal(8, 8, 1, 1, seed=3),
        "b3": normal(8, seed=4),
        "w4": normal(5, 8, seed=5),
        "b4": normal(5, seed=6),
    }
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], "depthwise", pads=[1, 1, 1, 1], group=8),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3", "b3"], ["c3"], "pointwise"),
        node("Add", ["c3", "r1"], ["a"], "residual"),
        node("Relu", ["a"], ["r3"]),
        node("GlobalAveragePool", ["r3"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["scores"], "classifier", transB=1),
    ]
    return model_of(nodes, {"image": [1, 3, 16, 16]}, ["scores"], constants)


FLOORS = {Mode.FLOAT32: 110.0, Mode.FLOAT16: 55.0, Mode.DYNAMIC: 30.0, Mode.INT8: 30.0, Mode.INT16X8: 35.0}


@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_computes_what_the_model_does(mode: Mode) -> None:
    model = residual()
    written = quantized(model, mode)
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) >= FLOORS[mode]
    if mode.integer:
        assert snr_db(run_onnx(model, sample), run_tflite(written, sample, reference=True)) >= FLOORS[mode]


def test_a_convolutional_network_has_no_transpose_and_no_operator_in_float() -> None:
    written = quantized(residual(), io="int8")
    assert builtins(written) == [
        "PAD",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "ADD",
        "MEAN",
        "RESHAPE",
        "FULLY_CONNECTED",
    ]
    assert [t.dtype for t in (*written.inputs, *written.outputs)] == ["int8", "int8"]
    assert written.float_nodes == ()


def test_an_average_of_the_whole_image_has_a_range_of_its_own() -> None:
    pool = node("AveragePool", ["image"], ["y"], kernel_shape=[16, 16])
    model = model_of([pool], {"image": [1, 3, 16, 16]}, ["y"])
    written = quantized(model, io="int8")
    assert builtins(written) == ["MEAN"]
    assert written.outputs[0].scale is not None
    assert written.inputs[0].scale is not None
    assert written.outputs[0].scale < written.inputs[0].scale / 4
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(quantized(model), sample)) >= 30
    assert builtins(write_tflite(model)) == ["AVERAGE_POOL_2D"]


def test_axes_are_moved_in_integers() -> None:
    nodes = [node("Conv", ["image", "w"], ["map"]), node("Transpose", ["map"], ["y"], perm=[0, 3, 1, 2])]
    model = model_of(nodes, {"image": [1, 3, 6, 5]}, ["y"], {"w": normal(4, 3, 1, 1)})
    written = quantized(model, keep_layout=True)
    assert builtins(written)[-3:] == ["CONV_2D", "TRANSPOSE", "DEQUANTIZE"]


def test_the_same_arguments_give_the_same_bytes() -> None:
    model = residual()
    table = calibrate(model, samples_of(model))
    first, second = (write_tflite(model, mode=Mode.INT8, table=table) for _ in range(2))
    assert first.data == second.data


def test_images_are_nhwc_in_the_file_unless_the_layout_is_kept() -> None:
    nodes = [node("Conv", ["image", "w"], ["map"])]
    model = model_of(nodes, {"image": [1, 3, 6, 5]}, ["map"], {"w": normal(4, 3, 1, 1)})
    moved = write_tflite(model)
    assert moved.inputs[0].shape == (1, 6, 5, 3)
    assert moved.inputs[0].permutation == (0, 2, 3, 1)
    assert moved.outputs[0].shape == (1, 6, 5, 4)
    assert moved.inputs[0].moved
    kept = write_tflite(model, keep_layout=True)
    assert kept.inputs[0].shape == (1, 3, 6, 5)
    assert kept.outputs[0].permutation == (0, 1, 2, 3)
    assert builtins(kept) == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]


def test_an_nhwc_source_stays_as_it_is() -> None:
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"]),
        node("Transpose", ["c"], ["map"], perm=[0, 2, 3, 1]),
    ]
    model = model_of(nodes, {"image": [1, 6, 5, 3]}, ["map"], {"w": normal(4, 3, 1, 1)})
    written = write_tflite(model)
    assert builtins(written) == ["CONV_2D"]
    assert not written.inputs[0].moved
    assert not written.outputs[0].moved


def test_inputs_of_three_axes_keep_them() -> None:
    nodes = [node("Conv", ["signal", "w"], ["y"], pads=[1, 1])]
    model = model_of(nodes, {"signal": [1, 2, 9]}, ["y"], {"w": normal(3, 2, 3)})
    written = write_tflite(model)
    assert written.inputs[0].shape == (1, 2, 9)
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) > 110


def test_a_channel_shuffle_is_one_transpose() -> None:
    constants = {
        "w": normal(8, 8, 1, 1),
        "s": np.array([1, 2, 4, 5, 6], np.int64),
        "t": np.array([1, 8, 5, 6], np.int64),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Reshape", ["c", "s"], ["g"]),
        node("Transpose", ["g"], ["h"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["h", "t"], ["i"]),
        node("Conv", ["i", "w"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 8, 5, 6]}, ["y"], constants)
    sample = samples_of(model, 1)[0]
    written = write_tflite(model)
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) > 110
    assert builtins(written).count("TRANSPOSE") == 1


def test_patterns_become_one_operator() -> None:
    constants = {k: np.array(v, np.float32) for k, v in {"r": 2**0.5, "one": 1, "half": 0.5}.items()}
    nodes = [
        node("Div", ["x", "r"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["a"]),
        node("Mul", ["x", "a"], ["m"]),
        node("Mul", ["m", "half"], ["g"]),
        node("HardSigmoid", ["g"], ["h"], alpha=1 / 6, beta=0.5),
        node("Mul", ["g", "h"], ["y"]),
    ]
    model = model_of(nodes, {"x": [2, 7]}, ["y"], constants)
    written = write_tflite(model)
    assert builtins(written) == ["GELU", "HARD_SWISH"]
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) > 90


def test_excluded_nodes_stay_in_float() -> None:
    model = residual()
    table = calibrate(model, samples_of(model))
    written = write_tflite(model, mode=Mode.INT8, table=table, exclude=["residual", "classifier"])
    assert set(written.float_nodes) >= {"residual", "classifier"}
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) >= 30


def test_all_that_is_unsupported_is_said_at_once() -> None:
    nodes = [
        node("Conv", ["x", "k"], ["c"], "dynamic_weights"),
        node("Det", ["c"], ["d"], "determinant"),
        node("Relu", ["d"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 2, 4, 4], "k": [3, 2, 1, 1]}, ["y"])
    with pytest.raises(UnsupportedOperatorsError, match="2 nodes cannot be written") as caught:
        write_tflite(model)
    assert [u.node for u in caught.value.found] == ["dynamic_weights", "determinant"]
    assert "weights are not constant" in str(caught.value)
    assert [u.node for u in unsupported(model)] == ["dynamic_weights", "determinant"]
    assert unsupported(residual(), Mode.INT8) == []


def test_quantized_weights_are_no_float_model() -> None:
    constants = {"q": np.ones((3, 4), np.int8), "s": np.float32(0.1)}
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"], "weights"), node("MatMul", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": [2, 3]}, ["y"], constants, opset=18)
    assert "weights" in [u.node for u in unsupported(model)]


def test_what_has_no_integer_kernel_is_refused_or_stays_in_float() -> None:
    nodes = [node("Abs", ["x"], ["a"]), node("Sqrt", ["a"], ["y"], "root")]
    model = model_of(nodes, {"x": [3, 4]}, ["y"])
    assert [u.node for u in unsupported(model, Mode.INT8)] == ["root"]
    table = calibrate(model, samples_of(model))
    with pytest.raises(UnsupportedOperatorsError, match="no integer kernel computes Sqrt"):
        write_tflite(model, mode=Mode.INT8, table=table)
    written = write_tflite(model, mode=Mode.INT8, table=table, float_fallback=True)
    assert written.float_nodes == ("root",)


def test_integers_need_calibration() -> None:
    with pytest.raises(CalibrationError, match="needs the ranges of all tensors: give calibration data"):
        write_tflite(residual(), mode=Mode.INT8)


def test_a_table_of_another_model_is_refused() -> None:
    other = model_of([node("Relu", ["image"], ["scores"])], {"image": [1, 3, 16, 16]}, ["scores"])
    with pytest.raises(CalibrationError, match="has no tensor 'r1'"):
        write_tflite(residual(), mode=Mode.INT8, table=calibrate(other, samples_of(other)))


def test_shapes_must_be_fixed() -> None:
    model = residual()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(ConversionError, match="TFLite files have fixed shapes, and those of 'image'"):
        write_tflite(model)


def test_unknown_io_is_a_wrong_argument() -> None:
    with pytest.raises(ValueError, match="unknown io 'uint4'"):
        write_tflite(residual(), io="uint4")


def test_an_output_that_is_an_input_is_a_tensor_of_its_own() -> None:
    model = model_of([node("Identity", ["x"], ["y"]), node("Relu", ["x"], ["z"])], {"x": [1, 3]}, ["y", "z"])
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(write_tflite(model), sample)) == 200


def test_the_documentation_lists_the_operators() -> None:
    page = Path(__file__).parents[3] / "docs" / "tflite-operators.md"
    assert page.read_text(encoding="utf-8") == operator_table(), (
        "run  python -m edgec.compiler.tflite.operators > docs/tflite-operators.md"
    )


def test_float_inputs_become_integers_before_anything_else() -> None:
    nodes = [node("Reshape", ["x", "shape"], ["image"]), node("Conv", ["image", "w"], ["y"])]
    constants = {"shape": np.array([1, 3, 4, 4], np.int64), "w": normal(4, 3, 1, 1)}
    model = model_of(nodes, {"x": [1, 48]}, ["y"], constants)
    written = quantized(model)
    assert builtins(written) == ["QUANTIZE", "RESHAPE", "TRANSPOSE", "CONV_2D", "DEQUANTIZE"]
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) >= 30
