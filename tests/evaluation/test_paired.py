from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgec.errors import DataError
from edgec.evaluation import METRICS, paired

Predictions = list[Mapping[str, Any]]


def firsts(n: int, wrong: set[int]) -> Predictions:
    """Predictions of class 0, but 1 for some; the labels are all 0."""
    return [{"classes": np.array([int(i in wrong)])} for i in range(n)]


def test_paired_classes_count_what_only_one_gets_right() -> None:
    found = paired("top1", firsts(400, {0, 1, 2}), firsts(400, {2, 3, 4, 5, 6}), [0] * 400)
    assert found.difference == pytest.approx(-2 / 400)  # 2 gained, 4 lost
    assert found.lower_bound < found.difference < found.upper_bound
    assert (found.n, found.agreement) == (400, 394 / 400)
    assert (found.confidence, found.max_drop) == (0.95, 0.01)


@pytest.mark.parametrize(
    ("n", "lost", "verdict"),
    [
        (100, 0, "inconclusive"),
        (267, 0, "inconclusive"),
        (268, 0, "pass"),
        (300, 2, "inconclusive"),
        (1000, 2, "pass"),
        (10000, 75, "pass"),
        (10000, 85, "inconclusive"),
        (10000, 150, "fail"),
        (300, 12, "fail"),
    ],
)
def test_verdicts(n: int, lost: int, verdict: str) -> None:
    assert paired("top1", firsts(n, set()), firsts(n, set(range(lost))), [0] * n).verdict == verdict


@pytest.mark.parametrize(("n", "lost"), [(100, 0), (300, 2), (10000, 85), (300, 12), (2000, 60)])
def test_needed_n_is_where_the_verdict_turns(n: int, lost: int) -> None:
    needed = paired("top1", firsts(n, set()), firsts(n, set(range(lost))), [0] * n).needed_n
    assert needed is not None
    share = lost / n

    def verdict(samples: int) -> str:
        return paired(
            "top1", firsts(samples, set()), firsts(samples, set(range(round(share * samples)))), [0] * samples
        ).verdict

    # Shares of samples are whole only now and then: look at the next place where they are.
    step = 1 if not lost else n // math.gcd(n, lost)
    assert verdict(math.ceil(needed / step) * step + step) != "inconclusive"
    before = (needed - 1) // step * step
    assert before == 0 or verdict(before) == "inconclusive"


def test_exactly_the_allowed_loss_is_never_decided() -> None:
    found = paired("top1", firsts(1000, set()), firsts(1000, set(range(10))), [0] * 1000)
    assert (found.verdict, found.needed_n) == ("inconclusive", None)


def test_a_gain_passes_and_max_drop_matters() -> None:
    better = paired("top1", firsts(500, set(range(50))), firsts(500, set(range(10))), [0] * 500)
    assert better.verdict == "pass"
    assert better.difference == pytest.approx(0.08)
    assert better.lower_bound > 0
    worse = firsts(500, set(range(10)))
    assert paired("top1", firsts(500, set()), worse, [0] * 500, max_drop=0.05).verdict == "pass"
    assert paired("top1", firsts(500, set()), worse, [0] * 500, max_drop=0.0).verdict == "fail"


def test_more_confidence_gives_a_lower_bound() -> None:
    a, b = firsts(500, set()), firsts(500, {1, 2})
    bounds = [paired("top1", a, b, [0] * 500, confidence=c).lower_bound for c in (0.8, 0.95, 0.99)]
    assert bounds == sorted(bounds, reverse=True)


def test_agreement_of_classes_is_not_that_of_being_right() -> None:
    both_wrong = [{"classes": np.array([1])}] * 5, [{"classes": np.array([2])}] * 5
    found = paired("top1", *both_wrong, [0] * 5)
    assert (found.difference, found.agreement) == (0.0, 0.0)


