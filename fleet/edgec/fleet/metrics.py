"""Figures of a fleet for Prometheus: as many as there are models, however many devices there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import case, func, select

from edgec.errors.extras import needs_extra
from edgec.fleet.store import Store
from edgec.fleet.store._drift import DAY_H, INPUT, OUTPUT
from edgec.fleet.store._hours import HOUR_S
from edgec.fleet.store._schema import alerts, artifacts, devices, fleet_hours, incidents, quarantine, rollouts

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_QUANTILES = (0.5, 0.95, 0.99)
# Percentiles are of this hour and the one before: devices send one window an hour.
_HOURS = 2
_COUNTERS = {
    "messages": ("edgec_fleet_messages", "Messages of devices, by kind.", "kind"),
    "dropped": ("edgec_fleet_dropped_messages", "Messages that were none, or of strangers.", "reason"),
    "records": (
        "edgec_fleet_records",
        "Records of telemetry and events that came, repeated ones included.",
        "",
    ),
    "batches": ("edgec_fleet_batches", "Transactions that messages were kept in.", ""),
    "repeated_batches": ("edgec_fleet_repeated_batches", "Transactions that had to be tried again.", ""),
    "acknowledgements": ("edgec_fleet_acknowledgements", "Acknowledgements to devices.", "outcome"),
    "orders": ("edgec_fleet_orders", "Orders to devices.", "outcome"),
    "turns": ("edgec_fleet_turns", "Times that rollouts were looked at.", ""),
    "commands": ("edgec_fleet_commands", "Commands to devices.", "outcome"),
}
_MODEL = {
    "calls": "Calls",
    "errors": "Calls that failed",
    "non_finite": "Calls with NaN or infinity",
    "crashes": "Crashes",
}
_SECONDS = {
    "batch_seconds": ("edgec_fleet_batch_seconds", "Seconds in transactions of messages."),
    "lag_seconds": (
        "edgec_fleet_ingest_lag_seconds",
        "Seconds from the first message of a batch to its commit, of all messages together.",
    ),
    "turn_seconds": (
        "edgec_fleet_turn_seconds",
        "Seconds that looking at rollouts and telling devices took.",
    ),
}


class Counted(Protocol):
    """Counts since the start of a server: `edgec.fleet.mqtt.Counters`."""

    def snapshot(self) -> tuple[dict[tuple[str, str], int], dict[str, float]]:
        """Return all counts by name and label, and all sums of seconds by name."""
        ...


class FleetCollector:
    """A collector of ``prometheus_client``.

    CollectorRegistry().register(FleetCollector(fleet.store, clock=fleet.clock, counted=side.counters))
    """

    def __init__(self, store: Store, *, clock: Any, counted: Counted | None = None) -> None:
        """Collect of a store.

        Args:
            store: Of the fleet.
            clock: Seconds since 1970.
            counted: Of the server's side of a broker; None where there is none.

        Raises:
            MissingExtraError: ``prometheus_client`` is not installed.
        """
        with needs_extra("figures for Prometheus", "fleet"):
            from prometheus_client.core import Metric
        self._store, self._clock, self._counted, self._metric = store, clock, counted, Metric

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is, is only known when it is read."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all figures as of now."""
        yield from self._devices()
        yield from self._states()
        yield from self._models()
        yield from self._drift()
        if self._counted is not None:
            yield from self._counts(*self._counted.snapshot())

    def _family(self, name: str, text: str, kind: str) -> Metric:
        return self._metric(name, text, kind)

    def _devices(self) -> Iterator[Metric]:
        state = case(
            (devices.c.revoked_at.is_not(None), "revoked"),
            (devices.c.fenced.is_(True), "fenced"),
            (devices.c.online.is_(True), "online"),
            (devices.c.seen_at > 0, "offline"),
            else_="never_seen",
        ).label("state")
        family = self._family("edgec_fleet_devices", "Devices, by class of hardware and state.", "gauge")
        with self._store.database.read() as connection:
            query = select(devices.c.hardware, state, func.count()).group_by(devices.c.hardware, state)
            for hardware, word, count in connection.execute(query):
                family.add_sample(family.name, {"hardware": hardware, "state": word}, count)
        yield family
        family = self._family(
            "edgec_fleet_ordered_devices", "Devices with an order, by how far it is.", "gauge"
        )
        for word, count in self._store.orders.counts().items():
            family.add_sample(family.name, {"state": word}, count)
        yield family

    def _states(self) -> Iterator[Metric]:
        queries = (
            ("edgec_fleet_rollouts", "Rollouts, by state.", "state",
             select(rollouts.c.state, func.count()).group_by(rollouts.c.state)),
            ("edgec_fleet_alerts", "Open alerts, by rule.", "rule",
             select(alerts.c.rule, func.count()).where(alerts.c.cleared_at.is_(None))
             .group_by(alerts.c.rule)),
            ("edgec_fleet_incidents", "Open incidents, by reason.", "reason",
             select(incidents.c.reason, func.count()).where(incidents.c.closed_at.is_(None))
             .group_by(incidents.c.reason)),
        )  # fmt: skip
        with self._store.database.read() as connection:
            for name, text, label, query in queries:
                family = self._family(name, text, "gauge")
                for word, count in connection.execute(query):
                    family.add_sample(name, {label: word}, count)
                yield family
            count = connection.execute(select(func.count()).select_from(quarantine)).scalar_one()
        family = self._family("edgec_fleet_quarantined", "Artifacts that may not be installed.", "gauge")
        family.add_sample(family.name, {}, count)
        yield family
        family = self._family(
            "edgec_fleet_undelivered_alerts", "Alerts that wait to be told, by sink.", "gauge"
        )
        for sink, waiting in self._store.alerts.undelivered().items():
            family.add_sample(family.name, {"sink": sink}, waiting)
        yield family

    def _models(self) -> Iterator[Metric]:
        now = self._clock()
        with self._store.database.read() as connection:
            recent = select(fleet_hours.c.model).where(fleet_hours.c.hour > int(now // HOUR_S) - _HOURS)
            models = sorted(connection.execute(recent.distinct()).scalars())
            query = select(artifacts.c.sha256, artifacts.c.version).where(artifacts.c.model.in_(models))
            versions = {row.sha256[:16]: row.version for row in connection.execute(query)}
        latency = self._family(
            "edgec_fleet_latency_milliseconds",
            "Latency of all devices' calls, of this hour and the one before.",
            "gauge",
        )
        recently = "of this hour and the one before."
        counts = {
            name: self._family(f"edgec_fleet_model_{name}", f"{text}, {recently}", "gauge")
            for name, text in _MODEL.items()
        }
        for model in models:
            said = self._store.telemetry.fleet(model, since=now - HOUR_S, until=now)
            for digest, part in said.items():
                labels = {"model": model, "version": versions.get(digest, ""), "digest": digest}
                for name, family in counts.items():
                    family.add_sample(family.name, labels, part.figures[name])
                if part.latency.count:
                    for q in _QUANTILES:
                        latency.add_sample(
                            latency.name, {**labels, "quantile": str(q)}, part.latency.quantile(q)
                        )
        yield from (latency, *counts.values())

    def _drift(self) -> Iterator[Metric]:
        made = {
            (kind, name): self._family(f"edgec_fleet_{prefix}drift_{name}", f"{text}{of}.", "gauge")
            for kind, prefix, of in ((OUTPUT, "", ""), (INPUT, "input_", ", of a statistic of inputs"))
            for name, text in (
                ("psi", "Stability index against calibration data, unbiased"),
                ("ks", "Distance from the distribution of calibration data"),
            )
        }
        for row in self._store.drift.newest(self._clock() - 3 * HOUR_S):
            labels = {"model": row.model, "digest": row.digest, "hardware": row.hardware}
            if row.kind == INPUT:
                if row.hours < DAY_H:
                    continue
                labels["input"], _, labels["statistic"] = row.output.rpartition("/")
            else:
                labels["output"] = row.output
            for name, value in (("psi", row.psi), ("ks", row.ks)):
                family = made[row.kind, name]
                family.add_sample(family.name, labels, value)
        yield from made.values()

    def _counts(self, counts: Mapping[tuple[str, str], int], sums: Mapping[str, float]) -> Iterator[Metric]:
        for name, (full, text, label) in _COUNTERS.items():
            family = self._family(full, text, "counter")
            for (known, word), count in sorted(counts.items()):
                if known == name:
                    family.add_sample(f"{full}_total", {label: word} if label else {}, count)
            yield family
        for name, (full, text) in _SECONDS.items():
            family = self._family(full, text, "counter")
            family.add_sample(f"{full}_total", {}, sums.get(name, 0.0))
            yield family


def metrics_text(store: Store, *, clock: Any, counted: Counted | None = None) -> tuple[bytes, str]:
    """Return all figures as text, and its content type.

    Raises:
        MissingExtraError: ``prometheus_client`` is not installed.
    """
    collector = FleetCollector(store, clock=clock, counted=counted)
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

    registry = CollectorRegistry()
    registry.register(collector)
    return bytes(generate_latest(registry)), str(CONTENT_TYPE_LATEST)
