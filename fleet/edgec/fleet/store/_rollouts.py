"""Rollouts in the database: a plan becomes decisions, orders to devices and incidents, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from edgec.errors import FleetError
from edgec.fleet.rollouts import (
    Assign,
    Decision,
    Facts,
    OpenIncident,
    Order,
    Plan,
    Quarantine,
    Rollout,
    Undo,
    advance,
    decision_from_dict,
    look_due,
    plan,
    refusal,
)
from edgec.fleet.store._audit import add_entry
from edgec.fleet.store._database import Database, clean, upsert
from edgec.fleet.store._devices import tell
from edgec.fleet.store._facts import gather_devices, gather_evidence, quarantined
from edgec.fleet.store._labels import parse_query
from edgec.fleet.store._schema import assignments, decisions, incidents, quarantine, rollouts

# While one of these is under way, no other rollout may touch the same model.
_BUSY = ("running", "paused", "undoing")


@dataclass(frozen=True, kw_only=True)
class LoggedDecision:
    """A decision with its number and time."""

    id: int
    at: float
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that a person must know; `closed_at` is None until one has said that it is settled."""

    id: int
    rollout: str | None
    device: str | None
    reason: str
    detail: str
    evidence: Mapping[str, Any]
    opened_at: float
    closed_at: float | None
    closed_by: str | None


