"""Statistics, held against scipy 1.17.1, scikit-learn 1.9.1, statsmodels 0.15.0 and definitions.

Those libraries are no dependency; the figures named after them were computed once, with the very
inputs that stand here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.evaluation import _statistics as statistics

N = np.arange(60)
A = (N * 7919 % 101) / 10
B = (N * 104729 % 23) / 10  # many ties
C = N * N % 17
POSITIVE = (N * 31 % 7) > 3  # 25 of 60


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # statsmodels proportion_confint(..., method="wilson")
        (0, 10, 0.0, 0.27753279986288926),
        (10, 10, 0.7224672001371106, 1.0),
        (1, 20, 0.008881448800795402, 0.2361311934467421),
        (81, 263, 0.2552885198782742, 0.36620957698280004),
        (910, 1000, 0.8906582073569279, 0.926203850684917),
    ],
)
def test_wilson_interval_is_that_of_statsmodels(successes: int, n: int, low: float, high: float) -> None:
    assert statistics.wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-12)


def test_midranks_are_those_of_scipy() -> None:
    assert statistics.midranks(np.array([3, 1, 3, 3, 0, 1])).tolist() == [5.0, 2.5, 5.0, 5.0, 1.0, 2.5]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [  # scipy.stats.spearmanr
        (A, B, 0.13624423280496747),
        (A + N / 3, B + N / 20, 0.7697138093914978),
        (C, POSITIVE, 0.09724828893297195),
        (A, A * A, 1.0),
        (A, -A, -1.0),
        (A, np.zeros(60), 0.0),
    ],
)
def test_spearman_is_that_of_scipy(a: NDArray[Any], b: NDArray[Any], expected: float) -> None:
    assert statistics.spearman(a, b) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [  # sklearn.metrics.roc_auc_score
        (A, 0.5622857142857143),
        (B, 0.6862857142857143),
        (C, 0.5565714285714285),
        (POSITIVE.astype(float), 1.0),
        (np.zeros(60), 0.5),
    ],
)
def test_auc_is_that_of_scikit_learn(scores: NDArray[Any], expected: float) -> None:
    assert statistics.roc_auc(scores, POSITIVE) == pytest.approx(expected, abs=1e-12)


def test_placements_are_what_their_definition_says() -> None:
    below, above = statistics.auc_placements(B, POSITIVE)
    wins = np.sign(B[POSITIVE][:, None] - B[~POSITIVE][None, :]) / 2 + 0.5
    assert below == pytest.approx(wins.mean(axis=1))
    assert above == pytest.approx(wins.mean(axis=0))


def test_standard_error_of_delong_is_what_its_definition_says() -> None:
    first, second = (np.sign(s[POSITIVE][:, None] - s[~POSITIVE][None, :]) / 2 + 0.5 for s in (A, B))
    m, n = first.shape
    s10 = np.cov(first.mean(axis=1), second.mean(axis=1))
    s01 = np.cov(first.mean(axis=0), second.mean(axis=0))
    covariance = s10 / m + s01 / n
    contrast = np.array([-1, 1])
    expected = math.sqrt(contrast @ covariance @ contrast)
    assert statistics.delong_standard_error(A, B, POSITIVE) == pytest.approx(expected, rel=1e-9)


def test_auc_interval_solves_its_equation() -> None:
    low, high = statistics.auc_interval(0.8, 20, 30)
    for theta in (low, high):
        spread = 1 + 24 * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        deviation = math.sqrt(theta * (1 - theta) * spread / 600)
        assert abs(0.8 - theta) == pytest.approx(1.959964 * deviation, rel=1e-6)
    assert low < 0.8 < high


def test_auc_interval_of_a_perfect_separation_is_not_a_point() -> None:
    low, high = statistics.auc_interval(1.0, 10, 10)
    assert 0.7 < low < 0.95
    assert high == pytest.approx(1.0)


def test_spearman_interval_holds_its_value_and_stays_within_the_possible() -> None:
    low, high = statistics.spearman_interval(0.5, 30)
    # Bonett and Wright: tanh(atanh(0.5) -+ 1.96 sqrt((1 + 0.125) / 27))
    assert (low, high) == pytest.approx((0.148132, 0.739503), abs=1e-5)
    low, high = statistics.spearman_interval(1.0, 10)
    assert 0.5 < low < 1.0 == high
    assert statistics.spearman_interval(0.3, 3) == (-1.0, 1.0)


def _restricted_likelihood(gains: int, losses: int, n: int, delta: float) -> float:
    """The share of losses that is most likely were `delta` true, by trying a million of them."""
    low, high = max(0.0, -delta), (1 - delta) / 2
    q = np.linspace(low, high, 1_000_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (n - gains - losses) * np.log(1 - delta - 2 * q)
        if gains:
            likelihood = likelihood + gains * np.log(q + delta)
        if losses:
            likelihood = likelihood + losses * np.log(q)
    return float(q[np.nanargmax(likelihood)])


@pytest.mark.parametrize(
    ("gains", "losses", "n"), [(3, 9, 100), (0, 2, 50), (5, 0, 200), (20, 40, 160), (1, 1, 30)]
)
def test_bound_of_tango_solves_the_score_equation(gains: int, losses: int, n: int) -> None:
    bound = statistics.tango_bound(gains, losses, n)
    q = _restricted_likelihood(gains, losses, n, bound)
    score = (gains - losses - n * bound) / math.sqrt(n * (2 * q + bound * (1 - bound)))
    assert score == pytest.approx(1.6448536, abs=1e-3)


def test_bound_without_discordant_pairs_is_not_zero() -> None:
    assert statistics.tango_bound(0, 0, 100) == pytest.approx(-statistics.zero_change_margin(100))
    assert statistics.zero_change_margin(100) == pytest.approx(1.6448536**2 / (100 + 1.6448536**2))
    assert statistics.zero_change_margin(267) > 0.01 > statistics.zero_change_margin(268)


def test_bound_of_tango_at_the_extremes() -> None:
    assert statistics.tango_bound(0, 50, 50) == -1.0
    assert 0.85 < statistics.tango_bound(50, 0, 50) < 1.0


@pytest.mark.parametrize(
    ("n", "gain", "loss"), [(50, 0.02, 0.02), (80, 0.0, 0.01), (100, 0.05, 0.1), (120, 0.01, 0.03)]
)
def test_bound_of_tango_keeps_its_level(n: int, gain: float, loss: float) -> None:
    """Over every outcome there is, weighted by its probability, the bound lies below the truth."""
    covered = 0.0
    for gains in range(n + 1):
        for losses in range(n + 1 - gains):
            rest = n - gains - losses
            ways = (
                math.lgamma(n + 1) - math.lgamma(gains + 1) - math.lgamma(losses + 1) - math.lgamma(rest + 1)
            )
            if (gain == 0 and gains) or (loss == 0 and losses):
                continue
            log_p = ways + rest * math.log(1 - gain - loss)
            log_p += (gains * math.log(gain) if gains else 0) + (losses * math.log(loss) if losses else 0)
            if log_p > -20 and statistics.tango_bound(gains, losses, n) <= gain - loss:
                covered += math.exp(log_p)
    assert covered > 0.935


def test_bootstrap_weights_are_seeded_counts_in_bounded_blocks() -> None:
    blocks = list(statistics.bootstrap_weights(1 << 20, seed=3, replicates=5))
    assert [len(b) for b in blocks] == [2, 2, 1]
    weights = np.concatenate(list(statistics.bootstrap_weights(50, seed=3)))
    assert weights.shape == (statistics.REPLICATES, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.var() == pytest.approx(0.98, abs=0.02)  # binomial(50, 1/50)
    assert (weights == np.concatenate(list(statistics.bootstrap_weights(50, seed=3)))).all()
    assert (weights != np.concatenate(list(statistics.bootstrap_weights(50, seed=4)))).any()


def test_weighted_spearman_is_that_of_the_drawn_samples() -> None:
    weights = next(statistics.bootstrap_weights(60, seed=1, replicates=20))
    found = statistics.weighted_spearman(A, B, weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        drawn = np.repeat(N, row)
        assert value == pytest.approx(statistics.spearman(A[drawn], B[drawn]), abs=1e-12)


def test_weighted_spearman_of_a_constant_is_zero() -> None:
    weights = next(statistics.bootstrap_weights(60, seed=1, replicates=3))
    assert statistics.weighted_spearman(A, np.zeros(60), weights).tolist() == [0.0, 0.0, 0.0]


def test_one_sided_bounds_are_replicates() -> None:
    assert statistics.one_sided(np.arange(101.0), 0.95) == (5.0, 95.0)
    low, high = statistics.one_sided(np.array([-np.inf] * 10 + [0.0] * 90), 0.95)
    assert (low, high) == (-np.inf, 0.0)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    weights = statistics.jackknife_weights(60)
    assert weights.shape == (60, 60)
    assert (weights == 1 - np.eye(60)).all()
    left_out = weights @ A / weights.sum(axis=1)
    assert statistics.jackknife_error(left_out) == pytest.approx(A.std(ddof=1) / math.sqrt(60))
    assert statistics.jackknife_error(left_out[:1]) == math.inf


def test_jackknife_of_many_samples_leaves_groups_out() -> None:
    weights = statistics.jackknife_weights(1000, groups=50)
    assert weights.shape == (50, 1000)
    assert ((1 - weights).sum(axis=1) == 20).all()
    assert ((1 - weights).sum(axis=0) == 1).all()


def test_concordance_counts_pairs_in_the_same_order() -> None:
    assert statistics.concordance(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(2 / 3)
    assert statistics.concordance(np.array([1, 1, 2]), np.array([1, 1, 2])) == 1.0
    assert statistics.concordance(np.array([1, 1, 2]), np.array([1, 2, 3])) == pytest.approx(2 / 3)
    assert statistics.concordance(np.array([1.0]), np.array([2.0])) == 1.0
    many = np.arange(5000.0)
    assert statistics.concordance(many, many, largest=100) == 1.0
    assert statistics.concordance(many, -many, largest=100) == 0.0
