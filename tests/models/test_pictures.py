"""ResNet8 of MLPerf Tiny: ten classes of CIFAR-10.

No labelled pictures of these classes are at hand, so an artifact is held against its source, on
photos scaled to 32x32.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.conftest import TARGETS, Build, Built
from tests.models.sources import Run, Source

from edgec.compiler.model import load_model
from edgec.compiler.passes.fold_constant_dequantize import fold_constant_dequantize
from edgec.compiler.passes.simplify import simplify
from edgec.compiler.pruning import Pattern, sparsify
from edgec.runtime import load

pytestmark = [pytest.mark.models, pytest.mark.slow]

MODEL = Path("mlperf_tiny_resnet8", "derived", "pretrainedResnet.onnx")


@pytest.fixture(scope="module")
def pictures(models: Path) -> NDArray[np.float32]:
    """float32[64, 32, 32, 3], red, green, blue, from 0 to 255."""
    photos = [cv2.imread(str(path)) for path in sorted((models / "coco128_train" / "images").glob("*.jpg"))]
    small = [
        cv2.resize(p, (32, 32), interpolation=cv2.INTER_AREA)[..., ::-1] for p in photos if p is not None
    ]
    return np.asarray(small, np.float32)


@pytest.fixture(scope="module")
def built(models: Path, build: Build) -> Built:
    return build(models / MODEL, shapes={"input_1": (1, 32, 32, 3)})


def classify(run: Run, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of the classes, one row per picture."""
    return np.concatenate([run({"input_1": picture[None]})["Identity"] for picture in pictures])


def test_source_tells_the_photos_apart(models: Path, pictures: NDArray[np.float32]) -> None:
    probabilities = classify(Source(models / MODEL).run, pictures)
    # Were the input scaled wrongly, every photo would be of one class.
    assert len(set(probabilities.argmax(axis=1))) >= 5


@pytest.mark.parametrize("target", TARGETS)
def test_artifact_passes_parity_and_classifies_as_its_source_does(
    models: Path, built: Built, pictures: NDArray[np.float32], target: str
) -> None:
    expected = classify(Source(models / MODEL).run, pictures)
    built.assert_sound(target)
    with load(built.artifacts[target]) as session:
        probabilities = classify(session.run, pictures)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), expected.argmax(axis=1))


def test_what_is_left_makes_up_for_zeros(models: Path, pictures: NDArray[np.float32]) -> None:
    model = fold_constant_dequantize(simplify(load_model(models / MODEL, {"input_1": (1, 32, 32, 3)}).proto))
    pattern = Pattern(kind="2:4", share=0.5, least_inputs=16, least_outputs=8)
    samples = [{"input_1": picture[None]} for picture in pictures]
    plain = sparsify(model, pattern, samples, compensate=False)
    made = sparsify(model, pattern, samples)
    # Each layer on what the sparse ones before it give.
    errors = [sum(r.after for r in sparse.layers) for sparse in (plain, made)]
    assert errors[1] < 0.5 * errors[0]
    assert 0.4 < made.zeros < 0.5
