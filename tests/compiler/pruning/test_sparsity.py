"""Patterns of zeros: which weights go, what the others do about it, and that later steps keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tests.compiler.networks import model_of, run

from edgec.compiler.calibration import calibrate
from edgec.compiler.converters import Prepared
from edgec.compiler.converters.tensorrt import TensorRtConverter, build_typed_onnx
from edgec.compiler.lint_sparsity import lint_two_of_four
from edgec.compiler.options import CompileOptions
from edgec.compiler.pruning import Pattern, is_two_of_four, parse_pattern, sparsify
from edgec.errors import CalibrationError, CompileError, ConversionError, UnsupportedModelError
from edgec.targets import load_target

TWO_OF_FOUR = parse_pattern("2:4")
ORIN = load_target("jetson-agx-orin-jp7")
Arrays = dict[str, NDArray[Any]]


def network() -> onnx.ModelProto:
    """Convolutions of 8 and 64 channels, a MatMul and a Gemm of 64 by 256: three layers can be 2:4."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 4, 3, 3), "w2": (64, 32, 3, 3), "w0": (32, 8, 1, 1), "w3": (64, 256), "w4": (256, 64)}
    weights = {
        n: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w0"], ["c0"], "narrow"),
        helper.make_node("Conv", ["c0", "w2"], ["c2"], "wide", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["m"], "grow"),
        helper.make_node("Relu", ["m"], ["r3"], "relu3"),
        helper.make_node("Gemm", ["r3", "w4"], ["y"], "shrink"),
    ]
    return model_of(nodes, {"x": [1, 4, 6, 6]}, ["y"], weights)


