"""From the heads of detectors to boxes in the source image, against slow and plain computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.pipelines import Step, processor, spec

from edgec.artifact import TensorSpec
from edgec.runtime.pipeline._detection import suppress

pytest.importorskip("cv2")
Array = NDArray[Any]
WIDTH, HEIGHT = 64, 48
STRETCH: Step = {"step": "resize", "width": WIDTH, "height": HEIGHT}


def detect(
    step: Step,
    outputs: dict[str, Array],
    resize: Step = STRETCH,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    **more: Any,
) -> dict[str, Any]:
    """Return the boxes of an image of `size`, width and height."""
    specs = [TensorSpec(name, str(array.dtype), array.shape) for name, array in outputs.items()]
    steps = [{"step": "detection", **step}, *more.pop("then", [])]
    image = spec("image", "uint8", 1, "h", "w", 3)
    made = processor([{"step": "decode"}, resize], steps, [image], specs, **more)
    _, context = made.preprocess(np.zeros((size[1], size[0], 3), np.uint8))
    prediction = made.postprocess(outputs, context)
    assert prediction["boxes"].shape == (len(prediction["scores"]), 4)
    assert [prediction[k].dtype for k in ("boxes", "scores", "classes")] == [np.float32, np.float32, np.int64]
    return prediction


def pair(boxes: list[list[float]], scores: list[list[float]]) -> dict[str, Array]:
    return {"boxes": np.array([boxes], np.float32), "scores": np.array([scores], np.float32)}


PLAIN: Step = {"format": "boxes_scores", "min_score": 0.5}


class TestGeometry:
    """A box drawn in the source image is found where it was drawn."""

    @pytest.mark.parametrize("size", [(640, 480), (100, 300), (37, 91), (64, 48)])
    @pytest.mark.parametrize(
        "resize",
        [
            {"step": "resize", "mode": "stretch"},
            {"step": "resize", "mode": "letterbox"},
            {"step": "resize", "mode": "letterbox", "align": "top-left"},
            {"step": "resize", "mode": "cover"},
        ],
    )
    def test_boxes_go_back_to_where_they_came_from(self, resize: Step, size: tuple[int, int]) -> None:
        width, height = size
        # In the middle, so that `cover` keeps it.
        drawn = np.array([0.4 * width, 0.45 * height, 0.6 * width, 0.55 * height]).round()
        image = np.zeros((height, width, 3), np.uint8)
        x1, y1, x2, y2 = drawn.astype(int)
        image[y1:y2, x1:x2] = 255
        black: Step = {**resize, "width": 256, "height": 256, "pad": 0}
        outputs = pair([[0, 0, 1, 1]], [[1]])
        steps: list[Step] = [{"step": "detection", **PLAIN}]
        specs = [spec("boxes", "float32", 1, 1, 4), spec("scores", "float32", 1, 1, 1)]
        made = processor([{"step": "decode"}, black], steps, [spec("image", "uint8", 1, 256, 256, 3)], specs)
        inputs, context = made.preprocess(image)
        rows, columns = np.nonzero(inputs["image"][0, ..., 0] > 127)
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 256
        found = made.postprocess({**outputs, "boxes": seen[None, None].astype(np.float32)}, context)["boxes"][
            0
        ]
        # As good as a pixel of the model's input, in pixels of the source.
        pixel = max(1.0, width / 256, height / 256)
        assert np.abs(found - drawn).max() <= pixel

    def test_steps_add_up(self) -> None:
        # 200 x 100 is scaled to 100 x 50, 10 are cut off left and right, 5 above and below.
        steps: list[Step] = [
            {"step": "decode"},
            {"step": "resize", "width": 100, "height": 50},
            {"step": "crop", "width": 80, "height": 40},
        ]
        outputs = pair([[0, 0, 1, 1], [0.25, 0.5, 0.5, 1]], [[0.9], [0.8]])
        specs = [spec("boxes", "float32", 1, 2, 4), spec("scores", "float32", 1, 2, 1)]
        made = processor(
            steps, [{"step": "detection", **PLAIN}], [spec("image", "uint8", 1, 40, 80, 3)], specs
        )
        _, context = made.preprocess(np.zeros((100, 200, 3), np.uint8))
        found = made.postprocess(outputs, context)["boxes"]
        assert found.tolist() == [[20, 10, 180, 90], [60, 50, 100, 90]]

    def test_boxes_are_cut_at_the_edge_and_dropped_outside(self) -> None:
        boxes: list[list[float]] = [
            [-0.5, -0.5, 0.5, 2],
            [0.1, 1.5, 0.2, 2],
            [0.5, 0.5, 0.25, 0.75],
            [0, 0, 1, 1],
        ]
        got = detect(PLAIN, pair(boxes, [[0.9], [0.8], [0.7], [0.6]]), size=(128, 96), labels=["thing"])
        assert got["boxes"].tolist() == [[0, 0, 64, 96], [0, 0, 128, 96]]
        np.testing.assert_allclose(got["scores"], [0.9, 0.6])
        assert got["labels"] == ["thing", "thing"]

    @pytest.mark.parametrize(
        ("corners", "box"),
        [
            ("xyxy", [0.25, 0.5, 0.5, 0.75]),
            ("yxyx", [0.5, 0.25, 0.75, 0.5]),
            ("cxcywh", [0.375, 0.625, 0.25, 0.25]),
            ("xywh", [0.25, 0.5, 0.25, 0.25]),
        ],
    )
    def test_what_the_numbers_of_a_box_are(self, corners: str, box: list[float]) -> None:
        expected = [16, 24, 32, 36]
        got = detect({**PLAIN, "corners": corners}, pair([box], [[1]]))
        assert got["boxes"].tolist() == [expected]
        pixels = (
            np.array(box) * ([HEIGHT, WIDTH] * 2 if corners == "yxyx" else [WIDTH, HEIGHT] * 2)
        ).tolist()
        got = detect({**PLAIN, "corners": corners, "unit": "pixel"}, pair([pixels], [[1]]), size=(128, 96))
        assert got["boxes"].tolist() == [[2 * v for v in expected]]


TWO: list[list[float]] = [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]


class TestScores:
    def test_the_best_class_counts(self) -> None:
        got = detect(PLAIN, pair(TWO, [[0.1, 0.5, 0.4], [0.6, 0.1, 0.8]]), labels=["a", "b", "c"])
        assert got["classes"].tolist() == [2, 1]
        assert got["labels"] == ["c", "b"]
        np.testing.assert_allclose(got["scores"], [0.8, 0.5])
        assert got["boxes"][0].tolist() == [32, 24, 64, 48]

    def test_or_every_class_that_passes(self) -> None:
        got = detect({**PLAIN, "multi_label": True}, pair(TWO, [[0.1, 0.5, 0.4], [0.6, 0.1, 0.8]]))
        assert list(zip(got["classes"].tolist(), got["boxes"][:, 0].tolist(), strict=True)) == [
            (2, 32),
            (0, 32),
            (1, 0),
        ]

    @pytest.mark.parametrize(("background", "classes"), [(0, [1, 0]), (1, [0, 1]), (2, [0, 1])])
    def test_the_background_is_no_class(self, background: int, classes: list[int]) -> None:
        scores = [[0.1, 0.5, 0.6], [0.7, 0.5, 0.2]]
        got = detect({**PLAIN, "background": background}, pair(TWO, scores), labels=["a", "b"])
        assert got["classes"].tolist() == classes

    def test_classes_may_be_listed(self) -> None:
        outputs = {
            "boxes": np.array([TWO], np.float32),
            "scores": np.array([[0.6, 0.9]], np.float32),
            "which": np.array([[2.0, 1.0]], np.float32),
        }
        got = detect({**PLAIN, "classes": "which"}, outputs, labels=["a", "b", "c"])
        assert got["classes"].tolist() == [1, 2]
        assert got["labels"] == ["b", "c"]

    def test_nothing_found(self) -> None:
        got = detect(PLAIN, pair(TWO, [[0.1], [0.2]]), then=[{"step": "nms"}], labels=["a"])
        assert got["labels"] == []
        assert len(got["boxes"]) == 0
        empty = {"boxes": np.zeros((1, 0, 4), np.float32), "scores": np.zeros((1, 0, 2), np.float32)}
        assert len(detect(PLAIN, empty, then=[{"step": "nms"}])["boxes"]) == 0


def heads(rng: np.random.Generator, boxes: int, classes: int) -> tuple[Array, Array, Array]:
    """Return boxes as centre and size in pixels, objectness and class scores."""
    sizes = rng.uniform(4, 20, (boxes, 2))
    centres = rng.uniform(10, 38, (boxes, 2))
    return (
        np.concatenate([centres, sizes], axis=1).astype(np.float32),
        rng.uniform(0, 1, boxes).astype(np.float32),
        rng.uniform(0, 1, (boxes, classes)).astype(np.float32),
    )


def plainly(rows: list[tuple[list[float], float, int]]) -> dict[str, list[Any]]:
    """Return rows of centre and size, score and class as a prediction, best first."""
    rows = sorted(rows, key=lambda row: -row[1])
    return {
        "boxes": [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for (x, y, w, h), _, _ in rows],
        "scores": [score for _, score, _ in rows],
        "classes": [c for _, _, c in rows],
    }


def assert_same(got: dict[str, Any], expected: dict[str, list[Any]]) -> None:
    assert got["classes"].tolist() == expected["classes"]
    np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-5)
    np.testing.assert_allclose(got["boxes"], expected["boxes"], atol=1e-3)


class TestFormats:
    def test_yolov5(self) -> None:
        boxes, objectness, classes = heads(np.random.default_rng(0), 50, 6)
        output = np.concatenate([boxes, objectness[:, None], classes], axis=1)[None]
        scores = objectness[:, None] * classes
        expected = [
            (boxes[i].tolist(), float(s.max()), int(s.argmax()))
            for i, s in enumerate(scores)
            if s.max() >= 0.4
        ]
        assert 5 < len(expected) < 45
        assert_same(detect({"format": "yolov5", "min_score": 0.4}, {"y": output}), plainly(expected))

    def test_yolov8(self) -> None:
        boxes, _, classes = heads(np.random.default_rng(1), 50, 6)
        output = np.concatenate([boxes, classes], axis=1).T[None]
        expected = [
            (boxes[i].tolist(), float(s.max()), int(s.argmax()))
            for i, s in enumerate(classes)
            if s.max() >= 0.9
        ]
        assert 5 < len(expected) < 45
        assert_same(detect({"format": "yolov8", "min_score": 0.9}, {"y": output}), plainly(expected))
        several = [
            (boxes[i].tolist(), float(s), c)
            for i, row in enumerate(classes)
            for c, s in enumerate(row)
            if s >= 0.9
        ]
        assert len(several) > len(expected)
        step = {"format": "yolov8", "min_score": 0.9, "multi_label": True}
        assert_same(detect(step, {"y": output}), plainly(several))

    def test_fastestdet(self) -> None:
        rng = np.random.default_rng(2)
        output = np.concatenate(
            [
                rng.uniform(0, 1, (1, 1, 3, 4)),
                rng.normal(0, 0.5, (1, 4, 3, 4)),
                rng.uniform(0, 1, (1, 5, 3, 4)),
            ],
            axis=1,
        ).astype(np.float32)
        expected = []
        for y in range(3):
            for x in range(4):
                cell = output[0, :, y, x].astype(np.float64)
                score = cell[0] ** 0.6 * cell[5:].max() ** 0.4
                centre = (x + np.tanh(cell[1])) / 4 * WIDTH, (y + np.tanh(cell[2])) / 3 * HEIGHT
                size = WIDTH / (1 + np.exp(-cell[3])), HEIGHT / (1 + np.exp(-cell[4]))
                if score >= 0.5:
                    expected.append(([*centre, *size], float(score), int(cell[5:].argmax())))
        assert 2 < len(expected) < 12
        plain = plainly(expected)
        plain["boxes"] = np.clip(plain["boxes"], 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).tolist()
        assert_same(detect({"format": "fastestdet", "min_score": 0.5}, {"y": output}), plain)


def overlap(a: Array, b: Array) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return float(wide / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide))


def suppress_plainly(boxes: Array, scores: Array, classes: Array, iou: float, min_score: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        rivals = [j for j in kept if classes[j] == classes[i]]
        if scores[i] >= min_score and all(overlap(boxes[i], boxes[j]) <= iou for j in rivals):
            kept.append(i)
    return kept


CROWD: list[list[float]] = [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.48], [0, 0, 0.5, 0.46], [0.6, 0.6, 1, 1]]
CROWD_SCORES = [[0.9, 0.0], [0.0, 0.8], [0.7, 0.0], [0.6, 0.0]]


class TestSuppression:
    @pytest.mark.parametrize("seed", range(8))
    def test_it_keeps_what_the_definition_keeps(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 120))
        corner, size = rng.uniform(-20, 80, (n, 2)), rng.uniform(1, 60, (n, 2))
        boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
        scores, classes = rng.uniform(0, 1, n).astype(np.float32), rng.integers(0, 4, n)
        for iou in (0.0, 0.3, 0.6, 1.0):
            got = suppress(boxes, scores, classes, iou, 0.2).tolist()
            assert got == suppress_plainly(boxes, scores, classes, iou, 0.2)

    @pytest.mark.parametrize(
        ("step", "scores"),
        [
            ({}, [0.9, 0.8, 0.6]),
            ({"per_class": False}, [0.9, 0.6]),
            ({"iou": 0.99}, [0.9, 0.8, 0.7, 0.6]),
            ({"min_score": 0.8}, [0.9, 0.8]),
            ({"max_detections": 2}, [0.9, 0.8]),
            ({"max_candidates": 3}, [0.9, 0.8]),
        ],
    )
    def test_its_keys(self, step: Step, scores: list[float]) -> None:
        got = detect(PLAIN, pair(CROWD, CROWD_SCORES), then=[{"step": "nms", **step}], labels=["a", "b"])
        np.testing.assert_allclose(got["scores"], scores)
        assert got["labels"] == [{0.8: "b"}.get(score, "a") for score in scores]

    def test_a_threshold_may_follow(self) -> None:
        then: list[Step] = [{"step": "nms"}, {"step": "threshold", "value": 0.7}]
        got = detect(PLAIN, pair(CROWD, CROWD_SCORES), then=then)
        np.testing.assert_allclose(got["scores"], [0.9, 0.8])
