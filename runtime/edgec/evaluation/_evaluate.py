"""Scoring a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edgec.errors import DataError
from edgec.evaluation._dataset import Dataset
from edgec.evaluation._metric import Metric, Score
from edgec.evaluation._registry import get_metric


class Predictor(Protocol):
    """What can be scored; an `edgec.runtime.Session` is one."""

    def predict(self, sample: Any) -> Mapping[str, Any]:
        """Return the prediction for one sample."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A score and what it was computed from.

    Attributes:
        score: Of the metric.
        predictions: One per sample, cut to what the metric needs; `paired` takes them.
        labels: One per sample.
        names: What each sample is called.
    """

    score: Score
    predictions: list[Mapping[str, Any]]
    labels: list[Any]
    names: list[str]


def evaluate(
    session: Predictor,
    dataset: Dataset,
    metric: Metric | str,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a model on a data set, one sample at a time.

    Args:
        session: The model.
        dataset: With labels.
        metric: The metric, or its name.
        limit: Largest number of samples, spread evenly over the data; None for all.
        progress: Called after each sample with how many are done, and how many there are.

    Raises:
        DataError: The data has no labels, or does not fit the model or the metric.
        InferenceError: The model failed.
        PipelineError: A sample does not fit the model's pipeline.
    """
    chosen = get_metric(metric) if isinstance(metric, str) else metric
    if not dataset.labelled:
        raise DataError(f"{dataset.source} has no labels: metric {chosen.name} needs one per sample")
    total = len(dataset) if limit is None else min(limit, len(dataset))
    predictions: list[Mapping[str, Any]] = []
    labels, names = [], []
    for sample in dataset.select(limit):
        if sample.label is None:
            raise DataError(f"{dataset.source}: sample {sample.name} has no label: label it or leave it out")
        predictions.append(chosen.compact(predict_sample(session.predict, sample.data)))
        labels.append(sample.label)
        names.append(sample.name)
        if progress is not None:
            progress(len(predictions), total)
    return Evaluation(
        score=chosen.score(predictions, labels), predictions=predictions, labels=labels, names=names
    )


def predict_sample(predict: Callable[[Any], Mapping[str, Any]], data: Any) -> Mapping[str, Any]:
    """Return the prediction for a sample's data, by ``Session.predict`` or the like.

    A pair of texts goes through a model of embeddings one by one, and the prediction holds both:
    ``{"embedding", "embedding_b"}``. A model that gives no embedding gets the pair as it is.
    """
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(text, str) for text in data):
        first = predict(data[0])
        if "embedding" in first:
            return {"embedding": first["embedding"], "embedding_b": predict(data[1])["embedding"]}
    return predict(data)
