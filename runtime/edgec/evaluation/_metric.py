"""What a metric is: a score with its uncertainty, and a paired comparison of two models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DataError
from edgec.evaluation._statistics import zero_change_margin

Prediction = Mapping[str, Any]
Verdict = Literal["pass", "fail", "inconclusive"]
_MOST_SAMPLES = 10**9


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value on a data set.

    Attributes:
        value: In `unit`.
        ci95: Two-sided 95 % confidence interval of the value over the population of samples.
        n: Samples it was computed from.
        higher_is_better: Whether larger values are better.
        unit: ``fraction`` (0..1), ``correlation`` (-1..1) or ``squared error``.
    """

    value: float
    ci95: tuple[float, float]
    n: int
    higher_is_better: bool
    unit: str


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How much better a second model is than a first, on the same samples.

    Attributes:
        difference: Second minus first, positive where the second is better: in absolute points of
            the metric (a fraction: -0.004 is 0.4 points worse), for ``mse`` relative to the first.
        lower_bound: The true difference is above it with probability `confidence` (one-sided).
        upper_bound: The true difference is below it with probability `confidence` (one-sided).
        n: Samples.
        agreement: Share of samples on which both models say the same, see `Metric.compare`.
        max_drop: Loss that is allowed, in the same terms as `difference`: 0.01.
        verdict: ``pass`` where the lower bound is at least -`max_drop`, ``fail`` where the upper
            bound is below it, ``inconclusive`` where the samples are too few to say.
        needed_n: How many samples would make the verdict conclusive, were the second model to go on
            as on these; None where no number would (the difference is exactly -`max_drop`).
        confidence: Probability of each bound.
    """

    difference: float
    lower_bound: float
    upper_bound: float
    n: int
    agreement: float
    max_drop: float
    verdict: Verdict
    needed_n: int | None
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a metric knows of two models before a verdict.

    Attributes:
        difference: As in `PairedDifference`.
        agreement: As in `PairedDifference`.
        bounds: From a number of samples to the one-sided lower and upper bound that so many would
            give, were they like these.
    """

    difference: float
    agreement: float
    bounds: Callable[[float], tuple[float, float]]


class Metric(ABC):
    """Turns predictions and labels into a score.

    Attributes:
        name: As on the command line: ``top1``.
        unit: Of the score's value.
        higher_is_better: Whether larger values are better.
        relative: Whether differences are relative to the first model's value.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    relative: ClassVar[bool] = False

    @abstractmethod
    def compact(self, prediction: Prediction) -> dict[str, Any]:
        """Return the part of a prediction that `score` and `compare` need.

        What it returns is itself a prediction that every method takes; keeping many of them takes
        little memory.

        Raises:
            DataError: The metric does not fit what the model predicts.
        """

    @abstractmethod
    def score(self, predictions: Sequence[Prediction], labels: Sequence[Any]) -> Score:
        """Return the score of `predictions`, one per label.

        A NaN in a prediction counts against the model, it never raises.

        Raises:
            DataError: The metric does not fit the predictions or the labels, their numbers differ,
                or there are none.
        """

    @abstractmethod
    def compare(
        self,
        first: Sequence[Prediction],
        second: Sequence[Prediction],
        labels: Sequence[Any],
        *,
        confidence: float,
        seed: int,
    ) -> Comparison:
        """Compare two models' predictions for the same samples; see `paired`.

        Raises:
            DataError: As `score`.
        """

    def _score(self, value: float, ci95: tuple[float, float], n: int) -> Score:
        return Score(value=value, ci95=ci95, n=n, higher_is_better=self.higher_is_better, unit=self.unit)

    def _misfit(self, expected: str, prediction: Prediction, remedy: str) -> DataError:
        return DataError(
            f"metric {self.name} needs {expected}, the model predicts {describe(prediction)}: {remedy}"
        )


def compare_models(
    metric: Metric,
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    labels: Sequence[Any],
    *,
    confidence: float = 0.95,
    max_drop: float = 0.01,
    seed: int = 0,
) -> PairedDifference:
    """Judge whether `second` loses more than `max_drop` against `first`; see `paired`."""
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence is a probability between 0.5 and 1, got {confidence}")
    if not 0 <= max_drop < 1:
        raise ValueError(f"max_drop is a fraction, 0.01 for 1 %, got {max_drop}")
    comparison = metric.compare(first, second, labels, confidence=confidence, seed=seed)
    lower, upper = comparison.bounds(len(labels))
    return PairedDifference(
        difference=comparison.difference,
        lower_bound=lower,
        upper_bound=upper,
        n=len(labels),
        agreement=comparison.agreement,
        max_drop=max_drop,
        verdict=_verdict(lower, upper, max_drop),
        needed_n=_needed_n(comparison.bounds, max_drop),
        confidence=confidence,
    )


def _verdict(lower: float, upper: float, max_drop: float) -> Verdict:
    if lower >= -max_drop:
        return "pass"
    return "fail" if upper < -max_drop else "inconclusive"


def _needed_n(bounds: Callable[[float], tuple[float, float]], max_drop: float) -> int | None:
    """The more samples, the narrower the bounds: look for the fewest that decide."""

    def conclusive(n: float) -> bool:
        return _verdict(*bounds(n), max_drop) != "inconclusive"

    if not conclusive(_MOST_SAMPLES):
        return None
    few, many = 0, 1
    while not conclusive(many):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if conclusive(middle) else (middle, many)
    return many


def scaled_bounds(
    difference: float, lower: float, upper: float, n: int, confidence: float
) -> Callable[[float], tuple[float, float]]:
    """Return `Comparison.bounds` from the bounds that `n` samples gave.

    The distance to the difference shrinks with the square root of the number of samples. It is
    never less than `zero_change_margin`: resampling samples that show no change at all says nothing
    of those that were not seen.
    """

    def bounds(samples: float) -> tuple[float, float]:
        margin = zero_change_margin(samples, confidence)
        shrink = sqrt(n / samples)
        return (
            difference - max((difference - lower) * shrink, margin),
            difference + max((upper - difference) * shrink, margin),
        )

    return bounds


def check_lengths(labels: Sequence[Any], *predictions: Sequence[Prediction]) -> None:
    """Do nothing if there is a label for every prediction, and at least one.

    Raises:
        DataError: Otherwise.
    """
    for each in predictions:
        if len(each) != len(labels):
            raise DataError(f"expected one label per prediction, got {len(labels)} labels for {len(each)}")
    if not len(labels):
        raise DataError("no labelled samples to score: give a data set that has some")


def describe(prediction: Prediction) -> str:
    """Return names and shapes of a prediction's parts, for messages."""
    return ", ".join(
        f"{name} {list(value.shape)}" if isinstance(value, np.ndarray) else name
        for name, value in prediction.items()
    )


def bare_output(prediction: Prediction) -> NDArray[Any] | None:
    """Return the only array of a prediction that is the model's bare output; None if it is not one."""
    if len(prediction) != 1:
        return None
    (value,) = prediction.values()
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else None
