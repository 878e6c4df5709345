"""Statistics that neither numpy nor the standard library has.

A device carries no scipy. Every function names the source of its method; the tests hold each one
against figures of scipy, scikit-learn or the paper that gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REPLICATES = 2000
_CHUNK_VALUES = 1 << 21  # values of one block of bootstrap weights: 16 MiB


def normal_quantile(probability: float) -> float:
    """Return the quantile of the standard normal distribution: 1.645 for 0.95."""
    return NormalDist().inv_cdf(probability)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided score interval of a proportion.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
    (1927). Never degenerate: 10 of 10 gives 0.72 .. 1.
    """
    z = normal_quantile(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def tango_bound(gains: float, losses: float, n: float, confidence: float = 0.95) -> float:
    """Return the one-sided lower bound of the difference of two paired proportions.

    Score interval for paired proportions: T. Tango, "Equivalence test and confidence interval for
    the difference in proportions for the paired-sample design", Statistics in Medicine 17 (1998).
    It keeps its level with few discordant pairs; with none it is -z^2 / (n + z^2), not 0.

    Args:
        gains: Pairs in which only the second is right. Need not be whole.
        losses: Pairs in which only the first is right.
        n: All pairs.
        confidence: Probability that the bound lies below the true difference.
    """
    z = normal_quantile(confidence)

    def score(delta: float) -> float:
        b = -gains - losses + (2 * n - gains + losses) * delta
        c = -losses * delta * (1 - delta)
        # Restricted maximum likelihood estimate of the share of losses, were `delta` true.
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        if variance <= 0:
            return math.inf if gains - losses > n * delta else 0.0
        return (gains - losses - n * delta) / math.sqrt(variance)

    # `score` falls with delta: from above z at -1 to 0 at the observed difference.
    return bisect(lambda delta: score(delta) >= z, -1.0, (gains - losses) / n)


def bisect(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where `holds` turns false on the way from `inside`, where it holds, to `outside`."""
    for _ in range(200):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside


def zero_change_margin(n: float, confidence: float = 0.95) -> float:
    """Return how much may change in the population though nothing changed in `n` samples.

    It is z^2 / (n + z^2): what `tango_bound` gives without discordant pairs, a relative of the rule
    of three. 268 samples without a change show at 95 % that at most 1 % change.
    """
    z2 = normal_quantile(confidence) ** 2
    return z2 / (n + z2)


def midranks(values: NDArray[Any]) -> Floats:
    """Return the ranks of `values`, from 1; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group.reshape(-1)], dtype=np.float64)


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return Spearman's rank correlation, with midranks for ties; 0 where one side is constant."""
    return pearson(midranks(a), midranks(b))


def pearson(a: Floats, b: Floats) -> float:
    """Return the product-moment correlation; 0 where one side is constant."""
    da, db = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(da @ da) * float(db @ db))
    return max(-1.0, min(1.0, float(da @ db) / scale)) if scale > 0 else 0.0


