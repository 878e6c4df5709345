"""Devices: who they are, what they are labelled, what is believed of them, and what they are told to have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, select, update

from edgec.errors import FleetError
from edgec.fleet.store._audit import add_entry
from edgec.fleet.store._database import Database, clean, upsert
from edgec.fleet.store._hearing import hear, pieces, write_view
from edgec.fleet.store._labels import checked_labels, parse_query, where
from edgec.fleet.store._schema import devices, groups, labels
from edgec.fleet.store._views import view_from_dict
from edgec.protocol import DeviceView, Presence, Reported

# Epochs beyond the books that a device may say it has seen: what a lost backup, not a lie, can explain.
MOST_AHEAD = 2**32


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """One device.

    Attributes:
        id: Its id.
        hardware: Its class of hardware.
        labels: Value by key.
        enrolled_at: When it came into the fleet.
        revoked_at: When it was put out of it; None where it was not.
        revoked_reason: Why, for people.
        seen_at: When it was last heard of itself, not by its will; 0 for never.
        online: Whether it is connected, as far as is known.
        fenced: Whether several machines have its identity: it is given nothing until a person picks one.
        view: All that is believed of it.
        epoch: Of the newest order.
        wanted: Digest that it is told to have, by model.
        acknowledged: The greatest epoch that it took notice of, by its newest report.
        alerts: Words of the alerts in its newest report, in order.
        revision: Grows with each change of it.
    """

    id: str
    hardware: str
    labels: Mapping[str, str]
    enrolled_at: float
    revoked_at: float | None
    revoked_reason: str | None
    seen_at: float
    online: bool
    fenced: bool
    view: DeviceView
    epoch: int
    wanted: Mapping[str, str]
    acknowledged: int
    alerts: tuple[str, ...]
    revision: int


class Devices:
    """All devices of a fleet."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enrol(
        self, device: str, hardware: str, *, own: Mapping[str, str] | None = None, now: float, actor: str
    ) -> None:
        """Take a device into the fleet.

        Raises:
            FleetError: It is in it already (``reason`` ``conflict``), or labels cannot be (``query``).
        """
        own = checked_labels(own or {})
        with self._database.write() as connection:
            add_device(connection, device, hardware, own, now=now, actor=actor)

    def label(self, device: str, own: Mapping[str, str], *, now: float, actor: str) -> None:
        """Give a device these labels in place of all it had.

        Raises:
            FleetError: There is no such device, or labels cannot be.
        """
        own = checked_labels(own)
        with self._database.write() as connection:
            locked(connection, device)
            connection.execute(delete(labels).where(labels.c.device == device))
            _set_labels(connection, device, own)
            add_entry(connection, now, actor, "device.label", device, own)

    def revoke(self, device: str, *, now: float, actor: str, reason: str = "") -> None:
        """Put a device out of the fleet: it is given nothing any more, and nothing it says is believed.

        Raises:
            FleetError: There is no such device.
        """
        with self._database.write() as connection:
            locked(connection, device)
            connection.execute(
                update(devices)
                .where(devices.c.id == device)
                .values(revoked_at=now, revoked_reason=clean(reason), online=False)
            )
            add_entry(connection, now, actor, "device.revoke", device, {"reason": reason})

    def settle(self, device: str, boot_id: str, *, now: float, actor: str) -> None:
        """Say which of the machines with one identity is the device.

        Raises:
            FleetError: There is no such device, or no such boot.
        """
        with self._database.write() as connection:
            row = locked(connection, device)
            try:
                view = view_from_dict(row.view).settled(boot_id)
            except ValueError as e:
                raise FleetError(f"{device}: {e}", "not_found") from e
            write_view(connection, row, view, row.seen_at)
            add_entry(connection, now, actor, "device.settle", device, {"boot_id": boot_id})

    def set_group(self, name: str, query: str, *, now: float, actor: str) -> None:
        """Name a query.

        Raises:
            FleetError: It is no query.
        """
        parse_query(query)
        with self._database.write() as connection:
            upsert(connection, groups, [{"name": name, "query": query}])
            add_entry(connection, now, actor, "group.set", name, {"query": query})

    def drop_group(self, name: str, *, now: float, actor: str) -> None:
        """Forget the name of a query.

        Raises:
            FleetError: There is no such group (``reason`` ``not_found``).
        """
        with self._database.write() as connection:
            if not connection.execute(delete(groups).where(groups.c.name == name)).rowcount:
                raise FleetError(f"there is no group {name!r}", "not_found")
            add_entry(connection, now, actor, "group.drop", name, {})

    def groups(self) -> dict[str, str]:
        """Return all queries by name."""
        with self._database.read() as connection:
            return {row.name: row.query for row in connection.execute(select(groups).order_by(groups.c.name))}

    def get(self, device: str) -> DeviceRecord:
        """Return one device.

        Raises:
            FleetError: There is no such device (``reason`` ``not_found``).
        """
        found = self.find(f"id={device}", limit=1)
        if not found:
            raise unknown(device)
        return found[0]

    def find(self, query: str = "", *, after: str = "", limit: int = 1000) -> list[DeviceRecord]:
        """Return devices that a query names, by their ids, those after `after`.

        Raises:
            FleetError: It is no query.
        """
        with self._database.read() as connection:
            wanted = where(parse_query(query)) & (devices.c.id > after)
            rows = connection.execute(select(devices).where(wanted).order_by(devices.c.id).limit(limit)).all()
            own: dict[str, dict[str, str]] = {row.id: {} for row in rows}
            for piece in pieces(list(own)):
                for row in connection.execute(select(labels).where(labels.c.device.in_(piece))):
                    own[row.device][row.key] = row.value
        return [_record(row, own[row.id]) for row in rows]

    def heard(self, device: str, message: Presence | Reported, now: float) -> DeviceView:
        """Believe a message, as far as it is newer than what is known, and return what is believed then.

        For many messages at once, see `Store.ingest`.

        Raises:
            FleetError: There is no such device, or it was revoked (``reason`` ``not_found``, ``revoked``).
        """
        with self._database.write() as connection:
            views = hear(connection, [(device, message)], now)
            if device not in views:
                row = connection.execute(select(devices.c.id).where(devices.c.id == device)).first()
                raise unknown(device) if row is None else FleetError(f"{device} was revoked", "revoked")
        return views[device]


