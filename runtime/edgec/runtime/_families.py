"""What observers know as metrics: names, kinds and labels, for whatever sends or shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from edgec.runtime._observer import Observer
from edgec.runtime._window import Window
from edgec.sketch import Histogram

# Upper bounds of the histogram of latencies, in seconds.
LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0
)  # fmt: skip
_QUANTILES = (0.05, 0.5, 0.95, 0.99)
# A label for each class of a large vocabulary would be too many series.
_MOST_CLASSES = 64
_DIGITS = 12


class Sample(NamedTuple):
    """One value of a metric.

    Attributes:
        suffix: Of the name: ``_bucket``, ``_count``, ``_sum``, or nothing.
        labels: By name.
        value: Of it.
    """

    suffix: str
    labels: Mapping[str, str]
    value: float


@dataclass(kw_only=True)
class Family:
    """A metric.

    Attributes:
        name: ``edgec_calls``; counters without ``_total``.
        kind: ``counter``, ``gauge`` or ``histogram``.
        help: What it is.
        samples: Its values.
    """

    name: str
    kind: str
    help: str
    samples: list[Sample] = field(default_factory=list)


FAMILIES: Mapping[str, tuple[str, str]] = {
    "edgec_calls": ("counter", "Inferences asked for, those that failed included."),
    "edgec_call_errors": ("counter", "Inferences that failed, by type of the error."),
    "edgec_calls_dropped": ("counter", "Inferences refused or given up before they ran, by reason."),
    "edgec_fallback_calls": ("counter", "Inferences that the fallback ran, by reason."),
    "edgec_cache_hits": ("counter", "Calls answered from the cache."),
    "edgec_cache_misses": ("counter", "Calls that the cache could not answer."),
    "edgec_cache_saved_seconds": ("gauge", "Time that the cache saved; negative for time that it cost."),
    "edgec_inference_duration_seconds": ("histogram", "Latency of inferences."),
    "edgec_inference_duration_quantile_seconds": ("gauge", "Latency of inferences, by quantile."),
    "edgec_calls_sampled": ("counter", "Inferences that were looked into."),
    "edgec_non_finite_calls": ("counter", "Of those, with an output that is not finite."),
    "edgec_predicted_class": ("counter", "Of those, samples with this class on top."),
    "edgec_confidence": ("histogram", "Of those, the highest score of each sample."),
    "edgec_output_value": ("histogram", "Of those, values of outputs, between quantiles of the reference."),
    "edgec_output_drift": ("gauge", "Population stability index of values of outputs to the reference."),
    "edgec_input_drift": ("gauge", "The same of a statistic of inputs."),
    "edgec_input_statistic": ("gauge", "Of those, a statistic of the values of one call, by quantile."),
}


def families(observers: Iterable[Observer]) -> list[Family]:
    """Return all metrics of what observers have seen of their present artifacts.

    Several observers of the same artifact on the same engine are one. An observer that never saw a session
    has none.
    """
    made = {name: Family(name=name, kind=kind, help=text) for name, (kind, text) in FAMILIES.items()}
    for window, observer in _windows(observers):
        labels = {
            "model": window.model,
            "version": window.model_version,
            "artifact": window.artifact.removeprefix("sha256:")[:_DIGITS],
            "engine": window.engine,
        }
        for name, suffix, more, value in _rows(window, observer):
            made[name].samples.append(Sample(suffix, {**labels, **more}, value))
    return [family for family in made.values() if family.samples]


def text(made: Iterable[Family]) -> str:
    """Return metrics as Prometheus reads them, in its exposition format 0.0.4."""
    lines = []
    for family in made:
        end = "_total" if family.kind == "counter" else ""
        lines += [
            f"# HELP {family.name}{end} {family.help}",
            f"# TYPE {family.name}{end} {family.kind}",
        ]
        for suffix, labels, value in family.samples:
            told = ",".join(f'{key}="{escaped(value)}"' for key, value in labels.items())
            lines.append(f"{family.name}{suffix or end}{{{told}}} {value!r}")
    return "".join(f"{line}\n" for line in lines)


def escaped(value: str) -> str:
    """Return the value of a label as Prometheus reads it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _windows(observers: Iterable[Observer]) -> Iterator[tuple[Window, Observer]]:
    found: dict[tuple[str, str], tuple[Window, Observer]] = {}
    for observer in observers:
        if not observer.has_seen:
            continue
        window = observer.total()
        key = window.artifact, window.engine
        found[key] = (found[key][0].merge(window) if key in found else window, observer)
    yield from found.values()


_Row = tuple[str, str, Mapping[str, str], float]


def _rows(window: Window, observer: Observer) -> Iterator[_Row]:
    yield "edgec_calls", "", {}, window.calls
    for name, label, counts in (
        ("edgec_call_errors", "type", window.errors),
        ("edgec_calls_dropped", "reason", window.drops),
        ("edgec_fallback_calls", "reason", window.fallbacks),
        ("edgec_predicted_class", "class", _few(window.classes)),
    ):
        for value, n in counts.items():
            yield name, "", {label: value}, n
    if window.cache_hits or window.cache_misses:
        yield "edgec_cache_hits", "", {}, window.cache_hits
        yield "edgec_cache_misses", "", {}, window.cache_misses
        yield "edgec_cache_saved_seconds", "", {}, window.cache_saved_s
    yield "edgec_calls_sampled", "", {}, window.sampled
    yield "edgec_non_finite_calls", "", {}, window.non_finite
    yield from _latency(window)
    if window.confidence is not None:
        yield from _buckets("edgec_confidence", {}, window.confidence)
    for output, histogram in window.outputs.items():
        yield from _buckets("edgec_output_value", {"output": output}, histogram)
    for output, drift in window.drift(observer.reference).items():
        yield "edgec_output_drift", "", {"output": output}, drift
    for tensor, drifts in window.input_drift(observer.input_reference).items():
        for statistic, drift in drifts.items():
            yield "edgec_input_drift", "", {"input": tensor, "statistic": statistic}, drift
    for tensor, sketches in window.inputs.items():
        for statistic, sketch in sketches.items():
            for q in _QUANTILES if sketch.count else ():
                labels = {"input": tensor, "statistic": statistic, "quantile": str(q)}
                yield "edgec_input_statistic", "", labels, sketch.quantile(q)


def _latency(window: Window) -> Iterator[_Row]:
    name, sketch = "edgec_inference_duration_seconds", window.latency_ms
    for bound in LATENCY_BOUNDS_S:
        yield name, "_bucket", {"le": str(bound)}, sketch.count_below(bound * 1e3)
    yield name, "_bucket", {"le": "+Inf"}, sketch.count
    yield name, "_sum", {}, sketch.total / 1e3
    yield name, "_count", {}, sketch.count
    for q in _QUANTILES if sketch.count else ():
        quantile = sketch.quantile(q) / 1e3
        yield "edgec_inference_duration_quantile_seconds", "", {"quantile": str(q)}, quantile


def _buckets(name: str, labels: Mapping[str, str], histogram: Histogram) -> Iterator[_Row]:
    """Yield a histogram without a sum, which is not known."""
    total = 0
    for edge, n in zip([*map(str, histogram.edges.tolist()), "+Inf"], histogram.counts.tolist(), strict=True):
        total += n
        yield name, "_bucket", {**labels, "le": edge}, total
    yield name, "_count", labels, total


def _few(classes: Mapping[int, int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for number, n in sorted(classes.items()):
        name = str(number) if 0 <= number < _MOST_CLASSES else "other"
        counts[name] = counts.get(name, 0) + n
    return counts
