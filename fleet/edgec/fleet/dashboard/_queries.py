"""What pages show of the whole fleet: few queries, however many devices there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import case, func, select

from edgec.fleet.rollouts import Rollout, decision_from_dict, place
from edgec.fleet.store import Database, HourOf, Incident, LoggedDecision, parse_query
from edgec.fleet.store._hours import HOUR_S
from edgec.fleet.store._labels import where
from edgec.fleet.store._schema import (
    artifacts,
    assignments,
    audit,
    decisions,
    device_hours,
    devices,
    fleet_hours,
    incidents,
    labels,
)
from edgec.fleet.store._telemetry import DIGEST_CHARS
from edgec.fleet.store._views import view_from_dict


@dataclass(frozen=True, kw_only=True)
class HardwareCount:
    """Devices of a class of hardware that were not revoked."""

    hardware: str
    devices: int
    online: int
    fenced: int


@dataclass(frozen=True, kw_only=True)
class Running:
    """An artifact that devices report as the one that serves. `version` is None where nobody uploaded it."""

    model: str
    digest: str
    version: str | None
    devices: int


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A device in the ring of a rollout.

    Attributes:
        id: Its id.
        hardware: Its class of hardware.
        place: Of 10,000; the first are in the first stage.
        online: Whether it is connected.
        phase: ``none``, ``assigned``, ``working``, ``installed``, ``failed``, ``undoing`` or ``undone``.
        reason: Of its failure.
        enrolled_at: When it came into the fleet.
    """

    id: str
    hardware: str
    place: int
    online: bool
    phase: str
    reason: str
    enrolled_at: float


@dataclass(frozen=True, kw_only=True)
class Told:
    """Decisions about single devices that were made at once: ``assign`` or ``undo``."""

    id: int
    at: float
    kind: str
    devices: int


def count_hardware(database: Database) -> list[HardwareCount]:
    """Return how many devices there are, and are connected, by class of hardware."""
    query = (
        select(
            devices.c.hardware,
            func.count().label("devices"),
            func.sum(case((devices.c.online, 1), else_=0)).label("online"),
            func.sum(case((devices.c.fenced, 1), else_=0)).label("fenced"),
        )
        .where(devices.c.revoked_at.is_(None))
        .group_by(devices.c.hardware)
        .order_by(devices.c.hardware)
    )
    with database.read() as connection:
        return [
            HardwareCount(hardware=r.hardware, devices=r.devices, online=r.online, fenced=r.fenced)
            for r in connection.execute(query)
        ]


def count_devices(database: Database, query: str) -> int:
    """Return how many devices a query names.

    Raises:
        FleetError: It is no query.
    """
    wanted = select(func.count()).select_from(devices).where(where(parse_query(query)))
    with database.read() as connection:
        return int(connection.execute(wanted).scalar_one())


def count_running(database: Database) -> list[Running]:
    """Return which artifacts serve on how many devices, by model, most devices first."""
    counts: dict[tuple[str, str], int] = {}
    with database.read() as connection:
        views = connection.execute(select(devices.c.view).where(devices.c.revoked_at.is_(None))).scalars()
        for document in views:
            reported = view_from_dict(document).reported
            for model, report in (reported.models if reported else {}).items():
                if report.active:
                    counts[model, report.active] = counts.get((model, report.active), 0) + 1
        names = {
            r.sha256: r.version for r in connection.execute(select(artifacts.c.sha256, artifacts.c.version))
        }
    found = [
        Running(model=model, digest=digest, version=names.get(digest), devices=n)
        for (model, digest), n in counts.items()
    ]
    return sorted(found, key=lambda r: (r.model, -r.devices, r.digest))


def versions_by_digest(database: Database) -> dict[str, str]:
    """Return the version of every artifact, by the part of its digest that telemetry has."""
    query = select(artifacts.c.sha256, artifacts.c.version)
    with database.read() as connection:
        return {row.sha256[:DIGEST_CHARS]: row.version for row in connection.execute(query)}


