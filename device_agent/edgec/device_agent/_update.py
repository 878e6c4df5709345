"""Updates as a pure function: a state and an event give the next state and what is to be done.

A phase is written to disk before its work begins, and work may be done twice; so after a loss of power at
any instruction the same work is done again and leads to the same end.
"""

from __future__ import annotations

from edgec.device_agent._events import (
    Abort,
    Acknowledged,
    Cancel,
    Crashed,
    Desired,
    Done,
    Effect,
    Event,
    Failed,
    Linked,
    Postponed,
    Started,
    Tell,
    Tick,
    Work,
    WorkName,
)
from edgec.device_agent._state import (
    Installed,
    Moment,
    Phase,
    Quarantined,
    Report,
    Result,
    State,
    Wanted,
)

__all__ = [
    "Abort",
    "Acknowledged",
    "Cancel",
    "Crashed",
    "Desired",
    "Done",
    "Effect",
    "Event",
    "Failed",
    "Installed",
    "Linked",
    "Moment",
    "Phase",
    "Postponed",
    "Quarantined",
    "Report",
    "Result",
    "Started",
    "State",
    "Tell",
    "Tick",
    "Wanted",
    "Work",
    "WorkName",
]
