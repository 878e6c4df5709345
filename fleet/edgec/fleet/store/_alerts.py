"""Alerts, each raised once and cleared once; and what is to be told of them to whom, until it was taken."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, delete, select, text, update

from edgec.fleet.store._database import Database, clean
from edgec.fleet.store._schema import alerts, deliveries

# Of PostgreSQL's advisory locks: one server at a time compares what holds with what is open.
_LOCK = 0x65646764


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Something that holds now.

    Attributes:
        rule: That found it: ``offline``.
        subject: Of what: a device, a rollout, an artifact; rule and subject are one alert.
        severity: ``info``, ``warning`` or ``critical``.
        summary: For people.
        figures: For programs.
        firm: Whether it is enough to raise the alert; one that is not keeps an open alert open.
    """

    rule: str
    subject: str
    severity: str
    summary: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    firm: bool = True


@dataclass(frozen=True, kw_only=True)
class AlertRecord:
    """An alert; `cleared_at` is None while it is open, and `quiet_since` while what raised it holds."""

    id: int
    rule: str
    subject: str
    severity: str
    summary: str
    figures: Mapping[str, Any]
    raised_at: float
    quiet_since: float | None
    cleared_at: float | None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What is to be told, and to whom.

    Attributes:
        id: The same whenever it is tried.
        sink: Name of who is told.
        body: JSON.
        tries: Before this one.
    """

    id: int
    sink: str
    body: str
    tries: int


class Alerts:
    """All alerts of a fleet."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def compare(
        self,
        conditions: Sequence[Condition],
        now: float,
        *,
        rules: Collection[str],
        quiet_s: float,
        sinks: Sequence[str] = (),
        about: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, AlertRecord]]:
        """Raise what holds and is not open, and clear what is open and has not held for a while.

        Changes and what is to be told of them are written in one transaction. What has become more severe is
        told again.

        Args:
            conditions: All that hold now, of these rules.
            now: Seconds by the fleet's clock.
            rules: Alerts of others are left alone.
            quiet_s: A condition must have been away for so long before its alert is cleared.
            sinks: Names of who is told.
            about: Goes into what is told, beside the alert.

        Returns:
            ``raised``, ``worse`` or ``cleared``, and the alert.
        """
        with self._database.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            query = select(alerts).where(alerts.c.cleared_at.is_(None), alerts.c.rule.in_(sorted(rules)))
            known = {(row.rule, row.subject): row for row in connection.execute(query)}
            holds = {(c.rule, clean(c.subject)[:256]): c for c in conditions}
            changes = []
            for key, condition in holds.items():
                row = known.get(key)
                if row is not None:
                    changes += _keep(connection, row, condition)
                elif condition.firm:
                    changes.append(("raised", _raise(connection, key[1], condition, now)))
            for key, row in known.items():
                if key not in holds:
                    changes += _quiet(connection, row, now, quiet_s)
            for word, alert in changes:
                _queue(connection, word, alert, sinks, now, about or {})
        return changes

    def find(
        self, *, only_open: bool = True, before: int | None = None, limit: int = 100
    ) -> list[AlertRecord]:
        """Return alerts, newest first, those with an id below `before`."""
        query = select(alerts).order_by(alerts.c.id.desc()).limit(limit)
        if only_open:
            query = query.where(alerts.c.cleared_at.is_(None))
        if before is not None:
            query = query.where(alerts.c.id < before)
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def take_due(self, now: float, *, lease_s: float, limit: int = 20) -> list[Delivery]:
        """Return what is to be delivered now, and keep it from others and from the next call for a while."""
        query = select(deliveries).where(deliveries.c.done_at.is_(None), deliveries.c.next_at <= now)
        query = query.order_by(deliveries.c.next_at, deliveries.c.id).limit(limit)
        with self._database.write() as connection:
            rows = connection.execute(query.with_for_update(skip_locked=True)).all()
            ids = [row.id for row in rows]
            connection.execute(
                update(deliveries).where(deliveries.c.id.in_(ids)).values(next_at=now + lease_s)
            )
        return [Delivery(id=r.id, sink=r.sink, body=r.body, tries=r.tries) for r in rows]

    def delivered(self, delivery: Delivery, now: float) -> None:
        """Write down that it was taken."""
        self._after(delivery, done_at=now, problem="", next_at=now)

    def failed(self, delivery: Delivery, problem: str, *, next_at: float | None, now: float) -> None:
        """Write down that it was not taken; it is given up where there is no next time."""
        if next_at is None:
            self._after(delivery, done_at=now, problem=problem, next_at=now)
        else:
            self._after(delivery, done_at=None, problem=problem, next_at=next_at)

    def undelivered(self) -> dict[str, int]:
        """Return how many deliveries wait, by sink."""
        with self._database.read() as connection:
            query = select(deliveries.c.sink).where(deliveries.c.done_at.is_(None))
            found: dict[str, int] = {}
            for sink in connection.execute(query).scalars():
                found[sink] = found.get(sink, 0) + 1
        return found

    def prune(self, now: float, *, keep_s: float = 400 * 86400, deliveries_s: float = 30 * 86400) -> int:
        """Remove what was cleared or delivered long ago; return how many rows."""
        old = [
            delete(alerts).where(alerts.c.cleared_at < now - keep_s),
            delete(deliveries).where(deliveries.c.done_at < now - deliveries_s),
        ]
        with self._database.write() as connection:
            return sum(connection.execute(statement).rowcount for statement in old)

    def _after(self, delivery: Delivery, **values: Any) -> None:
        values["problem"] = clean(values["problem"])[:1000]
        with self._database.write() as connection:
            connection.execute(
                update(deliveries)
                .where(deliveries.c.id == delivery.id)
                .values(tries=delivery.tries + 1, **values)
            )


