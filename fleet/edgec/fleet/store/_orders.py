"""What devices were told, and who is to be told now: what a server needs to be stopped at any moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select, update

from edgec.fleet.store._database import Database, clean, upsert
from edgec.fleet.store._hearing import pieces
from edgec.fleet.store._schema import artifacts, assignments, devices, orders, rollouts


@dataclass(frozen=True, kw_only=True)
class DueOrder:
    """A device that is to be told now.

    Attributes:
        device: Its id.
        hardware: Its class of hardware.
        epoch: Of the order.
        models: Path in the image repository by name of the model; None where the artifact is unknown.
        version: Of the metadata that it was told last; 0 for none.
        revision: Of the document, the next one of this epoch.
        tries: Times that this epoch was told or tried.
        retries: Epoch of the last order by name of the model, where an artifact is to be tried once more that
            the device has found bad.
        acknowledged: Whether it took notice of this epoch: what is new then is the metadata's expiry.
    """

    device: str
    hardware: str
    epoch: int
    models: Mapping[str, str | None]
    version: int
    revision: int
    tries: int
    acknowledged: bool
    retries: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ToldOrder:
    """What became of one.

    Attributes:
        order: That was due.
        version: Of the metadata that was signed.
        expires_at: When it expires.
        delivered: Whether the broker keeps it, and the fleet's own files say it, too.
        next_at: When it is to be told again, if nothing is heard.
        problem: Why it could not be signed, or its files not be written; "" where they could.
    """

    order: DueOrder
    version: int = 0
    expires_at: float = 0.0
    delivered: bool = False
    next_at: float
    problem: str = ""


class Orders:
    """Orders to all devices. The books of `Devices.epoch` decide, and this is how far they are told."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, now: float, *, renew_s: float, limit: int) -> list[DueOrder]:
        """Return devices that are to be told, those first that wait longest.

        These are devices that have a newer order than they were told; that are connected, were told and have
        not taken notice for a while; and whose metadata will expire. Devices that were revoked, or whose
        identity several machines have, are told nothing.

        Args:
            now: Seconds by the fleet's clock.
            renew_s: Metadata that expires within this time is signed anew.
            limit: At most so many.
        """
        query = (
            select(devices.c.id, devices.c.hardware, devices.c.epoch, devices.c.wanted,
                   devices.c.acknowledged, orders.c.epoch.label("told"), orders.c.revision,
                   orders.c.version, orders.c.tries)
            .outerjoin(orders, orders.c.device == devices.c.id)
            .where(_due(now, renew_s))
            .order_by(func.coalesce(orders.c.next_at, 0.0), devices.c.id)
            .limit(limit)
        )  # fmt: skip
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            retries = _retries(connection, [row.id for row in rows])
            paths = _paths(connection, sorted({d for row in rows for d in row.wanted.values()}))
        found = []
        for row in rows:
            same = row.told == row.epoch
            found.append(
                DueOrder(
                    device=row.id,
                    hardware=row.hardware,
                    epoch=row.epoch,
                    models={model: paths.get(digest) for model, digest in row.wanted.items()},
                    version=row.version or 0,
                    revision=row.revision + 1 if same else 0,
                    tries=row.tries if same else 0,
                    acknowledged=row.acknowledged >= row.epoch,
                    retries={
                        model: epoch
                        for (device, model, digest), epoch in retries.items()
                        if device == row.id and row.wanted.get(model) == digest
                    },
                )
            )
        return found

    def told(self, done: Sequence[ToldOrder], now: float) -> None:
        """Write down what became of orders, in one transaction.

        One that did not reach the broker stays due. Where this is never written, since the server dies, they
        are told again: it is the same for the device.
        """
        rows: list[dict[str, Any]] = []
        for one in done:
            tries = one.order.tries + 1
            rows.append(
                {
                    "device": one.order.device,
                    # What was tried counts from here on, too: waits grow, whatever the trouble is.
                    "epoch": one.order.epoch,
                    "revision": one.order.revision,
                    "version": max(one.version, one.order.version),
                    "expires_at": one.expires_at,
                    "told_at": now if one.delivered else 0.0,
                    "tries": tries,
                    "next_at": one.next_at,
                    "problem": clean(one.problem),
                }
            )
        with self._database.write() as connection:
            known = {
                row.id
                for piece in pieces([row["device"] for row in rows])
                for row in connection.execute(select(devices.c.id).where(devices.c.id.in_(piece)))
            }
            upsert(connection, orders, [row for row in rows if row["device"] in known])

    def again(self) -> int:
        """Let all be told again that have not taken notice: the broker may have lost what it kept."""
        waiting = select(devices.c.id).where(devices.c.acknowledged < devices.c.epoch)
        with self._database.write() as connection:
            return connection.execute(
                update(orders).where(orders.c.device.in_(waiting)).values(told_at=0.0, next_at=0.0)
            ).rowcount

    def counts(self) -> dict[str, int]:
        """Return how many devices have an order, were ``told``, took notice of it, and are not told in full.

        The last, ``problem``, counts what could not be signed, and what the fleet's files do not say yet,
        which may have reached the device over the broker all the same.
        """
        live = devices.c.revoked_at.is_(None) & (devices.c.epoch > 0)
        query = (
            select(
                func.count().label("wanted"),
                _number((orders.c.epoch == devices.c.epoch) & (orders.c.told_at > 0)).label("told"),
                _number(devices.c.acknowledged >= devices.c.epoch).label("acknowledged"),
                _number(orders.c.problem != "").label("problem"),
            )
            .select_from(devices.outerjoin(orders, orders.c.device == devices.c.id))
            .where(live)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one()
        return {name: int(value or 0) for name, value in row._asdict().items()}


def _due(now: float, renew_s: float) -> ColumnElement[bool]:
    untold = or_(orders.c.device.is_(None), orders.c.epoch < devices.c.epoch)
    undelivered = and_(orders.c.told_at == 0.0, orders.c.next_at <= now)
    unheard = and_(
        devices.c.acknowledged < devices.c.epoch, devices.c.online.is_(True), orders.c.next_at <= now
    )
    # Devices that are ahead of the books would take no notice.
    expiring = and_(
        orders.c.expires_at < now + renew_s,
        orders.c.next_at <= now,
        devices.c.acknowledged <= devices.c.epoch,
    )
    live = and_(devices.c.revoked_at.is_(None), devices.c.fenced.is_(False), devices.c.epoch > 0)
    return and_(live, or_(untold, undelivered, unheard, expiring))


def _paths(connection: Connection, digests: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for piece in pieces(digests):
        query = select(artifacts.c.sha256, artifacts.c.path).where(artifacts.c.sha256.in_(piece))
        found |= {row.sha256: row.path for row in connection.execute(query)}
    return found


def _retries(connection: Connection, ids: Sequence[str]) -> dict[tuple[str, str, str], int]:
    """Return the epoch of the last order, by device, model and digest, where it was not the first."""
    found: dict[tuple[str, str, str], int] = {}
    for piece in pieces(ids):
        query = (
            select(assignments.c.device, rollouts.c.model, assignments.c.digest, assignments.c.epoch)
            .join(rollouts, rollouts.c.id == assignments.c.rollout)
            .where(
                assignments.c.device.in_(piece),
                assignments.c.attempts > 1,
                assignments.c.undone.is_(False),
            )
        )
        for device, model, digest, epoch in connection.execute(query):
            found[device, model, digest] = max(epoch, found.get((device, model, digest), 0))
    return found


def _number(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))
