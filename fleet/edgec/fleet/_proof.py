"""What the report of a compilation proves of an artifact, what it does not, and what nobody asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgec.artifact import Manifest

# As the compiler words the reason of a candidate that passes so.
_ACCEPTED = "accepted by --accept-inconclusive"


def failures(manifest: Manifest, report: Mapping[str, Any] | None, size: int) -> list[str]:
    """Return in what an artifact has not proven itself, in words for people; nothing where it has.

    Args:
        manifest: With the budgets that it was held to.
        report: Of its compilation; None for none.
        size: Of the file, in bytes.
    """
    if report is None:
        return ["it has no report: nothing says that it computes what its source does"]
    report = figures_of(report, manifest.target)
    parity, accuracy = (_mapping(report.get(key)) for key in ("parity", "accuracy"))
    problems = []
    if parity.get("passed") is not True:
        problems.append("parity failed" if parity else "parity was not run")
    if accuracy.get("verdict") in ("fail", "inconclusive"):
        problems.append(f"accuracy: {accuracy['verdict']}")
    if told := report.get("over_budget"):
        # What the compiler could not measure misses a budget, too: figures alone would not tell.
        return [*problems, f"over budget: {told!s:.300}"]
    budgets = manifest.budgets
    latency = _number(_mapping(report.get("latency_ms")).get("p50"))
    checks: tuple[tuple[str, float | None, Callable[[], float | None]], ...] = (
        ("latency_ms", budgets.latency_ms, lambda: latency),
        ("size_bytes", budgets.size_bytes, lambda: float(size)),
        ("memory_mib", budgets.memory_mib, lambda: _number(_winner(report).get("memory_mib"))),
    )
    for name, budget, measure in checks:
        measured = measure() if budget is not None else None
        if budget is not None and measured is not None and measured > budget:
            problems.append(f"over budget: {name} is {measured:g}, above the budget of {budget:g}")
    return problems


def warnings_of(report: Mapping[str, Any] | None, target: str) -> list[str]:
    """Return what an artifact was not held to, by choice of who compiled it; mostly nothing.

    That is no failure: it is taken, and people are told.

    Args:
        report: Of its compilation; None for none.
        target: That it was compiled for.
    """
    told = _mapping(report)
    options = _mapping(told.get("options"))
    if "max_drop" in options and options["max_drop"] is None:
        return ["no accuracy gate: it was compiled with --max-drop none"]
    reason = _winner(figures_of(told, target)).get("reason")
    if options.get("accept_inconclusive") is True and _ACCEPTED in str(reason):
        return [f"accuracy inconclusive: it was {_ACCEPTED}"]
    return []


def figures_of(report: Mapping[str, Any], target: str) -> Mapping[str, Any]:
    """Return what a report says of the artifact for a target.

    The compiler's report is that of a whole build, with an entry for each artifact; a report may also be that
    entry alone.
    """
    entries = report.get("artifacts")
    if not isinstance(entries, list):
        return report
    return next((e for e in entries if isinstance(e, Mapping) and e.get("target") == target), {})


def _winner(report: Mapping[str, Any]) -> Mapping[str, Any]:
    candidates = report.get("candidates")
    found = [_mapping(c) for c in candidates] if isinstance(candidates, list) else []
    return next((c for c in found if c.get("status") == "winner"), {})


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
