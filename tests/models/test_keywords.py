"""DS-CNN of MLPerf Tiny: twelve spoken keywords, from 49x10 MFCC features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.conftest import TARGETS, Build, Built
from tests.models.sources import Run, Source

from edgec.compiler.model import load_model
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.passes.fold_constant_dequantize import fold_constant_dequantize
from edgec.compiler.passes.simplify import simplify
from edgec.compiler.pruning import Pattern, parse_pattern, sparsify
from edgec.runtime import load

pytestmark = [pytest.mark.models, pytest.mark.slow]

MODEL = Path("mlperf_tiny_kws_dscnn", "derived", "kws_ref_model_float32.onnx")
CALIBRATION_CLIPS = 100

Clips = tuple[NDArray[np.float32], NDArray[Any]]


@pytest.fixture(scope="module")
def clips(models: Path) -> Clips:
    """Features float32[500, 49, 10, 1] and class numbers of 500 clips of Speech Commands."""
    arrays = np.load(models / "speechcommands_kws01_open" / "clips_A.npz")
    return arrays["mfcc"][..., None], arrays["label"]


@pytest.fixture(scope="module")
def source(models: Path) -> Source:
    return Source(models / MODEL)


@pytest.fixture(scope="module")
def built(models: Path, build: Build) -> Built:
    return build(models / MODEL, shapes={"input_1": (1, 49, 10, 1)})


@pytest.fixture(scope="module")
def built_int8(models: Path, build: Build, clips: Clips, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build in which int8 competes; the first clips calibrate, the others judge."""
    features, labels = clips
    data = tmp_path_factory.mktemp("clips")
    np.savez(data / "calibration.npz", input_1=features[:CALIBRATION_CLIPS])
    np.savez(
        data / "evaluation.npz",
        input_1=features[CALIBRATION_CLIPS:],
        labels=labels[CALIBRATION_CLIPS:].astype(np.int64),
    )
    return build(
        models / MODEL,
        precision="int8",
        shapes={"input_1": (1, 49, 10, 1)},
        calibration=data / "calibration.npz",
        evaluation=data / "evaluation.npz",
        metric="top1",
    )


def classify(run: Run, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """Class number of each clip."""
    scores = [run({"input_1": clip[None]})["Identity"][0] for clip in features]
    return np.asarray(np.argmax(scores, axis=1), np.int64)


def test_source_reaches_its_published_accuracy(source: Source, clips: Clips) -> None:
    features, labels = clips
    assert (classify(source.run, features) == labels).mean() == pytest.approx(0.91, abs=0.02)


@pytest.mark.parametrize("target", TARGETS)
def test_artifact_passes_parity_and_classifies_as_its_source_does(
    built: Built, source: Source, clips: Clips, target: str
) -> None:
    features, labels = clips
    built.assert_sound(target)
    with load(built.artifacts[target]) as session:
        classes = classify(session.run, features)
    assert (classes == classify(source.run, features)).mean() >= 0.998
    assert (classes == labels).mean() == pytest.approx(0.91, abs=0.02)


@pytest.mark.parametrize("target", TARGETS)
def test_int8_candidate_stays_within_a_point_of_fp32(built_int8: Built, target: str) -> None:
    report = built_int8.reports[target]
    accuracies = {c["precision"]: c.get("accuracy") for c in report["candidates"]}
    fp32, int8 = accuracies["fp32"], accuracies["int8"]
    assert fp32 is not None
    assert int8 is not None
    assert int8["artifact"] >= fp32["artifact"] - 0.01


@pytest.mark.parametrize(
    ("pattern", "cut_below", "made_above"),
    [
        # In every layer whose channels allow it, though 64 are too few for sparse kernels to pay.
        (Pattern(kind="2:4", share=0.5, least_inputs=16, least_outputs=8), 0.5, 0.8),
        (parse_pattern("unstructured:0.5"), 0.6, 0.8),
    ],
)
def test_what_is_left_makes_up_for_zeros(
    models: Path, clips: Clips, pattern: Pattern, cut_below: float, made_above: float
) -> None:
    model = fold_constant_dequantize(simplify(load_model(models / MODEL, {"input_1": (1, 49, 10, 1)}).proto))
    samples = [{"input_1": x[None]} for x in clips[0][:CALIBRATION_CLIPS]]
    rest = slice(CALIBRATION_CLIPS, None)

    def score(compensate: bool) -> float:
        made = sparsify(model, pattern, samples, compensate=compensate).model
        with ReferenceProgram(made, optimize=True) as program:
            outputs = [program.run({"input_1": x[None]}) for x in clips[0][rest]]
        found = [int(np.argmax(next(iter(o.values())))) for o in outputs]
        return float(np.mean(found == clips[1][rest]))

    assert score(compensate=False) < cut_below
    assert score(compensate=True) > made_above