def fleet_by_hour(
    database: Database, since: float, until: float, model: str | None = None
) -> dict[int, HourOf]:
    """Return what all devices did in each hour since 1970; hours without calls are missing."""
    query = select(fleet_hours).where(
        fleet_hours.c.hour >= int(since // HOUR_S), fleet_hours.c.hour <= int(until // HOUR_S)
    )
    if model is not None:
        query = query.where(fleet_hours.c.model == model)
    found: dict[int, HourOf] = {}
    with database.read() as connection:
        for row in connection.execute(query).mappings():
            # Histograms of different models have other edges, and are looked at nowhere.
            if (part := HourOf.read_row(dict(row))) is not None:
                found.setdefault(row["hour"], HourOf()).merge(part)
    return found


def models_of(database: Database, device: str, since: float) -> list[str]:
    """Return the models that a device has said anything of."""
    query = select(device_hours.c.model).distinct()
    query = query.where(device_hours.c.device == device, device_hours.c.hour >= int(since // HOUR_S))
    with database.read() as connection:
        return sorted(connection.execute(query).scalars())


def label_values(database: Database) -> dict[str, list[str]]:
    """Return the labels that devices have, with up to 12 values each, as help for queries."""
    query = select(labels.c.key, labels.c.value).distinct().order_by(labels.c.key, labels.c.value).limit(500)
    found: dict[str, list[str]] = {}
    with database.read() as connection:
        for row in connection.execute(query):
            if len(found.setdefault(row.key, [])) < 12:
                found[row.key].append(row.value)
    return found


def place_devices(database: Database, rollout: Rollout, ended: float | None = None) -> list[Placed]:
    """Return the devices of a rollout by their places: those it may tell, and those it has told anything.

    Args:
        database: With both.
        rollout: Of which.
        ended: When it was undone or aborted: it tells nobody who came later.
    """
    wanted = rollout.plan
    columns = (devices.c.id, devices.c.hardware, devices.c.online, devices.c.enrolled_at)
    # As the planner has it: what was revoked, or cloned, is given nothing.
    named = where(parse_query(wanted.query)) & devices.c.revoked_at.is_(None) & devices.c.fenced.is_(False)
    named &= devices.c.hardware.in_(sorted(wanted.artifacts))
    if ended is not None:
        named &= devices.c.enrolled_at <= ended
    with database.read() as connection:
        rows = {row.id: row for row in connection.execute(select(*columns).where(named))}
        mine = select(*columns, assignments).join(assignments, assignments.c.device == devices.c.id)
        told = {row.id: row for row in connection.execute(mine.where(assignments.c.rollout == wanted.id))}
    found = []
    for name, row in {**rows, **told}.items():
        order = told.get(name)
        phase = "none" if order is None else order.phase
        if order is not None and order.undone:
            phase = "undone" if order.confirmed else "undoing"
        found.append(
            Placed(
                id=name, hardware=row.hardware, place=place(wanted.id, name), online=row.online,
                phase=phase, reason="" if order is None else order.reason, enrolled_at=row.enrolled_at,
            )
        )  # fmt: skip
    return sorted(found, key=lambda d: (d.place, d.id))


def log_of(database: Database, rollout: str) -> tuple[list[LoggedDecision], list[Told]]:
    """Return the decisions about a whole rollout, in order, and how many devices were told what at once."""
    of_devices = ("assign", "undo")
    mine = decisions.c.rollout == rollout
    whole = select(decisions).where(mine, decisions.c.kind.not_in(of_devices)).order_by(decisions.c.id)
    number, first = func.count().label("number"), func.min(decisions.c.id).label("first")
    told = select(decisions.c.at, decisions.c.kind, number, first).where(mine)
    told = told.where(decisions.c.kind.in_(of_devices)).group_by(decisions.c.at, decisions.c.kind)
    with database.read() as connection:
        log = [
            LoggedDecision(id=row.id, at=row.at, decision=decision_from_dict(row.body))
            for row in connection.execute(whole)
        ]
        at_once = [
            Told(id=row.first, at=row.at, kind=row.kind, devices=row.number)
            for row in connection.execute(told)
        ]
    return log, at_once


def incident_of(database: Database, number: int) -> Incident | None:
    """Return an incident by its number; None where there is none."""
    with database.read() as connection:
        row = connection.execute(select(incidents).where(incidents.c.id == number)).first()
    return None if row is None else Incident(**row._asdict())


def last_entry(database: Database) -> int:
    """Return the number of the newest entry of the audit log; 0 for none."""
    with database.read() as connection:
        return connection.execute(select(func.max(audit.c.seq))).scalar() or 0


def artifact_versions(database: Database) -> Mapping[str, tuple[str, str]]:
    """Return model and version of every artifact by its digest."""
    query = select(artifacts.c.sha256, artifacts.c.model, artifacts.c.version)
    with database.read() as connection:
        return {row.sha256: (row.model, row.version) for row in connection.execute(query)}
