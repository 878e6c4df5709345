"""A graph that its author quantized computes the same in float where it rounds as its author does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.compiler.passes.test_normalize_qdq import author_quantized

from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.passes.unquantize import unquantize

FORMS = [("uint8", "uint8", 131, 200), ("int8", "int8", 0, 127)]


def outputs(model: onnx.ModelProto, samples: list[np.ndarray]) -> np.ndarray:
    """Return what a model gives for every sample, as float64."""
    with ReferenceProgram(model) as program:
        return np.stack([program.run({"image": s})["out"] for s in samples]).astype(np.float64)


def images(kind: str, n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    limits = np.iinfo(kind)
    return [rng.integers(limits.min, limits.max + 1, (1, 6, 6, 3)).astype(kind) for _ in range(n)]


@pytest.mark.parametrize(("kind", "weights", "zero", "spread"), FORMS)
def test_the_authors_rounding_in_float_is_what_the_author_computes(
    kind: str, weights: str, zero: int, spread: int
) -> None:
    model = author_quantized(kind, weights=weights, zero=zero, spread=spread)
    rounded = unquantize(model, rounding=True)
    assert rounded is not None
    onnx.checker.check_model(rounded)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in rounded.graph.node}
    assert "Round" in {n.op_type for n in rounded.graph.node}
    samples = images(kind, 20)
    wanted, found = outputs(model, samples), outputs(rounded, samples)
    assert len(np.unique(wanted)) > 20  # the outputs are not all saturated
    assert np.abs(wanted - found).max() <= 1  # a tie may fall on the other side
    assert (wanted != found).mean() < 0.001


@pytest.mark.parametrize(("kind", "weights", "zero", "spread"), FORMS)
def test_without_rounding_the_result_differs_by_rounding_only(
    kind: str, weights: str, zero: int, spread: int
) -> None:
    model = author_quantized(kind, weights=weights, zero=zero, spread=spread)
    plain = unquantize(model, rounding=False)
    assert plain is not None
    assert len([n for n in plain.graph.node if n.op_type == "Round"]) == 1  # the output is integers
    samples = images(kind, 20)
    wanted, found = outputs(model, samples), outputs(plain, samples)
    assert 0 < np.abs(wanted - found).max() <= 3


def test_a_range_that_ends_at_zero_still_ends_there() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("Transpose", ["q"], ["t"], perm=[1, 0]),
            helper.make_node("DequantizeLinear", ["t", "s", "z"], ["y"]),
        ],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 1])],
        [
            numpy_helper.from_array(np.array(0.5, np.float32), "s"),
            numpy_helper.from_array(np.array(0, np.uint8), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.array([[-3.0, 1.3, 400.0]], np.float32)
    for rounding, wanted in ((True, [0.0, 1.5, 127.5]), (False, [0.0, 1.3, 127.5])):
        form = unquantize(model, rounding=rounding)
        assert form is not None
        with ReferenceProgram(form) as program:
            np.testing.assert_allclose(program.run({"x": x})["y"].ravel(), wanted, rtol=1e-6)


def test_what_cannot_be_expressed_is_left_alone() -> None:
    dynamic = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(dynamic, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert unquantize(model, rounding=True) is None
    old = author_quantized("int8", weights="int8", zero=0, spread=127)
    old.opset_import[0].version = 10
    assert unquantize(old, rounding=True) is None
