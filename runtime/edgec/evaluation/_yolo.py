"""Labels of images in YOLO's text files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgec.errors import DataError
from edgec.evaluation._boxes import Boxes
from edgec.evaluation._reading import read_text
from edgec.runtime._opencv import opencv

_MOST_CLASSES = 1 << 31


class YoloLabels:
    """One text file per image, a line per box: class, centre x, centre y, width, height, as fractions."""

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, images: list[Path], labels: Path | None) -> None:
        self._images = images
        self._files = {image: yolo_file(image, folder, labels) for image in images}
        missing = sum(not file.is_file() for file in self._files.values())
        if images and missing == len(images):
            raise DataError(
                f"none of the images in {folder} has a .txt file of labels: make one per image, "
                "with a line per box"
            )
        if missing:
            self.notes = (
                f"{missing} of {len(images)} images have no .txt file and count as images without boxes",
            )

    def images(self) -> list[Path]:
        return self._images

    def label(self, image: Path) -> Boxes:
        file = self._files[image]
        rows = _yolo_rows(file) if file.is_file() else []
        table = np.array(rows, np.float64).reshape(-1, 5)
        width, height = _image_size(image) if rows else (1, 1)
        centre, half = table[:, 1:3], table[:, 3:5] / 2
        corners = np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]
        return Boxes(
            boxes=corners.astype(np.float32),
            classes=table[:, 0].astype(np.int64),
            ignore=np.zeros(len(table), np.bool_),
        )

    def files(self) -> list[Path]:
        return [file for file in self._files.values() if file.is_file()]


def yolo_file(image: Path, folder: Path, labels: Path | None = None) -> Path:
    """Beside the image, or in a folder `labels` that is to `images` as a twin."""
    if labels is not None:
        return labels / image.relative_to(folder).with_suffix(".txt").name
    beside = image.with_suffix(".txt")
    if beside.is_file():
        return beside
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :]).with_suffix(".txt")
    return beside


def _yolo_rows(file: Path) -> list[list[float]]:
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.split()]
        except ValueError as e:
            raise DataError(f"{file}, line {number}: {e}") from e
        if (
            len(row) != 5
            or not (row[0].is_integer() and 0 <= row[0] < _MOST_CLASSES)
            or not all(-0.01 <= v <= 1.01 for v in row[1:])
        ):
            raise DataError(
                f"{file}, line {number}: expected a class number, then centre x, centre y, width and height "
                f"as fractions of the image, got {line.strip()[:60]!r}"
            )
        rows.append(row)
    return rows


def _image_size(image: Path) -> tuple[int, int]:
    # Decoded, not read from the header: OpenCV turns a photo as its EXIF orientation says, and so does
    # the pipeline.
    cv2 = opencv("reading YOLO labels")
    pixels = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DataError(f"{image} is no image that OpenCV can read: expected JPEG, PNG, BMP ...")
    return int(pixels.shape[1]), int(pixels.shape[0])
