"""The metrics by name, and the paired comparison of two models under one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgec.evaluation._classification import Top1, Top5
from edgec.evaluation._detection import Map50
from edgec.evaluation._metric import Metric, PairedDifference, Prediction, compare_models
from edgec.evaluation._ranking import Auc, Spearman
from edgec.evaluation._regression import Mse

_METRICS: dict[str, Metric] = {m.name: m for m in (Top1(), Top5(), Map50(), Auc(), Spearman(), Mse())}
METRICS = tuple(_METRICS)


def get_metric(name: str) -> Metric:
    """Return the metric called `name`, one of `METRICS`.

    Raises:
        ValueError: There is none.
    """
    if name not in _METRICS:
        raise ValueError(f"no metric {name!r}; there are {', '.join(METRICS)}")
    return _METRICS[name]


def paired(
    metric: Metric | str,
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
    labels: Sequence[Any],
    *,
    confidence: float = 0.95,
    max_drop: float = 0.01,
    seed: int = 0,
) -> PairedDifference:
    """Judge whether model b loses more than `max_drop` against model a, on the same samples.

    Pairing removes what both have in common, the difficulty of the samples: a much smaller loss can
    be shown than by comparing two scores with their intervals.

    Args:
        metric: The metric, or its name.
        predictions_a: Of the reference, such as the fp32 source.
        predictions_b: Of the candidate, for the same samples in the same order.
        labels: One per sample.
        confidence: Probability of each one-sided bound.
        max_drop: Loss that is allowed, as a fraction: in absolute points of the metric (0.01 allows
            0.91 to become 0.90) for top1, top5, map50, auc and spearman; relative for mse (0.01
            allows 1 % more error).
        seed: Of the bootstrap (spearman, mse).

    Raises:
        DataError: The metric does not fit the predictions or labels, their numbers differ, or there
            are none.
        ValueError: `confidence`, `max_drop` or the metric's name is not valid.
    """
    chosen = get_metric(metric) if isinstance(metric, str) else metric
    return compare_models(
        chosen, predictions_a, predictions_b, labels, confidence=confidence, max_drop=max_drop, seed=seed
    )
