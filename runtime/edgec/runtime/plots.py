"""Plots of a benchmark: how latencies are spread, and how they went over time; of a sweep: speed by setting.

SVG and HTML are written here and need nothing; each is one file that refers to no other. PNG needs matplotlib
(extra ``plots``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import atomic_write
from edgec.errors import OutputError
from edgec.errors.extras import needs_extra
from edgec.runtime.benchmark import BenchmarkResult
from edgec.runtime.sweep import SweepResult

SUFFIXES = (".html", ".svg", ".png")
_BINS = 60
_BUCKETS = 300
_WIDTH, _HEIGHT, _MARGIN = 760, 300, 60
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#9a6700", "#0e7c86")
_STYLE = "font-family:sans-serif;font-size:12px;fill:#24292f"


@dataclass(frozen=True)
class _Line:
    """Points joined by a line, or each drawn as a dot with its name."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class _Panel:
    """One diagram.

    Attributes:
        bars: Edges and heights of a histogram.
        lines: Drawn as lines, or as dots where they have labels.
        marks: Places on the x axis with a name, drawn as vertical lines.
        log: Whether both axes are logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    bars: tuple[NDArray[Any], NDArray[Any]] | None = None
    lines: tuple[_Line, ...] = ()
    marks: tuple[tuple[str, float], ...] = ()
    log: bool = False


def write_plots(path: str | Path, result: BenchmarkResult | SweepResult) -> None:
    """Write the plots of a result, in the form that the suffix names: .html, .svg or .png.

    Raises:
        MissingExtraError: It is .png, and matplotlib is not installed.
        OutputError: It cannot be written, or the suffix is none of these.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"cannot write {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    panels = _benchmark_panels(result) if isinstance(result, BenchmarkResult) else _sweep_panels(result)
    title = result.title if isinstance(result, SweepResult) else _title(result)
    if suffix == ".png":
        data = _png(panels, title)
    else:
        svg = _svg(panels, title)
        data = (svg if suffix == ".svg" else _html(svg, title)).encode()
    with atomic_write(path) as file:
        file.write(data)


def _title(result: BenchmarkResult) -> str:
    return f"{result.model} on {result.engine} {result.engine_version}, {result.machine.cpu}"


def _benchmark_panels(result: BenchmarkResult) -> list[_Panel]:
    samples = result.latency.samples_ms
    # What is slower than nearly all calls would squeeze the rest into one bar: the last bar holds it.
    low, high = float(samples.min()), float(np.percentile(samples, 99.5))
    edges = np.linspace(low, high if high > low else low * 1.01 + 1e-9, _BINS + 1)
    counts, _ = np.histogram(np.minimum(samples, edges[-1]), edges)
    marks = tuple(
        (name, result.latency.percentile_ms(p)) for name, p in (("p50", 50), ("p90", 90), ("p99", 99))
    )
    parts = np.array_split(samples, min(_BUCKETS, len(samples)))
    x = np.cumsum([len(part) for part in parts]).tolist()
    lines = tuple(
        _Line(name, x, [float(np.percentile(part, p)) for part in parts])
        for name, p in (("median", 50), ("slowest tenth from", 90))
    )
    return [
        _Panel("Latency", "ms; the last bar holds all that is slower", "calls", (edges, counts), marks=marks),
        _Panel("Latency over time", "call", "ms", lines=lines),
    ]


def _sweep_panels(result: SweepResult) -> list[_Panel]:
    lines = []
    for name in dict.fromkeys(point.engine for point in result.points):
        points = [point for point in result.points if point.engine == name]
        x, y = [p.latency.p50_ms for p in points], [p.samples_per_s for p in points]
        lines.append(_Line(name, x, y, [p.label for p in points]))
    return [
        _Panel(
            "Throughput and latency",
            "p50 latency of a call, ms",
            "samples per second",
            lines=tuple(lines),
            log=True,
        )
    ]


class _Axes:
    """Where values of a panel are on the page."""

    def __init__(self, panel: _Panel, top: int) -> None:
        xs = [v for line in panel.lines for v in line.x] + [v for _, v in panel.marks]
        ys = [v for line in panel.lines for v in line.y]
        if panel.bars is not None:
            xs += [float(panel.bars[0][0]), float(panel.bars[0][-1])]
            ys += [0.0, float(panel.bars[1].max())]
        elif not panel.log:
            ys.append(0.0)
        self._log, self._top = panel.log, top
        self.x_range, self.y_range = self._span(xs), self._span(ys)

    def _span(self, values: Sequence[float]) -> tuple[float, float]:
        low, high = min(values), max(values)
        if self._log:
            return low / 1.3, high * 1.3
        return low, high if high > low else low + 1.0

    def _part(self, value: float, span: tuple[float, float]) -> float:
        low, high = span
        if self._log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def x(self, value: float) -> float:
        return _MARGIN + self._part(min(value, self.x_range[1]), self.x_range) * (_WIDTH - 2 * _MARGIN)

    def y(self, value: float) -> float:
        height = _HEIGHT - 2 * _MARGIN
        return self._top + _HEIGHT - _MARGIN - self._part(value, self.y_range) * height

    def ticks(self, span: tuple[float, float]) -> list[float]:
        low, high = span
        if self._log:
            return [low * (high / low) ** (i / 4) for i in range(5)]
        return [low + (high - low) * i / 4 for i in range(5)]


