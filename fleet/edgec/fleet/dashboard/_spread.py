"""How values are spread: of confidence, latency and classes, as bars without a style of their own."""

from __future__ import annotations

from dataclasses import dataclass

from edgec.artifact._report_text import percent_text, significant, time_text
from edgec.fleet.store import HourOf

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_MOST_CLASSES = 8
_OTHERS = -1


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar: what it is of, how much, and how long it is, in per cent of the longest."""

    label: str
    value: str
    length: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Bars under a title, and what they are counted of."""

    title: str
    note: str
    bars: list[Bar]


def spreads(total: HourOf) -> list[Spread]:
    """Return how the values of some hours are spread; nothing of what is not known."""
    return [spread for spread in (_latency(total), _confidence(total), _classes(total)) if spread.bars]


def _latency(total: HourOf) -> Spread:
    sketch = total.latency
    values = [(q, float(sketch.quantile(q))) for q in _QUANTILES] if sketch.count else []
    top = max((v for _, v in values), default=0.0) or 1.0
    bars = [
        Bar(label=f"{100 * q:.0f} %", value=time_text(v), length=round(100 * v / top, 2)) for q, v in values
    ]
    return Spread(title="Latency: so many calls take no longer", note=f"of {sketch.count} calls", bars=bars)


def _confidence(total: HourOf) -> Spread:
    scores = total.confidence
    if scores is None or not scores.count:
        return Spread(title="Confidence", note="", bars=[])
    # Ten bars at the most, however many edges there are.
    step = -(-len(scores.counts) // 10)
    counts = [int(scores.counts[i : i + step].sum()) for i in range(0, len(scores.counts), step)]
    edges = [0.0, *(float(e) for e in scores.edges), 1.0][::step]
    ends = [*edges[1 : len(counts)], 1.0]
    labels = [f"{significant(a, 2)} to {significant(b, 2)}" for a, b in zip(edges, ends, strict=False)]
    return Spread(title="Confidence", note=f"of {scores.count} calls", bars=_shares(labels, counts))


def _classes(total: HourOf) -> Spread:
    ranked = sorted((k for k in total.classes if k != _OTHERS), key=lambda k: -total.classes[k])
    kept = ranked[:_MOST_CLASSES]
    rest = sum(total.classes.values()) - sum(total.classes[k] for k in kept)
    labels = [f"class {k}" for k in kept] + (["all others"] if rest else [])
    counts = [total.classes[k] for k in kept] + ([rest] if rest else [])
    return Spread(title="Classes", note=f"of {sum(counts)} calls", bars=_shares(labels, counts))


def _shares(labels: list[str], counts: list[int]) -> list[Bar]:
    whole, top = sum(counts) or 1, max(counts, default=0) or 1
    return [
        Bar(label=label, value=percent_text(n / whole), length=round(100 * n / top, 2))
        for label, n in zip(labels, counts, strict=True)
    ]