def test_top5_pairs_by_what_is_among_five() -> None:
    a = [{"classes": np.arange(5)}] * 300
    b = [{"classes": np.arange(5)[::-1]}] * 300
    found = paired("top5", a, b, [3] * 300)
    assert (found.difference, found.verdict, found.agreement) == (0.0, "pass", 0.0)


RNG = np.random.default_rng(11)
TRUTH = RNG.normal(size=500)
NOISY = TRUTH + 0.5 * RNG.normal(size=500)


def scores(values: Any) -> Predictions:
    return [{"anomaly_score": float(v)} for v in values]


def data(name: str, noise: float) -> tuple[Predictions, Predictions, list[Any]]:
    """A model, the same with noise added to what it says, and labels; for every metric."""
    other = NOISY + noise * np.random.default_rng(5).normal(size=500)
    if name == "auc":
        return scores(NOISY), scores(other), list((TRUTH > 0).astype(int))
    if name in ("spearman", "mse"):
        return scores(NOISY), scores(other), list(TRUTH)
    if name == "map50":
        return boxes(NOISY), boxes(other), [np.array([[0, 0, 10, 10, 0]])] * 500
    order = np.arange(6)

    def near(values: Any) -> Predictions:
        return [{"y": (-np.abs(order - v))[None]} for v in 2 * values + 3]

    return near(NOISY), near(other), list(np.clip(np.rint(2 * TRUTH + 3), 0, 5).astype(int))


def boxes(values: Any) -> Predictions:
    """A box that moves away from the labelled one as the value grows."""
    return [
        {"boxes": np.array([[v, 0, v + 10, 10]]), "scores": np.array([0.5]), "classes": np.array([0])}
        for v in np.abs(values) * 3
    ]


@pytest.mark.parametrize("name", METRICS)
def test_one_or_two_samples_prove_nothing(name: str) -> None:
    a, b, labels = data(name, 3.0)
    some = [0, int(np.argmax(np.asarray(labels) != labels[0]))] if name == "auc" else [0]
    found = paired(name, [a[i] for i in some], [b[i] for i in some], [labels[i] for i in some])
    assert found.lower_bound < -0.5
    assert found.verdict in ("inconclusive", "fail")


@pytest.mark.parametrize("name", METRICS)
def test_identical_models_agree_and_no_bound_is_zero(name: str) -> None:
    a, _, labels = data(name, 0.0)
    found = paired(name, a, a, labels)
    assert (found.difference, found.agreement, found.verdict) == (0.0, 1.0, "pass")
    assert found.lower_bound == pytest.approx(-0.00538, abs=1e-5)  # nothing of 500 changed
    few = paired(name, a[:50], a[:50], labels[:50])
    assert (few.verdict, few.needed_n) == ("inconclusive", 268)


@pytest.mark.parametrize("name", METRICS)
def test_noise_costs_and_much_of_it_fails(name: str) -> None:
    a, little, labels = data(name, 0.001)
    assert paired(name, a, little, labels).verdict == "pass"
    a, much, labels = data(name, 3.0)
    found = paired(name, a, much, labels)
    assert found.difference < -0.05
    assert found.lower_bound < found.difference < found.upper_bound < -0.01
    assert found.verdict == "fail"
    assert found.agreement < 0.95
    assert paired(name, much, a, labels).verdict == "pass"


@pytest.mark.parametrize("name", METRICS)
def test_the_same_seed_gives_the_same_bounds(name: str) -> None:
    a, b, labels = data(name, 0.3)
    assert paired(name, a, b, labels) == paired(name, a, b, labels)


@pytest.mark.parametrize("name", ["spearman", "mse"])
def test_another_seed_gives_bounds_close_by(name: str) -> None:
    a, b, labels = data(name, 1.0)
    first, second = (paired(name, a, b, labels, seed=seed) for seed in (0, 1))
    width = first.upper_bound - first.lower_bound
    assert abs(first.lower_bound - second.lower_bound) < 0.15 * width
    assert first.lower_bound != second.lower_bound


