"""Commands to devices: signed, sent until they are answered, and each answer told to who waits for it."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgec.errors import FleetError, LinkError
from edgec.fleet.mqtt._counters import Counters
from edgec.fleet.service import Fleet
from edgec.protocol import Command, CommandReply, Issued, MqttLink, Outgoing, Topics
from edgec.trust import sign_command

# A device that is slow to begin may still obey: clocks differ by seconds.
_GRACE_S = 60.0


class Commands:
    """Sends commands over a link. Any thread may send, and waits alone."""

    def __init__(self, fleet: Fleet, link: MqttLink, topics: Topics, counters: Counters) -> None:
        """Send commands of a fleet."""
        self._fleet, self._link, self._topics, self._counters = fleet, link, topics, counters
        self._changed = threading.Condition()
        self._issued: dict[str, Issued] = {}
        self._devices: dict[str, str] = {}
        self._closed = False

    def send(
        self,
        device: str,
        name: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 30.0,
        actor: str = "fleet",
    ) -> CommandReply:
        """Send a command and wait for its last reply: `MqttSide.send_command`."""
        record = self._fleet.store.devices.get(device)
        if record.revoked_at is not None:
            raise FleetError(f"{device} was revoked", "revoked")
        if record.fenced:
            raise FleetError(f"several machines are {device}; settle which one first", "refused")
        now = self._fleet.clock()
        command = self._signed(device, name, args, now, timeout_s + _GRACE_S)
        self._fleet.store.audit.add(now, actor, "device.command", device, {"name": name, "id": command.id})
        with self._changed:
            self._issued[command.id] = Issued(command=command)
            self._devices[command.id] = device
        try:
            reply = self._follow(device, command, timeout_s)
        finally:
            with self._changed:
                del self._issued[command.id], self._devices[command.id]
        self._counters.count("commands", "unanswered" if reply is None else reply.state)
        if reply is None:
            where = "is connected" if record.online else "is not connected"
            raise FleetError(f"{device} did not answer {name} within {timeout_s:g} s; it {where}", "timeout")
        return reply

    def take(self, device: str, reply: CommandReply) -> None:
        """Take a reply in; one of another device changes nothing."""
        with self._changed:
            issued = self._issued.get(reply.id)
            if issued is not None and self._devices[reply.id] == device:
                self._issued[reply.id] = issued.after_reply(reply)
                self._changed.notify_all()

    def close(self) -> None:
        """Let all who wait go on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _signed(
        self, device: str, name: str, args: Mapping[str, Any] | None, now: float, valid_s: float
    ) -> Command:
        ring = self._fleet.ring
        signers = ring.signers([key.keyid for key in ring.of_role("director")])
        envelope = sign_command(signers, name, args, device=device, issued_at=now, valid_s=valid_s)
        said = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        return Command(
            id=said["id"],
            name=name,
            issued_at=said["issued_at"],
            expires_at=said["expires_at"],
            envelope=envelope.decode(),
        )

    def _follow(self, device: str, command: Command, timeout_s: float) -> CommandReply | None:
        """Send until a last reply comes or the time is over; return the last that came."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                issued, now = self._issued[command.id], self._fleet.clock()
                left = deadline - time.monotonic()
                if issued.over(now) or left <= 0 or self._closed:
                    return issued.reply
                due = issued.due(now)
                if not due:
                    self._changed.wait(min(left, max(issued.next_at - now, 0.05)))
            if due:
                self._publish(device, command)

    def _publish(self, device: str, command: Command) -> None:
        expires_in = max(int(command.expires_at - self._fleet.clock()), 1)
        message = Outgoing(
            topic=self._topics.command(device, command.name),
            payload=command.to_bytes(),
            expiry_s=expires_in,
            content_type="application/json",
            correlation=command.id.encode(),
        )
        try:
            self._link.publish(message)
        except LinkError:
            # It is sent again when there is a connection.
            time.sleep(0.1)
            return
        with self._changed:
            if command.id in self._issued:
                self._issued[command.id] = self._issued[command.id].after_sending(self._fleet.clock())


SendCommand = Callable[..., CommandReply]
