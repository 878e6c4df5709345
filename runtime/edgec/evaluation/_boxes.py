"""Boxes that label an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DataError


@dataclass(frozen=True, eq=False)
class Boxes:
    """The objects in one image.

    Attributes:
        boxes: ``float32[n, 4]``: left, top, right, bottom in pixels of the image.
        classes: ``int64[n]``: class of each.
        ignore: ``bool[n]``: regions, such as crowds, whose detections count neither for nor against
            a model.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]

    @staticmethod
    def of(rows: Any) -> Boxes:
        """Return boxes from an array of rows: left, top, right, bottom, class.

        Rows with a negative class are padding and left out.

        Raises:
            DataError: It is no such array.
        """
        table = np.asarray(rows)
        if table.dtype.kind not in "fiu" or table.ndim != 2 or table.shape[1] != 5:
            raise DataError(
                "expected an image's boxes as rows of left, top, right, bottom, class, "
                f"got {table.dtype}{list(table.shape)}"
            )
        if not np.isfinite(table).all():
            raise DataError("an image's boxes hold NaN or infinity: correct the labels")
        table = table[table[:, 4] >= 0]
        return Boxes(
            boxes=table[:, :4].astype(np.float32),
            classes=table[:, 4].astype(np.int64),
            ignore=np.zeros(len(table), np.bool_),
        )


def overlaps(a: NDArray[Any], b: NDArray[Any], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return intersection over union of boxes `a` with boxes `b`: ``float64[len(a), len(b)]``.

    Where `crowd` is set, of ``bool[len(b)]``, the intersection is over the area of the box of `a`
    alone, as COCO does: a detection inside a crowd region lies in it, however small.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = (np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), axis=1) for x in (a, b))
    union = np.where(crowd[None, :], area_a[:, None], area_a[:, None] + area_b[None, :] - inter)
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))