def spearman_interval(r: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of Spearman's correlation.

    Fisher's z with the standard error of D. G. Bonett and T. A. Wright, "Sample size requirements
    for estimating Pearson, Kendall and Spearman correlations", Psychometrika 65 (2000).
    """
    if n < 4:
        return -1.0, 1.0
    # At |r| = 1 the transform is infinite; one step of the coarsest correlation of n ranks inside it is not.
    inside = 1 - 6 / (n * (n * n - 1))
    bounded = max(-inside, min(inside, r))
    half = normal_quantile(0.5 + confidence / 2) * math.sqrt((1 + bounded * bounded / 2) / (n - 3))
    low, high = math.tanh(math.atanh(bounded) - half), math.tanh(math.atanh(bounded) + half)
    return min(low, r), max(high, r)


def roc_auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: P(positive scores higher) + P(equal) / 2."""
    m, n = int(positive.sum()), int((~positive).sum())
    return float((midranks(scores)[positive].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(auc: float, positives: int, negatives: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided score interval of an area under the ROC curve.

    Method 5 of R. G. Newcombe, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic. Part 2", Statistics in Medicine 25 (2006). Unlike DeLong's, it is not
    degenerate for a perfect separation.
    """
    z = normal_quantile(0.5 + confidence / 2)
    pseudo = (positives + negatives) / 2 - 1

    def plausible(theta: float) -> bool:
        spread = 1 + pseudo * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * spread / (positives * negatives)
        return abs(auc - theta) <= z * math.sqrt(variance)

    return bisect(plausible, auc, 0.0), bisect(plausible, auc, 1.0)


def auc_placements(scores: NDArray[Any], positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return for each positive the share of negatives below it, and for each negative the share of
    positives above it, ties counting half: the structural components of DeLong's method.

    By midranks: X. Sun and W. Xu, "Fast implementation of DeLong's algorithm", IEEE Signal
    Processing Letters 21 (2014).
    """
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = midranks(scores)
    below = (ranks[positive] - midranks(scores[positive])) / n
    above = 1 - (ranks[~positive] - midranks(scores[~positive])) / m
    return below, above


def delong_standard_error(a: NDArray[Any], b: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Return the standard error of AUC(b) - AUC(a) on the same samples.

    E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the areas under two or more
    correlated receiver operating characteristic curves", Biometrics 44 (1988).
    """
    below_a, above_a = auc_placements(a, positive)
    below_b, above_b = auc_placements(b, positive)
    variance = 0.0
    for change in (below_b - below_a, above_b - above_a):
        if len(change) > 1:
            variance += float(change.var(ddof=1)) / len(change)
    return math.sqrt(variance)


def bootstrap_weights(n: int, seed: int, replicates: int = REPLICATES) -> Iterator[Floats]:
    """Yield how often each of `n` samples was drawn, in blocks of replicates: ``float64[b, n]``.

    The same seed gives the same weights. Memory is bounded however large `n` is (one replicate at
    least is in a block).
    """
    rng = np.random.default_rng(seed)
    block = max(1, min(replicates, _CHUNK_VALUES // n))
    done = 0
    while done < replicates:
        rows = min(block, replicates - done)
        drawn = rng.integers(0, n, size=(rows, n))
        drawn += np.arange(rows)[:, None] * n
        yield np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n).astype(np.float64)
        done += rows


def jackknife_weights(n: int, groups: int = 200) -> Floats:
    """Return, for each group of samples, weights that leave it out: ``float64[min(n, groups), n]``.

    Up to `groups` samples each is a group of its own.
    """
    groups = min(n, groups)
    return np.asarray(np.arange(n)[None, :] % groups != np.arange(groups)[:, None], dtype=np.float64)


def jackknife_error(left_out: Floats) -> float:
    """Return the standard error of a statistic from its values with each group left out.

    J. W. Tukey, "Bias and confidence in not-quite large samples", Annals of Mathematical Statistics
    29 (1958). It errs on the large side: B. Efron and C. Stein, "The jackknife estimate of variance",
    Annals of Statistics 9 (1981). Infinite for fewer than two groups.
    """
    groups = len(left_out)
    if groups < 2:
        return math.inf
    return math.sqrt((groups - 1) * float(np.var(left_out)))


def one_sided(resampled: Floats, confidence: float) -> tuple[float, float]:
    """Return the lower and upper one-sided percentile bounds of bootstrap replicates.

    B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. Quantiles
    are replicates, the outer ones, so that infinite replicates are no trouble.
    """
    return (
        float(np.quantile(resampled, 1 - confidence, method="lower")),
        float(np.quantile(resampled, confidence, method="higher")),
    )


def weighted_spearman(a: NDArray[Any], b: NDArray[Any], weights: Floats) -> Floats:
    """Return Spearman's correlation of each resample that a row of `weights` describes."""
    ranks_a, ranks_b = _weighted_midranks(a, weights), _weighted_midranks(b, weights)
    total = weights.sum(axis=1)
    # The mean of midranks is (n + 1) / 2 whatever the ties.
    da, db = ranks_a - ((total + 1) / 2)[:, None], ranks_b - ((total + 1) / 2)[:, None]
    covariance = (weights * da * db).sum(axis=1)
    scale = np.sqrt((weights * da * da).sum(axis=1) * (weights * db * db).sum(axis=1))
    return np.asarray(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0))


def _weighted_midranks(values: NDArray[Any], weights: Floats) -> Floats:
    _, group = np.unique(values, return_inverse=True)
    group = group.reshape(-1)
    counts = np.zeros((len(weights), int(group.max()) + 1))
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts[:] = np.add.reduceat(weights[:, order], starts, axis=1)
    last = np.cumsum(counts, axis=1)
    return np.asarray((last - (counts - 1) / 2)[:, group], dtype=np.float64)


def concordance(a: NDArray[Any], b: NDArray[Any], largest: int = 3000) -> float:
    """Return the share of pairs of samples that `a` and `b` put in the same order, ties included.

    1 where there is no pair. Takes time by the square: beyond `largest` samples, that many evenly
    spread ones stand for all.
    """
    if len(a) > largest:
        kept = np.arange(largest) * len(a) // largest
        a, b = a[kept], b[kept]
    # Ranks, because the values may be infinite.
    a, b, n = midranks(a), midranks(b), len(a)
    same = 0
    for i in range(n - 1):
        same += int(np.count_nonzero(np.sign(a[i + 1 :] - a[i]) == np.sign(b[i + 1 :] - b[i])))
    return same / (n * (n - 1) / 2) if n > 1 else 1.0
