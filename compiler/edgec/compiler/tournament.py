"""The choice among candidates, as a pure function of their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgec.compiler.converters import Estimate
from edgec.compiler.explain import Flip, LayerError
from edgec.compiler.options import Objective
from edgec.compiler.parity import Parity, parity_sentence
from edgec.compiler.pruning.patterns import Pattern
from edgec.evaluation import PairedDifference, Score
from edgec.runtime.measurement import LatencySamples, MedianRatio, median_ratio

# From the most to the least exact; among candidates equally fast, the most exact is shipped.
EXACTNESS = (
    "fp32", "fp16", "bf16", "int8-weights", "int16x8", "mixed", "int8-dynamic", "int8", "int4-weights"
)  # fmt: skip
# A candidate whose median is within this of the fastest, and not significantly slower, is as fast.
_AS_FAST = 1.03

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the accuracy gate says of a candidate.

    Attributes:
        verdict: ``pass``, ``fail`` or ``inconclusive``.
        reason: Why, with the figures.
        score: On the evaluation data; None without labels.
        difference: Paired with fp32, on the same samples; None without labels.
        short: Whether what was seen is a loss over the budget, shown or not.
        snr_db: Of the worst output, on the samples that were judged without labels; None with labels.
        agreement: Of the worst output that chooses among classes, likewise.
        judged: How many samples that were; 0 with labels.
    """

    verdict: Verdict
    reason: str
    score: Score | None = None
    difference: PairedDifference | None = None
    short: bool = False
    snr_db: float | None = None
    agreement: float | None = None
    judged: int = 0


@dataclass(kw_only=True)
class Contender:
    """A candidate and what is known of it so far.

    Attributes:
        name: Unique in its tournament: ``onnxruntime int8``.
        engine: Name of the engine.
        precision: Promised precision.
        size_bytes: Of its payload.
        parity: Against its reference.
        source_snr_db: SNR of its outputs against the source; None where they are identical, or nothing ran.
        gate: Of accuracy.
        latency: Measured with the others, interleaved.
        estimate: How fast the target's toolchain takes it to be; None where that gives no estimate.
        memory_mib: Peak memory of a process that loads it and runs one inference, where a budget asks.
        sparsity: The pattern of zeros in its weights, where it was given one.
        problem: Why it is out, whatever its figures; None where it is not.
        status: ``failed`` where it could not be made, ``skipped`` where it was not tried, else how the
            tournament ends for it.
        layers: What its layers lose by int8, where that was looked into.
        flips: Samples whose prediction int8 turned, the first of them, where that was looked into.
    """

    name: str
    engine: str
    precision: str
    size_bytes: int | None = None
    parity: Parity | None = None
    source_snr_db: float | None = None
    gate: Gate | None = None
    latency: LatencySamples | None = None
    estimate: Estimate | None = None
    memory_mib: float | None = None
    sparsity: Pattern | None = None
    problem: str | None = None
    status: Literal["winner", "admissible", "refused", "failed", "skipped"] = "refused"
    layers: tuple[LayerError, ...] = ()
    flips: tuple[Flip, ...] = ()

    @property
    def admissible(self) -> bool:
        """Whether it may be shipped."""
        return (
            self.problem is None
            and self.parity is not None
            and self.parity.passed
            and self.gate is not None
            and self.gate.verdict == "pass"
        )


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a build is for, and what it must keep to.

    Attributes:
        objective: What the best candidate is best at: ``latency``, ``size`` or ``accuracy``.
        latency_ms: Largest median latency; None for no limit.
        size_bytes: Largest payload.
        memory_mib: Largest peak memory of a process that loads it and runs one inference.
    """

    objective: Objective = "latency"
    latency_ms: float | None = None
    size_bytes: int | None = None
    memory_mib: float | None = None

    def over_budget(self, contender: Contender) -> str | None:
        """Return by what a contender misses a budget, in words; None where it keeps all."""
        latency = contender.latency.p50_ms if contender.latency is not None else None
        misses = [
            _miss("latency", latency, self.latency_ms, "ms"),
            _miss("size", _mb(contender.size_bytes), _mb(self.size_bytes), "MB"),
            _miss("memory", contender.memory_mib, self.memory_mib, "MiB"),
        ]
        return ", ".join(m for m in misses if m) or None


def _miss(what: str, value: float | None, budget: float | None, unit: str) -> str | None:
    if budget is None or (value is not None and value <= budget):
        return None
    if value is None:
        return f"{what} was not measured here, and a budget of {budget:g} {unit} is set"
    return f"{what} {value:.3g} {unit} is over the budget of {budget:g} {unit}"


def _mb(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


_NO_BUDGETS = Aim()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a tournament ended.

    Attributes:
        winner: Name of the contender to ship; None where none may be.
        nearest: Where none keeps the budgets: the best of those that are right; None otherwise.
        decisions: Why, in plain sentences.
    """

    winner: str | None
    nearest: str | None = None
    decisions: tuple[str, ...]