def inputs(count: int, seed: int = 1) -> list[Arrays]:
    """Pictures whose channels say much of the same."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(4, 4)) * [[3], [1], [0.3], [0.1]]
    drawn = rng.normal(size=(count, 4, 6, 6))
    pictures = np.einsum("nchw,cd->ndhw", drawn, mixed).astype(np.float32)
    return [{"x": picture[None]} for picture in pictures]


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {node.name: found[node.input[1]] for node in model.graph.node if len(node.input) > 1}


@pytest.mark.parametrize("compensate", [False, True])
def test_two_of_four_where_it_fits_and_nowhere_else(compensate: bool) -> None:
    model = network()
    before = model.SerializeToString()
    sparse = sparsify(model, TWO_OF_FOUR, inputs(12), compensate=compensate)
    assert model.SerializeToString() == before
    assert {r.layer for r in sparse.layers} == {"wide", "shrink"}
    whole, made = weights_of(model), weights_of(sparse.model)
    assert is_two_of_four(made["wide"], 1)
    assert is_two_of_four(made["shrink"], 0)
    for name in ("first", "narrow", "grow"):  # too few inputs each
        assert np.array_equal(made[name], whole[name])
    assert lint_two_of_four(sparse.model) == []
    assert sparse.zeros == pytest.approx(
        sum((w == 0).sum() for w in made.values()) / sum(map(np.size, made.values()))
    )


def test_a_cut_takes_the_two_smallest_of_every_four() -> None:
    whole = weights_of(network())["wide"].transpose(0, 2, 3, 1).reshape(-1, 4)
    cut = weights_of(sparsify(network(), TWO_OF_FOUR, inputs(4), compensate=False).model)["wide"]
    left = cut.transpose(0, 2, 3, 1).reshape(-1, 4)
    largest = np.sort(np.abs(whole), axis=1)[:, 2:]
    assert np.array_equal(np.sort(np.abs(left), axis=1)[:, 2:], largest)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["2:4", "unstructured:0.6"])
def test_the_others_make_up_for_the_zeros_on_new_inputs(pattern: str) -> None:
    model, wanted = network(), parse_pattern(pattern)
    cut = sparsify(model, wanted, inputs(48), compensate=False)
    made = sparsify(model, wanted, inputs(48))
    new = inputs(16, seed=9)
    right = np.stack([run(model, x)[0] for x in new])
    errors = [np.square(np.stack([run(m, x)[0] for x in new]) - right).sum() for m in (cut.model, made.model)]
    assert errors[1] < 0.25 * errors[0]
    assert all(r.after < r.before for r in made.layers)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_as_many_weights_go_as_were_asked_for(share: float, seed: int) -> None:
    scores = np.square(np.random.default_rng(seed).normal(size=(16, 32)))
    mask = Pattern(kind="unstructured", share=share).mask(scores)
    assert mask.sum() == round(share * scores.size)
    assert scores[mask].max(initial=0.0) <= scores[~mask].min(initial=np.inf)
    pairs = TWO_OF_FOUR.mask(scores).reshape(-1, 4)
    assert (pairs.sum(axis=1) == 2).all()


def test_unstructured_zeros_leave_small_layers() -> None:
    made = sparsify(network(), parse_pattern("unstructured:0.75"), inputs(12))
    weights = weights_of(made.model)
    assert (weights["first"] == 0).sum() == 0
    for name in ("wide", "grow", "shrink"):
        assert (weights[name] == 0).mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    "precision", ["fp16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8", "mixed"))]
)
def test_tensorrt_forms_keep_the_zeros_and_the_recipe_asks_for_sparse_kernels(
    precision: str, tmp_path: Path
) -> None:
    sparse = sparsify(network(), TWO_OF_FOUR, inputs(12)).model
    typed = build_typed_onnx(sparse, ORIN, precision, calibrate(sparse, inputs(8)))
    assert lint_two_of_four(typed) == []
    prepared = Prepared(model=typed, precision=precision, sparsity=TWO_OF_FOUR)
    made = TensorRtConverter().convert(prepared, ORIN.engines[0], ORIN, tmp_path)
    assert made.recipe["config"]["flags"] == ["SPARSE_WEIGHTS"]
    assert "--sparsity=enable" in made.recipe["trtexec"].split()


def test_a_form_that_lost_its_zeros_is_refused(tmp_path: Path) -> None:
    prepared = Prepared(model=network(), precision="fp32", sparsity=TWO_OF_FOUR)
    with pytest.raises(ConversionError, match="wide: of four input channels in a row, more than two"):
        TensorRtConverter().convert(prepared, ORIN.engines[0], ORIN, tmp_path)


def test_what_no_layer_can_have_is_refused() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], "head")]
    model = model_of(nodes, {"x": [1, 8]}, ["y"], {"w": np.ones((8, 4), np.float32)})
    samples = [{"x": np.ones((1, 8), np.float32)}]
    with pytest.raises(UnsupportedModelError, match=r"no layer can have 2:4 zeros: .* multiples of 4"):
        sparsify(model, TWO_OF_FOUR, samples)
    with pytest.raises(UnsupportedModelError, match="at least 1024 weights"):
        sparsify(model, parse_pattern("unstructured:50%"), samples)
    with pytest.raises(CalibrationError, match="--calibration"):
        sparsify(network(), TWO_OF_FOUR, [])


@pytest.mark.slow
def test_dead_inputs_are_no_problem() -> None:
    silent = [{"x": np.zeros((1, 4, 6, 6), np.float32)}] * 4
    made = sparsify(network(), TWO_OF_FOUR, silent)
    assert is_two_of_four(weights_of(made.model)["wide"], 1)
    assert all(np.isfinite(w).all() for w in weights_of(made.model).values())


@pytest.mark.parametrize(
    "text", ["4:8", "unstructured", "unstructured:", "unstructured:1", "unstructured:0%", "0.3"]
)
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(CompileError, match="is no way to prune: expected auto"):
        CompileOptions(prune=text)


def test_patterns_survive_json() -> None:
    for text in ("2:4", "unstructured:0.8"):
        options = CompileOptions(prune=text)
        again = CompileOptions.from_dict(options.to_dict())
        assert again.prune == text
        assert str(again.sparsity) == text
    assert parse_pattern("unstructured:80%") == Pattern(kind="unstructured", share=0.8)
    assert CompileOptions(prune=0.3).sparsity is None
