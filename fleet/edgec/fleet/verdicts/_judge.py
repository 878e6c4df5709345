"""The behaviour gate: is a release worse than what runs beside it, by what devices say of it?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgec.fleet.verdicts._distributions import judge_distributions
from edgec.fleet.verdicts._evidence import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    DeviceEvidence,
    Evidence,
    Finding,
    Limits,
    Verdict,
)
from edgec.fleet.verdicts._statistics import (
    Estimate,
    mean_difference,
    normal,
    proportion,
    proportion_difference,
    ratio_difference,
    ratio_of_sums,
    spend,
)
from edgec.sketch import QuantileSketch

# crashes, silence, errors, non_finite, latency, confidence, classes, outputs, disagreement
_METRICS = 9
_QUANTILE = 0.95
_LEAST_LATENCIES = 20
# Fewer crashes than this on a few devices prove nothing.
_LEAST_CRASHES = 3
_CRASH_RATIO = 1.5
Arm = Sequence[DeviceEvidence]


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Candidate and control of one class of hardware.

    Attributes:
        candidate: Devices with the release.
        control: What they are held against.
        against: ``control`` or ``before``.
        hardware: The class.
        by_device: Whether devices are the units.
        alpha: For each bound.
        limits: Of the gate.
    """

    candidate: Arm
    control: Arm
    against: str
    hardware: str
    by_device: bool
    alpha: float
    limits: Limits

    @property
    def slack(self) -> float:
        """How many times what is allowed: with calls as units, devices' own ways are in no interval."""
        return 1.0 if self.by_device else 2.0


def judge(evidence: Evidence, *, limits: Limits | None = None, look: int = 1, stages: int = 1) -> Verdict:
    """Judge a release by all that is known at one look.

    A metric fails where its low bound is beyond the limit, and passes where there is enough data and its
    estimate is within; anything else is inconclusive, with the reason. Every class of hardware is judged by
    itself, against devices of the same class at the same time; where there are too few of those, against the
    same devices before their update. `Limits.alpha` is shared evenly among stages, classes of hardware and
    metrics (Bonferroni), and over looks as `spend` says, so that it may be looked at any number of times.

    Args:
        evidence: By now.
        limits: None for the defaults.
        look: Number of this look at this stage, from 1.
        stages: Gates that the rollout has in all.
    """
    wanted = Limits() if limits is None else limits
    classes = sorted({d.hardware for d in evidence.candidate})
    alpha = spend(wanted.alpha / stages / max(len(classes), 1) / _METRICS, look)
    findings = [_installs(evidence, wanted)]
    if not evidence.candidate:
        words = "no device has installed the release yet"
        if evidence.failures:
            words = f"no device has the release: {findings[0].detail}"
        findings.append(Finding(metric="data", outcome=INCONCLUSIVE, detail=words))
    for hardware in classes:
        findings += _judge_class(_arms(evidence, hardware, alpha, wanted), evidence)
    outcomes = {f.outcome for f in findings}
    outcome = FAIL if FAIL in outcomes else INCONCLUSIVE if INCONCLUSIVE in outcomes else PASS
    return Verdict(outcome=outcome, findings=tuple(findings), look=look)


def _arms(evidence: Evidence, hardware: str, alpha: float, limits: Limits) -> Arms:
    candidate, control, before = (
        [d for d in arm if d.hardware == hardware]
        for arm in (evidence.candidate, evidence.control, evidence.before)
    )
    heard, alive = _heard(candidate), _heard(control)
    few = len(alive) < limits.least_devices
    enough_before = len(_heard(before)) >= limits.least_devices
    other = before and few and (enough_before or _calls(alive) < limits.least_calls)
    against, held = ("before", before) if other else ("control", control)
    by_device = min(len(heard), len(_heard(held))) >= limits.least_devices
    return Arms(
        candidate=candidate,
        control=held,
        against=against,
        hardware=hardware,
        by_device=by_device,
        alpha=alpha,
        limits=limits,
    )


