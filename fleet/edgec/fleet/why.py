"""What keeps a device from the newest version: the one thing that a person would have to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from edgec.fleet._dates import date
from edgec.fleet.rollouts import Rollout, place
from edgec.fleet.store import Store
from edgec.fleet.store._devices import unknown
from edgec.fleet.store._labels import matches, parse_query
from edgec.fleet.store._schema import (
    artifacts,
    assignments,
    devices,
    hardware,
    labels,
    quarantine,
    rollouts,
)
from edgec.fleet.store._views import view_from_dict
from edgec.protocol import Reported


@dataclass(frozen=True, kw_only=True)
class Why:
    """Where a device is on the way to the newest version of a model.

    Attributes:
        device: Its id.
        model: Name of the model.
        has: Version that serves; None for none, or one that is not in the registry.
        newest: Newest version for its hardware, which is the one that was uploaded last; None for none.
        reason: For programs: ``has_it``, ``revoked``, ``fenced``, ``no_release``, ``quarantined``,
            ``no_rollout``, ``not_in_query``, ``draft``, ``paused``, ``aborted``, ``undone``, ``later_stage``,
            ``not_told``, ``offline``, ``not_noticed``, ``under_way`` or ``failed``.
        detail: For people.
        rollout: Id of the rollout that it is about; None for none.
    """

    device: str
    model: str
    has: str | None
    newest: str | None
    reason: str
    detail: str
    rollout: str | None = None


def why(store: Store, device: str, model: str) -> Why:
    """Return what keeps a device from the newest version of a model.

    Reads single rows by their keys, however large the fleet is.

    Raises:
        FleetError: There is no such device (``reason`` ``not_found``).
    """
    with store.database.read() as connection:
        row, reported = _device(connection, device)
        report = reported.models.get(model) if reported else None
        active = report.active if report else None
        newest = _newest(connection, model, row.hardware)
        has = connection.execute(select(artifacts.c.version).where(artifacts.c.sha256 == active)).scalar()
        reason, detail, rollout = _explain(connection, row, newest, active)
    return Why(
        device=device,
        model=model,
        has=has,
        newest=newest.version if newest else None,
        reason=reason,
        detail=detail,
        rollout=rollout,
    )


def models_of(store: Store, device: str) -> list[str]:
    """Return the models that a device has, is told to have, or could have by its hardware.

    Raises:
        FleetError: There is no such device (``reason`` ``not_found``).
    """
    with store.database.read() as connection:
        row, reported = _device(connection, device)
        query = select(hardware.c.model).distinct().where(hardware.c.name == row.hardware)
        return sorted(
            {*connection.execute(query).scalars(), *row.wanted, *(reported.models if reported else ())}
        )


def _device(connection: Connection, device: str) -> tuple[Row[Any], Reported | None]:
    """Return the row of a device, and what it has reported last."""
    row = connection.execute(select(devices).where(devices.c.id == device)).first()
    if row is None:
        raise unknown(device)
    return row, view_from_dict(row.view).reported


def _newest(connection: Connection, model: str, name: str) -> Row[Any] | None:
    query = (
        select(artifacts.c.sha256, artifacts.c.model, artifacts.c.version, quarantine.c.reason)
        .join(hardware, hardware.c.sha256 == artifacts.c.sha256)
        .outerjoin(quarantine, quarantine.c.digest == artifacts.c.sha256)
        .where(hardware.c.model == model, hardware.c.name == name)
        .order_by(hardware.c.number.desc())
        .limit(1)
    )
    found: Row[Any] | None = connection.execute(query).first()  # type: ignore[assignment]
    return found


def _explain(
    connection: Connection, device: Row[Any], newest: Row[Any] | None, active: str | None
) -> tuple[str, str, str | None]:
    if device.revoked_at is not None:
        # Whatever it was last heard to run: it is not believed any more.
        why = f": {device.revoked_reason}" if device.revoked_reason else ""
        return "revoked", f"it was put out of the fleet{why}", None
    if newest is None:
        return "no_release", f"no release has an artifact for {device.hardware}", None
    if active == newest.sha256:
        return "has_it", f"it runs version {newest.version}", None
    if device.fenced:
        return "fenced", "several machines have its identity: pick one of them", None
    query = select(rollouts).where(rollouts.c.model == newest.model, rollouts.c.version == newest.version)
    found = connection.execute(query.order_by(rollouts.c.created_at.desc()).limit(1)).first()
    if newest.reason is not None:
        detail = f"version {newest.version} is quarantined: {newest.reason}"
        return "quarantined", detail, found.id if found else None
    if found is None:
        detail = f"nobody has rolled out version {newest.version}, which was uploaded last"
        return "no_rollout", detail + _given(connection, device, newest, active), None
    rollout = Rollout.from_dict(found.document)
    key = (assignments.c.rollout == found.id) & (assignments.c.device == device.id)
    told = connection.execute(select(assignments).where(key)).first()
    reason, detail = _told(device, told) if told and not told.undone else ("", "")
    if not reason:
        own = {r.key: r.value for r in connection.execute(select(labels).where(labels.c.device == device.id))}
        reason, detail = _not_told(device, own, rollout)
    return reason, detail, found.id


def _given(connection: Connection, device: Row[Any], newest: Row[Any], active: str | None) -> str:
    """Return which other version a device is told to have, and has not yet; empty for none."""
    wanted = device.wanted.get(newest.model)
    if wanted is None or wanted == active:
        return ""
    version = connection.execute(select(artifacts.c.version).where(artifacts.c.sha256 == wanted)).scalar()
    return f"; it is being given version {version}" if version else ""


def _told(device: Row[Any], told: Row[Any]) -> tuple[str, str]:
    if told.phase == "failed":
        return "failed", f"attempt {told.attempts} failed: {told.reason or 'no reason given'}; retry it"
    if told.noticed:
        return "under_way", f"it has begun; it reports {told.phase} since {date(told.phase_at)}"
    if not device.online and not device.seen_at:
        return "offline", "it was told, and was never heard of"
    if not device.online:
        return "offline", f"it was told and is away; it was last heard of at {date(device.seen_at)}"
    return "not_noticed", f"it is there, and has not acknowledged epoch {told.epoch}"


def _not_told(device: Row[Any], own: dict[str, str], rollout: Rollout) -> tuple[str, str]:
    plan = rollout.plan
    if not matches(parse_query(plan.query), device.id, device.hardware, own):
        return "not_in_query", f"it is not among {plan.query!r}"
    if rollout.state in ("draft", "paused", "aborted"):
        return (
            rollout.state,
            f"the rollout is {rollout.state}{f': {rollout.reason}' if rollout.reason else ''}",
        )
    if rollout.state in ("undoing", "undone"):
        return "undone", f"the rollout was taken back: {rollout.reason}"
    mine = place(plan.id, device.id)
    if mine >= rollout.cutoff:
        stage = f"stage {rollout.stage + 1} of {len(plan.stages)}"
        held = f"; it holds: {rollout.held}" if rollout.held else ""
        return "later_stage", f"its place is {mine}, and {stage} reaches to {rollout.cutoff}{held}"
    return "not_told", "its turn has come, and the next tick tells it"
