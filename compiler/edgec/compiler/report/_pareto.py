"""The plot of what a candidate costs against what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgec.artifact._report_text import (
    decibel_text,
    metric_title,
    one_line,
    score_text,
    significant,
    time_unit,
)
from edgec.compiler.report._axis import Tick, padded_axis, positive_axis
from edgec.compiler.report._figures import accuracy_of, latency_of, shorten, source_snrs, status_of

_LABEL_LENGTH = 22
_LEFT, _RIGHT = 14.0, 96.0
_TOP, _BOTTOM = 18.0, 226.0
# A chart is at least 300 pixels wide, and a character of a label about 6.6.
_PIXEL_PERCENT = 100 / 300
_CHARACTER_PERCENT = 6.6 * _PIXEL_PERCENT
# Where a label may be, the best place first: SVG anchor, pixels right and down of its point.
_BESIDE = [
    place for dy in (18.0, 32.0, 46.0, -10.0, -24.0) for place in (("start", 10.0, dy), ("end", -10.0, dy))
]
_LABEL_PLACES = (
    ("start", 10.0, 4.0),
    ("end", -10.0, 4.0),
    ("middle", 0.0, -12.0),
    ("middle", 0.0, 20.0),
    *_BESIDE,
)
# Left and right in per cent, top and bottom in pixels.
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text beside a point: pixels from it, and which of its ends is there, in SVG's words."""

    text: str
    dx: float
    dy: float
    anchor: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a plot: per cent from the left, pixels from the top."""

    x: float
    y: float
    status: str
    label: Label


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Two figures against each other; `frontier` are segments (x1, y1, x2, y2)."""

    title: str
    note: str
    summary: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    frontier: tuple[tuple[float, float, float, float], ...]


def pareto_plot(candidates: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Draw latency against accuracy, or against SNR where there is no accuracy.

    Returns None where fewer than two candidates have both.
    """
    by_accuracy = [
        (c, t[0], a) for c in candidates if (t := latency_of(c)) and (a := accuracy_of(c)) is not None
    ]
    if len(by_accuracy) >= 2:
        metric = by_accuracy[0][2]["metric"]
        same = [(c, t, a) for c, t, a in by_accuracy if a["metric"] == metric]
        lower_is_better = metric == "mse" or same[0][2].get("higher_is_better") is False
        return _plot(
            [(c, t, a["artifact"]) for c, t, a in same],
            what=f"Accuracy ({metric_title(metric)})",
            text=lambda y: score_text(y, metric),
            ceiling=None if metric == "mse" else 1.0,
            lower_is_better=lower_is_better,
        )
    snrs = source_snrs(candidates)
    by_snr = [
        (c, t[0], y) for c, y in zip(candidates, snrs, strict=True) if (t := latency_of(c)) and y is not None
    ]
    if len(by_snr) < 2:
        return None
    return _plot(by_snr, what="SNR", text=decibel_text, ceiling=None, lower_is_better=False)


def _plot(
    data: Sequence[tuple[Mapping[str, Any], float, float]],
    *,
    what: str,
    text: Callable[[float], str],
    ceiling: float | None,
    lower_is_better: bool,
) -> Plot:
    unit, factor = time_unit([t for _, t, _ in data])
    x_axis = positive_axis([t * factor for _, t, _ in data], _LEFT, _RIGHT)
    y_axis = padded_axis([y for _, _, y in data], ceiling=ceiling, start=_BOTTOM, end=_TOP)
    places = [(x_axis.at(t * factor), y_axis.at(y)) for _, t, y in data]
    names = [shorten(c.get("name"), _LABEL_LENGTH) for c, _, _ in data]
    labels = _place_labels(places, names)
    points = tuple(
        Point(x=x, y=y, status=status_of(c), label=label)
        for (x, y), label, (c, _, _) in zip(places, labels, data, strict=True)
    )
    sign = -1.0 if lower_is_better else 1.0
    best = _frontier([(t * factor, sign * y) for _, t, y in data])
    corner = "bottom left" if lower_is_better else "top left"
    scale = " (logarithmic)" if x_axis.log else ""
    return Plot(
        title=f"{what} against latency",
        note=f"Right: median latency in {unit}{scale}. Up: {what}. Better is {corner}; the dashed line joins "
        "the candidates that no other beats in both.",
        summary=f"{what} against median latency: "
        + "; ".join(
            f"{one_line(c.get('name'))} {significant(t * factor)} {unit}, {text(y)}" for c, t, y in data
        ),
        points=points,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(text),
        frontier=_steps([(x_axis.at(x), y_axis.at(sign * y)) for x, y in best]),
    )


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both: a smaller first and a larger second figure."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def _steps(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float, float, float], ...]:
    segments: list[tuple[float, float, float, float]] = []
    for (x1, y1), (x2, y2) in pairwise(points):
        segments += [(x1, y1, x2, y1), (x2, y1, x2, y2)]
    return tuple(segments)


def _place_labels(points: Sequence[tuple[float, float]], texts: Sequence[str]) -> list[Label]:
    """Return a label for each point that covers no point and no other label, where there is such a place."""
    taken = [(x - 2.0, x + 2.0, y - 7.0, y + 7.0) for x, y in points]
    labels = []
    for (x, y), text in zip(points, texts, strict=True):
        boxes = [_label_box(x, y, len(text), place) for place in _LABEL_PLACES]
        inside = [n for n, box in enumerate(boxes) if _is_inside(box)] or [0]
        best = next((n for n in inside if not any(_overlap(boxes[n], t) for t in taken)), inside[0])
        taken.append(boxes[best])
        anchor, dx, dy = _LABEL_PLACES[best]
        labels.append(Label(text=text, dx=dx, dy=dy, anchor=anchor))
    return labels


def _label_box(x: float, y: float, length: int, place: tuple[str, float, float]) -> _Box:
    """Return where a label is, as wide as on a narrow phone."""
    anchor, dx, dy = place
    width = length * _CHARACTER_PERCENT
    left = x + dx * _PIXEL_PERCENT - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, left + width, y + dy - 10, y + dy + 3


def _is_inside(box: _Box) -> bool:
    return box[0] >= 0 and box[1] <= 100 and box[2] >= 0 and box[3] <= _BOTTOM + 6


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
