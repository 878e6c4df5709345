"""Predictions drawn on their images: boxes of detections, colours of segmentations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DataError, OutputError
from edgec.runtime._opencv import opencv

_GOLDEN_RATIO = 0.618033988749895


def annotate(image: Path, values: Mapping[str, Any], target: Path) -> bool:
    """Draw a prediction on a copy of its image.

    Drawn are ``boxes`` with their labels and scores, and maps of classes: whole numbers of shape [height,
    width], perhaps with axes of size 1 before them, or scores of shape [1, classes, height, width], of which
    the highest counts. Class 0 is taken for the background, and the map for one of the whole image, as it is
    without letterbox.

    Args:
        image: Path of the image.
        values: The prediction.
        target: Where to write; its suffix says in which format, and its directory is made.

    Returns:
        Whether there was anything that can be drawn; where not, nothing is written.

    Raises:
        MissingExtraError: OpenCV is not installed.
        DataError: The image cannot be read.
        OutputError: The result cannot be written.
    """
    cv2 = opencv("drawing on images")
    if not can_draw(values):
        return False
    picture = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if picture is None:
        raise DataError(f"cannot read the image {image}")
    picture = draw(picture, values)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        written = cv2.imwrite(str(target), picture)
    except (OSError, cv2.error) as e:
        raise OutputError(f"cannot write {target}: {e}") from e
    if not written:
        raise OutputError(f"cannot write {target}")
    return True


def can_draw(values: Mapping[str, Any]) -> bool:
    """Whether there is anything in a prediction that `draw` draws."""
    return "boxes" in values or _class_map(values) is not None


def draw(picture: NDArray[Any], values: Mapping[str, Any]) -> NDArray[Any]:
    """Return a copy of a picture with a prediction drawn on it; see `annotate` for what is drawn.

    Args:
        picture: uint8[h, w, 3], BGR.
        values: The prediction.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = opencv("drawing on images")
    class_map = _class_map(values)
    drawn: NDArray[Any] = picture.copy() if class_map is None else _draw_map(cv2, picture, class_map)
    if "boxes" in values:
        _draw_boxes(cv2, drawn, values)
    return drawn


def _class_map(values: Mapping[str, Any]) -> NDArray[np.int64] | None:
    for value in values.values():
        array = np.asarray(value)
        while array.dtype.kind in "iu" and array.ndim > 2 and len(array) == 1:
            array = array[0]
        if array.dtype.kind in "iu" and array.ndim == 2 and min(array.shape) > 4:
            return array.astype(np.int64)
        if array.dtype.kind == "f" and array.ndim == 4 and len(array) == 1 and array.shape[1] > 1:
            return np.asarray(array[0].argmax(axis=0), np.int64)
    return None


def _draw_map(cv2: Any, picture: NDArray[Any], classes: NDArray[np.int64]) -> NDArray[Any]:
    height, width = picture.shape[:2]
    whole = cv2.resize(classes.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    drawn: NDArray[np.uint8] = picture.copy()
    for number in np.unique(whole):
        if number:
            where = whole == number
            drawn[where] = (0.5 * picture[where] + 0.5 * np.array(_colour(int(number)))).astype(np.uint8)
    return drawn


def _draw_boxes(cv2: Any, picture: NDArray[Any], values: Mapping[str, Any]) -> None:
    boxes = np.asarray(values["boxes"])
    classes = np.asarray(values.get("classes", np.zeros(len(boxes), np.int64)))
    labels = list(values.get("labels") or [])
    scores = values.get("scores")
    line = max(1, round(max(picture.shape[:2]) / 400))
    for i, box in enumerate(boxes):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        colour = _colour(int(classes[i]) + 1)
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, line)
        name = str(labels[i]) if i < len(labels) else f"class {int(classes[i])}"
        text = name if scores is None else f"{name} {float(scores[i]):.2f}"
        place = (x1, y1 - 3 if y1 > 14 else y1 + 14)
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * line, colour, line, cv2.LINE_AA)


def _colour(number: int) -> tuple[int, int, int]:
    """Return blue, green and red of a class: neighbours differ, as hues a golden ratio apart do."""
    hue = number * _GOLDEN_RATIO % 1.0 * 6
    rising = round(255 * (hue % 1))
    sectors = [
        (255, rising, 0), (255 - rising, 255, 0), (0, 255, rising), (0, 255 - rising, 255), (rising, 0, 255),
        (255, 0, 255 - rising),
    ]  # fmt: skip
    red, green, blue = sectors[int(hue)]
    return blue, green, red
