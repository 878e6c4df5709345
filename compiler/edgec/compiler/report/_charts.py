"""Geometry of the charts: what is drawn where, as numbers; the templates draw and escape.

Horizontal positions are per cent of the chart's width, so that a chart fits a phone and a desk
without scaling its text; vertical positions are pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgec.artifact._report_text import (
    bytes_text,
    interval_text,
    metric_title,
    number,
    one_line,
    score_text,
    significant,
)
from edgec.compiler.report._axis import Axis, Tick, padded_axis, positive_axis
from edgec.compiler.report._figures import accuracy_of, interval_of, latency_of, status_of, unit_of

# A 99th percentile more than this many times the slowest 90th is drawn off the scale.
_REACH = 2.0
# Layers in a chart: the others do less harm.
_LAYERS = 12


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a chart: its label, its value in words, and its marks in per cent of the width.

    `beyond` says that the thin line goes on off the scale.
    """

    label: str
    status: str
    value: str
    bar: float | None = None
    dot: float | None = None
    thick: tuple[float, float] | None = None
    thin: tuple[float, float] | None = None
    beyond: bool = False


@dataclass(frozen=True, kw_only=True)
class RowChart:
    """One row per candidate.

    Attributes:
        title: What is shown, with its unit.
        note: How to read it.
        line: A vertical reference line, with its label; None for none.
    """

    title: str
    note: str
    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    line: Tick | None = None


def latency_chart(candidates: Sequence[Mapping[str, Any]]) -> RowChart | None:
    """Draw the median of each candidate, with lines to its 90th and 99th percentile.

    Returns None where nothing was measured.
    """
    measured = [(c, latency_of(c)) for c in candidates]
    rows = [(c, t) for c, t in measured if t is not None]
    if not rows:
        return None
    unit, factor = unit_of(candidates)
    # A rare slow call must not squeeze what is compared, the medians, into a corner.
    reach = _REACH * max(p90 for _, (_, p90, _) in rows)
    axis = positive_axis([x * factor for _, t in rows for x in t if x <= reach])
    drawn = []
    for candidate, (p50, p90, p99) in rows:
        a, b, c = (axis.at(x * factor) for x in (p50, p90, p99))
        text = f"{significant(p50 * factor)} {unit}"
        drawn.append(_row(candidate, text, dot=a, thick=(a, b), thin=(b, c), beyond=p99 * factor > axis.high))
    beyond = ", an arrow where that is off the scale" if any(r.beyond for r in drawn) else ""
    scale = ", logarithmic scale" if axis.log else ""
    return RowChart(
        title=f"Latency of one inference, {unit}",
        note="Dot: median. Thick line: to the 90th percentile, thin: to the 99th"
        f"{beyond}{scale}. Left is better.",
        rows=tuple(drawn),
        ticks=axis.ticks(),
    )


def accuracy_chart(candidates: Sequence[Mapping[str, Any]]) -> RowChart | None:
    """Draw each candidate's accuracy with its 95 % confidence interval, and the source's as a line.

    Returns None where nothing was scored.
    """
    scored = [(c, a) for c in candidates if (a := accuracy_of(c)) is not None]
    if not scored:
        return None
    metric = scored[0][1]["metric"]
    scored = [(c, a) for c, a in scored if a["metric"] == metric]
    source = next((x for _, a in scored if (x := number(a.get("source"))) is not None), None)
    values = [source] if source is not None else []
    for _, accuracy in scored:
        values += [accuracy["artifact"], *(interval_of(accuracy) or ())]
    axis = padded_axis(values, ceiling=None if metric == "mse" else 1.0)
    drawn = []
    for candidate, accuracy in scored:
        interval = interval_of(accuracy)
        text = score_text(accuracy["artifact"], metric)
        if interval:
            text += f" ({interval_text(interval, metric)})"
        span = (axis.at(interval[0]), axis.at(interval[1])) if interval else None
        drawn.append(_row(candidate, text, dot=axis.at(accuracy["artifact"]), thick=span))
    title = metric_title(metric)
    line = None
    if source is not None:
        line = Tick(at=axis.at(source), label=f"source {score_text(source, metric)}")
    return RowChart(
        title=f"Accuracy, {title}",
        note="Dot: score on the evaluation data. Line: 95 % confidence interval. Dashed: the source.",
        rows=tuple(drawn),
        ticks=axis.ticks(lambda x: score_text(x, metric)),
        line=line,
    )


def size_chart(candidates: Sequence[Mapping[str, Any]], source_bytes: Any) -> RowChart | None:
    """Draw the size of each candidate beside the source model's; None where no size is known."""
    sized = [(c, x) for c in candidates if (x := number(c.get("size_bytes"))) is not None]
    if not sized:
        return None
    source = number(source_bytes)
    if source is not None:
        sized.insert(0, ({"name": "source model", "status": "source"}, source))
    axis = Axis(0.0, max(max(x for _, x in sized), 1.0))
    drawn = [_row(c, bytes_text(x), bar=axis.at(x)) for c, x in sized]
    return RowChart(
        title="Size",
        note="Bytes of the payload. Shorter is better.",
        rows=tuple(drawn),
        ticks=(),
    )


def layers_chart(candidates: Sequence[Mapping[str, Any]]) -> RowChart | None:
    """Draw the layers that int8 harms most, by the model's SNR with each alone in int8.

    Returns None where no candidate was looked into.
    """
    owner = next((c for c in candidates if isinstance(c.get("layers"), list)), None)
    tried = [
        (layer, max(0.0, snr))
        for layer in (owner or {}).get("layers", ())
        if isinstance(layer, Mapping) and (snr := number(layer.get("isolated_snr_db"))) is not None
    ]
    if owner is None or not tried:
        return None
    worst = sorted(tried, key=lambda item: item[1])[:_LAYERS]
    axis = Axis(0.0, max(1.0, *(snr for _, snr in worst)))
    return RowChart(
        title=f"What int8 does to each layer, {one_line(owner.get('name'))}",
        note="SNR of the model's worst output in dB with this layer alone in int8; the most harmful first. "
        "Longer is better.",
        rows=tuple(
            Row(label=one_line(layer.get("name")), status="refused", value=f"{snr:.1f} dB", bar=axis.at(snr))
            for layer, snr in worst
        ),
        ticks=(),
    )


def placement_shares(placement: Any) -> list[tuple[str, int, float]]:
    """Return device, nodes and per cent of nodes, the device with most nodes first."""
    if not isinstance(placement, Mapping):
        return []
    nodes = {str(k): int(x) for k, v in placement.items() if (x := number(v)) is not None and x > 0}
    total = sum(nodes.values())
    ranked = sorted(nodes.items(), key=lambda item: (-item[1], item[0]))
    return [(device, n, round(100 * n / total, 2)) for device, n in ranked]


def _row(candidate: Mapping[str, Any], value: str, **marks: Any) -> Row:
    return Row(label=one_line(candidate.get("name")), status=status_of(candidate), value=value, **marks)
