"""Metrics of order: auc and spearman."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DataError
from edgec.evaluation._classification import class_number
from edgec.evaluation._metric import (
    Comparison,
    Metric,
    Prediction,
    Score,
    bare_output,
    check_lengths,
    scaled_bounds,
)
from edgec.evaluation._statistics import (
    Floats,
    auc_interval,
    bootstrap_weights,
    concordance,
    delong_standard_error,
    normal_quantile,
    one_sided,
    roc_auc,
    spearman,
    spearman_interval,
    weighted_spearman,
)


class Auc(Metric):
    """Area under the ROC curve; labels are 0 (normal) and 1 (positive, anomalous).

    Takes ``{"anomaly_score"}``, ``{"classes", "scores"}`` with both of two classes, or a bare output
    of one value, or of two (the score is then class 1 minus class 0: the same order for
    probabilities and for logits). A NaN is ranked on the wrong side of everything.
    """

    name = "auc"
    unit = "fraction"

    def compact(self, prediction: Prediction) -> dict[str, Any]:
        if "anomaly_score" in prediction:
            return {"anomaly_score": float(np.asarray(prediction["anomaly_score"]).reshape(-1)[0])}
        if "classes" in prediction and "boxes" not in prediction:
            return {"anomaly_score": self._two_classes(prediction)}
        values = bare_output(prediction)
        if values is None or values.size not in (1, 2) or (values.size == 2 and values.shape[-1] != 2):
            raise self._misfit(
                "one score, or the scores of two classes",
                prediction,
                "add a post-processing step that gives an anomaly score (reconstruction error)",
            )
        flat = values.reshape(-1).astype(np.float64)
        return {"anomaly_score": float(flat[0] if flat.size == 1 else flat[1] - flat[0])}

    def score(self, predictions: Sequence[Prediction], labels: Sequence[Any]) -> Score:
        positive = self._positive(labels, predictions)
        value = roc_auc(self._scores(predictions, positive), positive)
        count = int(positive.sum())
        return self._score(value, auc_interval(value, count, len(positive) - count), len(positive))

    def compare(
        self,
        first: Sequence[Prediction],
        second: Sequence[Prediction],
        labels: Sequence[Any],
        *,
        confidence: float,
        seed: int,
    ) -> Comparison:
        """DeLong's method; agreement is the share of samples that fall on the same side of the
        threshold which is best for the first model (largest Youden index on these samples)."""
        positive = self._positive(labels, first, second)
        a, b = self._scores(first, positive), self._scores(second, positive)
        difference = roc_auc(b, positive) - roc_auc(a, positive)
        half = normal_quantile(confidence) * delong_standard_error(a, b, positive)
        threshold = _best_threshold(a, positive)
        return Comparison(
            difference=difference,
            agreement=float(np.mean((a >= threshold) == (b >= threshold))),
            bounds=scaled_bounds(difference, difference - half, difference + half, len(a), confidence),
        )

    def _two_classes(self, prediction: Prediction) -> float:
        scores = dict(
            zip(
                np.asarray(prediction["classes"]).reshape(-1).tolist(),
                np.asarray(prediction["scores"], np.float64).reshape(-1).tolist(),
                strict=True,
            )
        )
        if set(scores) != {0, 1}:
            raise self._misfit(
                "the scores of classes 0 and 1",
                prediction,
                "a model of two classes needs k = 2 in the pipeline's top-k; for more, use top1",
            )
        return float(scores[1] - scores[0])

    def _positive(self, labels: Sequence[Any], *predictions: Sequence[Prediction]) -> NDArray[np.bool_]:
        check_lengths(labels, *predictions)
        numbers = np.asarray([class_number(label, i) for i, label in enumerate(labels)])
        if set(numbers.tolist()) != {0, 1}:
            raise DataError(
                f"metric auc needs labels 0 and 1, both of them, got {sorted(set(numbers.tolist()))[:5]}: "
                "label normal samples 0 and positive ones 1"
            )
        return np.asarray(numbers == 1)

    def _scores(self, predictions: Sequence[Prediction], positive: NDArray[np.bool_]) -> Floats:
        scores = np.asarray([self.compact(p)["anomaly_score"] for p in predictions], np.float64)
        return np.where(np.isnan(scores), np.where(positive, -math.inf, math.inf), scores)


class Spearman(Metric):
    """Rank correlation of predictions with graded labels.

    Takes ``{"embedding", "embedding_b"}``, the embeddings of two texts, whose cosine is the
    prediction (`predict_sample` makes them from a pair), ``{"similarity"}``, ``{"anomaly_score"}``,
    or a bare output of one value. A NaN ranks below everything.
    """

    name = "spearman"
    unit = "correlation"

    def compact(self, prediction: Prediction) -> dict[str, Any]:
        if "embedding_b" in prediction:
            return {"similarity": _cosine(prediction["embedding"], prediction["embedding_b"])}
        for key in ("similarity", "anomaly_score"):
            if key in prediction:
                return {"similarity": float(np.asarray(prediction[key]).reshape(-1)[0])}
        values = bare_output(prediction)
        if values is None or values.size != 1:
            raise self._misfit(
                "one value, or the embeddings of a pair of texts",
                prediction,
                "give pairs of texts with a score, or a post-processing step that gives an embedding",
            )
        return {"similarity": float(values.reshape(-1)[0])}

    def score(self, predictions: Sequence[Prediction], labels: Sequence[Any]) -> Score:
        check_lengths(labels, predictions)
        value = spearman(self._values(predictions), _graded(labels))
        return self._score(value, spearman_interval(value, len(labels)), len(labels))

    def compare(
        self,
        first: Sequence[Prediction],
        second: Sequence[Prediction],
        labels: Sequence[Any],
        *,
        confidence: float,
        seed: int,
    ) -> Comparison:
        """Paired bootstrap over samples (seeded percentiles); agreement is the share of pairs of
        samples that both models put in the same order."""
        check_lengths(labels, first, second)
        truth, a, b = _graded(labels), self._values(first), self._values(second)
        difference = spearman(b, truth) - spearman(a, truth)
        resampled = np.concatenate(
            [
                weighted_spearman(b, truth, w) - weighted_spearman(a, truth, w)
                for w in bootstrap_weights(len(truth), seed)
            ]
        )
        return Comparison(
            difference=difference,
            agreement=concordance(a, b),
            bounds=scaled_bounds(difference, *one_sided(resampled, confidence), len(truth), confidence),
        )

    def _values(self, predictions: Sequence[Prediction]) -> Floats:
        values = np.asarray([self.compact(p)["similarity"] for p in predictions], np.float64)
        return np.where(np.isnan(values), -math.inf, values)


def _graded(labels: Sequence[Any]) -> Floats:
    try:
        values = np.asarray([float(np.asarray(label).reshape(-1)[0]) for label in labels], np.float64)
    except (TypeError, ValueError, IndexError) as e:
        raise DataError(f"metric spearman needs one number per sample as its label: {e}") from e
    if not np.isfinite(values).all():
        raise DataError(f"label {int(np.argmin(np.isfinite(values)))} is not a finite number")
    return values


def _cosine(a: Any, b: Any) -> float:
    x, y = (np.asarray(v, np.float64).reshape(-1) for v in (a, b))
    if x.shape != y.shape:
        raise DataError(f"embeddings of a pair differ in length: {len(x)} and {len(y)}")
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm > 0 else 0.0


def _best_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the score from which on a sample is called positive, with the largest Youden index."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order]) / positive.sum()
    alarms = np.cumsum(~positive[order]) / (~positive).sum()
    # A threshold takes all samples of its score: only the last of equal scores counts.
    last = np.append(scores[order][1:] != scores[order][:-1], True)
    youden = np.where(last, hits - alarms, -math.inf)
    return float(scores[order][int(np.argmax(youden))])
