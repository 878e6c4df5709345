"""UltraFace RFB-320: faces on 23 photos without boxes, so an artifact is held against its source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.conftest import TARGETS, Build, Built
from tests.models.sources import Source

from edgec.artifact import read_pipeline
from edgec.runtime import load

pytestmark = [pytest.mark.models, pytest.mark.slow]

MODEL = Path("ultraface", "version-RFB-320.onnx")
PIPELINE = Path(__file__).with_name("ultraface.toml")

Predictions = list[Mapping[str, Any]]


@pytest.fixture(scope="module")
def photos(models: Path) -> list[Path]:
    return sorted((models / "ultraface" / "imgs").glob("*.jpg"))


@pytest.fixture(scope="module")
def faces(models: Path, photos: list[Path]) -> Predictions:
    """What the source finds on each photo."""
    source = Source(models / MODEL, read_pipeline(PIPELINE))
    return [source.predict(photo) for photo in photos]


@pytest.fixture(scope="module")
def built(models: Path, build: Build) -> Built:
    return build(models / MODEL, pipeline=PIPELINE)


def overlaps(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of boxes [n, 4] and [m, 4], as [n, m]."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2, dtype=np.float64)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=1, dtype=np.float64) for b in (boxes, others)]
    return np.asarray(common / (areas[0][:, None] + areas[1] - common))


def test_source_finds_as_many_faces_as_published(faces: Predictions) -> None:
    # 600 in other software, which decodes and scales the photos in its own way.
    assert sum(len(found["boxes"]) for found in faces) == pytest.approx(600, rel=0.05)


@pytest.mark.parametrize("target", TARGETS)
def test_artifact_passes_parity_and_finds_the_faces_its_source_finds(
    built: Built, photos: list[Path], faces: Predictions, target: str
) -> None:
    built.assert_sound(target)
    with load(built.artifacts[target]) as session:
        predictions = [session.predict(photo) for photo in photos]
    expected = sum(len(found["boxes"]) for found in faces)
    same = sum(
        int((overlaps(was["boxes"], now["boxes"]).max(axis=1, initial=0) > 0.95).sum())
        for was, now in zip(faces, predictions, strict=True)
    )
    # A face right at the threshold may pass on one side only.
    assert same >= expected - 2
    assert abs(sum(len(now["boxes"]) for now in predictions) - expected) <= 2
