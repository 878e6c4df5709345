"""How devices come into the fleet: claims that let them in, and the credentials that they hold since."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from edgec.errors import FleetError
from edgec.fleet.store._audit import add_entry
from edgec.fleet.store._credentials import Claim, Credential, Issue, Request, digest
from edgec.fleet.store._database import Database
from edgec.fleet.store._devices import MOST_AHEAD, add_device, locked
from edgec.fleet.store._hardware import check_claimed, check_hardware
from edgec.fleet.store._labels import checked_labels
from edgec.fleet.store._schema import assignments, claims, credentials, devices, orders

_PREFIX = "edgec-claim_"
_MOST_USES = 100_000


class Claims:
    """All claims of a fleet, and all credentials."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        *,
        now: float,
        actor: str,
        uses: int = 1,
        expires_at: float | None = None,
        labels: Mapping[str, str] | None = None,
        hardware: str | None = None,
        device: str | None = None,
    ) -> tuple[Claim, str]:
        """Make a claim of 256 random bits; return what is known of it, and it, which is told only here.

        Raises:
            FleetError: It could never be used (``reason`` ``invalid``), or labels cannot be (``query``).
        """
        if not 1 <= uses <= _MOST_USES or (device is not None and uses != 1):
            most = 1 if device is not None else _MOST_USES
            raise FleetError(f"expected 1 to {most} uses, got {uses}", "invalid")
        check_claimed(hardware)
        if expires_at is not None and expires_at <= now:
            raise FleetError(f"expected an end after now ({now:.0f}), got {expires_at:.0f}", "invalid")
        secret = _PREFIX + secrets.token_urlsafe(32)
        made = Claim(
            id=secrets.token_hex(6), created_at=now, created_by=actor, expires_at=expires_at,
            withdrawn_at=None, uses_left=uses, labels=checked_labels(labels or {}), hardware=hardware,
            device=device,
        )  # fmt: skip
        body = {k: getattr(made, k) for k in ("uses_left", "expires_at", "labels", "hardware", "device")}
        with self._database.write() as connection:
            connection.execute(claims.insert(), {**vars(made), "hash": digest(secret)})
            add_entry(connection, now, actor, "claim.create", made.id, body)
        return made, secret

    def all(self) -> list[Claim]:
        """Return all claims by when they were made."""
        query = select(claims).order_by(claims.c.created_at, claims.c.id)
        with self._database.read() as connection:
            return [_claim(row) for row in connection.execute(query)]

    def withdraw(self, claim: str, *, now: float, actor: str) -> None:
        """Take a claim back by its id; devices that came with it stay.

        Raises:
            FleetError: There is none of this id (``reason`` ``not_found``).
        """
        with self._database.write() as connection:
            done = connection.execute(
                update(claims)
                .where(claims.c.id == claim, claims.c.withdrawn_at.is_(None))
                .values(withdrawn_at=now)
            )
            if done.rowcount:
                add_entry(connection, now, actor, "claim.withdraw", claim, {})
            elif connection.execute(select(claims.c.id).where(claims.c.id == claim)).first() is None:
                raise FleetError(f"there is no claim {claim!r}; list them", "not_found")

    def redeem(self, secret: str, request: Request, issue: Issue, *, now: float) -> Credential:
        """Take a device into the fleet that comes with a claim, and give it a credential; all or nothing.

        A device that asks again with the same key, since the answer was lost, gets the same answer.

        Args:
            secret: The claim.
            request: What the device asks for.
            issue: Makes the credential, within the transaction.
            now: Seconds by the fleet's clock.

        Raises:
            FleetError: The claim does not let this device in (``reason`` ``claim``), it was revoked
                (``revoked``), another has its id (``conflict``), it needs a new key for this claim (``key``),
                or there is no such hardware (``invalid``).
        """
        with self._database.write() as connection:
            query = select(claims).where(claims.c.hash == digest(secret)).with_for_update()
            row = connection.execute(query).first()
            if row is None:
                raise FleetError("there is no such claim; ask for another one", "claim")
            claim = _claim(row)
            known = connection.execute(
                select(credentials).where(credentials.c.fingerprint == request.fingerprint)
            ).first()
            if known is not None:
                return _same(connection, _credential(known), claim, request)
            _check(claim, request, now)
            check_hardware(connection, request.hardware, request.targets, claim.hardware, claim.device)
            hardware = claim.hardware or request.hardware[0]
            _admit(connection, claim, request.device, hardware, now)
            serial, document, expires_at = issue(request.device)
            made = Credential(
                fingerprint=request.fingerprint, device=request.device, kind=request.kind, claim=claim.id,
                issued_at=now, replaced_at=None, serial=serial, document=document,
                expires_at=expires_at,
            )  # fmt: skip
            connection.execute(credentials.insert(), vars(made))
            connection.execute(
                update(claims).where(claims.c.id == claim.id).values(uses_left=claim.uses_left - 1)
            )
            body = {"claim": claim.id, "fingerprint": request.fingerprint, "kind": request.kind}
            add_entry(connection, now, f"claim {claim.id}", "device.credential", request.device, body)
            return made

    def credentials(self, device: str | None = None) -> list[Credential]:
        """Return the credentials of a device, or of all, also those that were replaced; oldest first."""
        query = select(credentials).order_by(credentials.c.issued_at, credentials.c.fingerprint)
        if device is not None:
            query = query.where(credentials.c.device == device)
        with self._database.read() as connection:
            return [_credential(row) for row in connection.execute(query)]

    def ends(self, devices: Collection[str]) -> dict[str, float]:
        """Return when the certificates of devices end, by device; those without one are left out."""
        query = select(credentials.c.device, credentials.c.expires_at).where(
            credentials.c.device.in_(devices),
            credentials.c.replaced_at.is_(None),
            credentials.c.expires_at.is_not(None),
        )
        with self._database.read() as connection:
            return {row.device: row.expires_at for row in connection.execute(query)}

    def standing(self) -> list[tuple[Credential, bool]]:
        """Return every credential, and whether its device may use it now; oldest first."""
        query = select(credentials, devices.c.revoked_at).join(devices, devices.c.id == credentials.c.device)
        query = query.order_by(credentials.c.issued_at, credentials.c.fingerprint)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [(_credential(row), row.replaced_at is None and row.revoked_at is None) for row in rows]

    def in_force(self, fingerprint: str) -> Credential | None:
        """Return the credential of a fingerprint if its device may use it now; else None."""
        query = (
            select(credentials)
            .join(devices, devices.c.id == credentials.c.device)
            .where(
                credentials.c.fingerprint == fingerprint,
                credentials.c.replaced_at.is_(None),
                devices.c.revoked_at.is_(None),
            )
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _credential(row)

    def state(self) -> tuple[float | int | None, ...]:
        """Return what differs whenever another device may connect, or one may no longer."""
        counted = select(
            func.count(credentials.c.fingerprint),
            func.count(credentials.c.replaced_at),
            select(func.count(devices.c.revoked_at)).scalar_subquery(),
            select(func.max(devices.c.revoked_at)).scalar_subquery(),
        )
        with self._database.read() as connection:
            return tuple(connection.execute(counted).one())


def _check(claim: Claim, request: Request, now: float) -> None:
    problem = None
    if claim.withdrawn_at is not None:
        problem = "was taken back"
    elif claim.expires_at is not None and claim.expires_at <= now:
        problem = "has expired"
    elif claim.uses_left < 1:
        problem = "was used already"
    elif claim.device not in (None, request.device):
        problem = f"is for the device {claim.device!r}, not for {request.device!r}"
    elif claim.hardware is not None and claim.hardware not in request.hardware:
        problem = f"is for hardware {claim.hardware!r}, not for {', '.join(request.hardware)}"
    if problem:
        raise FleetError(f"the claim {claim.id} {problem}; ask for another one", "claim")


def _same(connection: Connection, known: Credential, claim: Claim, request: Request) -> Credential:
    row = locked(connection, known.device)
    if row.revoked_at is not None and (claim.device != known.device or claim.id == known.claim):
        raise _revoked(row)
    if known.device != request.device:
        raise FleetError(f"this key belongs to another device, {known.device!r}; make a new one", "key")
    if known.claim != claim.id:
        raise FleetError("this key came with another claim; make a new one for this claim", "key")
    if known.replaced_at is not None:
        raise FleetError(f"{known.device} has another key since; make a new one", "key")
    return known


def _revoked(row: Row[Any]) -> FleetError:
    why = row.revoked_reason or "no reason was given"
    message = f"{row.id} was revoked: {why}; to let it in again, an admin makes a claim for this id"
    return FleetError(f"{message} (edgec fleet claim --device {row.id})", "revoked")


def _admit(connection: Connection, claim: Claim, device: str, hardware: str, now: float) -> None:
    """Add the device, or, where the claim is for this one only, let it come back with a new key."""
    actor = f"claim {claim.id}"
    there = connection.execute(select(devices).where(devices.c.id == device).with_for_update()).first()
    if there is None:
        add_device(connection, device, hardware, claim.labels, now=now, actor=actor)
        return
    if claim.device != device:
        if there.revoked_at is not None:
            raise _revoked(there)
        raise FleetError(
            f"there is a device {device!r} already; choose another id, or ask for a claim for this device",
            "conflict",
        )
    connection.execute(
        update(credentials)
        .where(credentials.c.device == device, credentials.c.replaced_at.is_(None))
        .values(replaced_at=now)
    )
    # It may have lost its disk, and counts its starts anew.
    fresh = {"view": {}, "online": False, "fenced": False, "revision": there.revision + 1, "acknowledged": 0}
    # It is told again what it is to have, under a new epoch. Epochs that somebody has used up begin anew.
    fresh["epoch"] = 1 if there.epoch > MOST_AHEAD else there.epoch + bool(there.epoch)
    connection.execute(delete(orders).where(orders.c.device == device))
    connection.execute(
        update(assignments)
        .where(assignments.c.device == device, assignments.c.epoch > fresh["epoch"])
        .values(epoch=fresh["epoch"])
    )
    connection.execute(
        update(devices)
        .where(devices.c.id == device)
        .values(revoked_at=None, revoked_reason=None, hardware=hardware, **fresh)
    )
    add_entry(connection, now, actor, "device.readmit", device, {"hardware": hardware})


def _claim(row: Row[Any]) -> Claim:
    return Claim(**{name: getattr(row, name) for name in Claim.__dataclass_fields__})


def _credential(row: Row[Any]) -> Credential:
    return Credential(**{name: getattr(row, name) for name in Credential.__dataclass_fields__})
