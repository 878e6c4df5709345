"""Sources that their author quantized: the forms in float that compete, and what is near enough to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.compiler.passes.test_normalize_qdq import author_quantized

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.accuracy import judge_unlabelled
from edgec.compiler.explanation import explain_with_source
from edgec.compiler.model import load_model
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import misrounded
from edgec.compiler.samples import Samples
from edgec.compiler.variants import Variant, plain_variant, unquantized_variants
from edgec.evaluation import open_dataset


def full_of_ties() -> onnx.ModelProto:
    """Return a classifier of ``x`` int8[1,16] in which every other sum falls between two steps."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "one": np.array(1.0, np.float32), "two": np.array(2.0, np.float32), "zero": np.array(0, np.int8),
        "w1": rng.choice(np.array([-1, 1], np.int8), (16, 256)),
        "w2": rng.choice(np.array([-1, 1], np.int8), (256, 8)),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w1", "one", "zero"], ["w1_f"]),
        helper.make_node("DequantizeLinear", ["w2", "one", "zero"], ["w2_f"]),
        helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["x_f"]),
        helper.make_node("MatMul", ["x_f", "w1_f"], ["m1"]),
        helper.make_node("QuantizeLinear", ["m1", "two", "zero"], ["q1"]),
        helper.make_node("DequantizeLinear", ["q1", "two", "zero"], ["d1"]),
        helper.make_node("MatMul", ["d1", "w2_f"], ["m2"]),
        helper.make_node("Softmax", ["m2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "ties", [helper.make_tensor_value_info("x", TensorProto.INT8, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def ties(tmp_path: Path) -> Variant:
    (tmp_path / "ties.onnx").write_bytes(full_of_ties().SerializeToString())
    samples = np.random.default_rng(1).integers(-3, 4, (300, 1, 16)).astype(np.int8)
    np.savez(tmp_path / "data.npz", allow_pickle=False, x=samples)
    source = load_model(tmp_path / "ties.onnx", {})
    data = open_dataset(tmp_path / "data.npz", inputs=source.inputs, pipeline=None, need_labels=False)
    return plain_variant(source, None, Samples(calibration=None, evaluation=data, seed=0))


def judged(variant: Variant, steps: float) -> tuple[str, str]:
    """Return verdict and reason for the source, with noise of so many steps before it rounds."""
    assert isinstance(variant.source, onnx.ModelProto)
    with ReferenceProgram(misrounded(variant.source, 7, steps)) as program:

        def run(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            return program.run(inputs)

        gate = judge_unlabelled(run, variant, CompileOptions())
    return gate.verdict, gate.reason


def test_a_source_that_is_far_from_itself_asks_no_more_of_others(ties: Variant) -> None:
    verdict, reason = judged(ties, 2.0**-16)
    assert verdict == "pass"
    assert "comes no nearer to itself where rounding errors of float32 fall differently: y " in reason


def test_more_noise_than_that_of_float32_is_refused(ties: Variant) -> None:
    verdict, reason = judged(ties, 2.0)
    assert verdict == "fail"
    assert "agreement of 99% is asked for" in reason


def test_forms_are_held_against_the_author_and_judged_as_its_outputs_are(ties: Variant) -> None:
    rounded, plain = unquantized_variants(ties)
    assert (rounded.name, plain.name) == ("plain, author's rounding", "plain, without rounding")
    assert rounded.source_is_quantized
    assert not rounded.quantized
    assert "as its author quantized it" in rounded.float_reference("fp32").description
    assert "fp32" in plain.float_reference("fp32").description
    assert unquantized_variants(plain) == ()


@pytest.mark.slow
def test_a_quantized_source_ships_in_float_where_it_is_asked_for(tmp_path: Path) -> None:
    model = author_quantized("uint8", weights="uint8", zero=131, spread=200)
    (tmp_path / "author.onnx").write_bytes(model.SerializeToString())
    options = CompileOptions(precision="fp32", measure_s=0.02, workers=0)
    result = compile_model(
        tmp_path / "author.onnx", ["intel-cpu", "jetson-orin-nano-jp6"], tmp_path / "out", options=options
    )
    assert result.report.get("skipped") == []
    assert [a["precision"] for a in result.report["artifacts"]] == ["fp32", "fp32"]
    for info in result.report["artifacts"]:
        names = [c["name"] for c in info["candidates"]]
        engine = info["engine"]
        assert names[:2] == [f"{engine} fp32, author's rounding", f"{engine} fp32, without rounding"]
        assert all((parity := c.get("parity")) and parity["passed"] for c in info["candidates"])
    path = tmp_path / "out" / "author-intel-cpu.edgec"
    found = explain_with_source(path, tmp_path / "author.onnx", home=tmp_path / "home")
    assert [layer.op for layer in found.layers].count("Conv") == 2  # of the author's int8