def _heard(arm: Arm) -> list[DeviceEvidence]:
    return [d for d in arm if d.calls]


def _calls(arm: Arm) -> int:
    return sum(d.calls for d in arm)


def _installs(evidence: Evidence, limits: Limits) -> Finding:
    """Judge installations by Wilson's one-sided 95 % bound at every look.

    Not corrected for looks: the outcome of an installation does not change, and a rate of failures of a
    tenth of the limit reaches it in less than one rollout of a thousand; the tests simulate that.
    """
    tried, failed = evidence.attempts, evidence.failures
    found = proportion(failed, tried, 0.05)
    bad = failed >= 2 and found.low > limits.install_failures
    return Finding(
        metric="installs",
        outcome=FAIL if bad else PASS if tried else INCONCLUSIVE,
        figure=found.figure if tried else None,
        limit=limits.install_failures,
        low=found.low,
        high=found.high,
        n=tried,
        against="limit",
        detail=f"{failed} of {tried} installations failed or never ended",
    )


def _judge_class(arms: Arms, evidence: Evidence) -> Iterable[Finding]:
    heard = _heard(arms.candidate)
    yield from _crashes(arms)
    yield from _silence(arms)
    least = arms.limits.least_calls
    mine, theirs = _calls(heard), _calls(arms.control)
    missing = ""
    if len(heard) < arms.limits.reporting * len(arms.candidate):
        missing = f"only {len(heard)} of {len(arms.candidate)} devices with the release say how it does"
    elif mine < least:
        missing = f"{mine} calls of the release are known, and {least} are needed"
    if missing:
        # Too little to pass may be enough to fail.
        yield from (f for f in _rates(arms) if f.outcome == FAIL)
        yield _missing(arms, missing)
        return
    if theirs < least:
        yield from _alone(arms, f"nothing to compare with: {theirs} calls without it are known, of {least}")
        return
    yield from _rates(arms)
    yield _latency(arms)
    yield from judge_distributions(
        heard, _heard(arms.control), evidence.references, arms.limits, arms.alpha, arms.by_device,
        template=Finding(metric="", outcome=PASS, hardware=arms.hardware, against=arms.against),
    )  # fmt: skip
    yield from _disagreement(arms, heard)


def _rates(arms: Arms) -> Iterable[Finding]:
    yield _rate(arms, "errors", arms.limits.errors, lambda d: (d.errors, d.calls))
    yield _rate(arms, "non_finite", arms.limits.non_finite, lambda d: (d.non_finite, d.sampled))


def _missing(arms: Arms, detail: str) -> Finding:
    return Finding(
        metric="data",
        outcome=INCONCLUSIVE,
        hardware=arms.hardware,
        n=len(arms.candidate),
        n_control=len(arms.control),
        against=arms.against,
        detail=f"{arms.hardware or 'devices'}: {detail}",
    )


def _alone(arms: Arms, detail: str) -> Iterable[Finding]:
    """Judge a release by the limits alone. Where something ran before it, that is not enough to pass."""
    alone = replace(arms, control=(), against="limit")
    yield from _rates(alone)
    yield from _disagreement(arms, _heard(arms.candidate))
    if arms.control:
        yield _missing(arms, detail)


def _finding(
    arms: Arms,
    metric: str,
    found: Estimate,
    limit: float,
    detail: str,
    *,
    n: tuple[int, int],
    by_device: bool = True,
) -> Finding:
    outcome = FAIL if found.low > limit else PASS if found.figure <= limit else INCONCLUSIVE
    return Finding(
        metric=metric,
        outcome=outcome,
        hardware=arms.hardware,
        figure=found.figure,
        limit=limit,
        low=found.low,
        high=found.high,
        n=n[0],
        n_control=n[1],
        units="devices" if by_device else "inferences",
        against=arms.against,
        detail=detail if outcome != INCONCLUSIVE else f"{detail}; the interval still reaches the limit",
    )


