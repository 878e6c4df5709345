"""Mean squared error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgec.errors import DataError
from edgec.evaluation._metric import (
    Comparison,
    Metric,
    Prediction,
    Score,
    bare_output,
    check_lengths,
    scaled_bounds,
)
from edgec.evaluation._statistics import Floats, bootstrap_weights, one_sided

_AGREE_SNR = 100.0  # 20 dB


class Mse(Metric):
    """Mean over the samples of each one's mean squared error; labels are the true values.

    Takes a bare output, ``{"embedding"}`` or ``{"anomaly_score"}``, of as many values as the label.
    A NaN counts as an infinite error. `max_drop` is relative: 0.01 allows 1 % more error than the
    first model has.
    """

    name = "mse"
    unit = "squared error"
    higher_is_better = False
    relative = True

    def compact(self, prediction: Prediction) -> dict[str, Any]:
        return {"values": self._values(prediction)}

    def score(self, predictions: Sequence[Prediction], labels: Sequence[Any]) -> Score:
        errors = self._errors(predictions, labels)
        n = len(errors)
        if n < 2 or not np.isfinite(errors).all():
            return self._score(float(errors.mean()), (0.0, math.inf), n)
        means = np.concatenate([w @ errors / n for w in bootstrap_weights(n, seed=0)])
        low, high = np.quantile(means, [0.025, 0.975])
        return self._score(float(errors.mean()), (float(low), float(high)), n)

    def compare(
        self,
        first: Sequence[Prediction],
        second: Sequence[Prediction],
        labels: Sequence[Any],
        *,
        confidence: float,
        seed: int,
    ) -> Comparison:
        """Paired bootstrap over samples (seeded percentiles) of the relative difference; agreement
        is the share of samples whose two outputs are within 20 dB of each other."""
        check_lengths(labels, first, second)
        a, b = self._errors(first, labels), self._errors(second, labels)
        agreement = float(np.mean([_alike(*pair) for pair in zip(first, second, strict=True)]))
        difference = float(_relative(a.sum(keepdims=True), b.sum(keepdims=True))[0])
        if not (np.isfinite(difference) and np.isfinite(b).all()):
            # An infinite error of the second is a loss beyond any bound; one of the first shows nothing.
            difference = -math.inf if np.isfinite(a).all() else 0.0
            return Comparison(
                difference=difference, agreement=agreement, bounds=lambda _: (-math.inf, difference)
            )
        resampled = np.concatenate([_relative(w @ a, w @ b) for w in bootstrap_weights(len(a), seed)])
        bounds = scaled_bounds(difference, *one_sided(resampled, confidence), len(a), confidence)
        return Comparison(difference=difference, agreement=agreement, bounds=bounds)

    def _values(self, prediction: Prediction) -> Floats:
        for key in ("values", "embedding", "anomaly_score"):
            if key in prediction:
                return np.asarray(prediction[key], np.float64)
        values = bare_output(prediction)
        if values is None:
            raise self._misfit(
                "one output", prediction, "evaluate a model of one output, or use another metric"
            )
        return np.asarray(values, np.float64)

    def _errors(self, predictions: Sequence[Prediction], labels: Sequence[Any]) -> Floats:
        check_lengths(labels, predictions)
        errors = np.zeros(len(labels))
        for i, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
            values, truth = self._values(prediction), np.asarray(label)
            if truth.dtype.kind not in "fiub" or truth.size != values.size:
                raise DataError(
                    f"label {i} is {truth.dtype}{list(truth.shape)}, expected the true values of the output, "
                    f"{list(values.shape)}: label each sample with an array of that size"
                )
            if not np.isfinite(truth).all():
                raise DataError(f"label {i} holds NaN or infinity: leave the sample out")
            error = np.mean(np.square(values.reshape(-1) - truth.reshape(-1).astype(np.float64)))
            errors[i] = math.inf if np.isnan(error) else error
        return errors


def _relative(a: Floats, b: Floats) -> Floats:
    """Return (a - b) / a; where a is 0, 0 if b is 0 too, and -inf if not."""
    nothing = np.where(b > 0, -np.inf, 0.0)
    with np.errstate(invalid="ignore"):  # both infinite
        return np.divide(a - b, a, out=nothing, where=a > 0)


def _alike(first: Prediction, second: Prediction) -> bool:
    a, b = (np.asarray(Mse()._values(p), np.float64).reshape(-1) for p in (first, second))
    with np.errstate(invalid="ignore"):  # infinite in both
        return bool(_AGREE_SNR * np.sum(np.square(a - b)) <= np.sum(np.square(a)))
