"""Data sets as others publish them, from the folder that EDGEC_TEST_MODELS names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgec.evaluation import Boxes, open_dataset

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif("EDGEC_TEST_MODELS" not in os.environ, reason="EDGEC_TEST_MODELS names no folder"),
]


@pytest.fixture
def models() -> Path:
    return Path(os.environ["EDGEC_TEST_MODELS"])


def test_yolo_boxes_of_coco_images(models: Path) -> None:
    """Other JSON lies beside the images, and one image has no file of labels."""
    data = open_dataset(models / "coco128_train", need_labels=True)
    assert len(data) == 64
    assert data.notes == ("1 of 64 images have no .txt file and count as images without boxes",)
    labels = [sample.label for sample in data]
    assert all(isinstance(label, Boxes) for label in labels)
    assert sum(len(label.classes) for label in labels) > 400
    assert {int(c) for label in labels for c in label.classes} <= set(range(80))
    for label in labels:
        assert (label.boxes[:, 2:] > label.boxes[:, :2]).all()
        assert label.boxes.min(initial=0) >= -1
        assert label.boxes.max(initial=0) <= 641


def test_pairs_of_sentences_without_a_header(models: Path) -> None:
    data = open_dataset(models / "stsb_en" / "stsb-en-dev.csv", need_labels=True)
    assert len(data) == 1500
    assert data[0].data == ("A man with a hard hat is dancing.", "A man wearing a hard hat is dancing.")
    scores = [sample.label for sample in data]
    assert (min(scores), max(scores)) == (0.0, 5.0)
