"""Telemetry: each record counted once, many in a transaction, acknowledged after its commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from sqlalchemy import Connection, Table, delete, select, tuple_, update

from edgec.errors import ProtocolError
from edgec.fleet.store._database import Database, clean, upsert
from edgec.fleet.store._hearing import pieces
from edgec.fleet.store._hours import HOUR_S, HourOf, hour
from edgec.fleet.store._schema import device_hours, devices, fleet_hours, ledgers, records
from edgec.fleet.store._views import active_in
from edgec.protocol import DeviceEvent, ModelWindow, Telemetry, TelemetryAck
from edgec.protocol._ledgers import Received

DIGEST_CHARS = 16
CRASHES = ("crash", "crashed", "crash_loop")
SHADOW = "shadow"
# That a device lives need not be written down more often.
_SEEN_S = 30.0
Told: TypeAlias = Telemetry | DeviceEvent
_Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StoredRecord:
    """A record other than a window, as it came."""

    device: str
    boot_id: str
    seq: int
    kind: str
    at: float
    severity: str
    word: str
    payload: bytes


@dataclass(kw_only=True)
class _Batch:
    """What a transaction adds."""

    hours: dict[tuple[str, str, str, int], HourOf] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, model: str, digest: str, device: str, at: int, part: HourOf) -> None:
        key = (model, digest[:DIGEST_CHARS], device, at)
        if key in self.hours:
            self.hours[key].merge(part)
        else:
            self.hours[key] = part


class TelemetryStore:
    """What devices say of their models, by hour, and what else they say."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ingest(self, messages: Sequence[tuple[str, Told]], now: float) -> list[tuple[str, TelemetryAck]]:
        """Keep what messages hold and was not kept before, in one transaction; many at once cost little more.

        Records are known by device, boot and sequence number. What is damaged in a record is kept as it came
        under kind ``damaged`` and acknowledged: it would be no better if it came again. Of devices that are
        not in the fleet, or were revoked, nothing is kept or acknowledged.

        Args:
            messages: Device and message, of one server's batch.
            now: Seconds by the fleet's clock.

        Returns:
            Device and acknowledgement; to be sent now that it is true.
        """
        with self._database.write() as connection:
            return keep(connection, messages, now)

    def fleet(
        self, model: str, *, since: float, until: float, hardware: str | None = None
    ) -> dict[str, HourOf]:
        """Return all that was said of a model over some hours, by the first half of the artifact's digest.

        Reads a row per hour, artifact and class of hardware, however many devices there are; percentiles are
        those of all calls, within the accuracy of the sketches.
        """
        query = select(fleet_hours).where(
            fleet_hours.c.model == model,
            fleet_hours.c.hour >= int(since // HOUR_S),
            fleet_hours.c.hour <= int(until // HOUR_S),
        )
        if hardware is not None:
            query = query.where(fleet_hours.c.hardware == hardware)
        found: dict[str, HourOf] = {}
        with self._database.read() as connection:
            for row in connection.execute(query).mappings():
                if (part := HourOf.read_row(dict(row))) is not None:
                    found.setdefault(row["digest"], HourOf()).merge(part)
        return found

    def device(self, device: str, model: str, *, since: float, until: float) -> dict[tuple[str, int], HourOf]:
        """Return what one device said of a model, by the first half of the digest and hour since 1970."""
        query = select(device_hours).where(
            device_hours.c.model == model,
            device_hours.c.device == device,
            device_hours.c.hour >= int(since // HOUR_S),
            device_hours.c.hour <= int(until // HOUR_S),
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        parts = {(row["digest"], row["hour"]): HourOf.read_row(dict(row)) for row in rows}
        return {key: part for key, part in parts.items() if part is not None}

    def records(self, device: str, *, limit: int = 100) -> list[StoredRecord]:
        """Return the newest records of a device but its windows, newest first."""
        query = select(records).where(records.c.device == device)
        query = query.order_by(records.c.received_at.desc(), records.c.seq.desc()).limit(limit)
        with self._database.read() as connection:
            return [
                StoredRecord(
                    device=r.device, boot_id=r.boot_id, seq=r.seq, kind=r.kind, at=r.at,
                    severity=r.severity, word=r.word, payload=bytes(r.payload),
                )
                for r in connection.execute(query)
            ]  # fmt: skip

    def prune(
        self,
        now: float,
        *,
        device_hours_s: float = 14 * 86400,
        fleet_hours_s: float = 400 * 86400,
        records_s: float = 90 * 86400,
        ledgers_s: float = 60 * 86400,
    ) -> int:
        """Remove what is older; return how many rows.

        A ledger of a boot that was last heard of so long ago is forgotten, too: records that came from it
        even later would count again.
        """
        old = [
            delete(device_hours).where(device_hours.c.hour < int((now - device_hours_s) // HOUR_S)),
            delete(fleet_hours).where(fleet_hours.c.hour < int((now - fleet_hours_s) // HOUR_S)),
            delete(records).where(records.c.received_at < now - records_s),
            delete(ledgers).where(ledgers.c.at < now - ledgers_s),
        ]
        with self._database.write() as connection:
            return sum(connection.execute(statement).rowcount for statement in old)


def keep(
    connection: Connection, messages: Sequence[tuple[str, Told]], now: float
) -> list[tuple[str, TelemetryAck]]:
    """Do what `TelemetryStore.ingest` does, in a transaction; acknowledgements are true when it commits."""
    known = _known(connection, sorted({device for device, _ in messages}), now)
    boots = sorted({(device, m.boot_id) for device, m in messages if device in known})
    held = _ledgers(connection, boots)
    batch = _Batch()
    for device, message in messages:
        if device in known:
            key = (device, message.boot_id)
            held[key] = _take(batch, device, message, held[key], known[device], now)
    rows = [
        {"device": d, "boot_id": b, "up_to": r.up_to, "ranges": [list(x) for x in r.ranges], "at": now}
        for (d, b), r in sorted(held.items())
    ]
    upsert(connection, ledgers, rows)
    upsert(connection, records, batch.rows, update=False)
    _add_hours(connection, batch, {device: row[0] for device, row in known.items()})
    return [(device, held[device, boot].ack()) for device, boot in boots]


def _known(connection: Connection, ids: Sequence[str], now: float) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return class of hardware and view of those that are in the fleet, and note that they were heard."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    silent = []
    for piece in pieces(ids):
        query = select(devices.c.id, devices.c.hardware, devices.c.view, devices.c.seen_at)
        query = query.where(devices.c.id.in_(piece), devices.c.revoked_at.is_(None))
        for row in connection.execute(query):
            found[row.id] = (row.hardware, row.view)
            if row.seen_at < now - _SEEN_S:
                silent.append(row.id)
    for piece in pieces(sorted(silent)):
        connection.execute(update(devices).where(devices.c.id.in_(piece)).values(seen_at=now))
    return found


def _ledgers(connection: Connection, keys: list[tuple[str, str]]) -> dict[tuple[str, str], Received]:
    """Return what is kept of each boot; nobody else takes records of it until the transaction ends."""
    fresh = [{"device": d, "boot_id": b, "up_to": -1, "ranges": [], "at": 0.0} for d, b in keys]
    upsert(connection, ledgers, fresh, update=False)
    query = select(ledgers).where(tuple_(ledgers.c.device, ledgers.c.boot_id).in_(keys))
    query = query.order_by(ledgers.c.device, ledgers.c.boot_id).with_for_update()
    return {
        (row.device, row.boot_id): Received(
            boot_id=row.boot_id, up_to=row.up_to, ranges=tuple((a, b) for a, b in row.ranges)
        )
        for row in connection.execute(query)
    }


def _take(
    batch: _Batch, device: str, message: Told, held: Received, known: tuple[str, dict[str, Any]], now: float
) -> Received:
    if isinstance(message, DeviceEvent):
        held, new = held.take((message.seq,))
        if new:
            _take_event(batch, device, message, known[1], now)
        return held
    held, new = held.take_telemetry(message)
    fresh = set(new)
    for seq, record in message.numbered():
        if seq not in fresh:
            continue
        kind = record.kind
        if kind == "window":
            try:
                window = ModelWindow.from_bytes(record.payload)
                part = HourOf.of_window(window)
            except ProtocolError:
                kind = "damaged"
            else:
                batch.add(window.model, window.digest.hex(), device, hour(window.since, now), part)
                continue
        batch.rows.append(_row(device, message.boot_id, seq, kind, record.at, now, record.payload))
    return held


def _take_event(batch: _Batch, device: str, event: DeviceEvent, view: dict[str, Any], now: float) -> None:
    batch.rows.append(
        _row(
            device, event.boot_id, event.seq, event.kind, event.at, now, event.to_bytes(),
            severity=event.severity, word=event.reason or "",
        )
    )  # fmt: skip
    if event.model is None or event.kind not in (*CRASHES, SHADOW):
        return
    digest = event.data.get("digest") or active_in(view, event.model)
    if not digest:
        return
    part = HourOf()
    if event.kind == SHADOW:
        # Calls that failed where what serves has answered are answered otherwise, too.
        failed = _number(event.data.get("failed", ""))
        for name in ("compared", "disagreed"):
            part.figures[name] = _number(event.data.get(name, "")) + failed
    else:
        # Those that came too fast to be told one by one are in the next one.
        part.figures["crashes"] = 1 + _number(event.data.get("untold", ""))
    batch.add(event.model, clean(digest), device, hour(event.at, now), part)


def _row(
    device: str,
    boot_id: str,
    seq: int,
    kind: str,
    at: float,
    now: float,
    payload: bytes,
    *,
    severity: str = "info",
    word: str = "",
) -> dict[str, Any]:
    return {
        "device": device, "boot_id": boot_id, "seq": seq, "kind": kind, "at": at, "received_at": now,
        "payload": payload, "severity": severity, "word": word,
    }  # fmt: skip


def _number(text: str) -> int:
    return min(int(text), 2**40) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _add_hours(connection: Connection, batch: _Batch, hardware: dict[str, str]) -> None:
    # Inputs are asked of for whole fleets only.
    of_devices = ((key, replace(part, inputs={})) for key, part in batch.hours.items())
    _merge_rows(connection, device_hours, ("model", "digest", "device", "hour"), of_devices)
    of_fleet: dict[tuple[str, str, str, int], HourOf] = {}
    for (model, digest, device, at), part in batch.hours.items():
        of_fleet.setdefault((model, digest, hardware[device], at), HourOf()).merge(part)
    _merge_rows(connection, fleet_hours, ("model", "digest", "hardware", "hour"), of_fleet.items())


def _merge_rows(
    connection: Connection,
    table: Table,
    names: tuple[str, str, str, str],
    parts: Iterable[tuple[tuple[str, str, str, int], HourOf]],
) -> None:
    added = dict(sorted(parts))
    if not added:
        return
    # Rows are made first, so that there is something to lock, in one order for all.
    empty = HourOf().to_row()
    upsert(connection, table, [{**dict(zip(names, k, strict=True)), **empty} for k in added], update=False)
    columns = [table.c[name] for name in names]
    keys = list(added)
    for i in range(0, len(keys), 200):
        query = select(table).where(tuple_(*columns).in_(keys[i : i + 200])).order_by(*columns)
        for row in connection.execute(query.with_for_update()).mappings():
            key = (row[names[0]], row[names[1]], row[names[2]], row[names[3]])
            if all(row[name] == value for name, value in empty.items()):
                continue
            # What cannot be read is lost, and counted anew from here on.
            if (whole := HourOf.read_row(dict(row))) is not None:
                whole.merge(added[key])
                added[key] = whole
    rows = [{**dict(zip(names, key, strict=True)), **part.to_row()} for key, part in added.items()]
    upsert(connection, table, rows)
