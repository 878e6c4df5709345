"""Postprocessing of detections: from the heads of a model to boxes in the source image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import Detection, Nms
from edgec.runtime._opencv import opencv
from edgec.runtime.pipeline._plan import Array, Frame, expect
from edgec.runtime.pipeline._scores import sigmoid
from edgec.runtime.pipeline._work import Facts, Operation, Planner, Work, keep, named, row

_Decoded = tuple[Array, Array, Array]
"""Boxes [n, 4], scores [n] and classes [n] of what scores enough."""


def _plan_detection(step: Detection, facts: Facts) -> Operation:
    facts.becomes(step, "boxes")
    image = _image_of(step, facts)
    decode, unit = _FORMATS[step.format](step, facts), step.unit or _UNITS[step.format]
    labels = facts.labels

    def run(work: Work) -> None:
        frame = work.frame = work.context.frames[image]
        boxes, scores, classes = decode(work)
        best = np.argsort(-scores, kind="stable")
        classes = classes[best].astype(np.int64)
        work.prediction = {
            "boxes": _to_source(boxes[best], frame, unit == "fraction"),
            "scores": scores[best].astype(np.float32, copy=False),
            "classes": classes,
            "labels": named(classes, labels),
        }

    return run


def _image_of(step: Detection, facts: Facts) -> str:
    known = ", ".join(facts.frames) or "none: put `decode` first in `preprocess`"
    if step.image is not None:
        expect(step.image in facts.frames, f"detection: input {step.image!r} is no image; images are {known}")
        return step.image
    expect(
        len(facts.frames) == 1, f"detection: say which input holds the image (key image); images are {known}"
    )
    return facts.frames[0]


def _to_source(boxes: Array, frame: Frame, fraction: bool) -> Array:
    """Turn corners in the image that the model saw, a new array, into pixels of the source: float32[n, 4]."""
    corners = boxes.astype(np.float32, copy=False)
    if fraction:
        corners *= np.array(frame.size * 2, np.float32)
    corners -= np.array(frame.offset * 2, np.float32)
    corners /= np.array(frame.scale * 2, np.float32)
    return corners


def finish(work: Work) -> None:
    """Clip boxes to the source image, and drop those of which nothing is left.

    Only now, because clipping before non-maximum suppression would change how much boxes overlap.
    """
    prediction, frame = work.prediction, work.frame
    assert prediction is not None
    assert frame is not None
    boxes: Array = prediction["boxes"]
    np.clip(boxes[:, 0::2], 0, frame.source[0], out=boxes[:, 0::2])
    np.clip(boxes[:, 1::2], 0, frame.source[1], out=boxes[:, 1::2])
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not visible.all():
        keep(prediction, np.nonzero(visible)[0])


def _plan_boxes_scores(step: Detection, facts: Facts) -> Callable[[Work], _Decoded]:
    boxes_spec, scores_spec = facts.output_of(step, step.boxes), facts.output_of(step, step.scores)
    classes_spec = facts.output_of(step, step.classes) if step.classes else None
    expect(
        len(boxes_spec.shape) == 3 and boxes_spec.shape[2] == 4,
        f"detection: expected boxes [1, n, 4], the model has {boxes_spec}",
    )
    if classes_spec is not None:
        return _plan_listed_classes(step, boxes_spec, scores_spec, classes_spec)
    expect(
        len(scores_spec.shape) == 3,
        f"detection: expected scores [1, n, classes], the model has {scores_spec}",
    )
    background, count = step.background, scores_spec.shape[2]
    if background is not None and isinstance(count, int):
        expect(background < count, f"detection: background {background} is none of {count} classes")
        count -= 1
    facts.check_labels(step, count)

    def decode(work: Work) -> _Decoded:
        boxes, scores = row(work.tensors[boxes_spec.name]), row(work.tensors[scores_spec.name])
        if background is not None:
            scores = scores[:, 1:] if background == 0 else np.delete(scores, background, axis=1)
        kept, best, classes = _best(scores, step)
        return _corners(boxes[kept], step.corners), best, classes

    return decode


def _plan_listed_classes(
    step: Detection, boxes_spec: TensorSpec, scores_spec: TensorSpec, classes_spec: TensorSpec
) -> Callable[[Work], _Decoded]:
    for spec in (scores_spec, classes_spec):
        expect(
            len(spec.shape) == 2,
            f"detection: expected one score and class per box, [1, n], the model has {spec}",
        )

    def decode(work: Work) -> _Decoded:
        scores = row(work.tensors[scores_spec.name])
        kept = np.nonzero(scores >= step.min_score)[0]
        boxes = _corners(row(work.tensors[boxes_spec.name])[kept], step.corners)
        return boxes, scores[kept], row(work.tensors[classes_spec.name])[kept]

    return decode


def _plan_yolov5(step: Detection, facts: Facts) -> Callable[[Work], _Decoded]:
    spec = facts.output_of(step)
    expect(
        len(spec.shape) == 3, f"detection: yolov5 expects an output [1, n, 5 + classes], the model has {spec}"
    )
    _check_classes(step, facts, spec.shape[2], 5)

    def decode(work: Work) -> _Decoded:
        rows = row(work.tensors[spec.name])
        rows = rows[rows[:, 4] >= step.min_score]  # no class scores more than its box
        kept, best, classes = _best(rows[:, 5:] * rows[:, 4:5], step)
        return _corners(rows[kept, :4], "cxcywh"), best, classes

    return decode


def _plan_yolov8(step: Detection, facts: Facts) -> Callable[[Work], _Decoded]:
    spec = facts.output_of(step)
    expect(
        len(spec.shape) == 3, f"detection: yolov8 expects an output [1, 4 + classes, n], the model has {spec}"
    )
    _check_classes(step, facts, spec.shape[1], 4)

    def decode(work: Work) -> _Decoded:
        columns = row(work.tensors[spec.name])
        best = columns[4:].max(axis=0)
        passing = np.nonzero(best >= step.min_score)[0]
        boxes, scores = _corners(columns[:4, passing].T, "cxcywh"), columns[4:, passing]
        if step.multi_label:
            kept, best, classes = _best(scores.T, step)
            return boxes[kept], best, classes
        return boxes, best[passing], scores.argmax(axis=0)

    return decode


def _plan_fastestdet(step: Detection, facts: Facts) -> Callable[[Work], _Decoded]:
    spec = facts.output_of(step)
    expect(
        len(spec.shape) == 4,
        f"detection: fastestdet expects an output [1, 5 + classes, h, w], the model has {spec}",
    )
    expect(step.unit != "pixel", "detection: fastestdet gives fractions: drop the key unit")
    _check_classes(step, facts, spec.shape[1], 5)
    power = step.objectness_power

    def decode(work: Work) -> _Decoded:
        grid = row(work.tensors[spec.name])
        height, width = grid.shape[1:]
        cells = grid.reshape(grid.shape[0], -1).astype(np.float32, copy=False)
        scores = cells[5:] ** (1 - power) * cells[0] ** power
        kept, best, classes = _best(scores.T, step)
        offset, size = np.tanh(cells[1:3, kept].T), sigmoid(cells[3:5, kept].T)
        offset += np.stack((kept % width, kept // width), axis=1)
        offset /= np.array((width, height), np.float32)
        return _corners(np.concatenate((offset, size), axis=1), "cxcywh"), best, classes

    return decode


def _check_classes(step: Detection, facts: Facts, size: int | str, others: int) -> None:
    if isinstance(size, int):
        expect(
            size > others,
            f"detection: {step.format} expects more than {others} values per box, the model has {size}",
        )
        facts.check_labels(step, size - others)


def _best(scores: Array, step: Detection) -> tuple[Array, Array, Array]:
    """Return which rows of `scores`, [n, classes], score enough, with their score and class."""
    if step.multi_label:
        kept, classes = np.nonzero(scores >= step.min_score)
        return kept, scores[kept, classes], classes
    kept = np.nonzero(scores.max(axis=1, initial=-np.inf) >= step.min_score)[0]
    passing = scores[kept]
    classes = passing.argmax(axis=1)
    return kept, passing[np.arange(len(kept)), classes], classes


def _corners(boxes: Array, what: str) -> Array:
    """Return boxes [n, 4] of any kind as float32 corners x1, y1, x2, y2."""
    boxes = boxes.astype(np.float32)
    if what == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    if what == "cxcywh":
        boxes[:, :2] -= boxes[:, 2:] / 2
    if what in ("cxcywh", "xywh"):
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def _plan_nms(step: Nms, facts: Facts) -> Operation:
    expect(facts.kind == "boxes", "nms works on boxes: put a `detection` step before it")

    def run(work: Work) -> None:
        prediction = work.prediction
        assert prediction is not None
        # Boxes come best first.
        boxes, scores, classes = (
            prediction[k][: step.max_candidates] for k in ("boxes", "scores", "classes")
        )
        if not step.per_class:
            classes = np.zeros_like(classes)
        keep(prediction, suppress(boxes, scores, classes, step.iou, step.min_score)[: step.max_detections])

    return run


def suppress(boxes: Array, scores: Array, classes: Array, iou: float, min_score: float) -> Array:
    """Return which boxes non-maximum suppression keeps, int64, best first.

    Args:
        boxes: float32[n, 4], corners.
        scores: float32[n].
        classes: int64[n]; boxes of different classes do not suppress each other.
        iou: Intersection over union above which the lower score is dropped.
        min_score: Boxes that score less are dropped.
    """
    passing = scores >= min_score
    enough = None if passing.all() else np.nonzero(passing)[0]
    if enough is not None:
        boxes, scores, classes = boxes[enough], scores[enough], classes[enough]
    if not scores.size:
        return np.zeros(0, np.int64)
    rectangles = boxes.astype(np.float64)
    rectangles[:, 2:] -= rectangles[:, :2]
    # Its own threshold is exclusive, and would drop what scores exactly `min_score`.
    suppressed: Any = opencv("suppressing boxes (nms)").dnn.NMSBoxesBatched
    scores, classes = scores.astype(np.float32, copy=False), classes.astype(np.int32)
    kept = np.asarray(suppressed(rectangles, scores, classes, -1.0, iou), np.int64).reshape(-1)
    return kept if enough is None else enough[kept]


_FORMATS: dict[str, Callable[[Detection, Facts], Callable[[Work], _Decoded]]] = {
    "boxes_scores": _plan_boxes_scores,
    "yolov5": _plan_yolov5,
    "yolov8": _plan_yolov8,
    "fastestdet": _plan_fastestdet,
}
_UNITS = {"boxes_scores": "fraction", "yolov5": "pixel", "yolov8": "pixel", "fastestdet": "fraction"}
PLANNERS: dict[type, Planner] = {Detection: _plan_detection, Nms: _plan_nms}