def _crashes(arms: Arms) -> Iterable[Finding]:
    mine, theirs = ([d for d in arm if d.crashes] for arm in (arms.candidate, arms.control))
    sizes = (len(arms.candidate), len(arms.control))
    words = f"{len(mine)} of {sizes[0]} devices crashed, {len(theirs)} of {sizes[1]} without it"
    if min(sizes) >= arms.limits.least_devices:
        found = proportion_difference((len(mine), sizes[0]), (len(theirs), sizes[1]), arms.alpha)
        yield _finding(arms, "crashes", found, arms.limits.crashed_devices, words, n=sizes)
        return
    # Few devices: times per hour, of which the sum is given (Przyborowski, Wilenski, Biometrika 1940).
    count, other = sum(d.crashes for d in arms.candidate), sum(d.crashes for d in arms.control)
    hours, beside = (sum(d.seconds for d in arm) / 3600 for arm in (arms.candidate, arms.control))
    words = f"{count} crashes in {hours:.1f} hours of devices, {other} in {beside:.1f} without it"
    if count < _LEAST_CRASHES:
        yield Finding(
            metric="crashes", outcome=PASS, hardware=arms.hardware, figure=float(count), n=sizes[0],
            n_control=sizes[1], units="inferences", against=arms.against, detail=words,
        )  # fmt: skip
        return
    share = proportion(count, count + other, arms.alpha)
    # A release that only crashes has no windows; its time is then as long as a window.
    ratio = max(beside, 0.25) / max(hours, 0.25)
    bounds = [_odds(p) * ratio for p in (share.figure, share.low, share.high)]
    found = Estimate(figure=bounds[0], low=bounds[1], high=bounds[2])
    yield _finding(arms, "crashes", found, _CRASH_RATIO, words, n=sizes, by_device=False)


def _odds(p: float) -> float:
    return p / (1 - p) if p < 1 else math.inf


def _silence(arms: Arms) -> Iterable[Finding]:
    """Judge whether devices that have the release stopped to say anything of the model.

    Those that have it since a moment ago, and have told nothing yet, say nothing for or against it.
    """
    heard = [len(_heard(arm)) for arm in (arms.candidate, arms.control)]
    silent = [sum(d.settled for d in arm if not d.calls) for arm in (arms.candidate, arms.control)]
    sizes = (heard[0] + silent[0], heard[1] + silent[1])
    if arms.against != "control" or min(sizes) < arms.limits.least_devices:
        return
    found = proportion_difference((silent[0], sizes[0]), (silent[1], sizes[1]), arms.alpha)
    words = f"{silent[0]} of {sizes[0]} devices say nothing of the model, {silent[1]} of {sizes[1]} without"
    yield _finding(arms, "silence", found, arms.limits.silent_devices, words, n=sizes)


def _rate(
    arms: Arms, metric: str, limit: float, counts: Callable[[DeviceEvidence], tuple[int, int]]
) -> Finding:
    pairs = [
        np.array([counts(d) for d in arm], float).reshape(-1, 2) for arm in (arms.candidate, arms.control)
    ]
    pairs = [p[p[:, 1] > 0] for p in pairs]
    sums = [tuple(int(x) for x in p.sum(axis=0)) for p in pairs]
    against = f", {sums[1][0]} of {sums[1][1]} without it" if sums[1][1] else ""
    words = f"{metric}: {sums[0][0]} of {sums[0][1]} calls{against}"
    least = arms.limits.least_devices
    if arms.by_device and min(len(p) for p in pairs) >= least:
        ratios = [ratio_of_sums(p[:, 0], p[:, 1]) for p in pairs]
        found = ratio_difference(ratios[0], ratios[1], arms.alpha)
        return _finding(arms, metric, found, limit, words, n=(len(pairs[0]), len(pairs[1])))
    if not sums[0][1]:
        return Finding(
            metric=metric, outcome=PASS, hardware=arms.hardware, limit=limit, units="inferences",
            against=arms.against, detail=f"{metric}: no call was looked into",
        )  # fmt: skip
    if sums[1][1]:
        found = proportion_difference(_pair(sums[0]), _pair(sums[1]), arms.alpha)
    else:
        found = proportion(*_pair(sums[0]), arms.alpha)
    n = (sums[0][1], sums[1][1])
    return _finding(arms, metric, found, limit * arms.slack, words, n=n, by_device=False)


