"""Labels of images in a JSON file of COCO's object detection form."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import DataError
from edgec.evaluation._boxes import Boxes
from edgec.evaluation._reading import read_json


def may_be_coco(path: Path) -> bool:
    """Whether a JSON file speaks of annotations; other JSON may lie beside images.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(b'"annotations"') >= 0
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e


class CocoLabels:
    """A JSON file of COCO's object detection form."""

    def __init__(self, folder: Path, path: Path, classes: Sequence[str]) -> None:
        self._path = path
        content = read_json(path)
        images = _entries(content, "images", path, {"id": int, "file_name": str})
        categories = _entries(content, "categories", path, {"id": int, "name": str})
        annotations = _entries(
            content, "annotations", path, {"image_id": int, "category_id": int, "bbox": list}
        )
        self._numbers, self.notes = _category_numbers(categories, classes)
        self._images = {image["id"]: folder / image["file_name"] for image in images}
        self._rows: dict[Path, list[tuple[list[float], int, bool]]] = {p: [] for p in self._images.values()}
        for image in self._rows:
            if not image.is_file():
                raise DataError(
                    f"{path} names the image {image}, which is not there: paths are relative to {folder}"
                )
        for i, annotation in enumerate(annotations):
            self._add(annotation, i)

    def images(self) -> list[Path]:
        return list(self._rows)

    def label(self, image: Path) -> Boxes:
        rows = self._rows[image]
        return Boxes(
            boxes=np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
            classes=np.array([number for _, number, _ in rows], np.int64),
            ignore=np.array([crowd for _, _, crowd in rows], np.bool_),
        )

    def files(self) -> list[Path]:
        return [self._path]

    def _add(self, annotation: Mapping[str, Any], index: int) -> None:
        where = f"{self._path}: annotation {index}"
        if annotation["image_id"] not in self._images or annotation["category_id"] not in self._numbers:
            raise DataError(
                f"{where} is of an image or category that the file does not list: correct the file"
            )
        box = annotation["bbox"]
        if len(box) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
            raise DataError(
                f"{where} has the bbox {str(box)[:60]}, expected x, y, width and height in pixels"
            )
        x, y, width, height = map(float, box)
        row = ([x, y, x + width, y + height], self._numbers[annotation["category_id"]])
        self._rows[self._images[annotation["image_id"]]].append((*row, annotation.get("iscrowd", 0) == 1))


def _category_numbers(
    categories: list[Mapping[str, Any]], classes: Sequence[str]
) -> tuple[dict[int, int], tuple[str, ...]]:
    """The model's own label of the same name; else the rank among the ids, as models of COCO are trained."""
    if classes and all(category["name"] in classes for category in categories):
        return {category["id"]: classes.index(category["name"]) for category in categories}, ()
    ids = sorted({category["id"] for category in categories})
    note = f"the {len(ids)} categories are numbered 0..{len(ids) - 1} in the order of their ids"
    return {identity: i for i, identity in enumerate(ids)}, (note,)


def _entries(
    content: Mapping[str, Any], key: str, path: Path, fields: Mapping[str, type]
) -> list[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected COCO JSON with a list of {key}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(
            type(entry.get(name)) is kind for name, kind in fields.items()
        ):
            wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
            raise DataError(f"{path}: entry {i} of {key}: expected {wanted}")
    return entries
