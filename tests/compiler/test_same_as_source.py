"""A candidate that computes what the source does, to float32's own precision, has the source's score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler import CompileOptions
from edgec.compiler.accuracy import Baseline, compare_unlabelled, measure_baseline
from edgec.compiler.model import load_model
from edgec.compiler.onnxruntime import ReferenceProgram, perturbed
from edgec.compiler.sameness import judge_same
from edgec.compiler.samples import Samples
from edgec.compiler.variants import Variant, plain_variant
from edgec.evaluation import get_metric, open_dataset

Arrays = Mapping[str, NDArray[Any]]
SAMPLES = 700


def classifier() -> onnx.ModelProto:
    """Return a classifier of ``x`` float32[1,8] into four classes."""
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Softmax", ["m"], ["y"])],
        "classifier", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def judged_on(folder: Path, samples: int) -> tuple[Variant, Baseline]:
    (folder / "model.onnx").write_bytes(classifier().SerializeToString())
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((samples, 8)).astype(np.float32), rng.integers(0, 4, samples)
    np.savez(folder / "data.npz", allow_pickle=False, x=x, labels=labels)
    source = load_model(folder / "model.onnx", {})
    data = open_dataset(folder / "data.npz", inputs=source.inputs, pipeline=None, need_labels=True)
    variant = plain_variant(source, None, Samples(calibration=None, evaluation=data, seed=0))
    return variant, measure_baseline(variant, data, get_metric("top1"))


class Candidate:
    """A candidate that runs a graph, and may predict something else than it computes."""

    def __init__(self, graph: onnx.ModelProto, variant: Variant, *, turned: bool = False) -> None:
        self._program, self._processor, self._turned = ReferenceProgram(graph), variant.processor, turned
        self.predicted = 0

    def run(self, inputs: Arrays, /) -> Arrays:
        return self._program.run(inputs)

    def predict(self, sample: Any) -> Mapping[str, Any]:
        self.predicted += 1
        inputs, context = self._processor.preprocess(sample)
        outputs = self.run(inputs)
        turned = {name: value[..., ::-1] if self._turned else value for name, value in outputs.items()}
        return self._processor.postprocess(turned, context)


@pytest.fixture
def many(tmp_path: Path) -> tuple[Variant, Baseline]:
    return judged_on(tmp_path, SAMPLES)


def test_the_same_gets_the_score_of_the_source_from_a_part_of_the_samples(
    many: tuple[Variant, Baseline],
) -> None:
    variant, baseline = many
    candidate = Candidate(perturbed(classifier(), 2.0**-24, 0), variant)
    found = judge_same(candidate, variant, baseline, CompileOptions())
    assert found is not None
    gate, snr_db = found
    assert gate.verdict == "pass"
    assert gate.score == baseline.score
    assert gate.difference is not None
    assert (gate.difference.n, gate.difference.difference) == (300, 0)
    # 300 samples without a difference do not show that there is none: Clopper and Pearson's bound.
    assert gate.difference.lower_bound <= -(1 - 0.05 ** (1 / 300))
    assert gate.difference.lower_bound >= -0.01
    assert snr_db > 80
    assert candidate.predicted == 32
    assert "on 300 of 700 samples" in gate.reason
    assert "at most 0.99% of them differ" in gate.reason


def test_a_smaller_drop_is_not_shown_by_as_many_samples(many: tuple[Variant, Baseline]) -> None:
    variant, baseline = many
    for max_drop in (0.001, 0.0):
        candidate = Candidate(classifier(), variant)
        assert judge_same(candidate, variant, baseline, CompileOptions(max_drop=max_drop)) is None


class Flawed(Candidate):
    """A candidate that is right for all inputs but some."""

    flaws: frozenset[bytes] = frozenset()

    def run(self, inputs: Arrays, /) -> Arrays:
        x = inputs["x"]
        return super().run({"x": -x if x.tobytes() in self.flaws else x})


@pytest.mark.parametrize("which", ["rare", "last"])
def test_what_is_wrong_on_a_few_samples_is_found(tmp_path: Path, which: str) -> None:
    """As from an engine that overflows on large activations: 25 of 1,488, or only the last one."""
    n = 1488
    variant, baseline = judged_on(tmp_path, n)
    inputs = [variant.processor.preprocess(sample.data)[0]["x"] for sample in baseline.data]
    first = {x["x"].tobytes() for x in variant.judged_inputs(32)}
    first |= {inputs[i * n // 32].tobytes() for i in range(32)}
    largest = sorted((x for x in inputs if x.tobytes() not in first), key=lambda x: -np.abs(x).max())
    candidate = Flawed(classifier(), variant)
    candidate.flaws = frozenset(x.tobytes() for x in (largest[:25] if which == "rare" else inputs[-1:]))
    # 32 samples do not tell.
    assert all(found.snr_db > 80 for found in compare_unlabelled(candidate.run, variant, 32))
    assert judge_same(candidate, variant, baseline, CompileOptions()) is None


def test_what_computes_something_else_is_scored(many: tuple[Variant, Baseline]) -> None:
    variant, baseline = many
    assert (
        judge_same(
            Candidate(perturbed(classifier(), 2.0**-8, 0), variant), variant, baseline, CompileOptions()
        )
        is None
    )


def test_what_predicts_something_else_is_scored(many: tuple[Variant, Baseline]) -> None:
    variant, baseline = many
    assert (
        judge_same(Candidate(classifier(), variant, turned=True), variant, baseline, CompileOptions()) is None
    )


def test_little_data_is_scored_whole(tmp_path: Path) -> None:
    variant, baseline = judged_on(tmp_path, 500)
    assert judge_same(Candidate(classifier(), variant), variant, baseline, CompileOptions()) is None
