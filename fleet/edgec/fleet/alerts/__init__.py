"""What a person should know now: rules over what a fleet keeps, told to webhooks and over the broker."""

from edgec.fleet.alerts._rules import RULES, conditions
from edgec.fleet.alerts._settings import AlertSettings
from edgec.fleet.alerts._sinks import Courier, Sink, SinkError, Topic, Webhook, verify_signature
from edgec.fleet.alerts._watch import Watch

__all__ = [
    "RULES",
    "AlertSettings",
    "Courier",
    "Sink",
    "SinkError",
    "Topic",
    "Watch",
    "Webhook",
    "conditions",
    "verify_signature",
]