class RolloutStore:
    """All rollouts, their decisions, incidents and the quarantine."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, wanted: Plan, *, now: float, actor: str) -> Rollout:
        """Write down a draft.

        Raises:
            FleetError: There is one of this id (``reason`` ``conflict``), its query is none (``query``),
                or an artifact of it is quarantined (``refused``).
        """
        parse_query(wanted.query)
        rollout = Rollout(plan=wanted)
        with self._database.write() as connection:
            if connection.execute(select(rollouts.c.id).where(rollouts.c.id == wanted.id)).first():
                raise FleetError(f"there is a rollout {wanted.id!r} already", "conflict")
            bad = sorted(set(wanted.artifacts.values()) & quarantined(connection))
            if bad:
                raise FleetError(f"{', '.join(bad)} is quarantined; release it first", "refused")
            connection.execute(
                rollouts.insert(),
                {
                    "id": wanted.id,
                    "name": wanted.name,
                    "model": wanted.model,
                    "version": wanted.version,
                    "state": rollout.state,
                    "revision": 0,
                    "document": rollout.to_dict(),
                    "created_at": now,
                },
            )
            add_entry(connection, now, actor, "rollout.create", wanted.id, wanted.to_dict())
        return rollout

    def get(self, rollout: str) -> Rollout:
        """Return how far a rollout is.

        Raises:
            FleetError: There is none of this id (``reason`` ``not_found``).
        """
        with self._database.read() as connection:
            return Rollout.from_dict(_row(connection, rollout).document)

    def find(
        self, *, states: Sequence[str] = (), model: str | None = None, limit: int = 100
    ) -> list[Rollout]:
        """Return rollouts, newest first."""
        query = select(rollouts.c.document).order_by(rollouts.c.created_at.desc(), rollouts.c.id).limit(limit)
        if states:
            query = query.where(rollouts.c.state.in_(states))
        if model is not None:
            query = query.where(rollouts.c.model == model)
        with self._database.read() as connection:
            return [Rollout.from_dict(row.document) for row in connection.execute(query)]

    def order(self, rollout: str, word: str, *, now: float, actor: str, reason: str = "") -> Rollout:
        """Give an order: ``start``, ``pause``, ``resume``, ``abort``, ``undo`` or ``retry``.

        Raises:
            FleetError: There is no such rollout, or the order cannot be carried out (``reason`` ``refused``,
                or ``conflict`` where another rollout of the model is under way).
            ValueError: There is no such order.
        """
        with self._database.write() as connection:
            row = _row(connection, rollout, lock=True)
            before = Rollout.from_dict(row.document)
            refused = refusal(before, word)
            if refused is not None:
                raise FleetError(f"{word} {rollout}: {refused}", "refused")
            if word in ("start", "undo"):
                _refuse_others(connection, before)
            said = Order(word=word, by=actor, reason=clean(reason))
            after = _write(connection, row, before, [said], now)
            add_entry(connection, now, actor, f"rollout.{word}", rollout, {"reason": reason})
        return after

    def tick(self, rollout: str, now: float) -> list[Decision]:
        """Plan, write down what is decided and what follows from it, in one transaction; return it.

        What devices are told is then in their `DeviceRecord.wanted` and `epoch`: the caller signs and sends
        it, and may do so again at any time. Servers that do this at once come one after the other.

        Raises:
            FleetError: There is no such rollout.
        """
        with self._database.write() as connection:
            row = _row(connection, rollout, lock=True)
            before = Rollout.from_dict(row.document)
            facts = Facts(
                devices=gather_devices(connection, before),
                evidence=gather_evidence(connection, before, now) if look_due(before, now) else None,
                quarantined=quarantined(connection),
            )
            made = plan(before, facts, now)
            if made:
                _write(connection, row, before, made, now)
                for kind, same in groupby(made, type):
                    _carry_out(connection, before.plan, kind, list(same), now)
        return made

    def decisions(self, rollout: str, *, after: int = 0, limit: int = 1000) -> list[LoggedDecision]:
        """Return what was decided, in order."""
        query = select(decisions).where(decisions.c.rollout == rollout, decisions.c.id > after)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(decisions.c.id).limit(limit)).all()
        return [LoggedDecision(id=r.id, at=r.at, decision=decision_from_dict(r.body)) for r in rows]

    def incidents(self, *, only_open: bool = False, limit: int = 100) -> list[Incident]:
        """Return incidents, newest first."""
        query = select(incidents).order_by(incidents.c.id.desc()).limit(limit)
        if only_open:
            query = query.where(incidents.c.closed_at.is_(None))
        with self._database.read() as connection:
            return [Incident(**row._asdict()) for row in connection.execute(query)]

    def close_incident(self, incident: int, *, now: float, actor: str, reason: str = "") -> None:
        """Say that an incident is settled.

        Raises:
            FleetError: There is no such incident that is open.
        """
        with self._database.write() as connection:
            open_ = (incidents.c.id == incident) & incidents.c.closed_at.is_(None)
            done = connection.execute(update(incidents).where(open_).values(closed_at=now, closed_by=actor))
            if not done.rowcount:
                raise FleetError(f"there is no open incident {incident}", "not_found")
            add_entry(connection, now, actor, "incident.close", str(incident), {"reason": reason})

    def quarantined(self) -> frozenset[str]:
        """Return the digests that may not be installed."""
        with self._database.read() as connection:
            return quarantined(connection)

    def quarantine(self, digest: str, *, now: float, actor: str, reason: str) -> None:
        """Say that an artifact may not be installed any more; running rollouts of it are undone."""
        with self._database.write() as connection:
            _quarantine(connection, digest, reason, None, now)
            add_entry(connection, now, actor, "quarantine.add", digest, {"reason": reason})

    def release_quarantine(self, digest: str, *, now: float, actor: str, reason: str) -> None:
        """Say that an artifact may be installed again.

        Raises:
            FleetError: It is not quarantined.
        """
        with self._database.write() as connection:
            if not connection.execute(quarantine.delete().where(quarantine.c.digest == digest)).rowcount:
                raise FleetError(f"{digest} is not quarantined", "not_found")
            add_entry(connection, now, actor, "quarantine.release", digest, {"reason": reason})


def _row(connection: Connection, rollout: str, *, lock: bool = False) -> Row[Any]:
    query = select(rollouts).where(rollouts.c.id == rollout)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise FleetError(f"there is no rollout {rollout!r}", "not_found")
    return row


def _refuse_others(connection: Connection, rollout: Rollout) -> None:
    query = select(rollouts.c.id, rollouts.c.state).where(
        rollouts.c.model == rollout.plan.model,
        rollouts.c.state.in_(_BUSY),
        rollouts.c.id != rollout.plan.id,
    )
    other = connection.execute(query).first()
    if other is not None:
        words = "is under way; end it first"
        if other.state == "undoing":
            words = "is under way: its undo ends once all devices that are connected have gone back"
        raise FleetError(f"rollout {other.id} of {rollout.plan.model} {words}", "conflict")


def _write(
    connection: Connection, row: Row[Any], before: Rollout, made: list[Decision], now: float
) -> Rollout:
    after = advance(before, made, now)
    connection.execute(
        update(rollouts)
        .where(rollouts.c.id == row.id)
        .values(document=after.to_dict(), state=after.state, revision=row.revision + 1)
    )
    connection.execute(
        decisions.insert(),
        [
            {
                "rollout": row.id,
                "at": now,
                "kind": d.kind,
                "device": getattr(d, "device", None),
                "body": d.to_dict(),
            }
            for d in made
        ],
    )
    return after


def _carry_out(
    connection: Connection, wanted: Plan, kind: type[Decision], made: Sequence[Any], now: float
) -> None:
    """Do what decisions of one kind say."""
    if kind is Assign:
        epochs = tell(connection, wanted.model, {d.device: d.digest for d in made})
        fresh = {
            "rollout": wanted.id, "assigned_at": now, "undone": False, "phase": "assigned", "phase_at": now,
            "reason": "", "noticed": False, "confirmed": False,
        }  # fmt: skip
        rows = [
            {
                **fresh, "device": d.device, "digest": d.digest, "previous": d.previous,
                "epoch": epochs[d.device], "attempts": d.attempt,
            }
            for d in made
        ]  # fmt: skip
        upsert(connection, assignments, rows)
    elif kind is Undo:
        epochs = tell(connection, wanted.model, {d.device: d.digest for d in made})
        key = (assignments.c.rollout == wanted.id) & (assignments.c.device == bindparam("one"))
        values = {"undone": True, "epoch": bindparam("new_epoch"), "noticed": False, "confirmed": False}
        rows = [{"one": device, "new_epoch": epoch} for device, epoch in sorted(epochs.items())]
        connection.execute(update(assignments).where(key).values(values), rows)
    elif kind is Quarantine:
        for decision in made:
            _quarantine(connection, decision.digest, decision.reason, wanted.id, now)
    elif kind is OpenIncident:
        connection.execute(incidents.insert(), [_incident(wanted, decision, now) for decision in made])


def _incident(wanted: Plan, decision: OpenIncident, now: float) -> dict[str, Any]:
    return {
        "rollout": wanted.id,
        "reason": decision.reason[:256],
        "detail": decision.detail,
        "evidence": decision.evidence,
        "opened_at": now,
    }


def _quarantine(connection: Connection, digest: str, reason: str, rollout: str | None, now: float) -> None:
    row = {"digest": digest, "reason": clean(reason)[:256], "at": now, "rollout": rollout}
    upsert(connection, quarantine, [row], update=False)
