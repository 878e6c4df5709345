"""What a stream gives, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edgec.runtime.results import plain
from edgec.sketch import QuantileSketch

# Why a sample never became a result that was given out.
CAUSES = ("source", "queue", "deadline", "error")


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """A prediction, and of what.

    Attributes:
        index: Of the sample among all that were captured, from 0.
        name: Of the sample, as its source says; may be empty.
        sample: What the model was given.
        picture: What can be drawn on, where the source has one: uint8[h, w, 3], BGR.
        prediction: What ``predict`` gave.
        captured_at: When it was captured: seconds since 1970, for logs.
        age_ms: How old it was when it was given out.
        latency_ms: What the prediction took.
        missed: Samples between the result before and this one that were dropped.
    """

    index: int
    name: str
    sample: Any = field(repr=False)
    picture: NDArray[Any] | None = field(repr=False)
    prediction: Mapping[str, Any]
    captured_at: float
    age_ms: float
    latency_ms: float
    missed: int

    def to_dict(self) -> dict[str, Any]:
        """Return all but sample and picture, as JSON has it."""
        return {
            "index": self.index,
            "name": self.name,
            "captured_at": round(self.captured_at, 6),
            "age_ms": round(self.age_ms, 3),
            "latency_ms": round(self.latency_ms, 3),
            "missed": self.missed,
            "prediction": plain(self.prediction),
        }


@dataclass(frozen=True, kw_only=True)
class StreamStatistics:
    """How a stream has done since it began. What was captured is given, dropped, or pending.

    Attributes:
        seconds: Since it began, until it ended.
        captured: Samples that the source gave, and those that it says it lost.
        given: Results that were given out.
        dropped: Samples that were not, by cause: ``source`` (the source itself had no room, or its item was
            unfit before it came here), ``queue`` (a newer one took the place), ``deadline`` (too old) and
            ``error`` (the prediction failed).
        pending: Samples on their way; of a stream that was closed, those that nobody waited for.
        reconnects: How often the source was opened again.
        last_error: Of the source or of a prediction; empty where there was none.
        latency_ms: Of the predictions.
        age_ms: Of the results, when they were given out.
    """

    seconds: float
    captured: int
    given: int
    dropped: Mapping[str, int]
    pending: int
    reconnects: int
    last_error: str
    latency_ms: QuantileSketch
    age_ms: QuantileSketch

    @property
    def fps_in(self) -> float:
        """Samples captured per second."""
        return self.captured / self.seconds if self.seconds > 0 else 0.0

    @property
    def fps_out(self) -> float:
        """Results given out per second."""
        return self.given / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it, the sketches as their quantiles .5, .95 and .99."""
        return {
            "seconds": round(self.seconds, 3),
            "captured": self.captured,
            "given": self.given,
            "dropped": dict(self.dropped),
            "pending": self.pending,
            "reconnects": self.reconnects,
            "last_error": self.last_error or None,
            "fps_in": round(self.fps_in, 3),
            "fps_out": round(self.fps_out, 3),
            "latency_ms": _quantiles(self.latency_ms),
            "age_ms": _quantiles(self.age_ms),
        }


def _quantiles(sketch: QuantileSketch) -> dict[str, float] | None:
    if not sketch.count:
        return None
    return {f"p{round(100 * q)}": round(sketch.quantile(q), 3) for q in (0.5, 0.95, 0.99)}
