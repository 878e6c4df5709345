"""What a device and its broker say to each other in a day, in bytes of MQTT packets (without TCP and TLS)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgec.device_agent._policy import DAY_S, TelemetryPolicy
from edgec.device_agent._telemetry import WINDOW_BYTES
from edgec.protocol import Presence, Telemetry, TelemetryAck, TelemetryRecord, Topics
from edgec.protocol._window import WINDOW_KIND

DAY_BYTES = 100_000
_PING = 2
_PUBACK = _CONNACK = 4
_SUBACK = 5
_SUBSCRIBE = 8
# A document of what is wanted, for a few models.
_DESIRED = 1000
_BOOT = "b" * 34


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of MQTT packets in a day.

    Attributes:
        telemetry: Messages with windows, their acknowledgements by the broker and by the fleet.
        keep_alive: Pings and their answers.
        connecting: Connecting, subscribing, and the presence that is told then.
    """

    telemetry: int
    keep_alive: int
    connecting: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.telemetry + self.keep_alive + self.connecting


def publish_bytes(topic: str, payload: int, *, qos: int = 1, properties: int | None = None) -> int:
    """Return the size of a PUBLISH packet.

    Args:
        topic: Of the message.
        payload: Bytes.
        qos: 0 or 1.
        properties: Bytes of MQTT 5 properties without their length; None for MQTT 3.1.1.
    """
    extra = 0 if properties is None else _length_bytes(properties) + properties
    rest = 2 + len(topic.encode()) + (2 if qos else 0) + extra + payload
    return 1 + _length_bytes(rest) + rest


def daily_traffic(
    *,
    tenant: str,
    device: str,
    models: int,
    policy: TelemetryPolicy | None = None,
    keep_alive_s: float = 60.0,
    connections: int = 4,
) -> Traffic:
    """Return what a day costs at the most, with every window as large as it may be and pings without a pause.

    Updates and samples are not in it, nor are events, which are rare.

    Args:
        tenant: Of the topics.
        device: Its id.
        models: That are observed.
        policy: None for the default.
        keep_alive_s: Of the connection.
        connections: Times that it has to be made anew.
    """
    policy = TelemetryPolicy() if policy is None else policy
    topics = Topics(tenant)
    windows = math.ceil(DAY_S / policy.interval_s)
    size = min(WINDOW_BYTES, math.floor(policy.max_bytes_per_day / windows / max(models, 1)))
    # In one message, as windows of all models end together.
    records = tuple(
        TelemetryRecord(offset=i, kind=WINDOW_KIND, at=1.8e9 + 0.5, payload=bytes(size))
        for i in range(models)
    )
    message = Telemetry(boot_id=_BOOT, first_seq=100_000, records=records, sent_at=1.8e9 + 0.5)
    ack = TelemetryAck(boot_id=_BOOT, seq=100_000)
    up = publish_bytes(topics.telemetry(device), len(message.to_bytes())) + _PUBACK
    down = publish_bytes(topics.ack(device), len(ack.to_bytes())) + _PUBACK
    return Traffic(
        telemetry=windows * (up + down),
        keep_alive=math.ceil(DAY_S / keep_alive_s) * 2 * _PING,
        connecting=connections * _connecting(topics, device),
    )


def _connecting(topics: Topics, device: str) -> int:
    presence = Presence(
        online=True,
        boot_epoch=10_000,
        boot_id=_BOOT,
        connection=10_000,
        agent="edgec 99.99.99",
        sent_at=1.8e9 + 0.5,
        hardware="h" * 24,
    )
    will, told = topics.state(device), len(presence.to_bytes())
    (subscribed,) = topics.for_device(device)
    connect = 14 + sum(2 + size for size in (len(device), len(will), told))
    return (
        connect
        + _CONNACK
        + _SUBSCRIBE
        + len(subscribed)
        + _SUBACK
        + publish_bytes(will, told)
        + _PUBACK
        + publish_bytes(topics.desired(device), _DESIRED)
        + _PUBACK
    )


def _length_bytes(length: int) -> int:
    """Return how many bytes a variable length takes."""
    return 1 if length < 128 else 2 if length < 16_384 else 3 if length < 2_097_152 else 4
