"""FastestDet: objects of COCO's 80 classes, on 64 photos with their boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.models.conftest import TARGETS, Build, Built
from tests.models.sources import Source

from edgec.artifact import read_pipeline
from edgec.evaluation import Dataset, Predictor, evaluate, open_dataset
from edgec.runtime import load

pytestmark = [pytest.mark.models, pytest.mark.slow]

MODEL = Path("fastestdet_coco", "FastestDet.onnx")
PIPELINE = Path(__file__).with_name("fastestdet.toml")


@pytest.fixture(scope="module")
def photos(models: Path) -> Dataset:
    return open_dataset(models / "coco128_train" / "images", need_labels=True)


@pytest.fixture(scope="module")
def source_map50(models: Path, photos: Dataset) -> float:
    return map50(Source(models / MODEL, read_pipeline(PIPELINE)), photos)


@pytest.fixture(scope="module")
def built(models: Path, build: Build) -> Built:
    return build(models / MODEL, pipeline=PIPELINE)


def map50(model: Predictor, photos: Dataset) -> float:
    """Mean average precision at an intersection over union of one half."""
    return evaluate(model, photos, "map50").score.value


def test_source_reaches_its_published_precision(source_map50: float) -> None:
    # .318 in other software, which decodes and scales the photos in its own way.
    assert source_map50 == pytest.approx(0.318, abs=0.02)


@pytest.mark.parametrize("target", TARGETS)
def test_artifact_passes_parity_and_detects_as_its_source_does(
    built: Built, photos: Dataset, source_map50: float, target: str
) -> None:
    built.assert_sound(target)
    with load(built.artifacts[target]) as session:
        assert map50(session, photos) == pytest.approx(source_map50, abs=0.001)


def test_int8_detects_within_a_point_of_its_source(models: Path, build: Build, photos: Dataset) -> None:
    built = build(models / MODEL, pipeline=PIPELINE, precision="int8", evaluation=photos, metric="map50")
    for target in TARGETS:
        candidates = [c for c in built.reports[target]["candidates"] if c["precision"] == "int8"]
        assert candidates
        for int8 in candidates:
            parity, accuracy = int8.get("parity"), int8.get("accuracy")
            assert parity is not None
            assert parity["passed"]
            assert accuracy is not None
            source = accuracy.get("source")
            assert source is not None
            assert accuracy["artifact"] > source - 0.01  # on the photos that judge
