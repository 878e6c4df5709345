"""Whether the labels of the evaluation data have anything to do with the source's predictions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgec.errors import DataError
from edgec.evaluation import Evaluation, Metric

_SHUFFLES, _FEWEST_SHUFFLES, _FIRST_SHUFFLES = 99, 19, 9
_FAR = 8.0  # standard deviations: further away than chance comes, so that no more shuffles are needed
_BUDGET_S = 10.0
_LEVEL = 0.01
_FEWEST_SAMPLES = 8  # of fewer, not even a perfect score says anything


def chance_sentence(metric: Metric, found: Evaluation, source: str) -> str | None:
    """Return the warning that the source scores no better than by chance; None where it does.

    By a permutation test, which holds for every metric: the labels are shuffled among the samples, and where
    more than 1 % of the shuffles score as well as the labels themselves, these may as well be wrong. (R. A.
    Fisher, "The Design of Experiments", 1935; the share counts the labels' own order, after B. Phipson and G.
    K. Smyth, "Permutation p-values should never be zero", 2010.)

    Args:
        metric: What is scored.
        found: Of the source in fp32.
        source: Where the labels are from, for the message.
    """
    n = found.score.n
    if n < _FEWEST_SAMPLES:
        return None
    if len(set(map(str, found.labels))) == 1:
        return (
            f"all {n} labels of {source} are {found.labels[0]}: no score can tell a good model from one that "
            "always says that; evaluate with samples of every class"
        )
    shuffled = _shuffled_scores(metric, found)
    own, better = found.score.value, np.greater_equal if metric.higher_is_better else np.less_equal
    level = (1 + int(better(shuffled, own).sum())) / (1 + len(shuffled))
    if level <= max(_LEVEL, 1 / (1 + len(shuffled))):
        return None
    usual = float(np.median(shuffled))
    return (
        f"the source itself scores {metric.name} {own:.3g} on the {n} labelled samples of {source}, no "
        f"better than chance: with the labels shuffled it scores {usual:.3g}{_most(found.labels)}. The "
        "labels are of other samples, in another order, numbered otherwise (from 1, or with a background), "
        "or the pre-processing is wrong; until that is settled, the accuracy gate proves nothing"
    )


def _shuffled_scores(metric: Metric, found: Evaluation) -> np.ndarray[Any, np.dtype[np.float64]]:
    rng, begun, scores = np.random.default_rng(0), time.monotonic(), list[float]()
    for number in range(_SHUFFLES):
        if number >= _FIRST_SHUFFLES and _is_plain(found.score.value, scores, metric.higher_is_better):
            break
        if number >= _FEWEST_SHUFFLES and time.monotonic() - begun > _BUDGET_S:
            break
        order = rng.permutation(len(found.labels))
        try:
            scores.append(metric.score(found.predictions, [found.labels[i] for i in order]).value)
        except DataError:
            continue  # labels that only fit their own sample cannot be of another one
    return np.asarray(scores, np.float64)


def _is_plain(own: float, scores: Sequence[float], higher_is_better: bool) -> bool:
    """Whether no further shuffle can change the verdict: one is as good already, or none comes near."""
    if not scores or not np.isfinite([own, *scores]).all():
        return False
    ahead = (own - np.asarray(scores)) * (1 if higher_is_better else -1)
    return bool((ahead <= 0).any() or ahead.mean() > _FAR * ahead.std(ddof=1))


def _most(labels: Sequence[Any]) -> str:
    """Return how common the most common class is, where labels are classes."""
    if not all(isinstance(label, int | str | np.integer) for label in labels):
        return ""
    [(label, count)] = Counter(str(label) for label in labels).most_common(1)
    return f" ({count / len(labels):.3g} of them are {label})"
