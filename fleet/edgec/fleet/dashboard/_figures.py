"""Pictures as inline SVG, which need no style of their own: lines of an overview, intervals of a gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgec.artifact._report_text import significant
from edgec.fleet.dashboard._words import figure_of
from edgec.fleet.verdicts import Finding

_WIDTH, _HEIGHT = 120.0, 32.0


@dataclass(frozen=True, kw_only=True)
class Spark:
    """A line without axes: the path, the area below it, and its last point; in a box of 120 x 32."""

    line: str
    area: str
    x: float
    y: float


def spark(values: Sequence[float | None]) -> Spark | None:
    """Return the line of values at even distances; None where fewer than two are known."""
    known = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    if len(known) < 2:
        return None
    top = max(v for _, v in known) or 1.0
    last = len(values) - 1
    points = [(i / last * (_WIDTH - 4) + 2, (1 - v / top) * (_HEIGHT - 6) + 3) for i, v in known]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    (first, _), (x, y) = points[0], points[-1]
    return Spark(
        line=line, area=f"{line}L{x:.1f} {_HEIGHT}L{first:.1f} {_HEIGHT}Z", x=round(x, 1), y=round(y, 1)
    )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A finding of the gate on a line; positions in per cent of its width, None where there is none.

    Attributes:
        finding: With all figures.
        figure: The estimate, in words; likewise the next three.
        at: The estimate.
        low: Where the interval begins; `below` says that it goes on beyond the line.
        high: Where it ends; `above` likewise.
        limit: What is allowed.
        zero: No difference.
    """

    finding: Finding
    figure: str
    interval: str
    allowed: str
    at: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    zero: float | None = None
    below: bool = False
    above: bool = False


def interval(finding: Finding) -> Interval:
    """Place a finding on a line from well below no difference to well above the limit."""
    name = finding.metric
    told = Interval(
        finding=finding,
        figure=_count(finding) or figure_of(name, finding.figure),
        interval=_between(finding),
        allowed=figure_of(name, finding.limit),
    )
    if finding.figure is None or not finding.limit or not math.isfinite(finding.figure):
        return told
    zero = 1.0 if name == "latency_p95" else 0.0
    reach = finding.limit - zero
    if reach <= 0:
        return told
    known = [v for v in (finding.figure, finding.low, finding.high) if v is not None and math.isfinite(v)]
    start = max(min(zero - 0.25 * reach, *known), zero - 2 * reach)
    end = min(max(zero + 2 * reach, *known), zero + 4 * reach)

    def at(value: float | None) -> float | None:
        if value is None:
            return None
        share = (max(min(value, end), start) - start) / (end - start)
        return round(2 + 96 * share, 2)

    return replace(
        told,
        at=at(finding.figure),
        low=at(finding.low),
        high=at(finding.high),
        limit=at(finding.limit),
        zero=at(zero),
        below=finding.low is not None and finding.low < start,
        above=finding.high is not None and finding.high > end,
    )


def _count(finding: Finding) -> str:
    """Return a figure that is not held against a limit, as a number; empty for any other."""
    return significant(finding.figure) if finding.limit is None and finding.figure is not None else ""


def _between(finding: Finding) -> str:
    low, high = (figure_of(finding.metric, v) for v in (finding.low, finding.high))
    if finding.low is None and finding.high is None:
        return "–"
    return f"{low} to {high}"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Findings of one look, as a person reads them.

    Attributes:
        decisive: Those that fail or are inconclusive, the worst first.
        whole: About all hardware at once.
        hardware: Classes of it.
        rows: By figure, what is found for each class; None where nothing is.
        passed: How many pass.
        total: How many there are.
        all: All of them, the worst first.
    """

    decisive: list[Interval]
    whole: list[Interval]
    hardware: list[str]
    rows: list[tuple[str, list[Interval | None]]]
    passed: int
    total: int
    all: list[Interval]


def gate_of(findings: Sequence[Finding]) -> Gate:
    """Return findings in order: what decides, then a table of figures by class of hardware."""
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    found = [interval(f) for f in sorted(findings, key=lambda f: order.get(f.outcome, 3))]
    hardware = sorted({f.hardware for f in findings if f.hardware})
    metrics = list(dict.fromkeys(f.metric for f in findings if f.hardware))
    known = {(row.finding.metric, row.finding.hardware): row for row in found}
    return Gate(
        decisive=[row for row in found if row.finding.outcome != "pass"],
        whole=[row for row in found if not row.finding.hardware],
        hardware=hardware,
        rows=[(name, [known.get((name, where)) for where in hardware]) for name in metrics],
        passed=sum(f.outcome == "pass" for f in findings),
        total=len(findings),
        all=found,
    )
