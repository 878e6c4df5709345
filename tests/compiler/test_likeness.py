"""What is asked of a candidate where there are no labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgec.artifact import Pipeline, TensorSpec
from edgec.compiler.likeness import Likeness, LikenessTally, kind_of


def seen(n: int, flips: int, noise: float) -> Likeness:
    """Compare `n` samples, of which `flips` change their class, with noise of a share of the signal."""
    rng, tally = np.random.default_rng(0), LikenessTally("y", "classes")
    for number in range(n):
        source, other = np.zeros((1, 10)), noise * rng.uniform(-0.5, 0.5, (1, 10))
        source[0, number % 10] = 1.0
        other[0, (number + (number < flips)) % 10] += 1.0
        tally.add(source, other)
    return tally.result


@pytest.mark.parametrize(
    ("n", "flips", "verdict", "short"),
    [
        (600, 0, "pass", False),
        (600, 4, "pass", False),
        (600, 29, "fail", True),  # 95.2 %, at 17 dB and more: what a residual network lost unnoticed
        (1000, 11, "inconclusive", True),
        (50, 0, "inconclusive", False),
        (50, 1, "inconclusive", True),
        (50, 5, "fail", True),
        (133, 0, "pass", False),
    ],
)
def test_classes_are_judged_by_agreement_whatever_the_noise(
    n: int, flips: int, verdict: str, short: bool
) -> None:
    found = seen(n, flips, 0.1)
    assert found.agreement == pytest.approx(1 - flips / n)
    assert (found.verdict, found.short) == (verdict, short)


def test_an_output_that_is_all_but_the_same_needs_few_samples() -> None:
    tally = LikenessTally("y", "classes")
    for number in range(12):
        source = np.random.default_rng(number).standard_normal((1, 10))
        tally.add(source, source * 1.001)
    assert tally.result.agreement == 1.0
    assert tally.result.snr_db > 40
    assert tally.result.verdict == "pass"


def test_how_many_samples_would_do_is_said() -> None:
    found = seen(50, 0, 0.1)
    assert found.needed is not None
    assert 130 <= found.needed <= 137
    assert seen(found.needed, 0, 0.1).verdict == "pass"


def values(noise: float, n: int = 40, bad: int = 0) -> Likeness:
    rng, tally = np.random.default_rng(1), LikenessTally("y", "values")
    for number in range(n):
        source = rng.standard_normal((1, 64))
        scale = 1.2 if number < bad else noise
        tally.add(source, source + scale * rng.standard_normal((1, 64)))
    return tally.result


def test_other_outputs_are_judged_by_their_noise() -> None:
    assert values(0.05).verdict == "pass"  # 26 dB
    assert values(0.05).agreement is None
    assert values(0.2).verdict == "fail"  # 14 dB
    assert values(0.2).short


def test_noise_in_few_samples_is_not_shown_to_be_little() -> None:
    found = values(0.01, n=200, bad=1)  # 22 dB, and all of the noise in one sample
    assert found.snr_db > 20
    assert found.snr_bound_db is not None
    assert found.snr_bound_db < found.snr_db - 3
    assert found.verdict == "inconclusive"


def test_of_a_tie_any_choice_will_do() -> None:
    tally = LikenessTally("y", "classes")
    tied = np.array([[3, 255, 255]], np.uint8)
    tally.add(tied, np.array([[3, 254, 255]], np.uint8))
    tally.add(tied, np.array([[3, 255, 254]], np.uint8))
    tally.add(tied, np.array([[255, 254, 254]], np.uint8))
    assert tally.result.agreement == pytest.approx(2 / 3)


def test_a_map_that_is_mostly_background_is_not_judged_by_it() -> None:
    tally = LikenessTally("y", "map")
    source = np.zeros((1, 1000, 2))
    source[..., 0] = 1.0
    source[0, :10] = [0.0, 1.0]
    blind = np.zeros((1, 1000, 2))
    blind[..., 0] = 1.0
    tally.add(source, blind)
    assert tally.result.agreement == pytest.approx(0.5)
    assert tally.result.verdict == "fail"


def test_nan_is_no_agreement() -> None:
    tally = LikenessTally("y", "classes")
    tally.add(np.array([[0.0, 1.0]]), np.array([[np.nan, 1.0]]))
    assert tally.result.agreement == 0.0


def ending(op: str, shape: list[int], **attributes: Any) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    inputs = ["x", "w"] if op in ("MatMul", "Gemm") else ["x"]
    nodes = [helper.make_node(op, inputs, ["z"], **attributes), helper.make_node("Identity", ["z"], ["y"])]
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)]
    )


TOP_K = Pipeline.from_dict({"postprocess": [{"step": "top_k", "k": 1, "output": "y"}]})


@pytest.mark.parametrize(
    ("op", "shape", "dtype", "pipeline", "kind"),
    [
        ("Softmax", [1, 10], "float32", None, "classes"),
        ("Gemm", [1, 10], "float32", None, "classes"),
        ("Gemm", [1, 64], "float32", None, "values"),  # a reconstruction: as large as the input
        ("Gemm", [1, 1], "float32", None, "values"),
        ("MatMul", [1, 9, 10], "float32", None, "values"),
        ("Softmax", [1, 400, 2], "float32", None, "map"),
        ("Sigmoid", [1, 257], "float32", None, "values"),
        ("Tanh", [1, 257], "float32", TOP_K, "classes"),
        ("Tanh", [1], "int64", None, "classes"),
        ("Tanh", [1, 20, 20], "int64", None, "map"),
    ],
)
def test_what_an_output_is_shows_in_the_model(
    op: str, shape: list[int], dtype: str, pipeline: Pipeline | None, kind: str
) -> None:
    model, inputs = ending(op, shape), (TensorSpec("x", "float32", (1, 64)),)
    assert kind_of(TensorSpec("y", dtype, tuple(shape)), model, inputs, pipeline) == kind


def test_softmax_over_another_axis_is_no_choice_along_the_last() -> None:
    model, inputs = ending("Softmax", [1, 3, 8], axis=1), (TensorSpec("x", "float32", (1, 64)),)
    assert kind_of(TensorSpec("y", "float32", (1, 3, 8)), model, inputs, None) == "values"
