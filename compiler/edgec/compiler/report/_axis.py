"""Scales of charts, with round numbers to label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A logarithmic axis where the slowest is this many times the fastest: on a linear one, the
# fastest would be a smudge at zero.
_LOG_FROM_RATIO = 12.0


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled position on an axis; `at` is per cent or pixels."""

    at: float
    label: str


def _plain(value: float) -> str:
    return f"{value:.6g}"


@dataclass(frozen=True)
class Axis:
    """A scale from values, `low` to `high`, to positions, `start` to `end`; it labels `marks`."""

    low: float
    high: float
    start: float = 0.0
    end: float = 100.0
    log: bool = False
    marks: tuple[float, ...] = ()

    def at(self, value: float) -> float:
        """Return the position of `value`; of the nearer end where it lies outside."""
        low, high, x = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, x = math.log(low), math.log(high), math.log(x)
        share = (x - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, text: Callable[[float], str] = _plain) -> tuple[Tick, ...]:
        """Return the marks where they are drawn, labelled by `text`."""
        return tuple(Tick(at=self.at(m), label=text(m)) for m in self.marks)


def positive_axis(values: Sequence[float], start: float = 0.0, end: float = 100.0) -> Axis:
    """Return an axis for values above zero: from zero, or logarithmic where they span much."""
    low, high = min(values), max(values)
    if high / low < _LOG_FROM_RATIO:
        step = _step(high / 4)
        top = step * math.ceil(high / step - 1e-9)
        marks = tuple(i * step for i in range(round(top / step) + 1))
        return Axis(0.0, top, start, end, marks=marks)
    bottom, top = _step(low, down=True), _step(high)
    decades = range(math.floor(math.log10(bottom) + 1e-9), math.ceil(math.log10(top) - 1e-9) + 1)
    factors = (1, 2, 5) if top / bottom <= 100 else (1,)
    marks = tuple(m for d in decades for f in factors if bottom * 0.999 <= (m := f * 10.0**d) <= top * 1.001)
    return Axis(bottom, top, start, end, log=True, marks=marks)


def padded_axis(
    values: Sequence[float], *, ceiling: float | None, start: float = 0.0, end: float = 100.0
) -> Axis:
    """Return a linear axis around `values`, not beyond `ceiling` where they are not."""
    low, high = min(values), max(values)
    span = max(high - low, abs(high) * 0.01, 1e-9 if ceiling is None else 0.01)
    step = _step(span * 1.2 / 3)
    bottom = step * math.floor((low - 0.1 * span) / step)
    top = step * math.ceil((high + 0.1 * span) / step)
    if ceiling is not None and high <= ceiling < top:
        top = ceiling
    marks = [bottom + i * step for i in range(round((top - bottom) / step + 0.49) + 1)]
    return Axis(bottom, top, start, end, marks=tuple(m for m in marks if m <= top + step * 1e-6))


def _step(size: float, *, down: bool = False) -> float:
    """Return 1, 2 or 5 times a power of ten: the smallest from `size` up, or the largest `down` from it."""
    power: float = 10.0 ** math.floor(math.log10(size))
    if down:
        return next(power * f for f in (5, 2, 1) if power * f <= size * (1 + 1e-9))
    return next(power * f for f in (1, 2, 5, 10) if power * f >= size * (1 - 1e-9))
