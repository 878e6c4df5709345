"""What was observed of a session over some time: counters and sketches that add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from edgec.sketch import Histogram, QuantileSketch, population_stability, reference_bins

_Key = TypeVar("_Key")
# Where the confidence of a call may lie; devices of one model add up only with the same edges.
CONFIDENCE_EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Calls of one artifact in one session, from `since` on; of a part of them, what went in and came out.

    Counters are of all calls. What is marked with * is of the `sampled` ones only, which are spread over all
    of them, so that its shares are those of all calls. The sketches belong to the window; do not add to them.

    Attributes:
        model: Name of the model.
        model_version: Of it.
        artifact: Digest of the artifact's content: ``sha256:5e8f...``.
        engine: That ran it: ``onnxruntime``.
        engine_version: As the engine says itself.
        since: When the window began, in seconds since 1970.
        seconds: How long it is.
        calls: Inferences that were asked for, those that failed included; a joined batch is one.
        errors: Of the calls, those that failed, by the type of the error: ``{"InputError": 2}``.
        drops: Calls that were refused or given up before they ran: ``overloaded`` for want of a place in the
            queue, ``deadline`` for having waited too long. They are not in `calls`.
        fallbacks: Of the calls, those that the declared fallback ran, by the reason. Where a server may be
            asked, ``remote:low_confidence`` and so on for what it answered; where no engine here ran,
            these are not in `calls`. ``local:low_confidence:late`` for what it was to answer and did not.
        cache_hits: Calls that a `ResultCache` answered. They are not in `calls`.
        cache_misses: Calls that it could not answer.
        cache_saved_s: Time that the answers from the cache would have taken less the time that the cache
            took, misses included; negative where it does not pay.
        latency_ms: Of inferences, without pre- and post-processing and without waiting, in milliseconds.
        sampled: Calls that were looked into.
        non_finite: * Calls with an output that has a NaN or an infinity.
        confidence: * The highest score of each sample, from 0 to 1; None where the model has none.
        classes: * How often each class had the highest score; by its index, -1 for those beyond 4096.
        outputs: * Values of each output that has quantiles in the artifact's ``reference``, between them.
        inputs: * Of each input that the artifact names in ``observe``, statistics of one call's values:
            ``{"image": {"mean": QuantileSketch, "std": QuantileSketch}}``.
        input_bins: * The same statistics, between the quantiles of them that the artifact has as
            ``input_reference``: ``{"image": {"mean": Histogram}}``. Of a call that joins samples, one counts.
    """

    model: str
    model_version: str
    artifact: str
    engine: str
    engine_version: str
    since: float
    seconds: float
    calls: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    drops: Mapping[str, int] = field(default_factory=dict)
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    cache_hits: int = 0
    cache_misses: int = 0
    cache_saved_s: float = 0.0
    latency_ms: QuantileSketch = field(default_factory=QuantileSketch)
    sampled: int = 0
    non_finite: int = 0
    confidence: Histogram | None = None
    classes: Mapping[int, int] = field(default_factory=dict)
    outputs: Mapping[str, Histogram] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, QuantileSketch]] = field(default_factory=dict)
    input_bins: Mapping[str, Mapping[str, Histogram]] = field(default_factory=dict)

    @property
    def error_count(self) -> int:
        """Calls that failed."""
        return sum(self.errors.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not (self.calls or self.drops or self.cache_hits or self.cache_misses)

    def drift(self, reference: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Return how far each output has moved from the calibration data: the population stability index.

        Below 0.1 is usually called nothing, from 0.25 on a large drift; of few values, chance alone makes
        about ``bins / values``.

        Args:
            reference: As the manifest of this artifact has it.
        """
        return _drifts(self.outputs, reference)

    def input_drift(
        self, reference: Mapping[str, Mapping[str, Mapping[str, float]]]
    ) -> dict[str, dict[str, float]]:
        """Return how far statistics of inputs have moved from the calibration data: as `drift`, of inputs.

        One value is of one call, so it takes more calls to know than of outputs. The quantiles are of some
        hundred samples at the most, which alone makes about ``bins / samples``.

        Args:
            reference: ``input_reference`` of the manifest of this artifact.

        Returns:
            By input and statistic: ``{"image": {"mean": 0.02, "std": 0.31}}``.
        """
        found = {name: _drifts(bins, reference.get(name, {})) for name, bins in self.input_bins.items()}
        return {name: drifts for name, drifts in found.items() if drifts}

    def merge(self, other: Window) -> Window:
        """Return the window of both, as if one had seen all; of one device or of several.

        It begins where the earlier one did; `seconds` add up, for several devices to more than went by.

        Raises:
            ValueError: They are of different artifacts, or what was observed of them does not add up.
        """
        if self.artifact != other.artifact:
            raise ValueError(
                f"windows of different artifacts do not add up: {self.artifact} and {other.artifact}"
            )
        return Window(
            model=self.model,
            model_version=self.model_version,
            artifact=self.artifact,
            engine=_same(self.engine, other.engine),
            engine_version=_same(self.engine_version, other.engine_version),
            since=min(self.since, other.since),
            seconds=self.seconds + other.seconds,
            calls=self.calls + other.calls,
            errors=_sum(self.errors, other.errors),
            drops=_sum(self.drops, other.drops),
            fallbacks=_sum(self.fallbacks, other.fallbacks),
            cache_hits=self.cache_hits + other.cache_hits,
            cache_misses=self.cache_misses + other.cache_misses,
            cache_saved_s=self.cache_saved_s + other.cache_saved_s,
            latency_ms=_quantiles(self.latency_ms, other.latency_ms),
            sampled=self.sampled + other.sampled,
            non_finite=self.non_finite + other.non_finite,
            confidence=_histogram(self.confidence, other.confidence),
            classes=_sum(self.classes, other.classes),
            outputs=_histograms(self.outputs, other.outputs),
            inputs={
                name: _sketches(self.inputs.get(name, {}), other.inputs.get(name, {}))
                for name in {**self.inputs, **other.inputs}
            },
            input_bins={
                name: _histograms(self.input_bins.get(name, {}), other.input_bins.get(name, {}))
                for name in {**self.input_bins, **other.input_bins}
            },
        )


def _drifts(
    histograms: Mapping[str, Histogram], reference: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    found = {}
    for name, histogram in histograms.items():
        edges, shares = reference_bins(reference.get(name, {}))
        if histogram.count and edges == tuple(histogram.edges.tolist()):
            found[name] = population_stability(histogram, shares)
    return found


def _same(mine: str, theirs: str) -> str:
    return mine if mine == theirs else ", ".join(sorted({*mine.split(", "), *theirs.split(", ")}))


def _sum(mine: Mapping[_Key, int], theirs: Mapping[_Key, int]) -> dict[_Key, int]:
    return {key: mine.get(key, 0) + theirs.get(key, 0) for key in {**mine, **theirs}}


def _quantiles(*sketches: QuantileSketch | None) -> QuantileSketch:
    whole = QuantileSketch()
    for sketch in sketches:
        if sketch is not None:
            whole.merge(sketch)
    return whole


def _sketches(
    mine: Mapping[str, QuantileSketch], theirs: Mapping[str, QuantileSketch]
) -> dict[str, QuantileSketch]:
    return {name: _quantiles(mine.get(name), theirs.get(name)) for name in {**mine, **theirs}}


def _histogram(mine: Histogram | None, theirs: Histogram | None) -> Histogram | None:
    known = [histogram for histogram in (mine, theirs) if histogram is not None]
    if not known:
        return None
    whole = Histogram(known[0].edges)
    for histogram in known:
        whole.merge(histogram)
    return whole


def _histograms(mine: Mapping[str, Histogram], theirs: Mapping[str, Histogram]) -> dict[str, Histogram]:
    merged = {name: _histogram(mine.get(name), theirs.get(name)) for name in {**mine, **theirs}}
    return {name: histogram for name, histogram in merged.items() if histogram is not None}
