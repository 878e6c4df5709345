"""What the steps between a detector and what looks at each box do."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgec.errors import PipelineError
from edgec.runtime.chains._plan import (
    Array,
    Operation,
    Planning,
    State,
    Value,
    Values,
    prediction_of_boxes,
    storing,
)
from edgec.runtime.chains._steps import Crop, Relabel, Select
from edgec.runtime.pipeline import keep, named

Prediction = dict[str, Any]


def plan_select(name: str, step: Select, planning: Planning) -> tuple[Operation, Value]:
    source = step.input
    value = planning.expect("input", source, "boxes", "classes")
    if step.order != "score" and value.kind != "boxes":
        raise PipelineError(f"order: {step.order!r} is of boxes, {source!r} is {value}")
    unknown = [label for label in step.classes if label not in value.labels]
    if unknown:
        known = ", ".join(value.labels[:16]) or "none"
        raise PipelineError(f"classes: {source!r} has no {', '.join(map(repr, unknown[:8]))}; it has {known}")
    classes = np.array([i for i, label in enumerate(value.labels) if label in step.classes], np.int64)
    least, most, order = step.min_score, step.top_k, step.order
    store = storing(planning, name, value)

    def run(values: Values, state: State, after: State) -> None:
        prediction: Prediction = dict(values[source])
        scores = prediction["scores"]
        passing = np.ones(len(scores), bool) if least is None else scores >= least
        if classes.size:
            passing &= np.isin(prediction["classes"], classes)
        kept = np.nonzero(passing)[0]
        kept = kept[np.argsort(-scores[kept], kind="stable")][:most]
        if order != "score":
            edge = prediction["boxes"][kept, 0 if order == "left" else 1]
            kept = kept[np.argsort(edge, kind="stable")]
        keep(prediction, kept)
        store(values, prediction)

    return run, value


def plan_crop(name: str, step: Crop, planning: Planning) -> tuple[Operation, Value]:
    image, boxes, margin, square, pad, most = (
        step.image, step.boxes, step.margin, step.square, step.pad, step.max_boxes,
    )  # fmt: skip
    planning.expect("boxes", boxes, "boxes")
    value = Value(kind="images", color=planning.expect("image", image, "image").color)
    store = storing(planning, name, value)

    def run(values: Values, state: State, after: State) -> None:
        pixels = values[image]
        regions = crop_regions(values[boxes]["boxes"][:most], margin, square)
        store(values, [cut(pixels, region, pad) for region in regions.tolist()])

    return run, value


def crop_regions(boxes: Array, margin: float, square: bool) -> Array:
    """Return the pixels that boxes cover, int64[n, 4], corners; they may lie outside of the image.

    Args:
        boxes: float32[n, 4], corners.
        margin: Room on every side, as a share of the longer side.
        square: Whether to extend the shorter side on both ends.
    """
    boxes = boxes.astype(np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2]
    longest = sizes.max(axis=1, keepdims=True, initial=0)
    room = margin * longest + ((longest - sizes) / 2 if square else 0)
    # Sides of a square that differ by rounding only are made the same.
    low = np.floor(boxes[:, :2] - room + 1e-6)
    extent = np.ceil(boxes[:, 2:] + room - 1e-6) - low
    if square:
        extent[:] = extent.max(axis=1, keepdims=True, initial=0)
    return np.concatenate((low, low + np.maximum(extent, 1)), axis=1).astype(np.int64)


def cut(image: Array, region: list[int], pad: int) -> Array:
    """Return a part of an image uint8[h, w, c]; what lies outside of it is `pad`.

    Raises:
        PipelineError: It is far larger than the image.
    """
    left, top, right, bottom = region
    height, width = image.shape[:2]
    if (bottom - top) * (right - left) > 16 * (height * width + (1 << 16)):
        raise PipelineError(
            f"a box with its margin covers {right - left} x {bottom - top} pixels, "
            f"the image has {width} x {height}"
        )
    inner = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if inner.shape[:2] == (bottom - top, right - left):
        return np.ascontiguousarray(inner)
    canvas = np.full((bottom - top, right - left, image.shape[2]), pad, np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return canvas


def plan_relabel(name: str, step: Relabel, planning: Planning) -> tuple[Operation, Value]:
    boxes, by = step.boxes, step.by
    planning.expect("boxes", boxes, "boxes")
    item = planning.expect("by", by, "predictions").item
    if item is None or item.kind != "classes":
        raise PipelineError(f"by: expected predictions of classes, {by!r} holds {item}")
    labels = item.labels
    value = prediction_of_boxes(labels)
    store = storing(planning, name, value)

    def run(values: Values, state: State, after: State) -> None:
        read = values[by]
        # A crop of which nothing was said, for every class scores too little, has no box either.
        told = [i for i, prediction in enumerate(read) if len(prediction["classes"])]
        best = [int(np.argmax(read[i]["scores"])) for i in told]
        classes = np.array([read[i]["classes"][k] for i, k in zip(told, best, strict=True)], np.int64)
        scores = np.array([read[i]["scores"][k] for i, k in zip(told, best, strict=True)], np.float32)
        store(
            values,
            {
                "boxes": values[boxes]["boxes"][: len(read)][told],
                "scores": scores,
                "classes": classes,
                "labels": named(classes, labels),
            },
        )

    return run, value
