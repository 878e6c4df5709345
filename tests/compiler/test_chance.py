"""Labels that have nothing to do with what the source predicts are told; those that have are not doubted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgec.compiler.chance import chance_sentence
from edgec.evaluation import Boxes, Evaluation, get_metric

N = 60


def evaluation(metric: str, predictions: Sequence[Any], labels: Sequence[Any]) -> Evaluation:
    score = get_metric(metric).score(predictions, labels)
    return Evaluation(
        score=score, predictions=list(predictions), labels=list(labels), names=[""] * len(labels)
    )


def task(metric: str, n: int, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Return predictions that are somewhat right, and labels."""
    rng = np.random.default_rng(seed)
    if metric in ("top1", "top5"):
        truth = rng.integers(0, 20, n)
        scores = rng.standard_normal((n, 20)) + 1.5 * np.eye(20)[truth]
        return [{"scores": row} for row in scores], truth.tolist()
    if metric == "map50":
        corners = rng.uniform(0, 50, (n, 2))
        boxes = np.hstack([corners, corners + 20]).astype(np.float32)
        zero, no = np.zeros(1, np.int64), np.zeros(1, np.bool_)
        labels = [Boxes(boxes=box[None], classes=zero, ignore=no) for box in boxes]
        predictions = [
            {"boxes": b[None], "classes": np.zeros(1, np.int64), "scores": rng.random(1)} for b in boxes
        ]
        return predictions, labels
    if metric == "auc":
        odd = rng.integers(0, 2, n)
        return [{"anomaly_score": s} for s in odd + rng.standard_normal(n)], odd.tolist()
    values = rng.standard_normal(n)
    guesses = values + rng.standard_normal(n)
    if metric == "spearman":
        return [{"similarity": g} for g in guesses], values.tolist()
    return [{"values": np.array([g])} for g in 0.7 * guesses], [np.array([v]) for v in values]


METRICS = ["top1", "top5", "map50", "auc", "spearman", "mse"]


@pytest.mark.parametrize("metric", METRICS)
def test_labels_of_their_own_samples_are_believed(metric: str) -> None:
    found = evaluation(metric, *task(metric, N))
    assert chance_sentence(get_metric(metric), found, "data.npz") is None


@pytest.mark.parametrize("metric", METRICS)
def test_labels_of_other_samples_are_told(metric: str) -> None:
    predictions, labels = task(metric, N)
    order = np.random.default_rng(1).permutation(N)
    found = evaluation(metric, predictions, [labels[i] for i in order])
    said = chance_sentence(get_metric(metric), found, "data.npz")
    assert said is not None
    assert f"the source itself scores {metric} " in said
    assert "60 labelled samples of data.npz, no better than chance" in said


def test_a_rare_class_is_no_reason_for_doubt() -> None:
    # Right less often than one that always says 0 would be, and yet no chance.
    rng = np.random.default_rng(2)
    labels = (rng.random(400) < 0.1).astype(int)
    said = np.where(labels == 1, rng.random(400) < 0.9, rng.random(400) < 0.15).astype(int)
    found = evaluation("top1", [{"scores": np.eye(2)[s]} for s in said], labels.tolist())
    assert found.score.value < 0.9
    assert chance_sentence(get_metric("top1"), found, "data.npz") is None


def test_one_class_alone_proves_nothing() -> None:
    predictions, _ = task("top1", 20)
    found = evaluation("top1", predictions, [3] * 20)
    assert "all 20 labels of data.npz are 3" in (chance_sentence(get_metric("top1"), found, "data.npz") or "")


def test_a_handful_of_samples_is_not_judged() -> None:
    predictions, labels = task("top1", 7)
    found = evaluation("top1", predictions, labels[::-1])
    assert chance_sentence(get_metric("top1"), found, "data.npz") is None
