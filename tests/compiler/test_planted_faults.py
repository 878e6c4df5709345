"""Faults planted on the way from a model to its artifact, and which guard catches each of them.

Every row of `FAULTS` is built the same way twice: as it should be, which all guards let pass, and with the
fault, which the guard of the row must name. The guards are those of a build: checks of the calibration
set and of the evaluation data, the lint of TensorRT's rules, parity, and the accuracy gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.compiler import networks
from tests.compiler.test_lint import (
    asymmetric,
    quantized_bias,
    second_dequantized_branch,
    typed,
    unequal_ends,
    wrong_axis,
)
from tests.compiler.test_lint import wrong_zero_point as wrong_typed_zero_point
from tests.compiler.test_parity import (
    bf16_weights,
    changed,
    halved_scale,
    images,
    lost_bias,
    quantized,
    replace_weight,
    swap_channels,
    weight,
    wrong_padding,
    wrong_zero_point,
)

from edgec.artifact import Pipeline, read_pipeline
from edgec.compiler import CompileOptions
from edgec.compiler.accuracy import Baseline, judge_labelled, measure_baseline
from edgec.compiler.calibration import CalibrationTable, calibrate
from edgec.compiler.chance import chance_sentence
from edgec.compiler.drift import compare_sets
from edgec.compiler.lint import lint_tensorrt
from edgec.compiler.model import load_model
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import Run, check_parity, float_reference, parity_sentence, quantized_reference
from edgec.compiler.quantization import quantize_static
from edgec.compiler.samples import Samples
from edgec.compiler.variants import Variant, make_processor, plain_variant
from edgec.errors import CalibrationError
from edgec.evaluation import get_metric, open_dataset
from edgec.targets import load_target

Guard = Literal["calibration", "evaluation data", "lint", "parity", "accuracy gate"]
Arrays = Mapping[str, NDArray[Any]]
Fault = Callable[[onnx.ModelProto], None]

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@dataclass(frozen=True)
class Row:
    """A planted fault.

    Attributes:
        name: What is wrong.
        guard: What catches it.
        sound: Returns what the guard says where nothing is wrong: None.
        faulty: Returns what the guard says of the fault; None where it does not see it.
        says: Part of it.
    """

    name: str
    guard: Guard
    sound: Callable[[], str | None]
    faulty: Callable[[], str | None]
    says: str


# -- parity ------------------------------------------------------------------------------------------------


def float_parity(run: Callable[[], Run]) -> str | None:
    parity = check_parity(run(), float_reference(networks.cnn(), images(2), "fp32"))
    return None if parity.passed else parity_sentence(parity)


def integer_parity(model: onnx.ModelProto) -> str | None:
    with ReferenceProgram(model, optimize=True) as program:
        parity = check_parity(program.run, quantized_reference(quantized(), images(4)))
    return None if parity.passed else parity_sentence(parity)


def in_float(name: str, fault: Fault) -> Row:
    return Row(
        name,
        "parity",
        lambda: float_parity(lambda: ReferenceProgram(networks.cnn(), optimize=True).run),
        lambda: float_parity(lambda: ReferenceProgram(changed(networks.cnn(), fault), optimize=True).run),
        "leaves its tolerance",
    )


def in_integers(name: str, fault: Fault) -> Row:
    return Row(
        name,
        "parity",
        lambda: integer_parity(quantized()),
        lambda: integer_parity(changed(quantized(), fault)),
        "leaves its tolerance",
    )


def transposed_weights(model: onnx.ModelProto) -> None:
    # A 3x3 kernel is square: no shape tells.
    replace_weight(model, "w2", numpy_helper.to_array(weight(model, "w2")).transpose(0, 1, 3, 2))


def wrong_layout() -> Run:
    program = ReferenceProgram(networks.cnn(), optimize=True)

    def run(inputs: Arrays) -> Arrays:
        # Channels last, read as if they came first: as many bytes, another picture.
        last = inputs["image"].transpose(0, 2, 3, 1)
        return program.run({"image": np.ascontiguousarray(last).reshape(inputs["image"].shape)})

    return run


# -- lint --------------------------------------------------------------------------------------------------


def linted(model: onnx.ModelProto) -> str | None:
    found = lint_tensorrt(model, load_target("jetson-orin-nano-jp6"))
    return ", ".join(sorted({f.rule for f in found})) or None


def in_typed(name: str, fault: Fault, rule: str) -> Row:
    return Row(
        name, "lint", lambda: linted(typed("int8")), lambda: linted(changed(typed("int8"), fault)), rule
    )


# -- calibration -------------------------------------------------------------------------------------------


def calibrated(samples: Iterator[NDArray[np.float32]], **options: Any) -> str | None:
    try:
        table = calibrate(networks.cnn(), ({"image": s} for s in samples), **options)
    except CalibrationError as e:
        return str(e)
    return "; ".join(table.warnings) or None


def normal(count: int = 40) -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((1, 3, 16, 16)).astype(np.float32) for _ in range(count))


def unit(scale: float) -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return ((scale * rng.random((1, 3, 16, 16))).astype(np.float32) for _ in range(40))


def poisoned() -> Iterator[NDArray[np.float32]]:
    for sample in normal():
        sample[0, 0, 0, 0] = np.nan
        yield sample


def of_another_model() -> str | None:
    table = calibrate(networks.residual(), networks.samples(networks.residual(), 16))
    return quantized_with(table)


def quantized_with(table: CalibrationTable) -> str | None:
    scheme = load_target("cpu-x86_64").quantization
    assert scheme is not None
    try:
        quantize_static(networks.cnn(), table, scheme)
    except CalibrationError as e:
        return str(e)
    return None


def of_earlier_weights(model: onnx.ModelProto) -> str | None:
    """Return what is said of a stored table of `networks.cnn` that is read for a model of the same names."""
    table = calibrate(networks.cnn(), images(16))
    try:
        CalibrationTable.from_json(table.to_json(), model)
    except CalibrationError as e:
        return str(e)
    return None


# -- the accuracy gate -------------------------------------------------------------------------------------


@cache
def digits() -> tuple[Variant, Baseline]:
    source, pipeline = load_model(DIGITS / "digits.onnx", {}), read_pipeline(DIGITS / "pipeline.toml")
    calibration = open_dataset(DIGITS / "calibration.npz", pipeline=pipeline)
    evaluation = open_dataset(DIGITS / "evaluation.npz", pipeline=pipeline, need_labels=True)
    variant = plain_variant(source, pipeline, Samples(calibration=calibration, evaluation=evaluation, seed=0))
    return variant, measure_baseline(variant, evaluation, get_metric("top1"))


class Artifact:
    """A model in a pipeline, as a session is."""

    def __init__(self, model: onnx.ModelProto, pipeline: Pipeline | None) -> None:
        variant, _ = digits()
        self._processor = make_processor(pipeline, variant.inputs, variant.outputs)
        self._program = ReferenceProgram(model, optimize=True)

    def predict(self, sample: Any) -> Mapping[str, Any]:
        inputs, context = self._processor.preprocess(sample)
        return self._processor.postprocess(self._program.run(inputs), context)


def gated(
    fault: Fault = lambda _: None, pipeline: Callable[[Pipeline], Pipeline] = lambda p: p
) -> str | None:
    """Return what the gate says of digits in fp32 with a fault in its graph or its pipeline."""
    variant, baseline = digits()
    assert variant.pipeline is not None
    artifact = Artifact(changed(variant.model, fault), pipeline(variant.pipeline))
    gate = judge_labelled(artifact, baseline, CompileOptions())
    return None if gate.verdict == "pass" else gate.reason


def gated_int8(scale: float) -> str | None:
    """Return what the gate says of digits in int8, calibrated on inputs that are `scale` times the right."""
    variant, baseline = digits()
    scheme = load_target("cpu-x86_64").quantization
    assert scheme is not None
    inputs = variant.samples.inputs(variant.processor, variant.inputs)
    scaled = ({n: (scale * a).astype(a.dtype) for n, a in sample.items()} for sample in inputs)
    model = quantize_static(variant.model, calibrate(variant.model, scaled), scheme)
    gate = judge_labelled(Artifact(model, variant.pipeline), baseline, CompileOptions())
    return None if gate.verdict == "pass" else gate.reason


def shuffled_classes(model: onnx.ModelProto) -> None:
    """Give the scores of the classes in another order, as a list of labels in another order does."""
    last = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["in_order" if o == last else o for o in node.output]
    order = numpy_helper.from_array(np.array([1, 0, 2, 3, 4, 5, 6, 7, 9, 8]), "order")
    model.graph.initializer.append(order)
    model.graph.node.append(onnx.helper.make_node("Gather", ["in_order", "order"], [last], "shuffle", axis=1))


def normalized(pipeline: Pipeline, **change: Any) -> Pipeline:
    """Return a pipeline with another step `normalize`."""
    content = pipeline.to_dict()
    [step] = [s for s in content["preprocess"] if s["step"] == "normalize"]
    step.update(change)
    return Pipeline.from_dict(content)


def evaluated(order: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> str | None:
    """Return what is said of the evaluation data of digits with its labels in another order."""
    _, baseline = digits()
    found = baseline.evaluation
    labels = order(np.asarray(found.labels, np.int64)).tolist()
    score = baseline.metric.score(found.predictions, labels)
    return chance_sentence(baseline.metric, replace(found, labels=labels, score=score), "evaluation.npz")


def compared(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> str | None:
    """Return what is said of digits where the calibration data went another way than the evaluation data."""
    variant, _ = digits()
    ours = ({n: change(a).astype(np.float32) for n, a in s.items()} for s in variant.spread_inputs(100))
    return "; ".join(compare_sets(ours, variant.judged_inputs(200), variant.inputs)) or None


FAULTS = [
    in_float("swapped channels", swap_channels),
    in_float("wrong padding", wrong_padding),
    in_float("lost bias", lost_bias),
    in_float("transposed weights", transposed_weights),
    in_float("bf16 instead of f32", bf16_weights),
    Row(
        "wrong layout",
        "parity",
        lambda: float_parity(lambda: ReferenceProgram(networks.cnn(), optimize=True).run),
        lambda: float_parity(wrong_layout),
        "leaves its tolerance",
    ),
    in_integers("wrong zero-point", wrong_zero_point),
    in_integers("a scale of half the size", halved_scale),
    in_typed("zero-point 3 for TensorRT", wrong_typed_zero_point, "zero-point"),
    in_typed("asymmetric Q/DQ for TensorRT", asymmetric, "quantized-dtype"),
    in_typed("second DQ input on a residual Add", second_dequantized_branch, "residual"),
    in_typed("quantized bias for TensorRT", quantized_bias, "bias"),
    in_typed("scales along the wrong axis", wrong_axis, "axis"),
    in_typed("Q and DQ with unequal scales", unequal_ends, "pair"),
    Row(
        "calibration in 0..255 where the model takes 0..1",
        "calibration",
        lambda: calibrated(unit(1), expected_ranges={"image": (0.0, 1.0)}),
        lambda: calibrated(unit(255), expected_ranges={"image": (0.0, 1.0)}),
        "another scale",
    ),
    Row(
        "NaN in a calibration sample",
        "calibration",
        lambda: calibrated(normal()),
        lambda: calibrated(poisoned()),
        "holds nan",
    ),
    Row(
        "stale calibration table, of another model",
        "calibration",
        lambda: quantized_with(calibrate(networks.cnn(), images(16))),
        of_another_model,
        "calibrate again",
    ),
    Row(
        "stored calibration table of the same model before it was trained again",
        "calibration",
        lambda: of_earlier_weights(networks.cnn()),
        lambda: of_earlier_weights(changed(networks.cnn(), lost_bias)),
        "trained again",
    ),
    Row(
        "labels of the evaluation data shuffled among its samples",
        "evaluation data",
        lambda: evaluated(lambda labels: labels),
        lambda: evaluated(np.random.default_rng(0).permutation),
        "no better than chance",
    ),
    Row(
        "labels of the evaluation data that count from 1",
        "evaluation data",
        lambda: evaluated(lambda labels: labels),
        lambda: evaluated(lambda labels: (labels + 1) % 10),
        "no better than chance",
    ),
    Row(
        "calibration data in 0..255, evaluation data in 0..1",
        "evaluation data",
        lambda: compared(lambda image: image),
        lambda: compared(lambda image: 255 * image),
        "on another scale than the evaluation set",
    ),
    Row(
        "calibration on negatives",
        "evaluation data",
        lambda: compared(lambda image: image),
        lambda: compared(lambda image: 1 - image),
        "unlike the evaluation set",
    ),
    Row(
        "calibration on inputs of a sixteenth of the size",
        "accuracy gate",
        lambda: gated_int8(1),
        lambda: gated_int8(1 / 16),
        "against 0.994 in fp32",
    ),
    Row(
        "classes in another order",
        "accuracy gate",
        gated,
        lambda: gated(shuffled_classes),
        "against 0.994 in fp32",
    ),
    Row(
        "wrong mean in the pipeline",
        "accuracy gate",
        gated,
        lambda: gated(pipeline=lambda p: normalized(p, mean=0.5)),
        "against 0.994 in fp32",
    ),
    Row(
        "wrong standard deviation in the pipeline",
        "accuracy gate",
        gated,
        lambda: gated(pipeline=lambda p: normalized(p, std=0.05)),
        "against 0.994 in fp32",
    ),
]


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: f"{row.name} - {row.guard}")
def test_each_fault_is_caught_by_its_guard_and_soundness_is_not(row: Row) -> None:
    assert row.sound() is None
    said = row.faulty()
    assert said is not None, f"{row.guard} did not see: {row.name}"
    assert row.says in said
