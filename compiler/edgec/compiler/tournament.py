"""The choice among candidates, as a pure function of their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgec.compiler.parity import Parity, parity_sentence
from edgec.evaluation import PairedDifference, Score
from edgec.runtime.measurement import LatencySamples, MedianRatio, median_ratio

# From the most to the least exact; among candidates equally fast, the most exact is shipped.
EXACTNESS = ("fp32", "fp16", "bf16", "mixed", "int8-dynamic", "int8")
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
    """

    verdict: Verdict
    reason: str
    score: Score | None = None
    difference: PairedDifference | None = None


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
        problem: Why it is out, whatever its figures; None where it is not.
        status: ``failed`` where it could not be made, ``skipped`` where it was not tried, else how the
            tournament ends for it.
    """

    name: str
    engine: str
    precision: str
    size_bytes: int | None = None
    parity: Parity | None = None
    source_snr_db: float | None = None
    gate: Gate | None = None
    latency: LatencySamples | None = None
    problem: str | None = None
    status: Literal["winner", "admissible", "refused", "failed", "skipped"] = "refused"

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
class Choice:
    """How a tournament ended.

    Attributes:
        winner: Name of the contender to ship; None where none may be.
        decisions: Why, in plain sentences.
    """

    winner: str | None
    decisions: tuple[str, ...]


def choose(contenders: Sequence[Contender], ranking: Sequence[str], rule: str) -> Choice:
    """Choose the candidate to ship.

    Among the admissible ones the fastest measured median wins. A more exact one wins over it where
    the two cannot be told apart: its median is within 3 % and the 95 % interval of the ratio of
    medians includes 1. Where nothing was measured, the target's own ranking of precisions decides.

    Args:
        contenders: With all their figures.
        ranking: Precisions, best first, for where nothing was measured.
        rule: That ranking in words.
    """
    admissible = [c for c in contenders if c.admissible]
    refused = tuple(_why_out(c) for c in contenders if not c.admissible and c.status != "skipped")
    if not admissible:
        return Choice(winner=None, decisions=refused)
    if all(c.latency is not None for c in admissible):
        winner, why = _fastest(admissible)
    else:
        winner = min(admissible, key=lambda c: _rank(c.precision, ranking))
        why = (f"{winner.name} ships: nothing was measured for this target; {rule}",)
    return Choice(winner=winner.name, decisions=(*why, *refused))


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
