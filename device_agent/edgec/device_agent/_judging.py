"""Judges of a model on live calls: beside the running one before the switch, and after it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.device_agent._findings import FAIL, INCONCLUSIVE, PASS, Finding, Verdict, wilson_bounds
from edgec.runtime import Host, Shadow, ShadowReport
from edgec.runtime._window import Window
from edgec.sketch import Histogram

Arrays = Mapping[str, NDArray[Any]]
# Shares of a distribution are compared only of so many calls: below, the index is mostly noise.
LEAST_FOR_SHIFT = 1000
_LEAST_SHARE = 1e-4


@dataclass(frozen=True, kw_only=True)
class ShadowCriteria:
    """When a candidate that sees live inputs is good enough.

    Attributes:
        agreement: Least share of answers that are the same to the application as those of the live model.
        failures: Largest share of calls that may fail or give NaN or infinity.
        slowdown: How many times the median latency of the live model; the candidate runs beside it.
        confidence_drop: How much lower the mean of the highest score may be; for outputs that are
            probabilities.
        least: Compared calls before anything is concluded.
    """

    agreement: float = 0.85
    failures: float = 0.01
    slowdown: float = 4.0
    confidence_drop: float = 0.2
    least: int = 100


class ShadowGate:
    """Lets a candidate of a `Host` see live inputs, and judges it. Its answers are discarded."""

    def __init__(
        self,
        host: Host,
        name: str,
        candidate: str,
        *,
        criteria: ShadowCriteria | None = None,
        fraction: float = 1.0,
        agree: Callable[[Arrays, Arrays], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            host: Whose calls it sees.
            name: Of the model.
            candidate: Its version.
            criteria: None for the defaults.
            fraction: Of calls that the candidate sees.
            agree: See ``Host.shadow``.
            clock: Monotonic, in seconds.

        Raises:
            EdgecError: As of ``Host.shadow``.
        """
        self._host, self._name = host, name
        self._criteria = ShadowCriteria() if criteria is None else criteria
        self._clock, self._start = clock, clock()
        shadow = host.shadow(name, candidate, fraction=fraction, agree=agree)
        assert shadow is not None, "a shadow was begun, not ended"
        self._shadow: Shadow = shadow

    def verdict(self) -> Verdict:
        """Return what is known by now: it fails or passes where that is all but sure (95 %)."""
        return judge_shadow(self._shadow.report(), self._clock() - self._start, criteria=self._criteria)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the candidate has seen what waits for it; return whether it has."""
        return self._shadow.wait(timeout_s)

    def stop(self) -> Verdict:
        """End it; return the last verdict."""
        self._host.shadow(self._name, None)
        return self.verdict()


def judge_shadow(report: ShadowReport, seconds: float, *, criteria: ShadowCriteria | None = None) -> Verdict:
    """Judge a candidate by the live calls that it saw: it fails or passes where that is all but sure (95 %).

    Args:
        report: How it did by now.
        seconds: Since it began.
        criteria: None for the defaults.
    """
    wanted = ShadowCriteria() if criteria is None else criteria
    tried, bad = report.compared + report.failed, report.non_finite + report.failed
    drop = report.live_score - report.candidate_score if report.scored else 0.0
    agreed = report.compared - report.disagreed
    low, high = wilson_bounds(agreed, report.compared)
    least_bad, most_bad = wilson_bounds(bad, tried)
    ratio = report.candidate_p50_ms / report.live_p50_ms if report.live_p50_ms > 0 else math.nan
    figures = {
        "seconds": seconds,
        "compared": float(report.compared),
        "disagreed": float(report.disagreed),
        "failed": float(report.failed),
        "bad": float(bad),
        "agreement": agreed / report.compared if report.compared else math.nan,
        "latency_ratio": ratio,
        "confidence_drop": drop,
    }
    findings = []
    # Three that fail of three is enough; so is what wholly disagrees.
    if least_bad > wanted.failures and bad >= 3:
        findings.append(_bad_calls(bad, tried, wanted.failures, report.last_error))
    if report.compared and high < wanted.agreement:
        message = f"it agrees with the running model on {agreed} of {report.compared} live calls"
        share = agreed / report.compared
        findings.append(Finding(word="agreement", message=message, figure=share, limit=wanted.agreement))
    if report.compared >= wanted.least:
        findings += _by_means(ratio, drop, wanted)
    if findings:
        return Verdict(outcome=FAIL, findings=tuple(findings), figures=figures)
    enough = report.compared >= wanted.least and low >= wanted.agreement
    sure = most_bad <= max(wanted.failures, 3 / max(tried, 1))
    return Verdict(outcome=PASS if enough and sure else INCONCLUSIVE, figures=figures)


def _by_means(ratio: float, drop: float, wanted: ShadowCriteria) -> list[Finding]:
    findings = []
    if ratio > wanted.slowdown:
        message = f"its median latency is {ratio:.1f} times that of the running model"
        findings.append(Finding(word="latency", message=message, figure=ratio, limit=wanted.slowdown))
    if drop > wanted.confidence_drop:
        message = f"its highest score is lower by {drop:.2f} in the mean"
        findings.append(
            Finding(word="confidence", message=message, figure=drop, limit=wanted.confidence_drop)
        )
    return findings


def _bad_calls(bad: int, n: int, limit: float, last: str) -> Finding:
    message = (
        f"{bad} of {n} calls failed or gave NaN or infinity{f', lately with: {last:.200}' if last else ''}"
    )
    return Finding(word="failures", message=message, figure=bad / max(n, 1), limit=limit)


@dataclass(frozen=True, kw_only=True)
class ProbationCriteria:
    """When a model that serves is to be taken back.

    Attributes:
        failures: Share of calls that may fail, or of looked-into calls that may give NaN or infinity, beside
            what did with the model before.
        slowdown: How many times the 95th percentile of the latency before.
        shift: Largest population stability index, less its bias, of classes, confidence and outputs.
        distance: Largest difference of their distribution functions that a shift must have, too.
        least: Calls before the model passes.
    """

    failures: float = 0.01
    slowdown: float = 3.0
    shift: float = 0.25
    distance: float = 0.15
    least: int = 100


def judge_probation(
    after: Window, before: Window | None = None, *, criteria: ProbationCriteria | None = None
) -> Verdict:
    """Judge a model by its calls since the switch.

    Distributions are compared with those before only where both have 1000 calls or more.

    Args:
        after: Of the new model, merged over the whole probation.
        before: Of the model before it; None where there was none.
        criteria: None for the defaults.
    """
    wanted = ProbationCriteria() if criteria is None else criteria
    findings: list[Finding] = []
    figures: dict[str, float] = {"calls": float(after.calls)}
    for word, bad, n, bad_before, n_before in (
        (
            "errors",
            after.error_count,
            after.calls,
            *((before.error_count, before.calls) if before else (0, 0)),
        ),
        (
            "non_finite",
            after.non_finite,
            after.sampled,
            *((before.non_finite, before.sampled) if before else (0, 0)),
        ),
    ):
        allowed = wanted.failures + (wilson_bounds(bad_before, n_before)[1] if n_before else 0.0)
        figures[word] = bad / n if n else 0.0
        if bad >= 3 and wilson_bounds(bad, n)[0] > allowed:
            message = f"{bad} of {n} calls: {'failed' if word == 'errors' else 'NaN or infinity'}"
            findings.append(Finding(word=word, message=message, figure=bad / n, limit=allowed))
    if before is not None:
        findings += _slower(after, before, wanted, figures)
        findings += _shifted(after, before, wanted, figures)
    if findings:
        return Verdict(outcome=FAIL, findings=tuple(findings), figures=figures)
    return Verdict(outcome=PASS if after.calls >= wanted.least else INCONCLUSIVE, figures=figures)


def _slower(
    after: Window, before: Window, wanted: ProbationCriteria, figures: dict[str, float]
) -> list[Finding]:
    if min(after.latency_ms.count, before.latency_ms.count) < wanted.least:
        return []
    ratios = [after.latency_ms.quantile(q) / before.latency_ms.quantile(q) for q in (0.5, 0.95)]
    figures["latency_ratio"] = ratios[1]
    if min(ratios) <= wanted.slowdown:
        return []
    message = f"its latency is {ratios[1]:.1f} times that of the model before"
    return [Finding(word="latency", message=message, figure=ratios[1], limit=wanted.slowdown)]


def _shifted(
    after: Window, before: Window, wanted: ProbationCriteria, figures: dict[str, float]
) -> list[Finding]:
    findings = []
    for name, mine, theirs in _distributions(after, before):
        if min(mine.sum(), theirs.sum()) < LEAST_FOR_SHIFT:
            continue
        shift, distance = population_shift(mine, theirs)
        figures[f"shift_{name}"] = shift
        if shift > wanted.shift and distance > wanted.distance:
            message = f"its distribution of {name} is another one: PSI {shift:.2f}, KS {distance:.2f}"
            findings.append(Finding(word="shift", message=message, figure=shift, limit=wanted.shift))
    return findings


def population_shift(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
    """Return how far apart two distributions over the same bins are.

    Args:
        mine: Counts.
        theirs: Counts.

    Returns:
        The population stability index, less what it has by chance alone, (bins - 1) / n for each side; and
        half the sum of the differences of their shares, which for bins without an order, as classes are, is
        what the Kolmogorov-Smirnov distance is at the most.
    """
    a, b = mine / mine.sum(), theirs / theirs.sum()
    distance = float(np.abs(a - b).sum() / 2)
    used = (mine > 0) | (theirs > 0)
    a, b = np.maximum(a[used], _LEAST_SHARE), np.maximum(b[used], _LEAST_SHARE)
    bias = (int(used.sum()) - 1) * (1 / mine.sum() + 1 / theirs.sum())
    return float(np.sum((a - b) * np.log(a / b)) - bias), distance


def _distributions(
    after: Window, before: Window
) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    found = []
    classes = sorted({*after.classes, *before.classes})
    if classes:
        mine, theirs = (np.array([w.classes.get(c, 0) for c in classes], np.float64) for w in (after, before))
        found.append(("classes", mine, theirs))
    pairs: list[tuple[str, Histogram | None, Histogram | None]] = [
        ("confidence", after.confidence, before.confidence)
    ]
    pairs += [(f"output {n}", h, before.outputs.get(n)) for n, h in after.outputs.items()]
    for name, one, other in pairs:
        # Of outputs, the edges are of the artifact: two with others cannot be compared bin by bin.
        if one is not None and other is not None and np.array_equal(one.edges, other.edges):
            found.append((name, one.counts.astype(np.float64), other.counts.astype(np.float64)))
    return found
