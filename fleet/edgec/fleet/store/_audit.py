"""Who has changed what: rows that each hold the digest of the one before, so that a change shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Row, func, select, text

from edgec.errors import FleetError
from edgec.fleet.store._database import Database, clean
from edgec.fleet.store._schema import audit

_START = "0" * 64
# Of PostgreSQL's advisory locks: one writer of the chain at a time.
_LOCK = 0x65646763


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One change.

    Attributes:
        seq: Its number, from 1, without gaps.
        at: When, seconds by the fleet's clock.
        actor: Who.
        action: What: ``rollout.create``.
        subject: Of what: the id of a rollout, a device, a digest.
        body: The rest.
        hash: SHA-256 of all of it and of the entry before.
    """

    seq: int
    at: float
    actor: str
    action: str
    subject: str
    body: Mapping[str, Any]
    hash: str


def add_entry(
    connection: Connection, at: float, actor: str, action: str, subject: str, body: Mapping[str, Any]
) -> None:
    """Add an entry in the transaction of the change that it is about."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    last = connection.execute(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).first()
    seq, previous = (last.seq + 1, last.hash) if last else (1, _START)
    row = {
        "seq": seq,
        "at": float(at),  # as the database gives it back, and as it is hashed
        "actor": clean(actor),
        "action": action,
        "subject": clean(subject),
        "body": clean(json.dumps(body, sort_keys=True, ensure_ascii=False)),
        "previous": previous,
    }
    connection.execute(audit.insert(), {**row, "hash": _digest(row)})


class AuditLog:
    """The audit log; it is only ever added to."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, at: float, actor: str, action: str, subject: str, body: Mapping[str, Any]) -> None:
        """Add an entry about something that leaves no other trace in the database."""
        with self._database.write() as connection:
            add_entry(connection, at, actor, action, subject, body)

    def entries(self, *, after: int = 0, limit: int = 100) -> list[AuditEntry]:
        """Return entries in order, those after number `after`."""
        query = select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit)
        with self._database.read() as connection:
            return [_entry(row) for row in connection.execute(query)]

    def verify(self, *, expected: tuple[int, str] | None = None) -> tuple[int, str]:
        """Check the whole chain; return number and hash of its last entry, to be kept elsewhere.

        Args:
            expected: Number and hash of an earlier check. Without it, the end could have been cut off.

        Raises:
            FleetError: An entry was changed, is missing, or is not as `expected` (``reason`` ``audit``).
        """
        seq, previous = 0, _START
        with self._database.read() as connection:
            for row in connection.execute(select(audit).order_by(audit.c.seq)):
                found = row._asdict()
                if row.seq != seq + 1 or row.previous != previous or row.hash != _digest(found):
                    raise FleetError(f"the audit log was changed at or before entry {row.seq}", "audit")
                seq, previous = row.seq, row.hash
                if expected is not None and seq == expected[0] and previous != expected[1]:
                    raise FleetError(f"the audit log was written anew before entry {seq}", "audit")
            total = connection.execute(select(func.count()).select_from(audit)).scalar_one()
        if expected is not None and total < expected[0]:
            raise FleetError(f"the audit log ends at entry {total}; there were {expected[0]}", "audit")
        return seq, previous


def _digest(row: Mapping[str, Any]) -> str:
    names = ("seq", "at", "actor", "action", "subject", "body", "previous")
    return sha256(json.dumps([row[name] for name in names], ensure_ascii=False).encode()).hexdigest()


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        seq=row.seq,
        at=row.at,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        body=json.loads(row.body),
        hash=row.hash,
    )