@pytest.mark.parametrize("name", METRICS)
def test_needed_n_comes_down_with_more_samples_of_the_same(name: str) -> None:
    a, b, labels = data(name, 0.01)
    found = paired(name, a * 4, b * 4, labels * 4)
    assert found.verdict in ("pass", "fail")
    assert found.needed_n is not None
    assert found.needed_n <= found.n


def test_mse_is_relative_and_a_lower_error_is_better() -> None:
    zeros = np.zeros(400)
    half = paired("mse", scores(zeros + 2), scores(zeros + 1), list(zeros))
    assert half.difference == pytest.approx(0.75)  # 4 became 1
    worse = paired("mse", scores(zeros + 1), scores(zeros + 1.09), list(zeros))
    assert worse.difference == pytest.approx(-0.1881)
    assert worse.verdict == "fail"
    assert worse.agreement == 1.0  # 9 % off is 20.9 dB


def test_mse_against_a_perfect_model() -> None:
    zeros = np.zeros(400)
    assert paired("mse", scores(zeros), scores(zeros), list(zeros)).verdict == "pass"
    worse = paired("mse", scores(zeros), scores(zeros + 1), list(zeros))
    assert (worse.difference, worse.verdict) == (-math.inf, "fail")


@pytest.mark.parametrize("name", METRICS)
def test_a_model_that_gives_nan_fails(name: str) -> None:
    a, _, labels = data(name, 0.0)
    broken: dict[str, Mapping[str, Any]] = {
        "map50": {"boxes": np.full((1, 4), np.nan), "scores": np.ones(1), "classes": np.zeros(1)},
        "top1": {"y": np.full((1, 6), np.nan)},
        "top5": {"y": np.full((1, 6), np.nan)},
    }
    nan = broken.get(name, {"anomaly_score": math.nan})
    assert paired(name, a, [nan] * 500, labels).verdict == "fail"


def test_a_reference_that_gives_nan_proves_nothing() -> None:
    a, _, labels = data("mse", 0.0)
    nan: Predictions = [{"anomaly_score": math.nan}] * 500
    assert paired("mse", nan, a, labels).verdict == "inconclusive"


def test_agreement_of_auc_is_that_of_decisions() -> None:
    a = scores([0, 1, 2, 3, 10, 11, 12, 13])
    b = scores([0, 1, 2, 11, 10, 9, 12, 13])
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    # The best threshold of the first is 10: samples 3 and 5 fall on other sides of it in the second.
    assert paired("auc", a, b, labels).agreement == 6 / 8


def test_agreement_of_detectors_is_the_share_of_partners() -> None:
    a = [{"boxes": np.array([[0, 0, 9, 9], [20, 20, 29, 29]]), "scores": np.ones(2), "classes": np.zeros(2)}]
    b = [{"boxes": np.array([[0, 0, 9, 8], [50, 50, 59, 59]]), "scores": np.ones(2), "classes": np.zeros(2)}]
    found = paired("map50", a, b, [np.array([[0, 0, 9, 9, 0]])])
    assert found.agreement == 0.5
    nothing = [{"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "classes": np.zeros(0)}]
    assert paired("map50", nothing, nothing, [np.array([[0, 0, 9, 9, 0]])]).agreement == 1.0


def test_wrong_arguments_are_refused() -> None:
    a = firsts(3, set())
    with pytest.raises(DataError, match="got 3 labels for 2"):
        paired("top1", a, a[:2], [0] * 3)
    with pytest.raises(ValueError, match="confidence is a probability between"):
        paired("top1", a, a, [0] * 3, confidence=95)
    with pytest.raises(ValueError, match="max_drop is a fraction"):
        paired("top1", a, a, [0] * 3, max_drop=1)
    with pytest.raises(ValueError, match="no metric 'accuracy'"):
        paired("accuracy", a, a, [0] * 3)
