"""Lists of what the fleet keeps, a page at a time, each in few queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, case, func, or_, select, true

from edgec.errors import FleetError
from edgec.fleet.rollouts import Order, Plan, Rollout, decision_from_dict
from edgec.fleet.store._database import Database
from edgec.fleet.store._rollouts import Incident, LoggedDecision
from edgec.fleet.store._schema import (
    artifacts,
    assignments,
    decisions,
    devices,
    incidents,
    quarantine,
    rollouts,
)


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """An artifact that may not be installed.

    Attributes:
        digest: Its SHA-256.
        reason: Why.
        at: Since when.
        rollout: That found it bad; None where a person did.
    """

    digest: str
    reason: str
    at: float
    rollout: str | None


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """What a rollout has told a device, and what became of it; see `edgec.fleet.rollouts.DeviceFacts`."""

    device: str
    digest: str
    previous: str | None
    epoch: int
    assigned_at: float
    attempts: int
    undone: bool
    phase: str
    phase_at: float
    reason: str
    noticed: bool
    confirmed: bool


@dataclass(frozen=True, kw_only=True)
class FleetCount:
    """How many devices there are: revoked ones are counted as such only."""

    devices: int
    online: int
    fenced: int
    revoked: int


class Pages:
    """Lists by page."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rollouts(
        self, *, states: Sequence[str] = (), model: str | None = None, after: str = "", limit: int = 100
    ) -> list[tuple[Rollout, float]]:
        """Return rollouts and when they were made, newest first, those after the one of id `after`.

        Raises:
            FleetError: There is no rollout of this id.
        """
        query = select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.id).limit(limit)
        if states:
            query = query.where(rollouts.c.state.in_(states))
        if model is not None:
            query = query.where(rollouts.c.model == model)
        with self._database.read() as connection:
            if after:
                made = connection.execute(
                    select(rollouts.c.created_at).where(rollouts.c.id == after)
                ).scalar()
                if made is None:
                    raise FleetError(f"there is no rollout {after!r} to go on after", "not_found")
                same = and_(rollouts.c.created_at == made, rollouts.c.id > after)
                query = query.where(or_(rollouts.c.created_at < made, same))
            return [(Rollout.from_dict(r.document), r.created_at) for r in connection.execute(query)]

    def rollout(self, rollout: str) -> tuple[Rollout, float]:
        """Return a rollout, and when it was made.

        Raises:
            FleetError: There is none of this id.
        """
        with self._database.read() as connection:
            row = connection.execute(select(rollouts).where(rollouts.c.id == rollout)).first()
        if row is None:
            raise FleetError(f"there is no rollout {rollout!r}", "not_found")
        return Rollout.from_dict(row.document), row.created_at

    def undone_before(self, wanted: Plan, limit: int = 10) -> list[tuple[str, float, Order]]:
        """Return what other rollouts of an artifact of this one were undone by persons, newest first.

        Each with its id, and when. What the gate undoes is quarantined, and so is refused.
        """
        digests = set(wanted.artifacts.values())
        query = (
            select(rollouts.c.id, rollouts.c.document, decisions.c.at, decisions.c.body)
            .join(decisions, decisions.c.rollout == rollouts.c.id)
            .where(
                rollouts.c.model == wanted.model, rollouts.c.id != wanted.id, decisions.c.kind == Order.kind
            )
            .order_by(decisions.c.id.desc())
        )
        found = []
        with self._database.read() as connection:
            for row in connection.execute(query):
                said = decision_from_dict(row.body)
                shared = digests & set(row.document["plan"]["artifacts"].values())
                if isinstance(said, Order) and said.word == "undo" and shared:
                    found.append((row.id, row.at, said))
        return found[:limit]

    def decisions(
        self, rollout: str, *, kinds: Sequence[str] = (), after: int = 0, limit: int = 1000
    ) -> list[LoggedDecision]:
        """Return what was decided, in order, of some kinds or of all."""
        query = select(decisions).where(decisions.c.rollout == rollout, decisions.c.id > after)
        if kinds:
            query = query.where(decisions.c.kind.in_(kinds))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(decisions.c.id).limit(limit)).all()
        return [LoggedDecision(id=r.id, at=r.at, decision=decision_from_dict(r.body)) for r in rows]

    def phases(self, rollout: str) -> dict[str, int]:
        """Return how many devices of a rollout are in each phase; ``undone`` and ``confirmed`` beside them.

        Devices whose assignment was taken back count as ``undoing``, or as ``undone`` once they confirmed it.
        """
        phase = case(
            (and_(assignments.c.undone, assignments.c.confirmed), "undone"),
            (assignments.c.undone, "undoing"),
            else_=assignments.c.phase,
        )
        query = select(phase.label("phase"), func.count().label("n")).where(assignments.c.rollout == rollout)
        with self._database.read() as connection:
            return {row.phase: row.n for row in connection.execute(query.group_by(phase))}

    def assignments(
        self, rollout: str, *, phase: str | None = None, after: str = "", limit: int = 100
    ) -> list[Assigned]:
        """Return what a rollout has told devices, by their ids."""
        query = select(assignments).where(assignments.c.rollout == rollout, assignments.c.device > after)
        if phase is not None:
            query = query.where(assignments.c.phase == phase)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(assignments.c.device).limit(limit)).all()
        return [Assigned(**{k: v for k, v in row._asdict().items() if k != "rollout"}) for row in rows]

    def incidents(
        self, *, only_open: bool = False, rollout: str | None = None, before: int = 0, limit: int = 100
    ) -> list[Incident]:
        """Return incidents, newest first, those before number `before`; all where that is 0."""
        query = select(incidents).order_by(incidents.c.id.desc()).limit(limit)
        query = query.where(
            incidents.c.closed_at.is_(None) if only_open else true(),
            incidents.c.rollout == rollout if rollout is not None else true(),
            incidents.c.id < before if before else true(),
        )
        with self._database.read() as connection:
            return [Incident(**row._asdict()) for row in connection.execute(query)]

    def incident(self, incident: int) -> Incident:
        """Return an incident.

        Raises:
            FleetError: There is none of this number.
        """
        found = self.incidents(before=incident + 1, limit=1)
        if not found or found[0].id != incident:
            raise FleetError(f"there is no incident {incident}", "not_found")
        return found[0]

    def quarantine(self, *, after: str = "", limit: int = 100) -> list[Quarantined]:
        """Return what may not be installed, by digest."""
        query = select(quarantine).where(quarantine.c.digest > after)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(quarantine.c.digest).limit(limit)).all()
        return [Quarantined(**row._asdict()) for row in rows]

    def versions(self, digests: Iterable[str]) -> dict[str, str]:
        """Return the version of each artifact that the registry has, by digest."""
        wanted = sorted(set(digests))
        query = select(artifacts.c.sha256, artifacts.c.version)
        with self._database.read() as connection:
            return {
                row.sha256: row.version
                for i in range(0, len(wanted), 500)
                for row in connection.execute(query.where(artifacts.c.sha256.in_(wanted[i : i + 500])))
            }

    def count_devices(self) -> FleetCount:
        """Return how many devices there are."""
        here = devices.c.revoked_at.is_(None)

        def count(what: ColumnElement[bool]) -> ColumnElement[int]:
            return func.coalesce(func.sum(case((what, 1), else_=0)), 0)

        query = select(
            count(here),
            count(and_(here, devices.c.online.is_(True))),
            count(and_(here, devices.c.fenced.is_(True))),
            count(devices.c.revoked_at.is_not(None)),
        )
        with self._database.read() as connection:
            total, online, fenced, revoked = connection.execute(query).one()
        return FleetCount(devices=total, online=online, fenced=fenced, revoked=revoked)
