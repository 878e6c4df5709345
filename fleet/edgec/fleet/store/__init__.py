"""What a fleet keeps: devices, releases, rollouts, telemetry and an audit log, on SQLite or PostgreSQL."""

from edgec.fleet.store._alerts import AlertRecord, Alerts, Condition, Delivery
from edgec.fleet.store._audit import AuditEntry, AuditLog
from edgec.fleet.store._claims import Claims
from edgec.fleet.store._credentials import Claim, Credential
from edgec.fleet.store._database import Database
from edgec.fleet.store._devices import DeviceRecord, Devices
from edgec.fleet.store._drift import Drift, DriftRow, Observed
from edgec.fleet.store._hours import HourOf
from edgec.fleet.store._labels import Term, matches, parse_query
from edgec.fleet.store._orders import DueOrder, Orders, ToldOrder
from edgec.fleet.store._rollouts import Incident, LoggedDecision, RolloutStore
from edgec.fleet.store._running import Running, RunningCount
from edgec.fleet.store._store import Store
from edgec.fleet.store._telemetry import StoredRecord, TelemetryStore

__all__ = [
    "AlertRecord",
    "Alerts",
    "AuditEntry",
    "AuditLog",
    "Claim",
    "Claims",
    "Condition",
    "Credential",
    "Database",
    "Delivery",
    "DeviceRecord",
    "Devices",
    "Drift",
    "DriftRow",
    "DueOrder",
    "HourOf",
    "Incident",
    "LoggedDecision",
    "Observed",
    "Orders",
    "RolloutStore",
    "Running",
    "RunningCount",
    "Store",
    "StoredRecord",
    "TelemetryStore",
    "Term",
    "ToldOrder",
    "matches",
    "parse_query",
]
