"""The agent on a device: keeps its models as the fleet wants them, and tells how they do."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgec.device_agent._agent import Agent
    from edgec.device_agent._applications import SocketApplications
    from edgec.device_agent._audit import AuditCheck, AuditLog
    from edgec.device_agent._config import (
        AgentConfig,
        ApplicationSettings,
        BrokerSettings,
        UpdateSettings,
        make_config,
        read_config,
    )
    from edgec.device_agent._device_status import AgentStatus, ModelStatus, read_status
    from edgec.device_agent._findings import Finding, Verdict
    from edgec.device_agent._health import HealthBudgets, HealthReport, check_health
    from edgec.device_agent._judging import (
        ProbationCriteria,
        ShadowCriteria,
        ShadowGate,
        judge_probation,
        judge_shadow,
    )
    from edgec.device_agent._operations import RemoteOperations
    from edgec.device_agent._outbox import Outbox
    from edgec.device_agent._outbox_records import OutboxRecord, OutboxState, Priority
    from edgec.device_agent._policy import TelemetryPolicy
    from edgec.device_agent._rates import Rate
    from edgec.device_agent._seams import Applications, Clock, Link, Operations, OrderRefusedError, Trial
    from edgec.device_agent._telemetry import Telemetry, encode_window, system_state
    from edgec.device_agent._traffic import Traffic, daily_traffic

__all__ = [
    "Agent",
    "AgentConfig",
    "AgentStatus",
    "ApplicationSettings",
    "Applications",
    "AuditCheck",
    "AuditLog",
    "BrokerSettings",
    "Clock",
    "Finding",
    "HealthBudgets",
    "HealthReport",
    "Link",
    "ModelStatus",
    "Operations",
    "OrderRefusedError",
    "Outbox",
    "OutboxRecord",
    "OutboxState",
    "Priority",
    "ProbationCriteria",
    "Rate",
    "RemoteOperations",
    "ShadowCriteria",
    "ShadowGate",
    "SocketApplications",
    "Telemetry",
    "TelemetryPolicy",
    "Traffic",
    "Trial",
    "UpdateSettings",
    "Verdict",
    "check_health",
    "daily_traffic",
    "encode_window",
    "judge_probation",
    "judge_shadow",
    "make_config",
    "read_config",
    "read_status",
    "system_state",
]

# Imported when asked for: the process that tries a model, for one, needs little of it.
_LATER = {
    "Agent": "_agent",
    "AgentConfig": "_config",
    "AgentStatus": "_device_status",
    "ApplicationSettings": "_config",
    "Applications": "_seams",
    "AuditCheck": "_audit",
    "AuditLog": "_audit",
    "BrokerSettings": "_config",
    "Clock": "_seams",
    "Finding": "_findings",
    "HealthBudgets": "_health",
    "HealthReport": "_health",
    "Link": "_seams",
    "ModelStatus": "_device_status",
    "Operations": "_seams",
    "OrderRefusedError": "_seams",
    "Outbox": "_outbox",
    "OutboxRecord": "_outbox_records",
    "OutboxState": "_outbox_records",
    "Priority": "_outbox_records",
    "ProbationCriteria": "_judging",
    "Rate": "_rates",
    "RemoteOperations": "_operations",
    "ShadowCriteria": "_judging",
    "ShadowGate": "_judging",
    "SocketApplications": "_applications",
    "Telemetry": "_telemetry",
    "TelemetryPolicy": "_policy",
    "Traffic": "_traffic",
    "Trial": "_seams",
    "UpdateSettings": "_config",
    "Verdict": "_findings",
    "check_health": "_health",
    "daily_traffic": "_traffic",
    "encode_window": "_telemetry",
    "judge_probation": "_judging",
    "judge_shadow": "_judging",
    "make_config": "_config",
    "read_config": "_config",
    "read_status": "_device_status",
    "system_state": "_telemetry",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