_SEVERITIES = ("info", "warning", "critical")


def _keep(connection: Connection, row: Row[Any], condition: Condition) -> list[tuple[str, AlertRecord]]:
    worse = _SEVERITIES.index(condition.severity) > _SEVERITIES.index(row.severity)
    values: dict[str, Any] = {"quiet_since": None}
    if condition.firm:
        values |= {"summary": clean(condition.summary), "figures": dict(condition.figures)}
    if worse:
        values["severity"] = condition.severity
    if any(getattr(row, name) != value for name, value in values.items()):
        connection.execute(update(alerts).where(alerts.c.id == row.id).values(**values))
    return [("worse", _read(connection, row.id))] if worse else []


def _raise(connection: Connection, subject: str, condition: Condition, now: float) -> AlertRecord:
    values = {
        "rule": condition.rule, "subject": subject, "severity": condition.severity,
        "summary": clean(condition.summary), "figures": dict(condition.figures), "raised_at": now,
    }  # fmt: skip
    made = connection.execute(alerts.insert().values(**values).returning(alerts.c.id)).scalar_one()
    return _read(connection, made)


def _quiet(
    connection: Connection, row: Row[Any], now: float, quiet_s: float
) -> list[tuple[str, AlertRecord]]:
    since = now if row.quiet_since is None else row.quiet_since
    over = now - since >= quiet_s
    if over or row.quiet_since is None:
        values = {"quiet_since": since, "cleared_at": now if over else None}
        connection.execute(update(alerts).where(alerts.c.id == row.id).values(**values))
    return [("cleared", _read(connection, row.id))] if over else []


def _queue(
    connection: Connection,
    word: str,
    alert: AlertRecord,
    sinks: Sequence[str],
    now: float,
    about: Mapping[str, Any],
) -> None:
    body = json.dumps({**about, "event": word, "alert": vars(alert)}, sort_keys=True)
    rows = [
        {"sink": sink, "body": body, "created_at": now, "tries": 0, "next_at": now, "problem": ""}
        for sink in sinks
    ]
    if rows:
        connection.execute(deliveries.insert(), rows)


def _read(connection: Connection, alert: int) -> AlertRecord:
    return _record(connection.execute(select(alerts).where(alerts.c.id == alert)).one())


def _record(row: Row[Any]) -> AlertRecord:
    return AlertRecord(**row._asdict())
