"""The names of all MQTT topics, built and taken apart here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgec.errors import ProtocolError
from edgec.protocol._kinds import ID, IDENTIFIER, WORD

ROOT = "edgec/v1"
# What a device sends, by what its topic ends in, below .../d/<device>/up/.
STATE, REPORTED, TELEMETRY, EVENT, REPLY, REQUEST = "state", "reported", "tele", "event", "rsp", "req"
# What a device receives, below .../d/<device>/dn/.
DESIRED, COMMAND, ACK, RESPONSE = "desired", "cmd", "ack", "rsp"
_DEVICE = re.compile(
    rf"d/(?P<device>{IDENTIFIER})/(?P<way>up|dn)/(?P<kind>[a-z]+)(?:/(?P<name>[a-z][a-z0-9_]*))?"
)
_UP = {STATE: False, REPORTED: False, TELEMETRY: False, EVENT: False, REPLY: False, REQUEST: True}
_DOWN = {DESIRED: False, COMMAND: True, ACK: False, RESPONSE: False}


@dataclass(frozen=True, kw_only=True)
class Address:
    """What a topic says.

    Attributes:
        device: Id of the device that sends it or receives it.
        up: Whether the device sends it.
        kind: ``state``, ``reported``, ``tele``, ``event``, ``rsp``, ``req``; down: ``desired``, ``cmd``,
            ``ack``, ``rsp``.
        name: Of the command or of the service that is asked for; None for other kinds.
    """

    device: str
    up: bool
    kind: str
    name: str | None = None


class Topics:
    """Topics of one tenant: ``edgec/v1/<tenant>/d/<device>/up/state`` and so on."""

    def __init__(self, tenant: str) -> None:
        """Take the tenant's id.

        Raises:
            ProtocolError: It is no id, so that it could reach into another tenant's topics.
        """
        self.tenant = ID.read(tenant, "tenant")
        self._root = f"{ROOT}/{tenant}"

    def state(self, device: str) -> str:
        """Return where a device's `Presence` is retained, and its will goes."""
        return self._device(device, "up", STATE)

    def reported(self, device: str) -> str:
        """Return where a device sends `Reported`."""
        return self._device(device, "up", REPORTED)

    def telemetry(self, device: str) -> str:
        """Return where a device sends `Telemetry`."""
        return self._device(device, "up", TELEMETRY)

    def event(self, device: str) -> str:
        """Return where a device sends `DeviceEvent`."""
        return self._device(device, "up", EVENT)

    def reply(self, device: str) -> str:
        """Return where a device sends `CommandReply`."""
        return self._device(device, "up", REPLY)

    def request(self, device: str, service: str) -> str:
        """Return where a device asks for something: ``chunk``."""
        return self._device(device, "up", REQUEST, service)

    def desired(self, device: str) -> str:
        """Return where `Desired` is retained for a device."""
        return self._device(device, "dn", DESIRED)

    def command(self, device: str, name: str) -> str:
        """Return where a `Command` of this name goes to a device."""
        return self._device(device, "dn", COMMAND, name)

    def ack(self, device: str) -> str:
        """Return where `TelemetryAck` goes to a device."""
        return self._device(device, "dn", ACK)

    def response(self, device: str) -> str:
        """Return where answers to a device's requests go."""
        return self._device(device, "dn", RESPONSE)

    def poke(self, group: str) -> str:
        """Return where a group of devices is asked to look for news."""
        return f"{self._root}/g/{ID.read(group, 'group')}/dn/poke"

    def alerts(self) -> str:
        """Return where the fleet tells people of alerts; no device sends or receives anything there."""
        return f"{self._root}/alerts"

    def for_device(self, device: str, groups: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return what a device subscribes to; no two of them overlap."""
        return (f"{self._root}/d/{ID.read(device, 'device')}/dn/#", *(self.poke(g) for g in groups))

    def for_fleet(self) -> tuple[str, ...]:
        """Return what a fleet subscribes to; no two of them overlap.

        Overlapping filters would deliver twice (measured on Mosquitto). State and what is reported are apart
        from the rest, so that the rest can be shared among servers (``$share``) and these stay in order.
        """
        kinds = (STATE, REPORTED, TELEMETRY, EVENT, REPLY)
        return (*(f"{self._root}/d/+/up/{kind}" for kind in kinds), f"{self._root}/d/+/up/{REQUEST}/+")

    def parse(self, topic: str) -> Address | None:
        """Return what a device's topic says; None where it is a poke or not of this tenant and version.

        Raises:
            ProtocolError: It is below this tenant's devices, but none of the topics above.
        """
        prefix = f"{self._root}/"
        if not topic.startswith(f"{prefix}d/"):
            return None
        match = _DEVICE.fullmatch(topic[len(prefix) :])
        kinds = _UP if match and match["way"] == "up" else _DOWN
        if match is None or kinds.get(match["kind"]) is not (match["name"] is not None):
            raise ProtocolError(f"{topic!r:.120} is no topic of edgec's protocol, version 1")
        return Address(
            device=match["device"], up=match["way"] == "up", kind=match["kind"], name=match["name"]
        )

    def _device(self, device: str, way: str, kind: str, name: str | None = None) -> str:
        topic = f"{self._root}/d/{ID.read(device, 'device')}/{way}/{kind}"
        return topic if name is None else f"{topic}/{WORD.read(name, 'name')}"
