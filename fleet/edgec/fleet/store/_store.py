"""All that a fleet keeps, over one database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgec.fleet.store._alerts import Alerts
from edgec.fleet.store._audit import AuditLog
from edgec.fleet.store._database import Database
from edgec.fleet.store._devices import Devices
from edgec.fleet.store._drift import Drift
from edgec.fleet.store._hearing import Said, hear
from edgec.fleet.store._orders import Orders
from edgec.fleet.store._rollouts import RolloutStore
from edgec.fleet.store._telemetry import TelemetryStore, Told, keep
from edgec.protocol import DeviceView, TelemetryAck


class Store:
    """What a fleet keeps; safe from several threads, and on PostgreSQL for several servers.

    Attributes:
        database: Below it all.
        devices: Who they are, and what is believed of them.
        telemetry: What they say.
        rollouts: What they are told.
        orders: How far they are told it.
        alerts: What a person should know.
        drift: How far outputs have moved.
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
        self.orders = Orders(self.database)
        self.alerts = Alerts(self.database)
        self.drift = Drift(self.database)
        self.audit = AuditLog(self.database)

    def ingest(
        self, said: Sequence[tuple[str, Said]], told: Sequence[tuple[str, Told]], now: float
    ) -> tuple[dict[str, DeviceView], list[tuple[str, TelemetryAck]]]:
        """Believe what devices say of themselves and keep what they tell, all in one transaction.

        Args:
            said: Device and message, in the order they came; see `Devices.heard`.
            told: Likewise; see `TelemetryStore.ingest`.
            now: Seconds by the fleet's clock.

        Returns:
            What is believed of those that said something, and acknowledgements to send, true now. Devices
            that are not in the fleet, or were revoked, are in neither.
        """
        with self.database.write() as connection:
            views = hear(connection, said, now)
            return views, keep(connection, told, now)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
