"""What happened in an hour, added up: figures and sketches that are merged, never averaged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cbor2 import CBORDecodeError, dumps, loads

from edgec.fleet.store._schema import FIGURES
from edgec.protocol import ModelWindow
from edgec.protocol._window import LEAST_CLASSES
from edgec.sketch import Histogram, QuantileSketch

_log = logging.getLogger(__name__)
HOUR_S = 3600
_MOST_NAMES = 64
_MOST_CLASSES = 4096
_OTHERS = -1
# Sums of so many of them still fit into 64 bits.
_MOST = 2**40
_NAMES = ("model", "digest", "device", "hardware", "hour")
_MOST_UNREADABLE = 1000
# Rows that were told of.
_unreadable: set[tuple[Any, ...]] = set()


@dataclass(kw_only=True)
class HourOf:
    """Figures of one artifact over some time; `add` and `merge` change it.

    Attributes:
        figures: By name: seconds, calls, errors, sampled, non_finite, crashes, compared, disagreed.
        latency: In milliseconds.
        confidence: None where there is none.
        classes: Calls by class, of at most 4096; -1 is all others.
        named: Calls of windows that may have left classes out, by how many classes those windows name; under
            0 calls whose classes were named, and found no place here.
        outputs: By name.
        inputs: By name and statistic: ``image/mean``.
    """

    figures: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FIGURES, 0))
    latency: QuantileSketch = field(default_factory=QuantileSketch)
    confidence: Histogram | None = None
    classes: dict[int, int] = field(default_factory=dict)
    named: dict[int, int] = field(default_factory=dict)
    outputs: dict[str, Histogram] = field(default_factory=dict)
    inputs: dict[str, Histogram] = field(default_factory=dict)

    @classmethod
    def of_window(cls, window: ModelWindow) -> HourOf:
        """Return a window as such.

        Raises:
            ProtocolError: A sketch of it is damaged.
        """
        names = ("seconds", "calls", "errors", "sampled", "non_finite")
        classes = {number: min(count, _MOST) for number, count in window.classes.items()}
        return cls(
            figures={**dict.fromkeys(FIGURES, 0.0), **{n: min(getattr(window, n), _MOST) for n in names}},
            latency=window.latency_sketch(),
            confidence=window.confidence_histogram(),
            classes=classes,
            named=_named(classes),
            outputs=window.output_histograms(),
            inputs=window.input_histograms(),
        )

    def merge(self, other: HourOf) -> None:
        """Add another one.

        Histograms with other edges than those here, which one artifact never has, are left out.
        """
        for name, value in other.figures.items():
            self.figures[name] += value
        self.latency.merge(other.latency)
        if other.confidence is not None:
            self.confidence = _joined(self.confidence, other.confidence)
        for number, count in other.classes.items():
            self._add_class(number, count)
        for number, count in other.named.items():
            self.named[number] = self.named.get(number, 0) + count
        for mine, theirs in ((self.outputs, other.outputs), (self.inputs, other.inputs)):
            for name, histogram in theirs.items():
                if name in mine or len(mine) < _MOST_NAMES:
                    mine[name] = _joined(mine.get(name), histogram)

    def _add_class(self, number: int, count: int) -> None:
        if number not in self.classes and number != _OTHERS and len(self.classes) >= _MOST_CLASSES:
            # It had a name, and has none here: that is as if a window had named none of these calls.
            self.named[0] = self.named.get(0, 0) + count
            number = _OTHERS
        self.classes[number] = self.classes.get(number, 0) + count

    def to_row(self) -> dict[str, Any]:
        """Return the columns that both tables of hours have."""
        sketches = {
            1: self.latency.to_bytes(),
            2: self.confidence.to_bytes() if self.confidence else b"",
            3: dict(sorted(self.classes.items())),
            4: _written(self.outputs),
            5: dict(sorted(self.named.items())),
            6: _written(self.inputs),
        }
        return {**self.figures, "sketches": dumps(sketches)}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> HourOf:
        """Return what `to_row` gave."""
        sketches = loads(bytes(row["sketches"]))
        named = sketches.get(5)
        return cls(
            figures={name: row[name] for name in FIGURES},
            latency=QuantileSketch.from_bytes(sketches[1]),
            confidence=Histogram.from_bytes(sketches[2]) if sketches[2] else None,
            classes=sketches[3],
            # Where it was not kept, windows may have named as few as there may be.
            named=named if isinstance(named, dict) else _named(sketches[3], LEAST_CLASSES),
            outputs=_read(sketches[4]),
            inputs=_read(sketches.get(6, {})),
        )

    @classmethod
    def read_row(cls, row: Mapping[str, Any]) -> HourOf | None:
        """Return what `to_row` gave; None of a row that cannot be read, which is told of once."""
        try:
            return cls.of_row(row)
        except (CBORDecodeError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as e:
            key = tuple(row.get(name) for name in _NAMES)
            if key not in _unreadable and len(_unreadable) < _MOST_UNREADABLE:
                _unreadable.add(key)
                _log.error("the hour %s cannot be read, and is left out: %s", key, e)
            return None


def hour(at: float, now: float) -> int:
    """Return the hour since 1970 of a device's time; of the fleet's, where that clock is plainly wrong."""
    sane = now - 30 * 86400 <= at <= now + HOUR_S
    return int((at if sane else now) // HOUR_S)


def _named(classes: Mapping[int, int], named: int | None = None) -> dict[int, int]:
    """Return the calls of a window by how many classes it names; nothing where it has left none out."""
    named = sum(number != _OTHERS for number in classes) if named is None else named
    left_out = classes.get(_OTHERS) and named >= LEAST_CLASSES
    return {named: sum(classes.values())} if left_out else {}


def _written(histograms: Mapping[str, Histogram]) -> dict[str, bytes]:
    return {name: histogram.to_bytes() for name, histogram in sorted(histograms.items())}


def _read(histograms: Mapping[str, bytes]) -> dict[str, Histogram]:
    return {name: Histogram.from_bytes(data) for name, data in histograms.items()}


def _joined(mine: Histogram | None, other: Histogram) -> Histogram:
    if mine is None:
        mine = Histogram(other.edges)
    if mine.edges.shape == other.edges.shape and (mine.edges == other.edges).all():
        mine.merge(other)
    return mine
