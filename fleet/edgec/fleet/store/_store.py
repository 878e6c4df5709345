"""All that a fleet keeps, over one database."""

from __future__ import annotations

from pathlib import Path

from edgec.fleet.store._audit import AuditLog
from edgec.fleet.store._database import Database
from edgec.fleet.store._devices import Devices
from edgec.fleet.store._rollouts import RolloutStore
from edgec.fleet.store._telemetry import TelemetryStore


class Store:
    """What a fleet keeps; safe from several threads, and on PostgreSQL for several servers.

    Attributes:
        database: Below it all.
        devices: Who they are, and what is believed of them.
        telemetry: What they say.
        rollouts: What they are told.
        audit: Who has changed what.
    """

    def __init__(self, url: str | Path) -> None:
        """Open a database; see `Database`.

        Raises:
            FleetError: It cannot be opened.
            MissingExtraError: PostgreSQL needs the extra ``postgres``.
        """
        self.database = Database(url)
        self.devices = Devices(self.database)
        self.telemetry = TelemetryStore(self.database)
        self.rollouts = RolloutStore(self.database)
        self.audit = AuditLog(self.database)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
