"""What observers know, for Prometheus and OpenTelemetry; needs the extra ``observe``.

    observer = session.observe()
    prometheus_client.REGISTRY.register(PrometheusCollector([observer]))

Both read `Observer.total`, so that taking windows takes nothing from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from edgec.errors.extras import needs_extra
from edgec.runtime._families import FAMILIES, Family, families, text
from edgec.runtime._observer import Observer

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client.core import Metric

Observers: TypeAlias = "Iterable[Observer] | Callable[[], Iterable[Observer]]"
# The instruments of one collection are asked one by one, within this time.
_SAME_S = 0.5


def exposed(observers: Observers) -> bytes:
    """Return all metrics as Prometheus reads them (exposition format 0.0.4); this needs no extra."""
    return text(families(_present(observers))).encode()


class PrometheusCollector:
    """A collector of ``prometheus_client``, for a registry; reads the observers when it is scraped."""

    def __init__(self, observers: Observers) -> None:
        """Take observers, or what gives those there are at the time: ``lambda: host.observers().values()``.

        Raises:
            MissingExtraError: ``prometheus_client`` is not installed.
        """
        self._observers = observers
        with needs_extra("metrics for Prometheus", "observe"):
            from prometheus_client.core import Metric
        self._metric = Metric

    def describe(self) -> Iterable[Metric]:
        """Return no metrics: a registry then need not scrape to register this."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return all metrics now; a registry calls it."""
        for family in families(_present(self._observers)):
            metric = self._metric(family.name, family.help, family.kind)
            end = "_total" if family.kind == "counter" else ""
            for suffix, labels, value in family.samples:
                metric.add_sample(family.name + (suffix or end), dict(labels), value)
            yield metric


def observe_with_opentelemetry(observers: Observers, meter: Meter) -> None:
    """Add observable instruments to a meter, which ask the observers each time they are collected.

    Counters and gauges have the names that Prometheus sees. OpenTelemetry observes no histograms: theirs are
    counters of what lies at or below a bound, by the attribute ``le``, with ``_bucket`` after the name.

    Args:
        observers: Or what gives those that there are at the time.
        meter: Of the application's own provider.
    """
    seen = _Seen(observers)
    for name, (kind, what) in FAMILIES.items():
        suffix = "_bucket" if kind == "histogram" else ""
        create = meter.create_observable_gauge if kind == "gauge" else meter.create_observable_counter
        create(name + suffix, [seen.callback(name, suffix)], description=what)


def export_otlp(
    observers: Observers,
    endpoint: str,
    *,
    interval_s: float = 60.0,
    headers: dict[str, str] | None = None,
    attributes: dict[str, str] | None = None,
) -> MeterProvider:
    """Send metrics by OTLP over HTTP, in a thread of OpenTelemetry's own, until the provider is shut down.

    Args:
        observers: Or what gives those that there are at the time.
        endpoint: ``http://collector:4318/v1/metrics``.
        interval_s: Between two times.
        headers: Of each request, for keys.
        attributes: Of this device: ``{"service.name": "gate-7"}``.

    Returns:
        What to call ``force_flush()`` and ``shutdown()`` on.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """
    with needs_extra("metrics for OpenTelemetry", "observe"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=endpoint, headers=headers), export_interval_millis=interval_s * 1e3
    )
    provider = MeterProvider([reader], resource=Resource.create(dict(attributes or {})))
    observe_with_opentelemetry(observers, provider.get_meter("edgec"))
    return provider


class _Seen:
    """What observers knew at one collection."""

    def __init__(self, observers: Observers) -> None:
        self._observers = observers
        self._until = 0.0
        self._families: dict[str, Family] = {}

    def callback(self, name: str, wanted: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Return what an instrument calls."""
        from opentelemetry.metrics import Observation

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            now = time.monotonic()
            if now > self._until:
                self._families = {f.name: f for f in families(_present(self._observers))}
                self._until = now + _SAME_S
            known = self._families.get(name)
            return [
                Observation(value, dict(labels))
                for suffix, labels, value in (known.samples if known else ())
                if suffix == wanted
            ]

        return observe


def _present(observers: Observers) -> Iterable[Observer]:
    return observers() if callable(observers) else observers
