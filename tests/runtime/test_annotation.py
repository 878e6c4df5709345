"""Boxes on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.errors import DataError
from edgec.runtime.annotation import annotate

cv2 = pytest.importorskip("cv2", reason="needs opencv")
BOXES = {
    "boxes": np.array([[10, 20, 60, 80]], np.float32), "scores": np.array([0.9], np.float32),
    "classes": np.array([3]), "labels": ["cat"],
}  # fmt: skip


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((100, 100, 3), 50, np.uint8))
    assert annotate(tmp_path / "grey.png", BOXES, tmp_path / "new" / "out.png")
    drawn = cv2.imread(str(tmp_path / "new" / "out.png"))
    assert (drawn[80, 12:58] != 50).any(axis=-1).all()
    assert (drawn[30:70, 15:55] == 50).all()
    assert (drawn[:, 95:] == 50).all()


def test_scores_draw_nothing(tmp_path: Path) -> None:
    assert not annotate(tmp_path / "a.png", {"scores": np.ones(3, np.float32)}, tmp_path / "out.png")


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"bad\.png"):
        annotate(tmp_path / "bad.png", BOXES, tmp_path / "out.png")