def add_device(
    connection: Connection, device: str, hardware: str, own: Mapping[str, str], *, now: float, actor: str
) -> None:
    """Write down a new device, in a transaction.

    Raises:
        FleetError: There is one of this id (``reason`` ``conflict``).
    """
    if connection.execute(select(devices.c.id).where(devices.c.id == device)).first():
        raise FleetError(f"there is a device {device!r} already", "conflict")
    row = {"id": device, "hardware": clean(hardware), "enrolled_at": now, "seen_at": 0.0}
    row |= {"online": False, "fenced": False, "revision": 0, "view": {}, "epoch": 0, "wanted": {}}
    connection.execute(devices.insert(), row)
    _set_labels(connection, device, own)
    add_entry(connection, now, actor, "device.enrol", device, {"hardware": hardware, "labels": dict(own)})


def locked(connection: Connection, device: str) -> Row[Any]:
    """Return the row of a device, which nobody else writes to until the transaction ends.

    Raises:
        FleetError: There is no such device.
    """
    row = connection.execute(select(devices).where(devices.c.id == device).with_for_update()).first()
    if row is None:
        raise unknown(device)
    return row


def unknown(device: str) -> FleetError:
    """Return the error about a device that there is not."""
    return FleetError(f"there is no device {device!r} in the fleet", "not_found")


def tell(connection: Connection, model: str, digests: Mapping[str, str | None]) -> dict[str, int]:
    """Write down which artifact of a model devices are to have; return the epochs of the orders.

    An epoch is greater than any that the device was told, or knows of; but what it says of epochs more than
    2**32 ahead is a lie that would use them up, and counts for nothing.

    Args:
        connection: In a transaction.
        model: Name of the model.
        digests: Of the artifact by device; None for none.

    Raises:
        FleetError: There is no such device.
    """
    changed = []
    for piece in pieces(sorted(digests)):
        query = select(devices.c.id, devices.c.wanted, devices.c.epoch, devices.c.acknowledged)
        query = query.where(devices.c.id.in_(piece)).order_by(devices.c.id).with_for_update()
        for row in connection.execute(query):
            digest = digests[row.id]
            others = {k: v for k, v in row.wanted.items() if k != model}
            changed.append(
                {
                    "one": row.id,
                    "new_wanted": others | ({model: digest} if digest else {}),
                    "new_epoch": (row.acknowledged if is_ahead(row.acknowledged, row.epoch) else row.epoch)
                    + 1,
                }
            )
    epochs = {row["one"]: row["new_epoch"] for row in changed}
    missing = sorted(set(digests) - set(epochs))
    if missing:
        raise unknown(missing[0])
    if changed:
        columns: dict[str, Any] = {
            "wanted": bindparam("new_wanted"),
            "epoch": bindparam("new_epoch"),
            "revision": devices.c.revision + 1,
        }
        connection.execute(update(devices).where(devices.c.id == bindparam("one")).values(columns), changed)
    return epochs


def is_ahead(acknowledged: int, epoch: int) -> bool:
    """Whether a device has seen an epoch that is not in the books, and this can be believed."""
    return epoch < acknowledged <= epoch + MOST_AHEAD


def _set_labels(connection: Connection, device: str, own: Mapping[str, str]) -> None:
    if own:
        connection.execute(
            labels.insert(), [{"device": device, "key": k, "value": v} for k, v in own.items()]
        )


def _record(row: Row[Any], own: Mapping[str, str]) -> DeviceRecord:
    values = row._asdict()
    values["view"] = view_from_dict(values["view"])
    values["alerts"] = tuple(values["alerts"].split())
    return DeviceRecord(labels=own, **values)