def choose(
    contenders: Sequence[Contender], ranking: Sequence[str], rule: str, aim: Aim = _NO_BUDGETS
) -> Choice:
    """Choose the candidate to ship.

    Candidates over a budget are out. Of the others the smallest or the most accurate wins where that is the
    objective. Otherwise the fastest measured median wins; a more exact one wins over it where the two cannot
    be told apart: its median is within 3 % and the 95 % interval of the ratio of medians includes 1. Where
    nothing was measured, the estimates of the target's toolchain decide, or else the target's own ranking
    of precisions, and a sparse form goes before the whole one.

    Args:
        contenders: With all their figures.
        ranking: Precisions, best first, for where nothing was measured.
        rule: That ranking in words.
        aim: Objective and budgets.
    """
    right = [c for c in contenders if c.admissible]
    refused = tuple(_why_out(c) for c in contenders if not c.admissible and c.status != "skipped")
    if not right:
        return Choice(winner=None, decisions=refused)
    misses = {c.name: miss for c in right if (miss := aim.over_budget(c)) is not None}
    over = tuple(f"{name} is right, but {miss}" for name, miss in misses.items())
    admissible = [c for c in right if c.name not in misses]
    if not admissible:
        best, _ = _best(right, ranking, rule, aim)
        return Choice(winner=None, nearest=best.name, decisions=(*over, *refused))
    winner, why = _best(admissible, ranking, rule, aim)
    return Choice(winner=winner.name, decisions=(*why, *over, *refused))


def _best(
    admissible: Sequence[Contender], ranking: Sequence[str], rule: str, aim: Aim
) -> tuple[Contender, tuple[str, ...]]:
    if aim.objective == "size":
        smallest = min(admissible, key=lambda c: (c.size_bytes or 0, _rank(c.precision, ranking)))
        return smallest, (
            f"{smallest.name} ships: {_mb(smallest.size_bytes):.3g} MB, the smallest, as asked",
        )
    if aim.objective == "accuracy":
        closest = max(admissible, key=_accuracy)
        return closest, (f"{closest.name} ships: the most accurate, as asked",)
    if all(c.latency is not None for c in admissible):
        return _fastest(admissible)
    estimates = [c.estimate.latency_ms for c in admissible if c.estimate is not None]
    if len(estimates) == len(admissible):
        winner = admissible[estimates.index(min(estimates))]
        assert winner.estimate is not None
        return winner, (
            f"{winner.name} ships: {winner.estimate.latency_ms:.3g} ms, {winner.estimate.source}; "
            "that is no measurement",
        )
    winner = min(admissible, key=lambda c: (_rank(c.precision, ranking), c.sparsity is None))
    return winner, (f"{winner.name} ships: nothing was measured for this target; {rule}",)


def _accuracy(contender: Contender) -> tuple[float, float]:
    """Return what to compare by: the paired difference to fp32, then how close the outputs are."""
    difference = contender.gate.difference if contender.gate is not None else None
    snr = contender.source_snr_db
    return (difference.difference if difference is not None else 0.0, snr if snr is not None else math.inf)


def _fastest(admissible: Sequence[Contender]) -> tuple[Contender, tuple[str, ...]]:
    fastest = min(admissible, key=_median)
    ties = {c.name: r for c in admissible if c is not fastest and _as_fast(r := _ratio(c, fastest))}
    winner = min(
        (c for c in admissible if c is fastest or c.name in ties), key=lambda c: _rank(c.precision, EXACTNESS)
    )
    decisions = [f"{winner.name} ships: {_median(winner):.3g} ms median, {_because(winner, fastest, ties)}"]
    others = sorted((c for c in admissible if c is not winner), key=_median)
    decisions += [_compared(other, winner) for other in others]
    return winner, tuple(decisions)


def _because(winner: Contender, fastest: Contender, ties: dict[str, MedianRatio]) -> str:
    if winner is fastest:
        return "the fastest of those within the accuracy budget"
    ratio = ties[winner.name]
    return (
        f"as fast as {fastest.name} within noise ({ratio.ratio:.2f}x its time, 95 % interval "
        f"{ratio.lower:.2f} to {ratio.upper:.2f}) and more exact"
    )


def _compared(other: Contender, winner: Contender) -> str:
    ratio = _ratio(other, winner)
    if not ratio.differs:
        return (
            f"{other.name} is as fast within noise: {_median(other):.3g} ms, "
            f"{ratio.ratio:.2f}x the winner's time"
        )
    word = "slower" if ratio.ratio > 1 else "faster"
    return (
        f"{other.name} is {word}: {_median(other):.3g} ms, {ratio.ratio:.2f}x the winner's time "
        f"(95 % interval {ratio.lower:.2f} to {ratio.upper:.2f})"
    )


def _why_out(contender: Contender) -> str:
    if contender.problem is not None:
        return f"{contender.name} is out: {contender.problem}"
    if contender.parity is not None and not contender.parity.passed:
        return f"{contender.name} is out: {parity_sentence(contender.parity)}"
    if contender.gate is not None:
        return f"{contender.name} is out: {contender.gate.reason}"
    return f"{contender.name} is out: it was not finished"


def _median(contender: Contender) -> float:
    assert contender.latency is not None
    return contender.latency.p50_ms


def _ratio(contender: Contender, to: Contender) -> MedianRatio:
    assert contender.latency is not None
    assert to.latency is not None
    return median_ratio(contender.latency, to.latency)


def _as_fast(ratio: MedianRatio) -> bool:
    return not ratio.differs and ratio.ratio <= _AS_FAST


def _rank(precision: str, order: Sequence[str]) -> int:
    return order.index(precision) if precision in order else len(order)
