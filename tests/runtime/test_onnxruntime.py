"""What is particular to ONNX Runtime: how precisions are read from its profile."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.runtime.backends import LoadOptions, Program, get_backend
from edgec.runtime.testing import MemoryPayload, Node, onnx_members, onnxruntime_spec

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

X, Y = (TensorSpec("x", "float32", (4, 64)),), (TensorSpec("y", "float32", (4, 64)),)
INTEGERS = np.random.default_rng(0).integers(-127, 128, (64, 64)).astype(np.int8)
SCALARS: dict[str, NDArray[Any]] = {
    "scale": np.array(0.02, np.float32),
    "zero": np.array(128, np.uint8),
    "w_scale": np.array(0.01, np.float32),
    "w_zero": np.array(0, np.int8),
}


def program(
    nodes: list[Node], weights: dict[str, NDArray[Any]] | None = None, promised: str = "fp32"
) -> Program:
    members = onnx_members(nodes, X, Y, weights)
    spec = onnxruntime_spec(weights="weights.bin" in members, precision=promised)
    return get_backend("onnxruntime").load(spec, MemoryPayload(members), X, Y, LoadOptions(threads=1))


def test_dynamic_quantization_is_told_from_static() -> None:
    dynamic = program(
        [
            Node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
            Node("MatMulInteger", ["xq", "w", "xz", "w_zero"], ["i"]),
            Node("Cast", ["i"], ["f"], {"to": 1}),
            Node("Mul", ["xs", "w_scale"], ["s"]),
            Node("Mul", ["f", "s"], ["y"]),
        ],
        {"w": INTEGERS, **SCALARS},
    )
    assert dynamic.precisions == {"int8-dynamic": 1}
    static = program(
        [
            Node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            Node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            Node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"]),
            Node("MatMul", ["xd", "wd"], ["y"]),
        ],
        {"w": INTEGERS, **SCALARS},
    )
    assert static.precisions == {"int8": 1}


def test_layers_of_two_precisions_are_mixed() -> None:
    both = program(
        [
            Node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            Node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            Node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"]),
            Node("MatMul", ["xd", "wd"], ["h"]),
            Node("QuantizeLinear", ["h", "scale", "zero"], ["hq"]),
            Node("DequantizeLinear", ["hq", "scale", "zero"], ["hd"]),
            Node("MatMul", ["hd", "float"], ["y"]),
        ],
        {"w": INTEGERS, "float": np.eye(64, dtype=np.float32), **SCALARS},
        promised="mixed",
    )
    assert both.precisions == {"int8": 1, "fp32": 1}
    assert both.precision == "mixed"


def test_a_model_without_arithmetic_is_told_by_what_it_has() -> None:
    assert program([Node("Neg", ["x"], ["y"])]).precisions == {"fp32": 1}


def test_where_nothing_can_be_measured_the_promise_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    unmeasured = program([Node("Neg", ["x"], ["y"])], promised="fp16")
    assert unmeasured.precisions == {}
    assert unmeasured.precision == "fp16"


def test_measuring_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert program([Node("Neg", ["x"], ["y"])]).precisions == {"fp32": 1}
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_a_build_left_in_float_is_not_rounded_to_int8() -> None:
    # Left to itself, ONNX Runtime would give the weights one int8 scale, and lose the second column.
    weights = np.stack([np.full(64, 1.0), np.full(64, 1e-3)], axis=1).astype(np.float32)
    between = program(
        [
            Node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            Node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            Node("Gemm", ["xd", "narrow"], ["h"]),
            Node("QuantizeLinear", ["h", "fine", "zero"], ["hq"]),
            Node("DequantizeLinear", ["hq", "fine", "zero"], ["hd"]),
            Node("MatMul", ["hd", "widen"], ["y"]),
        ],
        {
            "narrow": weights,
            "widen": np.eye(2, 64, dtype=np.float32),
            "fine": np.array(1e-3, np.float32),
            **{name: value for name, value in SCALARS.items() if name in ("scale", "zero")},
        },
        promised="mixed",
    )
    assert between.precisions == {"fp32": 2}
    given = between.run({"x": np.full((4, 64), 1.0, np.float32)})["y"]
    np.testing.assert_allclose(given[:, 1], 0.064, atol=1e-3)
