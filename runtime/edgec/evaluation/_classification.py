"""Accuracy of classifiers: top1 and top5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DataError
from edgec.evaluation._metric import Comparison, Metric, Prediction, Score, bare_output, check_lengths
from edgec.evaluation._statistics import tango_bound, wilson_interval

_KEPT = 5
_NO_CLASS = -1


class TopK(Metric):
    """Share of samples whose label is among the first k classes that the model gives.

    Takes ``{"classes", "scores"}``, best first, or a bare output whose last axis has one score per
    class (equal scores: the lower class first; a sample with a NaN in it is wrong).
    """

    unit = "fraction"
    k: ClassVar[int]

    def compact(self, prediction: Prediction) -> dict[str, Any]:
        if "classes" in prediction and "boxes" not in prediction:
            kept: dict[str, Any] = {"classes": np.asarray(prediction["classes"]).reshape(-1)[:_KEPT]}
            if prediction.get("labels"):
                kept["labels"] = list(prediction["labels"])[:_KEPT]
        else:
            kept = {"classes": _best(self._class_scores(prediction))}
        return kept

    def score(self, predictions: Sequence[Prediction], labels: Sequence[Any]) -> Score:
        right = self._right(predictions, labels)
        n, hits = len(right), int(right.sum())
        return self._score(hits / n, wilson_interval(hits, n), n)

    def compare(
        self,
        first: Sequence[Prediction],
        second: Sequence[Prediction],
        labels: Sequence[Any],
        *,
        confidence: float,
        seed: int,
    ) -> Comparison:
        """Tango's score interval; agreement is the share of samples with the same first class."""
        a, b = self._right(first, labels), self._right(second, labels)
        gains, losses = int((b & ~a).sum()), int((a & ~b).sum())
        return Comparison(
            difference=(gains - losses) / len(a),
            agreement=float(np.mean(np.equal(self._firsts(first), self._firsts(second)))),
            bounds=_score_bounds(gains / len(a), losses / len(a), confidence),
        )

    def _class_scores(self, prediction: Prediction) -> NDArray[Any]:
        scores = None if "embedding" in prediction else bare_output(prediction)
        if scores is None or scores.ndim == 0 or scores.size != scores.shape[-1] or scores.size < 2:
            raise self._misfit(
                "one score per class",
                prediction,
                "add a post-processing step that gives classes (softmax, top-k), or use another metric",
            )
        return scores.reshape(-1)

    def _right(self, predictions: Sequence[Prediction], labels: Sequence[Any]) -> NDArray[np.bool_]:
        check_lengths(labels, predictions)
        right = np.zeros(len(labels), np.bool_)
        most = 0
        for i, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
            kept = self.compact(prediction)
            most = max(most, len(kept["classes"]))
            if isinstance(label, str):
                right[i] = label in self._names(kept, label)[: self.k]
            else:
                right[i] = class_number(label, i, _classes_of(prediction)) in kept["classes"][: self.k]
        # A threshold may leave fewer, or none, of a sample; but not of every one.
        if most < self.k:
            raise DataError(
                f"metric {self.name} needs {self.k} classes per prediction, the model gives {most}: "
                "raise k of the pipeline's top-k, or use top1"
            )
        return right

    def _firsts(self, predictions: Sequence[Prediction]) -> NDArray[np.int64]:
        """Return the first class of each prediction; no class where a threshold left none."""
        classes = (self.compact(p)["classes"] for p in predictions)
        return np.asarray([c[0] if len(c) else _NO_CLASS for c in classes], np.int64)

    def _names(self, kept: Prediction, label: str) -> list[str]:
        if "labels" not in kept:
            raise DataError(
                f"label {label!r} is a name but the model gives class numbers: "
                "declare the labels in the pipeline, or label the data with numbers"
            )
        return list(kept["labels"])


class Top1(TopK):
    """Share of samples whose label is the model's first class."""

    name = "top1"
    k = 1


class Top5(TopK):
    """Share of samples whose label is among the model's first five classes."""

    name = "top5"
    k = 5


def class_number(label: Any, index: int, classes: int | None = None) -> int:
    """Return a label as a class number.

    Raises:
        DataError: It is no whole number from 0, or not below `classes`.
    """
    value = np.asarray(label)
    if value.size != 1 or value.dtype.kind not in "iufb":
        raise DataError(
            f"label {index} is {_show(label)}, expected one class number: label each sample with int[1]"
        )
    number = value.reshape(-1)[0]
    if not np.isfinite(number) or number != int(number) or number < 0:
        raise DataError(f"label {index} is {number}, expected a class number from 0")
    if classes is not None and number >= classes:
        raise DataError(
            f"label {index} is {int(number)}, but the model has classes 0..{classes - 1}: "
            "check that labels count from 0 and that none stands for a background"
        )
    return int(number)


def _classes_of(prediction: Prediction) -> int | None:
    scores = bare_output(prediction)
    return None if scores is None or "classes" in prediction else scores.shape[-1]


def _best(scores: NDArray[Any]) -> NDArray[np.int64]:
    """Return the best classes, best first; a NaN anywhere gives classes that no label has."""
    kept = min(_KEPT, len(scores))
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        return np.full(kept, _NO_CLASS, np.int64)
    # Negated unsigned integers would wrap around.
    keys = -scores.astype(np.float64 if scores.dtype.kind == "f" else np.int64)
    return np.argsort(keys, kind="stable")[:kept].astype(np.int64)


def _score_bounds(gains: float, losses: float, confidence: float) -> Callable[[float], tuple[float, float]]:
    def bounds(n: float) -> tuple[float, float]:
        return (
            tango_bound(gains * n, losses * n, n, confidence),
            -tango_bound(losses * n, gains * n, n, confidence),
        )

    return bounds


def _show(label: Any) -> str:
    value = np.asarray(label)
    return f"{value.dtype}{list(value.shape)}" if value.size != 1 else repr(label)