def _svg(panels: Sequence[_Panel], title: str) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT * len(panels) + 24}" '
        f'width="{_WIDTH}" style="{_STYLE}">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_MARGIN}" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for i, panel in enumerate(panels):
        parts += _draw(panel, 24 + i * _HEIGHT)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw(panel: _Panel, top: int) -> list[str]:
    axes = _Axes(panel, top)
    left, right, bottom = _MARGIN, _WIDTH - _MARGIN, top + _HEIGHT - _MARGIN
    parts = [
        _text(left, top + 24, panel.title, bold=True),
        _text((left + right) / 2, bottom + 36, panel.x_label, anchor="middle"),
        _text(left, top + _MARGIN - 16, panel.y_label),
        f'<path d="M{left} {top + _MARGIN}V{bottom}H{right}" fill="none" stroke="#57606a"/>',
    ]
    parts += [
        _text(axes.x(value), bottom + 16, f"{value:.3g}", anchor="middle")
        for value in axes.ticks(axes.x_range)
    ]
    parts += [
        _text(left - 6, axes.y(value) + 4, f"{value:.3g}", anchor="end") for value in axes.ticks(axes.y_range)
    ]
    if panel.bars is not None:
        for x0, x1, height in zip(panel.bars[0][:-1], panel.bars[0][1:], panel.bars[1], strict=True):
            x, y, width = axes.x(float(x0)), axes.y(float(height)), axes.x(float(x1)) - axes.x(float(x0))
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{bottom - y:.1f}" '
                f'fill="{_COLOURS[0]}"/>'
            )
    for i, (name, value) in enumerate(panel.marks):
        x = axes.x(value)
        parts.append(
            f'<path d="M{x:.1f} {top + _MARGIN}V{bottom}" stroke="{_COLOURS[1]}" stroke-dasharray="4"/>'
        )
        parts.append(_text(x + 3, top + _MARGIN + 12 + 13 * i, f"{name} {value:.3g}"))
    for i, line in enumerate(panel.lines):
        parts += _draw_line(axes, line, _COLOURS[i % len(_COLOURS)])
        parts.append(_text(right - 150, top + 24 + 14 * i, line.name, colour=_COLOURS[i % len(_COLOURS)]))
    return parts


def _draw_line(axes: _Axes, line: _Line, colour: str) -> list[str]:
    places = [(axes.x(x), axes.y(y)) for x, y in zip(line.x, line.y, strict=True)]
    if not line.labels:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        return [f'<path d="M{path}" fill="none" stroke="{colour}"/>']
    parts = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
    return parts + [_text(x + 6, y - 4, label) for (x, y), label in zip(places, line.labels, strict=True)]


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, colour: str = "#24292f"
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(text)}</text>'
    )


def _html(svg: str, title: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title></head>\n"
        f"<body>\n{svg}</body></html>\n"
    )


def _png(panels: Sequence[_Panel], title: str) -> bytes:
    import io

    with needs_extra("a plot as .png (.svg and .html need nothing)", "plots"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 3.8 * len(panels)), layout="constrained")
    figure.suptitle(title)
    for panel, axes in zip(panels, np.ravel(figure.subplots(len(panels))), strict=True):
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.bars is not None:
            axes.stairs(panel.bars[1], panel.bars[0], fill=True, color=_COLOURS[0])
        for name, value in panel.marks:
            axes.axvline(value, color=_COLOURS[1], linestyle="--", label=f"{name} {value:.3g}")
        for i, line in enumerate(panel.lines):
            axes.plot(
                line.x,
                line.y,
                "o" if line.labels else "-",
                color=_COLOURS[i % len(_COLOURS)],
                label=line.name,
            )
            for x, y, label in zip(line.x, line.y, line.labels, strict=False):
                axes.annotate(label, (x, y))
        if panel.log:
            axes.set(xscale="log", yscale="log")
        elif panel.bars is None:
            axes.set_ylim(bottom=0)
        axes.legend()
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data)
    return data.getvalue()