def _pair(sums: tuple[int, ...]) -> tuple[int, int]:
    # A device that counts more failures than calls is wrong about one of them.
    return min(sums[0], sums[1]), sums[1]


def _latency(arms: Arms) -> Finding:
    """Compare 95th percentiles: of devices, by Welch's bounds of their logarithms; of calls, by ranks.

    Ranks of order statistics bound a quantile whatever the distribution (David, Nagaraja, Order Statistics,
    2003, 7.1).
    """
    sketches = [[d.latency for d in arm if d.latency is not None] for arm in (arms.candidate, arms.control)]
    merged = [_merged(arm) for arm in sketches]
    limits = arms.limits
    if min(m.count for m in merged) < limits.least_calls:
        return Finding(
            metric="latency_p95", outcome=INCONCLUSIVE, hardware=arms.hardware, against=arms.against,
            detail=f"latency: {merged[0].count} and {merged[1].count} times are known, of "
            f"{limits.least_calls} each",
        )  # fmt: skip
    tails = [m.quantile(_QUANTILE) for m in merged]
    words = f"95th percentile of the latency {tails[0]:.3g} ms, {tails[1]:.3g} ms without it"
    logs = [
        np.log([max(s.quantile(_QUANTILE), 1e-6) for s in arm if s.count >= _LEAST_LATENCIES])
        for arm in sketches
    ]
    if arms.by_device and min(len(x) for x in logs) >= limits.least_devices:
        found = mean_difference(logs[0], logs[1], arms.alpha)
        found = Estimate(figure=math.exp(found.figure), low=math.exp(found.low), high=math.exp(found.high))
        return _finding(arms, "latency_p95", found, limits.slowdown, words, n=(len(logs[0]), len(logs[1])))
    (low, high), (below, above) = (_rank_bounds(m, arms.alpha) for m in merged)
    found = Estimate(figure=_over(tails[0], tails[1]), low=_over(low, above), high=_over(high, below))
    allowed = 1 + (limits.slowdown - 1) * arms.slack
    n = (merged[0].count, merged[1].count)
    return _finding(arms, "latency_p95", found, allowed, words, n=n, by_device=False)


def _merged(sketches: Iterable[QuantileSketch]) -> QuantileSketch:
    merged = QuantileSketch()
    for sketch in sketches:
        merged.merge(sketch)
    return merged


def _rank_bounds(sketch: QuantileSketch, alpha: float) -> tuple[float, float]:
    reach = normal(alpha) * math.sqrt(_QUANTILE * (1 - _QUANTILE) / sketch.count)
    return sketch.quantile(max(_QUANTILE - reach, 0.0)), sketch.quantile(min(_QUANTILE + reach, 1.0))


def _over(one: float, other: float) -> float:
    return one / other if other > 0 else math.inf if one > 0 else 1.0


def _disagreement(arms: Arms, heard: Arm) -> Iterable[Finding]:
    pairs = [(float(min(d.disagreed, d.compared)), float(d.compared)) for d in heard if d.compared]
    compared, disagreed = (int(sum(p[i] for p in pairs)) for i in (1, 0))
    if compared < arms.limits.least_calls / 10:
        return
    words = f"the model before answered {disagreed} of {compared} calls otherwise"
    alone = replace(arms, against="limit")
    if len(pairs) >= arms.limits.least_devices:
        ratio = ratio_of_sums(np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]))
        none = replace(ratio, value=0.0, error=0.0)
        found = ratio_difference(ratio, none, arms.alpha)
        yield _finding(alone, "disagreement", found, arms.limits.disagreement, words, n=(len(pairs), 0))
        return
    found = proportion(disagreed, compared, arms.alpha)
    limit = arms.limits.disagreement * 2
    yield _finding(alone, "disagreement", found, limit, words, n=(compared, 0), by_device=False)
