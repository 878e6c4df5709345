"""What devices say of themselves, believed as far as it is newer: many messages in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, bindparam, select, update

from edgec.fleet.store._schema import assignments, devices, incidents, rollouts
from edgec.fleet.store._views import progress, view_from_dict, view_to_dict
from edgec.protocol import DeviceView, Presence, Reported

Said: TypeAlias = Presence | Reported


def hear(connection: Connection, messages: Sequence[tuple[str, Said]], now: float) -> dict[str, DeviceView]:
    """Believe messages in the order they came, as far as they are newer than what is known.

    A will that comes late, a message that comes twice or after a newer one changes nothing.

    Args:
        connection: In a transaction.
        messages: Device and message.
        now: Seconds by the fleet's clock.

    Returns:
        What is believed then, by device; nothing of devices that are not in the fleet, or were revoked.
    """
    told: dict[str, list[Said]] = {}
    for device, message in messages:
        told.setdefault(device, []).append(message)
    views: dict[str, DeviceView] = {}
    changed: list[dict[str, Any]] = []
    reports: dict[str, Reported] = {}
    for row in _rows(connection, sorted(told)):
        before = view_from_dict(row.view)
        view, seen_at = _believe(before, told[row.id], row.seen_at, now)
        views[row.id] = view
        if view == before:
            continue
        changed.append(view_values(row.id, view, seen_at, row.revision))
        if view.reported is not None and view.reported is not before.reported:
            reports[row.id] = view.reported
        if view.fenced and not before.fenced:
            _open_clones(connection, row.id, view, now)
    if changed:
        columns: dict[str, Any] = {name: bindparam(f"new_{name}") for name in _COLUMNS}
        connection.execute(update(devices).where(devices.c.id == bindparam("one")).values(columns), changed)
    _advance_updates(connection, reports, now)
    return views


_COLUMNS = ("view", "online", "fenced", "seen_at", "revision", "acknowledged", "alerts")


def view_values(device: str, view: DeviceView, seen_at: float, revision: int) -> dict[str, Any]:
    """Return the parameters that write a view down, for the columns of `hear`."""
    reported = view.reported
    words = sorted({alert.reason for alert in reported.alerts}) if reported else []
    return {
        "one": device,
        "new_view": view_to_dict(view),
        "new_online": view.online,
        "new_fenced": view.fenced,
        "new_seen_at": seen_at,
        "new_revision": revision + 1,
        "new_acknowledged": reported.epoch if reported else 0,
        "new_alerts": " ".join(words),
    }


def write_view(connection: Connection, row: Row[Any], view: DeviceView, seen_at: float) -> None:
    """Write down what is believed of a device whose row is locked."""
    values = view_values(row.id, view, max(seen_at, row.seen_at), row.revision)
    written = {name: values[f"new_{name}"] for name in _COLUMNS}
    connection.execute(update(devices).where(devices.c.id == row.id).values(written))


def pieces(ids: Sequence[str], size: int = 500) -> Iterable[Sequence[str]]:
    """Cut a list of ids so that databases take it as parameters."""
    return (ids[i : i + size] for i in range(0, len(ids), size))


def _rows(connection: Connection, ids: Sequence[str]) -> Iterable[Any]:
    for piece in pieces(ids):
        query = select(devices.c.id, devices.c.view, devices.c.seen_at, devices.c.revision)
        query = query.where(devices.c.id.in_(piece), devices.c.revoked_at.is_(None)).order_by(devices.c.id)
        yield from connection.execute(query.with_for_update()).all()


def _believe(
    view: DeviceView, messages: Sequence[Said], seen_at: float, now: float
) -> tuple[DeviceView, float]:
    for message in messages:
        after = view.apply(message, now)
        # A will is the broker's word, not the device's.
        will = isinstance(message, Presence) and not message.online
        if after != view and not will:
            seen_at = max(seen_at, now)
        view = after
    return view, seen_at


def _advance_updates(connection: Connection, reports: dict[str, Reported], now: float) -> None:
    changed = []
    for piece in pieces(sorted(reports)):
        query = (
            select(assignments, rollouts.c.model)
            .join(rollouts, rollouts.c.id == assignments.c.rollout)
            .where(assignments.c.device.in_(piece))
            .order_by(assignments.c.device, assignments.c.rollout)
        )
        found = [_advanced(row, reports[row.device], now) for row in connection.execute(query).all()]
        changed += [values for values in found if values is not None]
    if changed:
        names = ("noticed", "confirmed", "phase", "reason", "phase_at")
        key = (assignments.c.rollout == bindparam("of")) & (assignments.c.device == bindparam("one"))
        columns: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
        connection.execute(update(assignments).where(key).values(columns), changed)


def _advanced(row: Row[Any], reported: Reported, now: float) -> dict[str, Any] | None:
    """Return what a report changes in an assignment; None for nothing."""
    if row.epoch > reported.epoch:
        return None
    report = reported.models.get(row.model)
    phase, reason = progress(report, row.digest)
    gone = report is None or report.active != row.digest
    values = {
        "noticed": True, "confirmed": row.undone and gone,
        "phase": row.phase, "reason": row.reason, "phase_at": row.phase_at,
    }  # fmt: skip
    if phase != row.phase and not row.undone:
        values |= {"phase": phase, "reason": reason, "phase_at": now}
    if all(getattr(row, name) == value for name, value in values.items()):
        return None
    return {"of": row.rollout, "one": row.device, **{f"new_{name}": value for name, value in values.items()}}


def _open_clones(connection: Connection, device: str, view: DeviceView, now: float) -> None:
    """Open an incident; where one is open already, it tells of these boots from now on."""
    detail = f"several machines are {device}: boots {', '.join(view.clones)}; pick one of them"
    told = {"detail": detail, "evidence": {"boots": view.clones}}
    same = (incidents.c.device == device) & (incidents.c.reason == "cloned") & incidents.c.closed_at.is_(None)
    if connection.execute(update(incidents).where(same).values(**told)).rowcount:
        return
    row = {"device": device, "reason": "cloned", "opened_at": now, **told}
    connection.execute(incidents.insert(), row)
