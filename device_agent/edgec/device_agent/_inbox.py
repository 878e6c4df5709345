"""What comes in over the broker, each message to where it belongs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgec.errors import ProtocolError
from edgec.protocol import Chunk, Command, Desired, Inbound, TelemetryAck, Topics

if TYPE_CHECKING:
    from edgec.device_agent._orders import Orders
    from edgec.device_agent._reports import Reports
    from edgec.device_agent._supply import ChunkRequests
    from edgec.device_agent._uplink import Uplink
    from edgec.device_agent._wishes import Wishes

_log = logging.getLogger(__name__)


class Inbox:
    """Takes messages in, in the agent's thread.

    Args:
        device: Id of the device.
        topics: Of its tenant.
        wishes: Hears what is wanted.
        orders: Hears commands.
        uplink: Hears what the fleet has.
        reports: Likewise.
        chunks: Hears pieces of files; None without a broker.
    """

    def __init__(
        self,
        device: str,
        topics: Topics,
        *,
        wishes: Wishes,
        orders: Orders,
        uplink: Uplink,
        reports: Reports,
        chunks: ChunkRequests | None,
    ) -> None:
        self._device, self._topics = device, topics
        self._wishes, self._orders, self._chunks = wishes, orders, chunks
        self._uplink, self._reports = uplink, reports

    def take(self, inbound: Inbound) -> None:
        """Take a message in; what is no message of the protocol is passed over, whoever sent it."""
        try:
            self._understand(inbound)
        except ProtocolError as e:
            _log.warning("a message on %s is passed over: %s", inbound.topic, e)
        inbound.ack()

    def _understand(self, inbound: Inbound) -> None:
        address = self._topics.parse(inbound.topic)
        if address is None:
            self._wishes.look()
        elif address.device != self._device or address.up:
            raise ProtocolError("it is for somebody else")
        elif address.kind == "desired":
            if inbound.payload:
                self._wishes.hear(Desired.from_bytes(inbound.payload), retained=inbound.retained)
        elif address.kind == "cmd":
            command = Command.from_bytes(inbound.payload)
            if command.name != address.name:
                raise ProtocolError(f"command {command.name!r} came as {address.name!r}")
            self._orders.hear(command)
        elif address.kind == "ack":
            ack = TelemetryAck.from_bytes(inbound.payload)
            self._uplink.acknowledged(ack)
            self._reports.acknowledged(ack)
        elif self._chunks is not None:
            self._chunks.answer(Chunk.from_bytes(inbound.payload))
