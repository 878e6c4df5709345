"""Mean average precision of detectors: map50."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DataError
from edgec.evaluation._boxes import Boxes, overlaps
from edgec.evaluation._metric import (
    Comparison,
    Metric,
    Prediction,
    Score,
    check_lengths,
    scaled_bounds,
)
from edgec.evaluation._statistics import Floats, jackknife_error, jackknife_weights, normal_quantile

_IOU = 0.5
_CHUNK_VALUES = 1 << 21


class Map50(Metric):
    """Mean average precision at an intersection over union of 0.5.

    Takes ``{"boxes", "scores", "classes"}`` of each image; labels are `Boxes`, or rows of left, top,
    right, bottom, class (class -1: padding).

    Detections of an image are matched as COCO does: best score first, each to the unmatched box of
    its class that it overlaps most, at 0.5 or more; else, where it lies in a region to ignore (a
    crowd) at 0.5 or more of its own area, it is left out; else it is a false alarm. Average
    precision is the area under the precision-recall curve made monotone, over every point of it
    (COCO's own tool samples 101 points: it differs by less than 0.01, usually by a few 0.0001).
    The mean is over the classes that have a box in the data; detections of other classes do not
    count. There is no limit of detections per image: limit them in the pipeline.
    """

    name = "map50"
    unit = "fraction"

    def compact(self, prediction: Prediction) -> dict[str, Any]:
        if not {"boxes", "scores", "classes"} <= set(prediction):
            raise self._misfit(
                "boxes, scores and classes",
                prediction,
                "add a post-processing step that decodes detections, or use another metric",
            )
        boxes = np.asarray(prediction["boxes"], np.float32)
        scores = np.asarray(prediction["scores"], np.float32)
        classes = np.asarray(prediction["classes"], np.int64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not scores.shape == classes.shape == (len(boxes),):
            raise self._misfit(
                "boxes [n, 4], scores [n] and classes [n] of one image",
                prediction,
                "add a post-processing step that decodes detections",
            )
        sound = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        return {"boxes": boxes[sound], "scores": scores[sound], "classes": classes[sound]}

    def score(self, predictions: Sequence[Prediction], labels: Sequence[Any]) -> Score:
        check_lengths(labels, predictions)
        truth = _truth(labels)
        curves = self._curves(predictions, truth)
        value = float(_mean_precision(curves, np.ones((1, len(truth))))[0])
        left_out = _mean_precision(curves, jackknife_weights(len(truth)))
        half = normal_quantile(0.975) * jackknife_error(left_out)
        return self._score(value, (max(0.0, value - half), min(1.0, value + half)), len(truth))

    def compare(
        self,
        first: Sequence[Prediction],
        second: Sequence[Prediction],
        labels: Sequence[Any],
        *,
        confidence: float,
        seed: int,
    ) -> Comparison:
        """Paired jackknife over images; agreement is the share of both models' detections that have a
        partner of the same class, at 0.5 overlap, among the other's.

        The bounds are those of data sets of this size: mean average precision rises, and differences
        of it shrink, where a class has few boxes.
        """
        check_lengths(labels, first, second)
        truth = _truth(labels)
        once = np.ones((1, len(truth)))
        a, b = self._curves(first, truth), self._curves(second, truth)
        difference = float(_mean_precision(b, once)[0] - _mean_precision(a, once)[0])
        weights = jackknife_weights(len(truth))
        left_out = _mean_precision(b, weights) - _mean_precision(a, weights)
        half = min(2.0, normal_quantile(confidence) * jackknife_error(left_out))
        return Comparison(
            difference=difference,
            agreement=self._agreement(first, second),
            bounds=scaled_bounds(difference, difference - half, difference + half, len(truth), confidence),
        )

    def _curves(self, predictions: Sequence[Prediction], truth: list[Boxes]) -> list[_Curve]:
        labelled = np.concatenate([t.classes[~t.ignore] for t in truth])
        where = np.repeat(np.arange(len(truth)), [int((~t.ignore).sum()) for t in truth])
        if not len(labelled):
            raise DataError("metric map50 needs labelled boxes, the data has none: check its labels")
        detections = [self.compact(p) for p in predictions]
        matches = [_match(d, t) for d, t in zip(detections, truth, strict=True)]
        right = np.concatenate([right for right, _ in matches])
        counted = np.concatenate([counted for _, counted in matches])
        scores, classes = (np.concatenate([d[key] for d in detections]) for key in ("scores", "classes"))
        images = np.repeat(np.arange(len(truth)), [len(d["scores"]) for d in detections])
        # Stable: equal scores stay in the order of images, and of detections in one, as in COCO's tool.
        order = np.argsort(-scores, kind="stable")
        order = order[counted[order]]
        curves = []
        for number in np.unique(labelled):
            mine = order[classes[order] == number]
            boxes = np.bincount(where[labelled == number], minlength=len(truth))
            curves.append(_Curve(images[mine], right[mine], boxes))
        return curves

    def _agreement(self, first: Sequence[Prediction], second: Sequence[Prediction]) -> float:
        matched = total = 0
        for a, b in zip(map(self.compact, first), map(self.compact, second), strict=True):
            partners = Boxes(a["boxes"], a["classes"], np.zeros(len(a["classes"]), np.bool_))
            matched += 2 * int(_match(b, partners)[0].sum())
            total += len(a["scores"]) + len(b["scores"])
        return matched / total if total else 1.0


@dataclass(frozen=True)
class _Curve:
    """One class's detections over all images, best score first, without the ignored ones.

    Attributes:
        image: ``int64[d]``: index of the image of each.
        right: ``bool[d]``: whether it found a box.
        boxes: ``int64[images]``: how many boxes of the class each image has.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    boxes: NDArray[np.int64]


def _match(detected: Prediction, truth: Boxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match the detections of one image, best score first.

    Returns:
        Of each detection, whether it found a box, and whether it counts at all.
    """
    n = len(detected["scores"])
    right, counted = np.zeros(n, np.bool_), np.ones(n, np.bool_)
    if not n or not len(truth.classes):
        return right, counted
    same = detected["classes"][:, None] == truth.classes[None, :]
    iou = np.where(same, overlaps(detected["boxes"], truth.boxes, truth.ignore), 0.0)
    free = ~truth.ignore
    near = iou.max(axis=1) >= _IOU
    for i in np.argsort(-detected["scores"], kind="stable"):
        if not near[i]:
            continue
        candidates = np.where(free, iou[i], 0.0)
        best = int(np.argmax(candidates))
        if candidates[best] >= _IOU:
            right[i], free[best] = True, False
        else:
            counted[i] = not bool((iou[i][truth.ignore] >= _IOU).any())
    return right, counted


def _mean_precision(curves: list[_Curve], weights: Floats) -> Floats:
    """Return the mean average precision of images weighted by each row of `weights`."""
    total, present = np.zeros(len(weights)), np.zeros(len(weights))
    for curve in curves:
        boxes = weights @ curve.boxes
        total += np.divide(_area(curve, weights), boxes, out=np.zeros_like(boxes), where=boxes > 0)
        present += boxes > 0
    return np.divide(total, present, out=np.zeros_like(total), where=present > 0)


def _area(curve: _Curve, weights: Floats) -> Floats:
    """Return the area under the monotone precision curve, times the number of boxes."""
    area = np.zeros(len(weights))
    hits = np.flatnonzero(curve.right)
    if not len(hits):
        return area
    image = curve.image[: hits[-1] + 1]  # false alarms after the last hit change nothing
    rows = max(1, _CHUNK_VALUES // len(image))
    for start in range(0, len(weights), rows):
        drawn = np.take(weights[start : start + rows], image, axis=1)
        all_so_far = np.cumsum(drawn, axis=1)[:, hits]
        gained = drawn[:, hits]
        right_so_far = np.cumsum(gained, axis=1)
        precision = np.divide(right_so_far, all_so_far, out=np.zeros_like(right_so_far), where=all_so_far > 0)
        monotone = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        area[start : start + rows] = (gained * monotone).sum(axis=1)
    return area


def _truth(labels: Sequence[Any]) -> list[Boxes]:
    return [label if isinstance(label, Boxes) else Boxes.of(label) for label in labels]
