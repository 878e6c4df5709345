"""What devices run, counted by artifact: asked often, so only devices that have changed are read."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from edgec.fleet.store._database import Database
from edgec.fleet.store._schema import artifacts, devices, quarantine
from edgec.fleet.store._views import view_from_dict

# Of what a statement takes as parameters.
_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Running:
    """An artifact that devices run.

    Attributes:
        digest: Its SHA-256.
        model: Name of its model.
        devices: How many run it, try it or are told to have it; revoked ones do not count.
        quarantined: Whether it may not be installed.
    """

    digest: str
    model: str
    devices: int
    quarantined: bool


class RunningCount:
    """Counts what devices run; safe from several threads.

    It remembers of each device what it runs, and at which change of it: an answer about a fleet where nothing
    has changed reads four numbers of each device, and no reports.
    """

    def __init__(self, database: Database) -> None:
        """Know nothing yet."""
        self._database = database
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[Any, ...], frozenset[str]]] = {}
        #: How many reports were read so far.
        self.read = 0

    def look(self) -> list[Running]:
        """Return what devices run now, of the artifacts that the registry has, by digest."""
        with self._lock, self._database.read() as connection:
            self._catch_up(connection)
            count = Counter(digest for _, digests in self._known.values() for digest in digests)
            query = select(artifacts.c.sha256, artifacts.c.model, quarantine.c.digest)
            query = query.outerjoin(quarantine, quarantine.c.digest == artifacts.c.sha256)
            rows = connection.execute(query.order_by(artifacts.c.sha256)).all()
        return [
            Running(digest=digest, model=model, devices=count[digest], quarantined=bad is not None)
            for digest, model, bad in rows
            if count[digest]
        ]

    def _catch_up(self, connection: Connection) -> None:
        c = devices.c
        query = select(c.id, c.revision, c.epoch, c.enrolled_at).where(c.revoked_at.is_(None))
        now = {row.id: tuple(row) for row in connection.execute(query)}
        self._known = {name: kept for name, kept in self._known.items() if kept[0] == now.get(name)}
        missing = [name for name in now if name not in self._known]
        self.read += len(missing)
        for name, view, wanted in _rows(connection, missing):
            self._known[name] = (now[name], _digests(view, wanted))


def _rows(connection: Connection, names: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    for first in range(0, len(names), _AT_ONCE):
        query = select(devices.c.id, devices.c.view, devices.c.wanted)
        for row in connection.execute(query.where(devices.c.id.in_(names[first : first + _AT_ONCE]))):
            yield row.id, row.view, row.wanted


def _digests(view: Mapping[str, Any], wanted: Mapping[str, str]) -> frozenset[str]:
    """Return what a device runs, tries or is told to have."""
    reported = view_from_dict(view).reported
    models = reported.models.values() if reported else ()
    found = {*wanted.values(), *(m.active for m in models), *(m.candidate for m in models)}
    return frozenset(digest for digest in found if digest is not None)
