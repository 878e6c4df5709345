"""What the planner looks at, out of the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, select

from edgec.fleet.rollouts import OVER, DeviceFacts, Rollout, place
from edgec.fleet.store._devices import is_ahead
from edgec.fleet.store._hours import HOUR_S, HourOf
from edgec.fleet.store._labels import parse_query, where
from edgec.fleet.store._schema import artifacts, assignments, device_hours, devices, quarantine, rollouts
from edgec.fleet.store._telemetry import DIGEST_CHARS
from edgec.fleet.store._views import active_in
from edgec.fleet.verdicts import DeviceEvidence, Evidence
from edgec.sketch import reference_bins

# So many devices of either side say all that more would.
_MOST_DEVICES = 1000
_BEFORE_S = 86400.0
_COLUMNS = (
    "id",
    "hardware",
    "revoked_at",
    "fenced",
    "online",
    "seen_at",
    "view",
    "wanted",
    "epoch",
    "acknowledged",
)


def quarantined(connection: Connection) -> frozenset[str]:
    """Return the digests that may not be installed."""
    return frozenset(connection.execute(select(quarantine.c.digest)).scalars())


def gather_devices(connection: Connection, rollout: Rollout) -> tuple[DeviceFacts, ...]:
    """Return the devices that the rollout's query names, and those that it has told anything.

    To a rollout that is over, devices that a newer one of its model has told something are not available.
    """
    plan = rollout.plan
    mine = select(assignments).where(assignments.c.rollout == plan.id)
    told = {row.device: row for row in connection.execute(mine)}
    columns = [devices.c[name] for name in _COLUMNS]
    rows = [*connection.execute(select(*columns).where(where(parse_query(plan.query))))]
    named = {row.id for row in rows}
    others = sorted(set(told) - named)
    for i in range(0, len(others), 500):
        rows += connection.execute(select(*columns).where(devices.c.id.in_(others[i : i + 500])))
    taken = _taken(connection, rollout) if rollout.state in OVER else frozenset[str]()
    # In one order everywhere, so that of two transactions one waits and none dies.
    rows.sort(key=lambda row: row.id)
    return tuple(
        _facts(row, told.get(row.id), plan.model, row.id in named and row.id not in taken) for row in rows
    )


def _taken(connection: Connection, rollout: Rollout) -> frozenset[str]:
    mine = select(rollouts.c.created_at).where(rollouts.c.id == rollout.plan.id).scalar_subquery()
    query = (
        select(assignments.c.device)
        .join(rollouts, rollouts.c.id == assignments.c.rollout)
        .where(
            rollouts.c.model == rollout.plan.model,
            rollouts.c.id != rollout.plan.id,
            rollouts.c.created_at >= mine,
            assignments.c.undone.is_(False),
        )
    )
    return frozenset(connection.execute(query).scalars())


def gather_evidence(connection: Connection, rollout: Rollout, now: float) -> Evidence:
    """Return what devices of the stage say of the release since it began, and others of what they have."""
    plan = rollout.plan
    facts = [d for d in gather_devices(connection, rollout) if d.hardware in plan.artifacts]
    facts.sort(key=lambda d: (place(f"{plan.id}/evidence", d.id), d.id))
    new = set(plan.artifacts.values())
    with_it = [d for d in facts if d.assigned and d.active == d.assigned][:_MOST_DEVICES]
    without = [
        d
        for d in facts
        if d.active and d.active not in new and not d.assigned and d.seen_at >= rollout.since - HOUR_S
        # What is to go back, and has not yet, is nothing to judge another release by.
        if d.wanted in (None, d.active)
    ][:_MOST_DEVICES]
    hours = (int(rollout.since // HOUR_S), int(now // HOUR_S))
    began = min((d.assigned_at for d in with_it), default=now)
    earlier = (int((began - _BEFORE_S) // HOUR_S), int(began // HOUR_S))
    # A model just begun tells of its first minute after that minute, or as soon as its link lets it.
    known = {d.id for d in with_it if d.phase == "installed" and now - d.phase_at >= 2 * plan.first_look_s}
    said = _said(connection, plan.model, {d: d.assigned or "" for d in with_it}, hours)
    return Evidence(
        candidate=tuple(replace(d, settled=d.device in known) for d in said),
        control=_said(connection, plan.model, {d: d.active or "" for d in without}, hours),
        before=tuple(
            d
            for d in _said(connection, plan.model, {d: d.previous or "" for d in with_it}, earlier)
            if d.calls
        ),
        references=_references(connection, plan.model),
    )


def _facts(row: Row[Any], told: Row[Any] | None, model: str, named: bool) -> DeviceFacts:
    active = active_in(row.view, model)
    # It may follow orders that these books have lost, or of another fleet: what it runs is what counts.
    wanted = active if is_ahead(row.acknowledged, row.epoch) else row.wanted.get(model)
    follows = row.revoked_at is None and not row.fenced
    available, reachable = named and follows, follows and row.online
    if told is None:
        return DeviceFacts(
            id=row.id, hardware=row.hardware, active=active, wanted=wanted,
            available=available, seen_at=row.seen_at, reachable=reachable,
        )  # fmt: skip
    return DeviceFacts(
        id=row.id, hardware=row.hardware, active=active, wanted=wanted,
        available=available, assigned=told.digest, previous=told.previous, assigned_at=told.assigned_at,
        attempts=told.attempts, phase=told.phase, phase_at=told.phase_at, noticed=told.noticed,
        seen_at=row.seen_at, reachable=reachable, undone=told.undone, confirmed=told.confirmed,
        reason=told.reason,
    )  # fmt: skip


def _said(
    connection: Connection, model: str, wanted: Mapping[DeviceFacts, str], hours: tuple[int, int]
) -> tuple[DeviceEvidence, ...]:
    """Return what each device said of its artifact; nothing of those that were silent."""
    names = {device.id: digest[:DIGEST_CHARS] for device, digest in wanted.items()}
    found: dict[str, HourOf] = {}
    ids = list(names)
    for i in range(0, len(ids), 500):
        query = select(device_hours).where(
            device_hours.c.model == model,
            device_hours.c.digest.in_(sorted(set(names.values()))),
            device_hours.c.device.in_(ids[i : i + 500]),
            device_hours.c.hour.between(*hours),
        )
        for row in connection.execute(query).mappings():
            part = HourOf.read_row(dict(row)) if row["digest"] == names[row["device"]] else None
            if part is not None:
                found.setdefault(row["device"], HourOf()).merge(part)
    return tuple(_evidence(device, digest, found.get(device.id)) for device, digest in wanted.items())


def _evidence(device: DeviceFacts, digest: str, said: HourOf | None) -> DeviceEvidence:
    if said is None:
        return DeviceEvidence(device=device.id, hardware=device.hardware, digest=digest)
    counts: dict[str, Any] = {n: int(value) for n, value in said.figures.items() if n != "seconds"}
    return DeviceEvidence(
        device=device.id,
        hardware=device.hardware,
        digest=digest,
        seconds=float(said.figures["seconds"]),
        latency=said.latency if said.latency.count else None,
        confidence=said.confidence,
        classes=said.classes,
        named=said.named,
        outputs=said.outputs,
        **counts,
    )


def _references(connection: Connection, model: str) -> dict[str, dict[str, tuple[float, ...]]]:
    query = select(artifacts.c.sha256, artifacts.c.reference).where(artifacts.c.model == model)
    return {row.sha256: dict(_shares(row.reference)) for row in connection.execute(query)}


def _shares(reference: Mapping[str, Mapping[str, float]]) -> Iterable[tuple[str, tuple[float, ...]]]:
    return ((name, reference_bins(quantiles)[1]) for name, quantiles in reference.items())
