"""What a compile report says of an artifact, read field by field: it came with an upload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgec.artifact._report_text import (
    NOT_KNOWN,
    bytes_text,
    decibel_text,
    engine_title,
    metric_title,
    number,
    one_line,
    score_text,
    significant,
    time_text,
)
from edgec.fleet._proof import figures_of

_MOST_ROWS = 64
_TONES = {"winner": "accent", "admissible": "good", "refused": "warn", "failed": "bad"}


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """A candidate of the tournament, in words; `bar` is its median as a share of the slowest."""

    name: str
    status: str
    tone: str
    reason: str
    p50: str
    p90: str
    p99: str
    speedup: str
    accuracy: str
    snr: str
    size: str
    bar: float | None


@dataclass(frozen=True, kw_only=True)
class OutputRow:
    """Parity of one output, in words."""

    name: str
    error: str
    tolerance: str
    snr: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """An artifact as its compiler measured it.

    Attributes:
        chosen: ``ONNX Runtime int8``.
        latency: Median; likewise the 99th percentile.
        accuracy: Score of the artifact; `accuracy_detail` has the source's and the verdict.
        parity: Whether it passed; None where it was not run.
        facts: Titles and words.
        decisions: What was decided and why, in sentences.
        not_run: What could not be checked.
    """

    chosen: str
    latency: str
    p99: str
    accuracy: str
    accuracy_title: str
    accuracy_detail: str
    parity: bool | None
    snr: str
    facts: list[tuple[str, str]]
    decisions: list[str]
    not_run: list[str]
    candidates: list[CandidateRow]
    outputs: list[OutputRow]


def read_report(report: Mapping[str, Any] | None, target: str) -> Report | None:
    """Return what is known; None where there is no report of this target. Nothing is believed to be there."""
    if report is None:
        return None
    told = figures_of(report, target)
    if not told:
        return None
    latency, accuracy, parity = (_mapping(told.get(k)) for k in ("latency_ms", "accuracy", "parity"))
    passed = parity.get("passed")
    return Report(
        chosen=_chosen(told),
        latency=time_text(latency.get("p50")),
        p99=time_text(latency.get("p99")),
        accuracy=score_text(accuracy.get("artifact"), accuracy.get("metric")),
        accuracy_title=metric_title(accuracy.get("metric")) if accuracy else "",
        accuracy_detail=_accuracy(accuracy),
        parity=passed if isinstance(passed, bool) else None,
        snr=decibel_text(parity.get("snr_db"), max_abs_error=parity.get("max_abs_error")),
        facts=_facts(report, told),
        decisions=_sentences(told.get("decisions")),
        not_run=_sentences(told.get("not_run")),
        candidates=_candidates(told),
        outputs=[_output(o) for o in _mappings(parity.get("outputs"))],
    )


def _chosen(told: Mapping[str, Any]) -> str:
    engine = engine_title(told["engine"]) if told.get("engine") else ""
    return f"{engine} {one_line(told.get('precision') or '')}".strip() or NOT_KNOWN


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    if not accuracy:
        return "no evaluation data was given"
    source = score_text(accuracy.get("source"), accuracy.get("metric"))
    n = number(accuracy.get("n"))
    samples = f" on {n:.0f} samples" if n else ""
    return f"source {source}{samples}; {one_line(accuracy.get('verdict') or 'no verdict')}"


def _facts(report: Mapping[str, Any], told: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine, data = _mapping(report.get("machine")), _mapping(report.get("data"))
    found = [
        (
            "Engine",
            f"{engine_title(told.get('engine'))} {one_line(told.get('engine_version') or '')}".strip(),
        ),
        ("Precision", one_line(told.get("effective_precision") or told.get("precision"))),
        ("Measured on", one_line(told.get("measured_on") or machine.get("cpu"))),
        ("Inputs", _signature(told.get("inputs"))),
        ("Outputs", _signature(told.get("outputs"))),
        ("Calibration data", one_line(_mapping(data.get("calibration")).get("description"))),
        ("Evaluation data", one_line(_mapping(data.get("evaluation")).get("description"))),
        ("Source model", one_line(_mapping(report.get("model")).get("sha256"))),
        ("edgec", one_line(report.get("edgec"))),
    ]
    return [(title, words) for title, words in found if words not in ("", NOT_KNOWN)]


def _candidates(told: Mapping[str, Any]) -> list[CandidateRow]:
    found = [c for c in _mappings(told.get("candidates")) if c.get("status") != "skipped"]
    ranks = {"winner": 0, "admissible": 1, "refused": 2, "failed": 3}
    medians = [number(_mapping(c.get("latency_ms")).get("p50")) for c in found]
    slowest = max((m for m in medians if m is not None), default=0.0)
    rows = [
        (ranks.get(str(c.get("status")), 4), m if m is not None else float("inf"), _candidate(c, m, slowest))
        for c, m in zip(found, medians, strict=True)
    ]
    return [row for _, _, row in sorted(rows, key=lambda r: r[:2])]


def _candidate(c: Mapping[str, Any], median: float | None, slowest: float) -> CandidateRow:
    latency, accuracy, parity = (_mapping(c.get(k)) for k in ("latency_ms", "accuracy", "parity"))
    speedup = number(c.get("speedup"))
    return CandidateRow(
        name=one_line(c.get("name")),
        status=one_line(c.get("status")),
        tone=_TONES.get(str(c.get("status")), "quiet"),
        reason=one_line(c.get("reason") or ""),
        p50=time_text(median),
        p90=time_text(latency.get("p90")),
        p99=time_text(latency.get("p99")),
        speedup=NOT_KNOWN if speedup is None else f"{significant(speedup)}×",
        accuracy=score_text(accuracy.get("artifact"), accuracy.get("metric")),
        snr=decibel_text(parity.get("snr_db"), max_abs_error=parity.get("max_abs_error")),
        size=bytes_text(c.get("size_bytes")),
        bar=round(100 * median / slowest, 2) if median is not None and slowest > 0 else None,
    )


def _output(o: Mapping[str, Any]) -> OutputRow:
    return OutputRow(
        name=one_line(o.get("name")),
        error=significant(o.get("max_abs_error")),
        tolerance=significant(o.get("tolerance")),
        snr=decibel_text(o.get("snr_db"), max_abs_error=o.get("max_abs_error")),
    )


def _signature(tensors: Any) -> str:
    words = []
    for t in _mappings(tensors):
        shape = t.get("shape")
        sizes = ", ".join(map(one_line, shape)) if isinstance(shape, list) else ""
        words.append(f"{one_line(t.get('name'))}: {one_line(t.get('dtype'))}[{sizes}]")
    return ", ".join(words)


def _sentences(value: Any) -> list[str]:
    return [one_line(v) for v in value[:_MOST_ROWS] if isinstance(v, str)] if isinstance(value, list) else []


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value[:_MOST_ROWS] if isinstance(v, Mapping)] if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
